"""Whether the cells of a map were given the pixels that lie there, judged by what OpenSlide reads of the same file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.slides.resampling import average_area
from wsi_meta.tiffs.structure import check_tiff
from wsi_meta.tiling.grid import PatchGrid

__all__ = ["Picture", "pictures_of", "what_is_wrong"]

SAME_GREY_LEVELS = 4.0
"""Squares of 8 px whose mean difference is less show the same. The level that was read differs by nothing; a shift by a pixel
makes 12 and more."""
MOST_PIXELS = 1 << 23
"""Larger levels are not read for a comparison."""
BLENDED_GREY_LEVELS = 10.0
"""The same for a level that OpenSlide blends, depending on where a read begins."""
READ_PX = 64
"""Side of a read: of damage no more is lost to the comparison than its tile."""
LEAST_READ_PX = 16
"""Side of a read of what could not be read in a larger part."""
UNREAD = (0, 255, 0)
"""Colour of what OpenSlide does not read; no tissue has it."""
SAME_MPP = 1e-4
MARGIN_PX = 32
"""Pixels of a patch beyond its cell."""


@dataclass(frozen=True)
class Picture:
    """A level of a slide."""

    pixels: NDArray[np.uint8]
    """Shape (height, width, 3)."""
    downsample: float
    """Level-0 pixels a pixel."""
    extent: tuple[int, int]
    """Width and height of level 0."""
    mpp: float | None
    """Micrometres a level-0 pixel, as the file says."""
    blended: bool
    """Whether OpenSlide takes its factor for no whole number, and blends neighbours when it reads it."""


def pictures_of(path: Path, sound: Sequence[Picture] | None = None) -> list[Picture]:
    """Return what OpenSlide shows of a file: its level 0, and other levels where their factor is known.

    Parameters
    ----------
    sound : pictures of the same slide before it was damaged; None believes what the file says of its factors
    """
    import openslide

    try:
        with openslide.OpenSlide(path) as slide:
            sizes, stated, properties = slide.level_dimensions, slide.level_downsamples, dict(slide.properties)
    except openslide.OpenSlideError:
        return []
    background = np.array(bytearray.fromhex(properties.get("openslide.background-color", "FFFFFF")))
    found = []
    for level, size in enumerate(sizes):
        factors = {1.0} if level == 0 else {stated[level]} if sound is None else _factors(size, stated[level], sound)
        if factors and size[0] * size[1] <= MOST_PIXELS:
            pixels = _read(path, level, size, stated[level], background)
            blended = stated[level] != round(stated[level])
            found += [Picture(pixels, factor, sizes[0], _mpp(properties), blended) for factor in factors]
    return found


def _factors(size: tuple[int, int], stated: float, sound: Sequence[Picture]) -> set[float]:
    """Return the factors that a level may be read by: that of the sound level of its size.

    Writers round sizes up or down. So a level that is a pixel larger or smaller may also be read by the factor that its size
    gives, which moves it by less than a pixel.
    """
    near = [
        before.downsample
        for before in sound
        if all(abs(now - then) <= 1 for now, then in zip(size, before.pixels.shape[1::-1], strict=True))
    ]
    return {*near, *([stated] if near else [])}


def what_is_wrong(heatmap: Heatmap, seen: dict[float, NDArray[np.uint8]], sound: list[Picture], now: list[Picture]) -> str:
    """Return what a map says that is not so; empty where nothing is.

    Parameters
    ----------
    seen : the patch that was shown to the network, by the probability that it gave
    sound, now : pictures of the slide before and after it was damaged
    """
    grid, status, probability = heatmap.grid, heatmap.status, heatmap.probability
    pictures = [*sound, *now]
    if (grid.width, grid.height) not in {picture.extent for picture in pictures}:
        return f"the slide is said to be {grid.width} x {grid.height} px"
    if not any(abs(grid.slide_mpp - mpp) <= SAME_MPP * mpp for mpp in _mpps((grid.width, grid.height), sound, now)):
        return f"{grid.slide_mpp} um per pixel"
    if (np.isfinite(probability) != (status == Status.SCANNED)).any():
        return "values where nothing was scanned, or none where something was"
    cells = np.argwhere(status == Status.SCANNED)
    if strange := [cell for cell in cells.tolist() if float(probability[tuple(cell)]) not in seen]:
        return f"{len(strange)} cells have values that no patch was given, first {strange[0]}"
    shown = [seen[float(probability[row, col])] for row, col in cells]
    same = np.zeros((len(cells), 12, 12), bool)  # of each square of a patch: a damaged neighbour may hide one from OpenSlide
    for picture in pictures:
        if not same.all():
            most = BLENDED_GREY_LEVELS if picture.blended else SAME_GREY_LEVELS
            same |= _same(shown, list(_patches(picture, grid, cells)), most)
    if wrong := cells[~same.all((1, 2))].tolist():
        return f"{len(wrong)} of {len(cells)} scanned cells show other pixels, first {wrong[0]}"
    return _left_out(heatmap, sound, now)


def _mpps(extent: tuple[int, int], sound: Sequence[Picture], now: Sequence[Picture]) -> set[float]:
    """Return the pixel sizes that a map may have; where the finest level is lost, that of the level which is then read."""
    finest = {picture.mpp * picture.downsample for picture in sound if picture.mpp and picture.pixels.shape[1::-1] == extent}
    return finest | {picture.mpp for picture in (*sound, *now) if picture.mpp}


def _left_out(heatmap: Heatmap, sound: list[Picture], now: list[Picture]) -> str:
    """Tell of cells that were taken for background, although all levels show there what they did before: tissue."""
    cells = np.argwhere(heatmap.status == Status.BACKGROUND)
    tissue = np.ones(len(cells), bool)
    for before in sound if len(cells) else ():
        there = [picture for picture in now if picture.downsample == before.downsample]
        shown = [list(_patches(picture, heatmap.grid, cells)) for picture in (before, *there[:1])]
        tissue &= _same(shown[0], shown[-1]).all((1, 2)) if there else False
    wrong = cells[tissue].tolist()
    return f"{len(wrong)} cells of tissue were not scanned, first {wrong[0]}" if wrong else ""


def _patches(picture: Picture, grid: PatchGrid, cells: NDArray[np.intp]) -> Iterator[NDArray[np.uint8]]:
    """Yield the patches of cells, cut from a picture at the model's resolution."""
    scale = grid.mpp / grid.slide_mpp / picture.downsample
    margin = int(np.ceil((MARGIN_PX + grid.stride_px) * scale)) + 2
    padded = np.pad(picture.pixels, ((margin, margin), (margin, margin), (0, 0)), constant_values=255)
    rows, cols = (count * grid.stride_px + 2 * MARGIN_PX for count in grid.shape)
    plane = average_area(padded, scale, (rows, cols), (-MARGIN_PX, -MARGIN_PX), (-margin, -margin))
    for row, col in cells * grid.stride_px:
        yield plane[row : row + grid.patch_px, col : col + grid.patch_px]


