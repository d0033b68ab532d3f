"""Pixels straight from the JPEG tiles of a plain TIFF, each decoded once, by libjpeg-turbo in its strict mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.readers.openslide_reader import OpenSlideReader
from wsi_meta.readers.reader import UnreadableRegionError
from wsi_meta.readers.tiff_reader import TiffReader
from wsi_meta.stored_tiles.jpeg_tiff import NotPlainError, find_levels

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DecodersDisagreeError", "DirectReader", "OtherPixelsError"]

SAME_GREY_LEVELS = 2
"""Decoders may round differently by this much."""
SAME_SHARE = 0.999
"""Share of the values of a tile that must agree with OpenSlide's."""
JUDGED_TILES = 9
"""Tiles of a level that are compared at most: after the first one only where it could not decide, because it is damaged."""
FEW_TILES = 3
"""A level of fewer tiles that can be compared is trusted as the other levels are."""
WHOLE_PX = 1 / 512
"""A position within this of a whole pixel counts as whole: OpenSlide composes with Cairo, which knows 1/256 of a pixel."""

PLAIN = "a plain TIFF of JPEG tiles"


class DecodersDisagreeError(NotPlainError):
    """A plain TIFF, but of most tiles that were compared one decoder says that they are damaged, and the other reads them."""


class OtherPixelsError(NotPlainError):
    """A plain TIFF of which both decoders read a tile, and see other pixels: one of them is wrong."""


class DirectReader(TiffReader):
    """A plain TIFF of JPEG tiles, which OpenSlide reads as well: it judges that both see the same.

    Parameters
    ----------
    judge : the same file, opened with OpenSlide, which says what its levels are and checks a tile of each
    show : told offset and length of what the judge will read, where that has a part of the file only
    display_name : what messages call the slide; None is the judge's file

    Attributes
    ----------
    reason : why the file is read directly, and what was found damaged on the way

    Raises
    ------
    NotPlainError
        when the file is not a plain one, or does not decode to OpenSlide's pixels.
    """

    def __init__(
        self,
        judge: OpenSlideReader,
        *,
        show: Callable[[int, int], None] | None = None,
        display_name: object = None,
    ) -> None:
        vendor, usable = str(judge.properties.get("openslide.vendor")), judge.scales.usable
        levels = find_levels(judge.path, vendor, judge.level_dimensions, usable)
        super().__init__(display_name or judge.path, judge.file, levels, judge.level_downsamples, judge.background)
        self._judge_left_out(judge.level_dimensions[0], judge.scales.downsamples)
        self._show = show
        self.reason = _conclude([self._compare(level, judge) for level in usable])
        self.close()

    def _compare(self, level: int, judge: OpenSlideReader) -> _Verdict:
        """Compare tiles of a level with OpenSlide's pixels: a wrong guess at its colours would show there.

        The busiest tile decides, unless it is damaged: then others do, and more of them must be the same than not.
        """
        verdict = _Verdict(level)
        for row, col in self._judged_tiles(level, judge):
            verdict.add(self._compare_tile(level, row, col, judge))
            if verdict.same > len(verdict.by_one):
                break
        return verdict

    def _judged_tiles(self, level: int, judge: OpenSlideReader) -> list[tuple[int, int]]:
        """Return row and column of the tiles to compare: the busiest one, then some of the busier half."""
        stored, (level_width, level_height) = self._levels[level], judge.level_dimensions[level]
        tops, lefts = np.arange(0, level_height, stored.tile_height), np.arange(0, level_width, stored.tile_width)
        lengths = stored.lengths.reshape(-1, stored.columns)[: len(tops), : len(lefts)]
        whole = _whole(tops, self._downsamples[level])[:, None] & _whole(lefts, self._downsamples[level])
        busiest_first = np.argsort(np.where(whole, -lengths, 1), axis=None, kind="stable")
        count = int((whole & (lengths > 0)).sum())
        ranks = np.unique(np.linspace(0, max(0, max(count // 2, min(count, JUDGED_TILES)) - 1), JUDGED_TILES).astype(int))
        rows, cols = np.unravel_index(busiest_first[ranks], lengths.shape)
        return list(zip(rows.tolist(), cols.tolist(), strict=True))

    def _compare_tile(self, level: int, row: int, col: int, judge: OpenSlideReader) -> list[UnreadableRegionError]:
        """Return the errors of the decoders that do not read a tile; OtherPixelsError when both do, and differ."""
        stored, (level_width, level_height) = self._levels[level], judge.level_dimensions[level]
        left, top = col * stored.tile_width, row * stored.tile_height
        shape = (min(stored.tile_height, level_height - top), min(stored.tile_width, level_width - left), 3)
        ours, theirs = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
        failed = []
        if self._show is not None:
            self._show_around(level, row, col)
        for reader, pixels in ((self, ours), (judge, theirs)):
            try:
                reader.read_into(pixels, level, left, top)
            except UnreadableRegionError as error:
                failed.append(error)
        if not failed and (np.abs(ours.astype(np.int16) - theirs) <= SAME_GREY_LEVELS).mean() < SAME_SHARE:
            raise OtherPixelsError(f"tiles of level {level} decode to other pixels than OpenSlide's")
        return failed

    def _show_around(self, level: int, row: int, col: int) -> None:
        """Let the judge have a tile, and those beside it: at an odd downsample it may touch them."""
        assert self._show is not None
        stored = self._levels[level]
        rows, cols = len(stored.lengths) // stored.columns, stored.columns
        for beside in product(range(max(0, row - 1), min(rows, row + 2)), range(max(0, col - 1), min(cols, col + 2))):
            if beside == (row, col) or not float(self._downsamples[level]).is_integer():
                for offset, length in stored.parts(*beside):
                    self._show(offset, min(length, stored.form.most_bytes))


@dataclass
class _Verdict:
    """What the comparison of a level's tiles has shown so far."""

    level: int
    same: int = 0
    by_none: int = 0
    """Tiles that neither decoder reads."""
    by_one: list[UnreadableRegionError] = field(default_factory=list)
    """Tiles that only one decoder reads: damaged, or written so that the other takes them for damaged."""

    def add(self, failed: list[UnreadableRegionError]) -> None:
        """Count a tile that was compared."""
        if len(failed) == 1:
            self.by_one += failed
        else:
            self.same, self.by_none = self.same + (not failed), self.by_none + bool(failed)


def _conclude(verdicts: list[_Verdict]) -> str:
    """Return the reason to read directly; DecodersDisagreeError where too much is read by one decoder only."""
    any_same = any(verdict.same for verdict in verdicts)
    for verdict in verdicts:
        few = verdict.same + len(verdict.by_one) < FEW_TILES
        if len(verdict.by_one) > verdict.same and not (few and any_same):
            raise DecodersDisagreeError(f"a tile that one decoder reads and the other does not: {verdict.by_one[0]}")
    damaged = sum(verdict.by_none + len(verdict.by_one) for verdict in verdicts)
    compared = damaged + sum(verdict.same for verdict in verdicts)
    return PLAIN + (f"; {damaged} of {compared} tiles that were compared are damaged" if damaged else "")


def _whole(positions: NDArray[np.int64], downsample: float) -> NDArray[np.bool_]:
    """Return from which positions OpenSlide reads stored pixels: those that level 0 has. It blends neighbours at others."""
    return np.asarray(np.abs(np.round(positions * downsample) / downsample - positions) < WHOLE_PX)
