"""Where the tiles of Hamamatsu's NDPI lie: the parts of one large JPEG between its restart markers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from wsi_meta.files.same_file import WatchedFile
from wsi_meta.stored_tiles.jpeg_tiff import NotPlainError, name_of, tiles_of
from wsi_meta.stored_tiles.tile_check import PlacedTiles
from wsi_meta.stored_tiles.tile_form import TiledLevel, TileForm
from wsi_meta.tiffs.tags import JPEG

__all__ = ["ndpi_pages", "ndpi_tiles"]

LENS, FOCAL_PLANE = 65421, 65424
"""Tags of a page: its magnification, below zero where it is no level; its focal plane, 0 for the one that OpenSlide reads."""
SHRUNK = (1, 2, 4, 8)
"""How many times smaller than a page libjpeg may decode it; OpenSlide makes coarser levels so."""
END, RESTARTS = b"\xff\xd9", tuple(bytes((0xFF, number)) for number in range(0xD0, 0xD8))
"""The end of a JPEG, and what ends each of its parts but the last."""

WRAP = 1 << 32


@dataclass(frozen=True)
class PartForm(TileForm):
    """How parts are stored: without what stands before the first one, and with a restart marker behind."""

    header: bytes = field(default=b"", repr=False)
    """What each part needs before it to be a JPEG of its own."""

    def whole_jpeg(self, stored: bytes) -> bytes:
        """Return a complete JPEG; ValueError where none of the marks stands behind the part."""
        if stored[-len(END) :] not in (END, *RESTARTS):
            raise ValueError("a part of a JPEG without its end")
        return super().whole_jpeg(self.header + stored[: -len(END)] + END)


def ndpi_pages(
    opened: Any, level_dimensions: Sequence[tuple[int, int]], usable: Collection[int]
) -> Iterator[tuple[int, int | None, int]]:
    """Yield level, number of the page that OpenSlide shows in it, None where it is not known, and by how much smaller."""
    sizes = {
        (int(page.imagewidth), int(page.imagelength)): number
        for number, page in enumerate(opened.pages)
        if page.tags.valueof(LENS, default=0) > 0 and not page.tags.valueof(FOCAL_PLANE, default=0)
    }
    for level in usable:
        width, height = level_dimensions[level]
        shown = ((shrunk, (width * shrunk, height * shrunk)) for shrunk in SHRUNK)
        yield level, *next(((sizes[size], shrunk) for shrunk, size in shown if size in sizes), (None, 1))


def ndpi_tiles(opened: Any, number: int | None, file: WatchedFile, shrunk: int) -> PlacedTiles:
    """Return the tiles of a page; NotPlainError where their damage cannot be seen."""
    if number is None:
        raise NotPlainError("its page is not known")
    page = opened.pages[number]
    if page.compression != JPEG or page.samplesperpixel != 3:
        raise NotPlainError(f"{page.samplesperpixel} samples a pixel, compressed with {name_of(page.compression)}")
    if not page.jpegheader:
        raise NotPlainError("it does not say where the parts of its JPEG lie")
    tiles = _unwrapped(tiles_of(page), file.size)
    tiles = replace(tiles, form=PartForm(**vars(tiles.form), header=bytes(page.jpegheader)))
    return PlacedTiles(tiles, (int(page.imagewidth), int(page.imagelength)), file, shrunk=shrunk)


def _unwrapped(tiles: TiledLevel, file_bytes: int) -> TiledLevel:
    """Return tiles at their true places: older files list only the lower 32 bits, from which they begin again at 0."""
    if file_bytes <= WRAP:
        return tiles
    again = np.cumsum(np.diff(tiles.offsets, prepend=tiles.offsets[:, :1]) < 0, axis=1) * WRAP
    offsets = tiles.offsets + again
    end = offsets[:, -1:] + tiles.plane_lengths[:, -1:] % WRAP
    return replace(tiles, offsets=offsets, plane_lengths=np.diff(offsets, append=end))
