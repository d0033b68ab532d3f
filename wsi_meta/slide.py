"""Whole-slide images: where a file becomes pixels. Every format that OpenSlide reads.

Coordinates follow OpenSlide: ``x, y`` are level-0 pixels, x first; sizes are pixels of the level that is read.
"""

from __future__ import annotations

import hashlib
import threading
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import MissingMppError, SlideReadError
from wsi_meta.resampling import average_area, exact_ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Slide", "open_slide"]

COARSER_ALLOWED = 1.05
"""A slide may be this much coarser than what is asked of it before it is refused."""
SAME_SCALE_PX = 0.25
"""A level is read as it is when its scale is off by less than this over the whole region, in pixels."""
OVERVIEW_TILE_PX = 256
"""Side of one read of an overview."""
MAX_READ_PX = 4000
"""OpenSlide gave wrong pixels for reads of 4,096 px and more at levels other than 0 (openslide issue 612)."""


def open_slide(path: str | Path, *, mpp: float | None = None) -> Slide:
    """Open a whole-slide image.

    Parameters
    ----------
    path : file in any format that OpenSlide reads
    mpp : micrometres per level-0 pixel, where the file does not say or is wrong

    Raises
    ------
    SlideReadError
        when the file is missing, a folder, empty, damaged or of no known format.
    MissingMppError
        when `mpp` is not a positive number.
    """
    return Slide(Path(path), mpp)


