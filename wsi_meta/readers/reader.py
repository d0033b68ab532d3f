"""What every reader offers, and what readers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from wsi_meta.errors import SlideReadError
from wsi_meta.files.same_file import WatchedFile
from wsi_meta.readers.levels import Scales

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WHITE", "Bounds", "OpenedReader", "Reader", "StatedMpp", "UnreadableRegionError", "before", "undecodable"]

StatedMpp: TypeAlias = "tuple[float, float] | str | None"
"""Micrometres per pixel along x and y that a file states; why what it states is not understood; None where it states none."""
WHITE = (255, 255, 255)
"""The background of slides that state none."""


class UnreadableRegionError(SlideReadError):
    """A region cannot be read: what sees it is lost, and the rest of the slide can still be read."""


@dataclass(frozen=True)
class Bounds:
    """The part of level 0 that holds all scanned pixels, in level-0 pixels; QuPath shows only this part of a slide."""

    x: int
    y: int
    width: int
    height: int

    @property
    def corner(self) -> tuple[int, int]:
        """The level-0 pixel that QuPath's coordinates count from."""
        return self.x, self.y


class Reader(ABC):
    """Who decodes a slide's pixels. Threads may share it."""

    name: str
    """Part of a scan's identity: two readers may round otherwise."""

    @property
    def tiles_decoded(self) -> int | None:
        """Tiles decoded so far; None where they are not counted."""
        return None

    @abstractmethod
    def read_into(self, region: NDArray[np.uint8], level: int, left: int, top: int) -> None:
        """Fill an array (height, width, 3) with the pixels at (left, top) of a level; all of it lies in the level.

        Raises
        ------
        UnreadableRegionError
            when the stored pixels cannot be decoded. Other regions can still be read.
        SlideReplacedError
        """

    def expect(self, regions: Iterable[tuple[int, int, int, int, int]]) -> int | None:  # noqa: ARG002
        """Say what will be read, as (level, left, top, width, height); return the number of stored tiles, where known."""
        return None

    def is_empty(self, level: int, left: int, top: int, width: int, height: int) -> bool:  # noqa: ARG002
        """Tell whether the file says that a region has the background colour."""
        return False

    def close(self) -> None:  # noqa: B027
        """Let go of the file as soon as the reads of other threads have ended. A later read opens it again."""


class OpenedReader(Reader):
    """A reader that opens a file by itself, and what the file says of itself."""

    file: WatchedFile | None
    """The file as it was when it was opened first; None where there is no single one."""
    properties: dict[str, str]
    """By OpenSlide's names."""
    mpp_problem: str = ""
    """Why the size of a pixel that the file states is not understood; empty where it is, or where none is stated."""
    level_dimensions: tuple[tuple[int, int], ...]
    """Width and height of each level, level 0 first."""
    scales: Scales
    """The true factors, and the levels that are not to be read."""
    tiles: Sequence[tuple[int, int] | None]
    """Width and height of each level's stored tiles; None where it is not known."""
    bounds: Bounds
    """The part of level 0 that holds all scanned pixels; all of it where the file does not say."""
    background: tuple[int, ...]
    """RGB of what is transparent, or was left out of the file."""

    def _state_mpp(self, mpp: StatedMpp) -> None:
        if isinstance(mpp, str):
            self.mpp_problem = mpp
        elif mpp is not None:
            self.properties |= {f"openslide.mpp-{axis}": repr(size) for axis, size in zip("xy", mpp, strict=True)}


def undecodable(path: object, corner: tuple[int, int], level: int, reason: object) -> UnreadableRegionError:
    """Make the error for a region at `corner` (level-0 pixels) that cannot be decoded."""
    return UnreadableRegionError(f"{path}: cannot be decoded at x={corner[0]} y={corner[1]} level {level} ({reason})")


def before(
    background: tuple[int, ...], colours: NDArray[np.uint8], alpha: NDArray[np.uint8], *, multiplied: bool = False
) -> NDArray[np.uint8]:
    """Return pixels that may be transparent as they look before a colour, (height, width, 3).

    Parameters
    ----------
    colours : (height, width, 3)
    alpha : (height, width, 1), 255 where nothing shines through
    multiplied : whether colours were stored multiplied by alpha
    """
    opaque = alpha / np.float32(255)
    shown = colours if multiplied else colours * opaque
    return np.minimum(shown + np.array(background, np.float32) * (1 - opaque), 255).round().astype(np.uint8)
