"""A slide as large as Camelyon's, written in seconds: for measuring speed and memory, not for judging a model.

One picture of tissue is repeated, tile by tile, wherever an irregular shape says tissue; the rest is glass. Every coarser level
is the halved finer one, also along the tissue's edge. Every tile of every level has its own bytes in the file, as in
a scanner's, so no reader can answer for one tile with what it kept of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tissue_pictures import MODEL_DOWNSAMPLE, assemble_tissue, draw_tissue

from wsi_meta.demo.pyramid_writer import JPEG_QUALITY, halved
from wsi_meta.demo.synthetic import GLASS
from wsi_meta.demo.synthetic import MPP as PLAIN_MPP
from wsi_meta.outputs.writing import written_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SIZES", "TISSUE_PX", "make_slide", "tissue_shape", "write_large_slide"]

FULL_SIZE = (97_792, 221_184)
"""Width and height of a Camelyon16 slide, level-0 pixels."""
TISSUE_PX = 171_000_000
"""Tissue of a mean Camelyon16 slide, pixels at 0.972 um."""
SIZES = {"full": 1, "1/4": 2, "1/16": 4}
"""Names of smaller slides, by their share of the area, and what each side is divided by."""
TILE_PX = 512
"""Side of a stored tile, and the grain of the tissue's shape at level 0."""
PHILIPS_MPP = 0.243094
"""Micrometres per level-0 pixel, as the slides from Nijmegen state: the level that a model sees is a little off its 0.972."""
PHILIPS = """<?xml version="1.0" encoding="UTF-8" ?>
<DataObject ObjectType="DPUfsImport"><Attribute Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject ObjectType="DPScannedImage">
<Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute><Attribute Name="DICOM_PIXEL_SPACING">{spacing}</Attribute>
<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{levels}</Array></Attribute>
</DataObject></Array></Attribute></DataObject>"""
PHILIPS_LEVEL = """<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028"
Element="0x0030" PMSVR="IDoubleArray">{spacing}</Attribute></DataObject>"""
"""What a slide of Camelyon16 says of itself."""