class Slide:
    """An opened slide; see :func:`open_slide`. Threads may share it: each gets a handle of its own.

    Attributes
    ----------
    path, name : the file, and its name without ending
    width, height : level-0 pixels
    level_dimensions : (width, height) of each level, level 0 first
    level_downsamples : factor of each level relative to level 0
    background : RGB of what lies outside the slide or is transparent; the slide's own background colour, else white
    vendor : format, as OpenSlide names it
    known_mpp : micrometres per level-0 pixel, or None; see :attr:`mpp`
    """

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        self.path, self.name = path, path.stem
        self._local = threading.local()
        handle = self._handle()
        properties = dict(handle.properties)
        self.width, self.height = handle.dimensions
        self.level_dimensions: tuple[tuple[int, int], ...] = handle.level_dimensions
        self.level_downsamples: tuple[float, ...] = handle.level_downsamples
        self.vendor = str(properties.get("openslide.vendor"))
        self.background = tuple(bytes.fromhex(properties.get("openslide.background-color", "FFFFFF")))
        self._quickhash = properties.get("openslide.quickhash-1", "")
        self.known_mpp = _checked_mpp(path, mpp) if mpp is not None else _stored_mpp(path, properties)

    @property
    def mpp(self) -> float:
        """Micrometres per level-0 pixel; MissingMppError when the file does not say and none was given."""
        if self.known_mpp is None:
            raise MissingMppError(f"{self.path}: does not say how large its pixels are; pass --mpp (um per level-0 pixel)")
        return self.known_mpp

    def fingerprint(self) -> str:
        """Give a SHA-256 (hexadecimal) of what tells slides apart, quick on any size.

        Over file size, level sizes and OpenSlide's quickhash, which covers metadata and the coarsest level; where there
        is none, over the first and last 64 kB. Not over path or time.
        """
        size = self.path.stat().st_size
        digest = hashlib.sha256(f"{size} {self.level_dimensions} {self._quickhash}".encode())
        if not self._quickhash:
            with self.path.open("rb") as file:
                digest.update(file.read(1 << 16))
                file.seek(max(0, size - (1 << 16)))
                digest.update(file.read())
        return digest.hexdigest()

    def read_region(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> NDArray[np.uint8]:
        """Read a rectangle of one level.

        Parameters
        ----------
        x, y : corner, level-0 pixels; may lie outside the slide
        width, height : pixels of `level`
        level : pyramid level, 0 finest

        Returns
        -------
        uint8 array (height, width, 3), RGB. What lies outside the slide, or is transparent, has the background colour.

        Raises
        ------
        SlideReadError
            when the stored pixels cannot be decoded. The slide stays usable for other regions.
        """
        downsample = self.level_downsamples[level]
        region = np.empty((height, width, 3), np.uint8)
        region[:] = self.background
        left, top = round(x / downsample), round(y / downsample)
        level_width, level_height = self.level_dimensions[level]
        for l_y in range(max(0, top), min(level_height, top + height), MAX_READ_PX):
            for l_x in range(max(0, left), min(level_width, left + width), MAX_READ_PX):
                l_width = min(MAX_READ_PX, level_width - l_x, left + width - l_x)
                l_height = min(MAX_READ_PX, level_height - l_y, top + height - l_y)
                corner = (x + round((l_x - left) * downsample), y + round((l_y - top) * downsample))
                part = self._read_opaque(corner, level, (l_width, l_height))
                region[l_y - top : l_y - top + l_height, l_x - left : l_x - left + l_width] = part
        return region

    def read_at(self, mpp: float, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a rectangle at a given resolution.

        Pixel (i, j) of the plane covers the square [j, j+1) x [i, i+1) times `mpp` from the slide's corner. A level
        that fits within a quarter pixel is read as it is; else the nearest finer one is averaged down by exact area.

        Parameters
        ----------
        mpp : micrometres per pixel of the plane
        x, y : corner in the plane, pixels at `mpp`; may be negative
        width, height : pixels at `mpp`

        Returns
        -------
        uint8 array (height, width, 3), RGB.

        Raises
        ------
        SlideReadError
            when the slide is more than 5 % coarser than `mpp`, or cannot be decoded there.
        MissingMppError
        """
        l0_per_px = self.check_resolution(mpp)
        level, scale = self._best_level(float(l0_per_px), max(width, height))
        downsample = self.level_downsamples[level]
        # exact position of the region's corner, in pixels of the level; rounded once, here
        left, top = (float(position * l0_per_px) / downsample for position in (x, y))
        if abs(scale - 1) * max(width, height) < SAME_SCALE_PX:
            return self.read_region(round(round(left) * downsample), round(round(top) * downsample), width, height, level=level)
        l_left, l_top = int(np.floor(left)), int(np.floor(top))
        l_width, l_height = (int(np.ceil(end)) for end in (left + width * scale - l_left, top + height * scale - l_top))
        l0_left, l0_top = round(l_left * downsample), round(l_top * downsample)
        pixels = self.read_region(l0_left, l0_top, l_width, l_height, level=level)
        return average_area(pixels, (top - l_top, left - l_left), scale, (height, width))

    def read_overview(self, mpp: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read the whole slide, tile by tile, so that damage in one place does not hide the rest.

        Parameters
        ----------
        mpp : micrometres per pixel of the overview

        Returns
        -------
        uint8 array (height, width, 3), RGB, and bool array (height, width): False where it could not be read, which
        has the background colour.

        Raises
        ------
        SlideReadError
            when nothing at all can be read, or as :meth:`read_at`.
        """
        l0_per_px = self.check_resolution(mpp)
        height, width = ceil(self.height / l0_per_px), ceil(self.width / l0_per_px)
        image = np.empty((height, width, 3), np.uint8)
        readable = np.ones((height, width), bool)
        failure: SlideReadError | None = None
        for row in range(0, height, OVERVIEW_TILE_PX):
            for col in range(0, width, OVERVIEW_TILE_PX):
                rows, cols = min(OVERVIEW_TILE_PX, height - row), min(OVERVIEW_TILE_PX, width - col)
                part = slice(row, row + rows), slice(col, col + cols)
                try:
                    image[part] = self.read_at(mpp, col, row, cols, rows)
                except SlideReadError as error:
                    failure, readable[part], image[part] = error, False, self.background
        if failure is not None and not readable.any():
            raise SlideReadError(f"{self.path}: nothing of it can be read; copy the slide again") from failure
        return image, readable

    def check_resolution(self, mpp: float) -> Fraction:
        """Give the number of level-0 pixels per pixel at `mpp`, exactly.

        Raises
        ------
        SlideReadError
            when the slide is more than 5 % coarser than `mpp`.
        """
        ratio = exact_ratio(mpp, self.mpp)
        if ratio * Fraction(COARSER_ALLOWED) < 1:
            raise SlideReadError(
                f"{self.path}: {self.mpp:g} um per pixel is too coarse; expected {mpp:g} or finer; "
                "scan the original slide (or pass --mpp if the file is wrong)"
            )
        return ratio

    def close(self) -> None:
        """Close this thread's handle; a later read opens a new one."""
        if (handle := getattr(self._local, "handle", None)) is not None:
            handle.close()
        self._local.handle = None

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _best_level(self, l0_per_px: float, extent_px: int) -> tuple[int, float]:
        """Give the coarsest level that is fine enough, and its pixels per pixel asked for."""
        slack = SAME_SCALE_PX / extent_px
        fine = [k for k, downsample in enumerate(self.level_downsamples) if l0_per_px / downsample > 1 - slack]
        level = max(fine, key=lambda k: self.level_downsamples[k]) if fine else 0
        return level, l0_per_px / self.level_downsamples[level]

    def _read_opaque(self, corner: tuple[int, int], level: int, dimensions: tuple[int, int]) -> NDArray[np.uint8]:
        from openslide import OpenSlideError

        try:
            pixels = np.asarray(self._handle().read_region(corner, level, dimensions))
        except OpenSlideError as error:
            self.close()  # OpenSlide latches: after one bad tile every later read of that handle fails
            raise SlideReadError(
                f"{self.path}: cannot be decoded at x={corner[0]} y={corner[1]} level {level} ({error})"
            ) from error
        alpha = pixels[..., 3:]
        if alpha.min() == 255:
            return pixels[..., :3]
        blend = pixels[..., :3] * (alpha / 255) + np.array(self.background) * (1 - alpha / 255)
        return blend.round().astype(np.uint8)

    def _handle(self) -> Any:
        """Give this thread's OpenSlide handle, opened when first needed."""
        if getattr(self._local, "handle", None) is None:
            self._local.handle = _open_handle(self.path)
        return self._local.handle


def _open_handle(path: Path) -> Any:
    from openslide import OpenSlide, OpenSlideError, OpenSlideUnsupportedFormatError

    if not path.exists():
        raise SlideReadError(f"{path}: no such file; expected a whole-slide image")
    if path.is_dir():
        raise SlideReadError(f"{path}: a directory; expected a whole-slide image file")
    if path.stat().st_size == 0:
        raise SlideReadError(f"{path}: an empty file; expected a whole-slide image; copy it again")
    try:
        return OpenSlide(path)
    except OpenSlideUnsupportedFormatError as error:
        raise SlideReadError(
            f"{path}: not a slide that OpenSlide knows (a plain or truncated image?); expected a tiled, pyramidal one; "
            "convert it (vips tiffsave --tile --pyramid) or copy it again"
        ) from error
    except OpenSlideError as error:
        raise SlideReadError(f"{path}: damaged or truncated ({error}); copy the slide again") from error


def _stored_mpp(path: Path, properties: dict[str, str]) -> float | None:
    if not {"openslide.mpp-x", "openslide.mpp-y"} <= set(properties):
        return None
    stored = [properties[f"openslide.mpp-{axis}"] for axis in "xy"]
    x, y = (_checked_mpp(path, value) for value in stored)
    if abs(x - y) > 0.02 * x:
        raise MissingMppError(f"{path}: pixels of {x:g} x {y:g} um; expected square ones; pass --mpp to choose one")
    return x if abs(x - y) < 1e-9 else (x + y) / 2


def _checked_mpp(path: Path, value: Any) -> float:
    try:
        mpp = float(value)
    except (TypeError, ValueError):
        mpp = float("nan")
    if not 0 < mpp < float("inf"):
        raise MissingMppError(f"{path}: {value} um per pixel; expected a positive number; pass --mpp (um per level-0 pixel)")
    return mpp
