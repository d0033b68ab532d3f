"""A TIFF without tiles as one picture: strips, colours interleaved or apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from wsi_meta.errors import SlideReadError
from wsi_meta.files.image_series import expect_one, pictures_of_tiff
from wsi_meta.readers.ome_tiff import mpp_of_page
from wsi_meta.readers.reader import StatedMpp
from wsi_meta.stored_tiles.jpeg_tiff import NotPlainError, name_of, tables_in
from wsi_meta.stored_tiles.tile_form import DECODERS, TileForm
from wsi_meta.tiffs.pixel_form import UNSAID, other_colours, other_order, refuse_turned
from wsi_meta.tiffs.tags import (
    ALPHA,
    ALPHA_MULTIPLIED,
    BLACK_IS_ZERO,
    CONTIGUOUS,
    DIFFERENCES,
    JPEG,
    ORIENTATION,
    PALETTE,
    PHOTOMETRIC,
    RGB,
    SEPARATE,
    UNSIGNED,
    WHITE_IS_ZERO,
    YCBCR,
)
from wsi_meta.words import first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["read_picture_tiff", "refuse_larger"]

MOST_PX = 1 << 28
"""Pixels of the largest picture, 16,384 x 16,384: 800 MB. A larger one is better stored in tiles."""


class TiffPicture(NamedTuple):
    """A picture: uint8 (height, width, samples), the last of 2 or 4 being transparency; and the size of one."""

    pixels: NDArray[np.uint8]
    mpp: StatedMpp


def read_picture_tiff(path: Path, display_name: object = None) -> TiffPicture:
    """Read a TIFF whose first page is one picture of 8 bits a sample, stored in strips.

    Parameters
    ----------
    display_name : what warnings call it; None is `path`

    Raises
    ------
    SlideReadError
        when it is larger, damaged, stored in a way that is not read, or not the only one of its size.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            refuse_larger(path, int(page.imagewidth), int(page.imagelength))
            expect_one(display_name or path, pictures_of_tiff(file))
            _refuse_other_kinds(path, page)
            pixels = _meant(page, _decode(path, page))
            return TiffPicture(pixels, mpp_of_page(page))
    except SlideReadError:
        raise
    except Exception as error:  # tifffile raises whatever odd tags lead to
        raise SlideReadError(f"{path}: not a whole TIFF ({first_line(error)}); copy it again, or save it as PNG") from error


def refuse_larger(path: Path, width: int, height: int) -> None:
    """Refuse a picture of more pixels than are held in memory; SlideReadError."""
    if width * height > MOST_PX:
        raise SlideReadError(
            f"{path}: a picture of {width} x {height} px; expected at most {MOST_PX:,} pixels; "
            "convert it to a slide (vips tiffsave --tile --pyramid --compression jpeg)"
        )


def _refuse_other_kinds(path: Path, page: Any) -> None:
    """Refuse what is not read; SlideReadError."""
    refuse_turned(path, int(page.tags.valueof(ORIENTATION, default=1)))
    told = other_colours([page.bitspersample], int(page.photometric)) or _other_storage(page)
    if told is not None:
        raise SlideReadError(f"{path}: {told}; save it as PNG, or as a TIFF of 8 bits a colour")


def _other_storage(page: Any) -> str | None:
    """Return how pixels are stored that are not read; None where they are."""
    if PHOTOMETRIC not in page.tags:
        return UNSAID
    if page.imagedepth != 1 or page.sampleformat not in UNSIGNED:
        return "values that are no whole numbers from 0 on, or have a depth"
    if page.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) and page.samplesperpixel > 2:
        return f"grey of {page.samplesperpixel} values a pixel; expected one, or two with transparency"
    if page.photometric == YCBCR and page.compression != JPEG:
        return "colours stored as YCBCR, not in JPEG; expected RGB or grey"
    if int(page.compression) not in (JPEG, *DECODERS):
        return f"compressed with {name_of(page.compression)}"
    if page.compression == JPEG and (page.samplesperpixel, page.planarconfig) != (3, CONTIGUOUS):
        return "JPEG of other than three colours"
    return other_order(int(page.compression), page.predictor, page.fillorder)


def _decode(path: Path, page: Any) -> NDArray[np.uint8]:
    """Return the values as they are stored, (height, width, samples)."""
    height, width, samples = int(page.imagelength), int(page.imagewidth), int(page.samplesperpixel)
    planes = samples if page.planarconfig == SEPARATE else 1
    rows = min(int(page.rowsperstrip), height)
    strips = -(-height // rows)
    offsets, lengths = list(page.dataoffsets), list(page.databytecounts)
    if len(offsets) != strips * planes or len(lengths) != strips * planes:
        raise NotPlainError(f"{len(offsets)} strips; expected {strips * planes}")
    pixels = np.empty((height, width, samples), np.uint8)
    form = int(page.compression), tables_in(page), int(page.photometric), page.predictor == DIFFERENCES
    with path.open("rb") as file:
        for number, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
            plane, strip = divmod(number, strips)
            top = strip * rows
            target = pixels[top : top + rows, :, plane : plane + 1] if planes > 1 else pixels[top : top + rows]
            file.seek(offset)
            stored = TileForm(width, len(target), *form, target.shape[2])
            target[:] = stored.decode(file.read(min(length, stored.most_bytes)))
    return pixels


def _meant(page: Any, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the values as grey or RGB, with transparency where they have some."""
    if page.photometric == PALETTE:
        colours_of: NDArray[np.uint16] = page.colormap
        bits = 8 if (colours_of > 255).any() else 0  # as libtiff does for writers that keep colours of 8 bits
        return np.asarray(colours_of[:, pixels[..., 0]].transpose(1, 2, 0) >> bits, np.uint8)
    colours = 3 if page.photometric in (RGB, YCBCR) else 1
    further: NDArray[np.uint8]
    values, further = pixels[..., :colours], pixels[..., colours : colours + 1]
    if page.photometric == WHITE_IS_ZERO:
        values = 255 - values
    kinds = [int(kind) for kind in page.extrasamples]
    if kinds[:1] == [ALPHA]:
        return np.concatenate([values, further], axis=2)
    if kinds[:1] == [ALPHA_MULTIPLIED]:  # on white
        on_white: NDArray[np.uint8] = np.minimum(values.astype(np.uint16) + (255 - further), 255).astype(np.uint8)
        return on_white
    return values