def make_slide(
    folder: Path, size: str, *, patches: Path | None = None, tissue_px: int = TISSUE_PX, plain: bool = False
) -> Path:
    """Return a slide in a folder; write it unless an earlier run left it there.

    Parameters
    ----------
    folder : where the slide is, or will be
    size : one of :data:`SIZES`
    patches : folder of real patches to make tissue of; None draws it
    tissue_px : tissue of the full slide, pixels at 0.972 um; a smaller slide has its share of it
    plain : as for :func:`write_large_slide`
    """
    divisor, kind = SIZES[size], "patches" if patches else "drawn"
    form = "plain" if plain else "philips"
    path = folder / f"{kind}-{size.replace('/', '_')}-{tissue_px / 1e6:.0f}Mpx-{form}.tif"
    if not path.exists():
        picture = assemble_tissue(patches) if patches else draw_tissue()
        width, height = (side // divisor for side in FULL_SIZE)
        write_large_slide(path, picture, width=width, height=height, tissue_px=tissue_px // divisor**2, plain=plain)
    return path


def tissue_shape(rows: int, cols: int, count: int, *, seed: int = 0) -> NDArray[np.bool_]:
    """Draw an irregular shape: a few pieces with ragged borders, away from the slide's edge.

    Parameters
    ----------
    rows, cols : of the shape
    count : elements that become tissue
    seed : of the drawing

    Returns
    -------
    bool (rows, cols), exactly `count` of them True.

    Raises
    ------
    ValueError
        when `count` is below 1 or more than there are.
    """
    from scipy.ndimage import gaussian_filter

    if not 1 <= count <= rows * cols:
        raise ValueError(f"count: {count}; expected 1 to {rows * cols}, the tiles of the slide")
    rng = np.random.default_rng(seed)
    y, x = np.linspace(-1, 1, rows)[:, None], np.linspace(-1, 1, cols)[None, :]
    field = -2.5 * np.maximum(np.abs(y), np.abs(x)) ** 4
    for feature, weight in ((min(rows, cols) / 6, 1.0), (min(rows, cols) / 30, 0.25)):
        noise = gaussian_filter(rng.standard_normal((rows, cols)), feature, mode="reflect")
        field = field + weight * noise / noise.std()
    shape = np.zeros(rows * cols, bool)
    shape[np.argsort(field, axis=None, kind="stable")[-count:]] = True
    return shape.reshape(rows, cols)


def write_large_slide(
    path: str | Path,
    picture: NDArray[np.uint8],
    *,
    width: int = FULL_SIZE[0],
    height: int = FULL_SIZE[1],
    tissue_px: int = TISSUE_PX,
    seed: int = 0,
    plain: bool = False,
) -> Path:
    """Write a slide in the form of Camelyon16's: a BigTIFF in Philips' form, JPEG in tiles, levels padded to whole tiles.

    Its pixels are of 0.243094 um, so that the level which a model sees is a little off.

    Streamed: in memory are the picture, its encoded tiles, and two levels' tiles along the tissue's edge at half size.

    Parameters
    ----------
    path : where to write; replaced if it exists
    picture : uint8 (side, side, 3), RGB; the side a power of two times 512: level 0 of the tissue that is repeated
    width, height : level-0 pixels
    tissue_px : area of tissue, pixels at 0.972 um (16 of level 0 each); rounded to whole tiles of level 0
    seed : of the tissue's shape
    plain : a TIFF without Philips' XML and padding instead, of 0.243 um, which fits exactly: for TIAToolbox 2.1.3, which opens
        no TIFF whose description is XML without a namespace

    Returns
    -------
    `path`, as a Path.

    Raises
    ------
    ValueError
        when `picture` cannot be repeated, or there is not that much room for tissue.
    OutputPathError
        when it cannot be written.
    """
    _check_picture(picture)
    count = round(tissue_px * MODEL_DOWNSAMPLE**2 / TILE_PX**2)
    tissue = tissue_shape(-(-height // TILE_PX), -(-width // TILE_PX), count, seed=seed)
    form = _plain_page if plain else _philips_page
    with written_whole(Path(path)) as partial:
        _write(partial, _levels(picture, tissue, width, height), lambda number: form(number, width, height))
    return Path(path)


def _check_picture(picture: NDArray[np.uint8]) -> None:
    side = picture.shape[0]
    tiles = side // TILE_PX
    if picture.dtype != np.uint8 or picture.shape != (side, side, 3) or side % TILE_PX or not tiles or tiles & (tiles - 1):
        raise ValueError(
            f"picture: {picture.dtype} {picture.shape}; expected uint8, a square, its side 512 times a power of two"
        )


def _write(path: Path, levels: Iterator[Iterator[bytes]], page_of: Callable[[int], dict[str, Any]]) -> None:
    """Write the levels' encoded tiles as the pages of one TIFF; all but the first are marked as reduced."""
    import tifffile

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, tiles in enumerate(levels):
            file.write(
                tiles,
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",  # becomes YCbCr with colour at half the resolution, and is tagged so: as encoded
                compression="jpeg",
                subfiletype=int(number > 0),
                metadata=None,
                **page_of(number),
            )


def _plain_page(number: int, width: int, height: int) -> dict[str, Any]:
    """Return the size of a level, and of its pixels."""
    per_cm = 1e4 / PLAIN_MPP / 2**number
    return {"shape": (height >> number, width >> number, 3), "resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}


def _philips_page(number: int, width: int, height: int) -> dict[str, Any]:
    """Return the size of a level, which is a whole number of tiles, and what is said of all levels at the first."""
    rows, cols = (-(-side // (TILE_PX << number)) for side in (height, width))
    told = f"level={number}" if number else _told(width, height)
    return {"shape": (rows * TILE_PX, cols * TILE_PX, 3), "description": told, "software": "Philips DP v1.0"}


def _told(width: int, height: int) -> str:
    """Return the description of the first page: the size of the pixels of all levels, in millimetres."""
    count = _level_count(width, height)
    spacings = ['"{0:.9f}" "{0:.9f}"'.format(PHILIPS_MPP / 1000 * 2**number) for number in range(count)]
    levels = "".join(PHILIPS_LEVEL.format(spacing=spacing) for spacing in spacings)
    return PHILIPS.format(spacing=spacings[0], levels=levels)


def _level_count(width: int, height: int) -> int:
    """Return the number of levels down to the first whose shorter side is below a tile."""
    return next(number for number in range(32) if min(width, height) >> number < TILE_PX) + 1


def _levels(picture: NDArray[np.uint8], tissue: NDArray[np.bool_], width: int, height: int) -> Iterator[Iterator[bytes]]:
    """Return each level's encoded tiles, row by row, level 0 first, until the slide's shorter side is below a tile.

    A level's tiles must be drawn from it before the next level is asked for.
    """
    level = _Level(picture, tissue.astype(np.float64), None)
    yield level.encoded()
    for _ in range(1, _level_count(width, height)):
        level = level.coarser()
        yield level.encoded()


class _Level:
    """A level of the slide: tiles that are all tissue, all glass, or mixed, along the edge between them.

    Parameters
    ----------
    picture : the repeated tissue at this level, a whole number of tiles
    share : float64 (rows, cols) over the level's tiles, how much of each is tissue: 0 none, 1 all
    finer : the level before, all of whose tiles were drawn; None at level 0, which has no mixed tiles
    """

    def __init__(self, picture: NDArray[np.uint8], share: NDArray[np.float64], finer: _Level | None) -> None:
        self.picture, self.share, self.finer = picture, share, finer
        self.coarser_picture = halved(picture if len(picture) > TILE_PX else np.tile(picture, (2, 2, 1)))
        self.mixed_halves: dict[tuple[int, int], NDArray[np.uint8]] = {}

    def encoded(self) -> Iterator[bytes]:
        """Return all tiles as JPEG, row by row; what repeats is encoded once."""
        glass, tissue = _encode(_glass(TILE_PX)), dict[tuple[int, int], bytes]()
        for (row, col), share in np.ndenumerate(self.share):
            if share == 0:
                yield glass
            elif share == 1:
                phase = (row % self.period, col % self.period)
                if phase not in tissue:
                    tissue[phase] = _encode(_cut(self.picture, *phase, TILE_PX))
                yield tissue[phase]
            else:
                pixels = self._mixed(row, col)
                self.mixed_halves[row, col] = halved(pixels)
                yield _encode(pixels)

    @property
    def period(self) -> int:
        """Tiles after which the tissue repeats itself."""
        return len(self.picture) // TILE_PX

    def coarser(self) -> _Level:
        """Return the next level: halves of this one, four tiles to one."""
        rows, cols = (-(-count // 2) for count in self.share.shape)
        padded = np.pad(self.share, ((0, self.share.shape[0] % 2), (0, self.share.shape[1] % 2)))
        self.finer = None  # done with
        return _Level(self.coarser_picture, padded.reshape(rows, 2, cols, 2).mean((1, 3)), self)

    def _half(self, row: int, col: int) -> NDArray[np.uint8]:
        """Return a tile at half its size; beyond the last row and column there is glass."""
        if row >= self.share.shape[0] or col >= self.share.shape[1] or self.share[row, col] == 0:
            return _glass(TILE_PX // 2)
        if self.share[row, col] == 1:
            return _cut(self.coarser_picture, row % self.period, col % self.period, TILE_PX // 2)
        return self.mixed_halves[row, col]

    def _mixed(self, row: int, col: int) -> NDArray[np.uint8]:
        assert self.finer is not None  # level 0 has no mixed tiles
        quarters = [[self.finer._half(2 * row + below, 2 * col + right) for right in (0, 1)] for below in (0, 1)]
        return np.concatenate([np.concatenate(pair, 1) for pair in quarters])


def _glass(side: int) -> NDArray[np.uint8]:
    return np.full((side, side, 3), GLASS, np.uint8)


def _cut(picture: NDArray[np.uint8], row: int, col: int, side: int) -> NDArray[np.uint8]:
    return picture[row * side : (row + 1) * side, col * side : (col + 1) * side]


def _encode(tile: NDArray[np.uint8]) -> bytes:
    import imagecodecs

    pixels = np.ascontiguousarray(tile)
    return bytes(
        imagecodecs.jpeg8_encode(pixels, level=JPEG_QUALITY, colorspace="RGB", outcolorspace="YCBCR", subsampling="420")
    )
