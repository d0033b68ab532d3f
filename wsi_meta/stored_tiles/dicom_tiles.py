"""Where the tiles of a DICOM slide lie, so that their bytes can be looked at before OpenSlide decodes them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from wsi_meta.dicom.frames import ITEM, ITEM_HEAD_BYTES, DicomLevel, open_level
from wsi_meta.files.same_file import SameFile
from wsi_meta.stored_tiles.tile_check import Checked, PlacedTiles
from wsi_meta.stored_tiles.tile_form import TiledLevel, TileForm
from wsi_meta.tiffs.tags import YCBCR

__all__ = ["find_frames"]


@dataclass(frozen=True)
class FrameForm(TileForm):
    """How frames are stored: each after a head that says how many bytes it has."""

    def check(self, stored: bytes) -> None:
        """Find damage without the pixels, also in the head; ValueError."""
        frame = stored[ITEM_HEAD_BYTES:]
        if stored[:ITEM_HEAD_BYTES] != ITEM + len(frame).to_bytes(4, "little"):
            raise ValueError("a tile whose own head is damaged")
        super().check(frame)


def find_frames(files: Iterable[SameFile], level_dimensions: tuple[tuple[int, int], ...], usable: Collection[int]) -> Checked:
    """Find the tiles of OpenSlide's levels.

    Parameters
    ----------
    files : of the slide
    level_dimensions : what OpenSlide says of it
    usable : the levels that are needed

    Returns
    -------
    The tiles of each level, and why those of other levels cannot be looked at.
    """
    found, reasons = dict[int, list[PlacedTiles]](), dict.fromkeys(usable, "where its tiles lie is not known")
    for file in files:
        with open_level(file.path) as opened:
            level = next((level for level in usable if opened and opened.sides[:2] == level_dimensions[level]), None)
            if opened is None or level is None:
                continue
            tiles = _tiles(opened)
            if isinstance(tiles, TiledLevel):
                found.setdefault(level, []).append(PlacedTiles(tiles, opened.sides[:2], file))
                reasons.pop(level, None)
            elif tiles is None:
                reasons.pop(level, None)
            else:
                reasons[level] = tiles
    return found, reasons


def _tiles(level: DicomLevel) -> TiledLevel | str | None:
    """Return a level's tiles; None where no damage shows in them, since they are not compressed; or why they are not known."""
    if (frames := level.frames()) is None:
        return None
    if level.codec is None:
        return "a compression whose damage is not known"
    if (numbers := level.numbers()) is None:
        return "its tiles do not lie side by side"
    parts = frames.parts()
    if len(parts) - 1 != len(numbers):
        return f"it holds {len(parts) - 1:,} frames; expected {len(numbers):,}, one for each tile"
    (rows, columns), (*_, tile_width, tile_height) = level.shape, level.sides
    offsets, lengths = np.zeros((2, rows * columns), np.int64)
    offsets[numbers], lengths[numbers] = parts[:-1], np.diff(parts)
    form = FrameForm(tile_width, tile_height, level.codec, colours=level.colours or YCBCR)
    return TiledLevel(tile_width, tile_height, columns, lengths[None], offsets[None], form)
