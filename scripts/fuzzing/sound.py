"""Small sound slides of each kind, and where in them the parts lie that can be changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from slide_files import write_jpeg_slide

from fuzzing.dicom import Element, write_dicom
from fuzzing.ndpi import write_ndpi
from wsi_meta.demo.pyramid_writer import halved

__all__ = ["KINDS", "Field", "Parts", "SoundSlide", "draw_tissue", "write_sound"]

TILE_PX = 64
SHAPE = (448, 512)
"""Pixels of level 0; each level after it is half as large, in whole tiles where that is possible."""
MPPS = (0.972, 0.486, 0.4)
"""The model's resolution, one that has it as level 1, and one of which level 0 is averaged down."""
SCANNER = "Aperio Image Library v11.2.1 \n{width}x{height} (64x64) JPEG/RGB Q=90|AppMag = 20|MPP = {mpp}|Left = 1.5|Title = t"

ENDINGS = {"svs": ".svs", "dicom": ".dcm", "ndpi": ".ndpi"}
"""How files are called whose kind has a name of its own."""

Rng = np.random.Generator


@dataclass(frozen=True)
class Field:
    """An entry of a TIFF's directory."""

    entry: int
    """Where it stands in the file: number, type, count, value or its place."""
    code: int
    dtype: int
    count: int
    value: int
    """Where its value stands."""


@dataclass(frozen=True)
class Parts:
    """Where the parts of a slide's file lie."""

    fields: tuple[Field, ...] = ()
    tiles: tuple[tuple[int, int], ...] = ()
    """Place and length of each stored tile of all levels."""
    elements: tuple[Element, ...] = ()
    """Of a DICOM file."""
    pages: tuple[int, ...] = ()
    """Where each directory of a TIFF begins."""
    big: bool = False


@dataclass(frozen=True)
class SoundSlide:
    """A slide as it was before it was damaged."""

    path: Path
    kind: str
    mpp: float
    parts: Parts


def draw_tissue(rng: Rng, shape: tuple[int, int] = SHAPE) -> NDArray[np.uint8]:
    """Draw blocks of tissue's colours of 8 px, of very different brightness, so that a shift by a pixel shows; uint8 RGB."""
    height, width = shape
    rows, cols = height // 8 + 1, width // 8 + 1
    light = np.kron(rng.uniform(0.45, 1, (rows, cols, 1)), np.ones((8, 8, 1)))[:height, :width]
    image = light * np.array([225, 120, 190]) + rng.normal(0, 4, (height, width, 1))
    return np.asarray(image.clip(0, 255), np.uint8)


def write_sound(folder: Path, rng: Rng) -> SoundSlide:
    """Write a slide of some kind and resolution."""
    kind = str(rng.choice(list(KINDS)))
    mpp, image = float(rng.choice(MPPS)), draw_tissue(rng)
    folder.mkdir()
    path = folder / f"slide{ENDINGS.get(kind, '.tif')}"
    return SoundSlide(path, kind, mpp, KINDS[kind](path, image, mpp))


def _levels(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [image, halved(image), halved(halved(image))]


def _jpeg(path: Path, image: NDArray[np.uint8], mpp: float) -> Parts:
    write_jpeg_slide(path, _levels(image), tile_px=TILE_PX, mpp=mpp)
    return _tiff_parts(path)


def _shared(path: Path, image: NDArray[np.uint8], mpp: float) -> Parts:
    write_jpeg_slide(path, _levels(image), tile_px=TILE_PX, mpp=mpp, tables="shared", subsampling="422")
    return _tiff_parts(path)


def _rgb(path: Path, image: NDArray[np.uint8], mpp: float) -> Parts:
    write_jpeg_slide(path, _levels(image), tile_px=TILE_PX, mpp=mpp, photometric="rgb")
    return _tiff_parts(path)


def _svs(path: Path, image: NDArray[np.uint8], mpp: float) -> Parts:
    levels = _levels(image)
    said = [SCANNER.format(width=level.shape[1], height=level.shape[0], mpp=mpp) for level in levels]
    write_jpeg_slide(path, levels, tile_px=TILE_PX, mpp=mpp, descriptions=said)
    return _tiff_parts(path)


def _bigtiff(path: Path, image: NDArray[np.uint8], mpp: float) -> Parts:
    write_jpeg_slide(path, _levels(image), tile_px=TILE_PX, mpp=mpp, bigtiff=True, subsampling="444")
    return _tiff_parts(path)


def _deflate(path: Path, image: NDArray[np.uint8], mpp: float) -> Parts:
    return _lossless(path, image, mpp, "adobe_deflate")


def _lzw(path: Path, image: NDArray[np.uint8], mpp: float) -> Parts:
    return _lossless(path, image, mpp, "lzw")


def _lossless(path: Path, image: NDArray[np.uint8], mpp: float, compression: str) -> Parts:
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(_levels(image)):
            file.write(
                level,
                subfiletype=int(number > 0),
                resolution=(1e4 / mpp / 2**number,) * 2,
                photometric="rgb",
                tile=(TILE_PX, TILE_PX),
                compression=compression,
                predictor=True,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return _tiff_parts(path)


def _dicom(path: Path, image: NDArray[np.uint8], mpp: float) -> Parts:
    elements = write_dicom(path, image, mpp=mpp, tile_px=TILE_PX, listed=mpp < MPPS[0])
    tiles = [(part.value, part.length) for part in elements[-(image.shape[0] // TILE_PX) * (image.shape[1] // TILE_PX) :]]
    return Parts(tiles=tuple(tiles), elements=tuple(elements))


def _ndpi(path: Path, image: NDArray[np.uint8], mpp: float) -> Parts:
    return _tiff_parts(write_ndpi(path, _levels(image), mpp=mpp))


KINDS: dict[str, Callable[[Path, NDArray[np.uint8], float], Parts]] = {
    "jpeg": _jpeg,
    "shared": _shared,
    "rgb": _rgb,
    "svs": _svs,
    "bigtiff": _bigtiff,
    "deflate": _deflate,
    "lzw": _lzw,
    "dicom": _dicom,
    "ndpi": _ndpi,
}
"""What writes each kind of slide."""


def _tiff_parts(path: Path) -> Parts:
    fields, tiles, pages = list[Field](), list[tuple[int, int]](), list[int]()
    with tifffile.TiffFile(path) as file:
        for page in file.pages:
            assert isinstance(page, tifffile.TiffPage)
            pages.append(page.offset)
            tiles += zip(page.dataoffsets, page.databytecounts, strict=True)
            fields += [Field(tag.offset, tag.code, int(tag.dtype), tag.count, tag.valueoffset) for tag in page.tags]
        return Parts(tuple(fields), tuple(tiles), pages=tuple(pages), big=file.is_bigtiff)
