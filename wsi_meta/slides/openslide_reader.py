"""Pixels through OpenSlide, for any format that it reads, and the properties of every slide."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import SlideReadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OpenSlideReader", "undecodable"]

MAX_READ_PX = 4000
"""OpenSlide gave wrong pixels for reads of 4,096 px and more at levels other than 0 (openslide issue 612)."""


class OpenSlideReader:
    """A file opened with OpenSlide. Threads may share it, and share the tiles that it keeps.

    Attributes
    ----------
    path : the file
    properties : what the file says of itself, by OpenSlide's names
    level_dimensions : (width, height) of each level, level 0 first
    level_downsamples : factor of each level relative to level 0
    background : RGB of what is transparent; the slide's own background colour, else white
    tiles_decoded : None; OpenSlide does not count them
    """

    name = "openslide"
    tiles_decoded: int | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: Any = None
        handle = self._open()
        self.properties = dict(handle.properties)
        self.level_dimensions: tuple[tuple[int, int], ...] = handle.level_dimensions
        self.level_downsamples: tuple[float, ...] = handle.level_downsamples
        self.background = tuple(bytes.fromhex(self.properties.get("openslide.background-color", "FFFFFF")))

    def read_into(self, region: NDArray[np.uint8], level: int, left: int, top: int) -> None:
        """Fill an array (height, width, 3) with the pixels at (left, top) of a level; all of it lies in the level.

        Raises
        ------
        SlideReadError
            when the stored pixels cannot be decoded. Other regions can still be read.
        """
        for row in range(0, region.shape[0], MAX_READ_PX):
            for col in range(0, region.shape[1], MAX_READ_PX):
                part = region[row : row + MAX_READ_PX, col : col + MAX_READ_PX]
                part[:] = self._read(level, left + col, top + row, part.shape[1], part.shape[0])

    def expect(self, _regions: Iterable[tuple[int, int, int, int, int]]) -> None:
        """Do nothing: OpenSlide's own cache cannot use it."""

    def close(self) -> None:
        """Close the file as soon as the reads of other threads have ended. A later read opens it again."""
        self._handle = None

    def _read(self, level: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        corner = (round(left * self.level_downsamples[level]), round(top * self.level_downsamples[level]))
        pixels = self._decode(corner, level, (width, height))
        alpha = pixels[..., 3:]
        if alpha.min() == 255:
            return pixels[..., :3]
        blend = pixels[..., :3] * (alpha / 255) + np.array(self.background) * (1 - alpha / 255)
        return blend.round().astype(np.uint8)

    def _decode(self, corner: tuple[int, int], level: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return RGBA pixels. After one bad tile every later read with the same handle fails, in other threads as well."""
        from openslide import OpenSlideError

        try:
            return np.asarray(self._open().read_region(corner, level, size))
        except OpenSlideError:
            self._handle = None
        try:  # with a handle of its own
            return np.asarray(_open_handle(self.path).read_region(corner, level, size))
        except OpenSlideError as error:
            raise undecodable(self.path, corner, level, error) from error

    def _open(self) -> Any:
        handle = self._handle
        if handle is None:
            self._handle = handle = _open_handle(self.path)
        return handle


def undecodable(path: Path, corner: tuple[int, int], level: int, reason: object) -> SlideReadError:
    """Make the error for a region at `corner` (level-0 pixels) that cannot be decoded."""
    return SlideReadError(f"{path}: cannot be decoded at x={corner[0]} y={corner[1]} level {level} ({reason})")


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