def _same(
    shown: Sequence[NDArray[np.uint8]], there: Sequence[NDArray[np.uint8]], most: float = SAME_GREY_LEVELS
) -> NDArray[np.bool_]:
    """Tell of each patch's squares of 8 px whether they show what lies there: bool (patches, 12, 12)."""
    different = [np.abs(one.astype(np.int16) - other).reshape(12, 8, 12, 8, 3) for one, other in zip(shown, there, strict=True)]
    return np.array([part.mean((1, 3, 4)) < most for part in different], bool).reshape(-1, 12, 12)


def _read(path: Path, level: int, size: tuple[int, int], downsample: float, background: NDArray[Any]) -> NDArray[np.uint8]:
    """Read a level part by part; what cannot be read has the colour `UNREAD`."""
    import openslide

    pixels = np.full((size[1], size[0], 3), UNREAD, np.uint8)
    slide = openslide.OpenSlide(path)
    deadly = [tiles for tiles in check_tiff(path) if tiles.size == size]  # OpenSlide would end the process
    places = [(x, y, READ_PX) for y in range(0, size[1], READ_PX) for x in range(0, size[0], READ_PX)]
    for x, y, side in places:
        part = pixels[y : min(y + side, size[1]), x : min(x + side, size[0])]
        if not part.size or any(tiles.touch(x - 1, y - 1, part.shape[1] + 2, part.shape[0] + 2) for tiles in deadly):
            continue
        try:
            read = np.asarray(slide.read_region((round(x * downsample), round(y * downsample)), level, part.shape[1::-1]))
        except openslide.OpenSlideError:
            slide = openslide.OpenSlide(path)  # after one bad tile a handle reads nothing any more
            if side > LEAST_READ_PX:  # a part may only blend with a damaged neighbour
                within = range(0, side, LEAST_READ_PX)
                places += [(x + right, y + down, LEAST_READ_PX) for down in within for right in within]
            continue
        alpha = read[..., 3:] / 255
        part[:] = read[..., :3] if alpha.min() == 1 else (read[..., :3] * alpha + background * (1 - alpha)).round()
    return pixels


def _mpp(properties: dict[str, str]) -> float | None:
    try:
        return (float(properties["openslide.mpp-x"]) + float(properties["openslide.mpp-y"])) / 2
    except (KeyError, ValueError):
        return None
