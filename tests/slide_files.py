"""Slides that tests write for themselves."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

from wsi_meta.demo.pyramid_writer import write_pyramid

MODEL_MPP = 0.972


def texture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth noise in the colours of tissue: uint8 (height, width, 3)."""
    return _texture(height, width, seed).copy()


@lru_cache(maxsize=64)  # many tests draw the same
def _texture(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers((140, 50, 120), (230, 130, 200), (height // 16 + 2, width // 16 + 2, 3))
    fine = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
    return np.asarray((fine + rng.normal(0, 12, fine.shape)).clip(0, 255), np.uint8)


def write_slide(path: Path, image: NDArray[np.uint8], mpp: float = MODEL_MPP, *, levels: int = 1) -> Path:
    return write_pyramid(path, image, mpp=mpp, tile_px=256, lossless=True, levels=levels)


def write_ome_zarr(folder: Path, image: NDArray[np.uint8], mpp: float = MODEL_MPP) -> Path:
    """A slide that is a folder: OME-Zarr 0.5 of one level."""
    group = zarr.create_group(folder)
    group.create_array("0", data=np.ascontiguousarray(image.transpose(2, 0, 1)), chunks=(3, 256, 256))
    axes: list[Any] = [{"name": "c", "type": "channel"}] + [
        {"name": name, "type": "space", "unit": "micrometer"} for name in "yx"
    ]
    level: dict[str, Any] = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, mpp, mpp]}]}
    multiscales: list[Any] = [{"axes": axes, "datasets": [level]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    return folder


def write_sparse_slide(
    path: Path, shape: tuple[int, int], mpp: float, marks: Sequence[tuple[int, int, int]], tile_px: int = 1024
) -> Path:
    """A huge slide of which only the tiles with black square marks (x, y, side) are stored; the rest is transparent."""
    tile_rows, tile_cols = (-(-side // tile_px) for side in shape)
    canvas: dict[tuple[int, int], NDArray[np.uint8]] = {}
    for x, y, mark_px in marks:
        row, col = y // tile_px, x // tile_px
        tile = canvas.setdefault((row, col), np.full((tile_px, tile_px, 3), 255, np.uint8))
        tile[y - row * tile_px : y - row * tile_px + mark_px, x - col * tile_px : x - col * tile_px + mark_px] = 0
    encoded = {place: zlib.compress(tile.tobytes()) for place, tile in canvas.items()}
    stored = (encoded.get((row, col), b"") for row in range(tile_rows) for col in range(tile_cols))
    tifffile.imwrite(
        path,
        stored,
        shape=(*shape, 3),
        dtype=np.uint8,
        tile=(tile_px, tile_px),
        photometric="rgb",
        compression="adobe_deflate",
        resolution=(1e4 / mpp, 1e4 / mpp),
        resolutionunit="CENTIMETER",
        metadata=None,
        bigtiff=True,
    )
    return path


def write_jpeg_slide(
    path: Path,
    levels: Sequence[NDArray[np.uint8]],
    *,
    tile_px: int = 256,
    photometric: str = "ycbcr",
    subsampling: str = "420",
    tables: str = "own",
    remark: bytes = b"",
    left_out: Collection[int] = (),
    left_out_by_level: Sequence[Collection[int]] = (),
    nested: bool = False,
    descriptions: Sequence[str] = (),
    software: str = "tests",
    bigtiff: bool = False,
    mpp: float = MODEL_MPP,
) -> Path:
    """A TIFF of JPEG tiles; `tables`: a tile's ``own``, or ``shared`` by all, without a word on colours but a `remark`.

    `left_out` are tiles of every level, `left_out_by_level` those of each; with `nested` coarser levels lie in the first page.
    """
    factors = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}[subsampling if photometric == "ycbcr" else "444"]
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as file:
        for number, image in enumerate(levels):
            encoded = list(_jpegs(image, tile_px, photometric, subsampling))
            shared, bare = _split(encoded[0])[0], [_split(jpeg)[1] for jpeg in encoded]
            stored = bare if tables == "shared" else encoded
            gaps = left_out_by_level[number] if left_out_by_level else left_out
            file.write(
                (b"" if place in gaps else jpeg for place, jpeg in enumerate(stored)),
                shape=image.shape,
                dtype=np.uint8,
                tile=(tile_px, tile_px),
                photometric=photometric,
                subsampling=factors if photometric == "ycbcr" else None,
                compression="jpeg",
                compressionargs={"outcolorspace": photometric},  # else tifffile tags RGB as YCbCr
                jpegtables=shared[:2] + remark + shared[2:] if tables == "shared" else None,
                subfiletype=int(number > 0),
                subifds=len(levels) - 1 if nested and not number else None,
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
                description=descriptions[number] if descriptions else None,
                software=software,
                metadata=None,
            )
    return path


def write_scn(
    path: Path, image: NDArray[np.uint8], corner: tuple[int, int], glass: tuple[int, int], compression: str = "deflate"
) -> Path:
    """A Leica SCN with one scanned area on a larger glass (width, height), which OpenSlide gives bounds."""
    (height, width), nm = image.shape[:2], round(MODEL_MPP * 1000)
    text = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="c" barcode="" sizeX="{glass[0] * nm}" sizeY="{glass[1] * nm}"><barcode>x</barcode>'
        '<image name="main"><creationDate>2020-01-01T00:00:00Z</creationDate>'
        '<device model="Leica SCN400;Leica SCN" version="1.4.0"/>'
        f'<pixels sizeX="{width}" sizeY="{height}"><dimension sizeX="{width}" sizeY="{height}" r="0" ifd="0"/></pixels>'
        f'<view sizeX="{width * nm}" sizeY="{height * nm}" offsetX="{corner[0] * nm}" offsetY="{corner[1] * nm}" spacingZ="0"/>'
        "<scanSettings><objectiveSettings><objective>10</objective></objectiveSettings><illuminationSettings>"
        "<numericalAperture>0.3</numericalAperture><illuminationSource>brightfield</illuminationSource>"
        "</illuminationSettings></scanSettings></image></collection></scn>"
    )
    options: dict[str, Any] = {"photometric": "rgb", "tile": (256, 256), "compression": compression, "metadata": None}
    options |= {"resolution": (1e4 / MODEL_MPP, 1e4 / MODEL_MPP), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, image, bigtiff=True, description=text, **options)
    return path


def _jpegs(image: NDArray[np.uint8], tile_px: int, photometric: str, subsampling: str) -> Iterator[bytes]:
    """Cut into tiles, those at the edges filled up with grey, and encode them."""
    for row in range(0, image.shape[0], tile_px):
        for col in range(0, image.shape[1], tile_px):
            part = image[row : row + tile_px, col : col + tile_px]
            tile = np.full((tile_px, tile_px, 3), 90, np.uint8)
            tile[: part.shape[0], : part.shape[1]] = part
            if photometric == "ycbcr":
                yield bytes(imagecodecs.jpeg8_encode(tile, level=90, subsampling=subsampling))
            else:
                yield bytes(imagecodecs.jpeg8_encode(tile, level=90, outcolorspace="rgb"))


def _split(jpeg: bytes) -> tuple[bytes, bytes]:
    """Split a JPEG into its tables and the rest, which says nothing of its colours: components 1, 2, 3, no APP marker."""
    tables, rest, at = b"", b"", 2
    while True:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        segment = bytearray(jpeg[at : at + 2 + length])
        at += 2 + length
        if marker in (0xDB, 0xC4):
            tables += segment
        elif marker == 0xC0:
            segment[10::3] = b"\x01\x02\x03"
            rest += segment
        elif marker == 0xDA:
            segment[5:11:2] = b"\x01\x02\x03"
            return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + segment + jpeg[at:]


def damage_tile(path: Path, index: int, level: int = 0) -> None:
    """Overwrite one stored tile with bytes that do not decode."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[level]
        assert isinstance(page, tifffile.TiffPage)
        offset, count = page.dataoffsets[index], page.databytecounts[index]
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * count)


def set_tag(path: Path, tag: str, value: int, *, page: int = 0) -> None:
    """Replace the value of a tag that stands in the directory of a classic TIFF; it becomes 32 bits wide."""
    with tifffile.TiffFile(path) as file:
        entry, order = _page(file, page).tags[tag], file.byteorder
    overwrite(path, entry.offset + 2, struct.pack(order + "H", 4))
    overwrite(path, entry.offset + 8, struct.pack(order + "I", value))


def set_tile_tag(path: Path, tag: str, index: int, value: int, *, page: int = 0) -> None:
    """Replace one of the numbers of a tag of a classic TIFF's page that has one for each tile."""
    with tifffile.TiffFile(path) as file:
        entry, order = _page(file, page).tags[tag], file.byteorder
    form = {3: "H", 4: "I"}[int(entry.dtype)]
    overwrite(path, entry.valueoffset + struct.calcsize(form) * index, struct.pack(order + form, value))


def rename_tag(path: Path, tag: str, code: int, *, page: int = 0) -> None:
    """Give a tag another number, so that readers do not find it."""
    with tifffile.TiffFile(path) as file:
        entry, order = _page(file, page).tags[tag], file.byteorder
    overwrite(path, entry.offset, struct.pack(order + "H", code))


def stored_tiles(path: Path, level: int = 0) -> list[tuple[int, int]]:
    """Return offset and length of each tile of a level."""
    with tifffile.TiffFile(path) as file:
        page = _page(file, level)
        return list(zip(page.dataoffsets, page.databytecounts, strict=True))


def with_undefined_code(lzw: bytes | bytearray) -> bytes:
    """LZW whose first code stands for nothing yet: after nine bits for 256, nine bits for 300."""
    return bytes([0x80, 0x4B, lzw[2] & 0x3F, *lzw[3:]])


def overwrite(path: Path, offset: int, content: bytes) -> None:
    """Write bytes into a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def _page(file: tifffile.TiffFile, number: int) -> tifffile.TiffPage:
    page = file.pages[number]
    assert isinstance(page, tifffile.TiffPage)
    return page
