"""TIFFs whose coarser levels lie within their first page (SubIFDs), as in OME-TIFF. OpenSlide sees level 0 alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from wsi_meta.files.image_series import expect_one, ome_root, pictures_of_tiff
from wsi_meta.files.same_file import SameFile, WatchedFile
from wsi_meta.readers.levels import Scales, find_scales, mean_ratios, um_per
from wsi_meta.readers.reader import WHITE, Bounds, OpenedReader, StatedMpp
from wsi_meta.readers.tiff_reader import TiffReader
from wsi_meta.stored_tiles.jpeg_tiff import NotPlainError, name_of, tiles_of
from wsi_meta.stored_tiles.tile_form import DECODERS, TiledLevel
from wsi_meta.tiffs.pixel_form import refuse_turned
from wsi_meta.tiffs.tags import (
    ALPHA,
    ALPHA_MULTIPLIED,
    CONTIGUOUS,
    JPEG,
    MAX_TILE_PX,
    OME,
    ORIENTATION,
    RGB,
    SEPARATE,
    UM_PER_RESOLUTION_UNIT,
    UNSIGNED,
    YCBCR,
)
from wsi_meta.words import first_line

__all__ = ["OmeTiffReader", "mpp_of_page", "mpp_of_tiff", "ome_mpp"]

VENDORS = ("bif", "ndpi", "philips", "scn", "svs")
"""tifffile's names of formats that OpenSlide knows as what they are, whatever their first page holds."""
BROKEN_MICRO = re.compile("[?\ufffdÂÎµμ¼]+m")
"""Micrometres as they are left where a program took the bytes of the letter for another encoding."""

MOST_TOLD = 3
"""Images that a message names."""


class OmeTiffReader(TiffReader, OpenedReader):
    """A tiled TIFF with its pyramid in SubIFDs: RGB of 8 bits, its colours interleaved or each in tiles of its own.

    Parameters
    ----------
    path : the file, or a copy of the parts of it that are not pixels
    file : the file itself; None where `path` is it
    display_name : what messages call it; None is `path`

    Raises
    ------
    NotPlainError
        when its first page is stored in a way that is not read here.
    SlideReadError
        when it holds another picture that is as large, or is to be turned.
    """

    file: WatchedFile

    def __init__(self, path: Path, file: WatchedFile | None = None, display_name: object = None) -> None:
        import tifffile

        self.file = file or SameFile.at(path)
        try:
            with tifffile.TiffFile(path) as opened:
                if vendors := [name for name in VENDORS if getattr(opened, f"is_{name}", False)]:
                    raise NotPlainError(f"{vendors[0]} is laid out in its own way")
                first: Any = opened.pages[0]
                pages = [first, *(page for page in first.pages or () if page.imagewidth and page.imagelength)]
                sizes = [(int(page.imagewidth), int(page.imagelength)) for page in pages]
                levels, unread = _levels_of(pages)
                turned = [int(page.tags.valueof(ORIENTATION, default=1)) for page in pages]
                self.properties = {"openslide.vendor": "ome-tiff" if opened.is_ome else "tiff with sub-pages"}
                self._state_mpp(mpp_of_page(first))
                pictures = pictures_of_tiff(opened)
        except NotPlainError:
            raise
        except Exception as error:  # tifffile raises whatever odd tags lead to
            raise NotPlainError(f"its tags are odd: {first_line(error)}") from error
        for number, orientation in enumerate(turned):
            refuse_turned(display_name or path, orientation, f"level {number}")
        expect_one(display_name or path, pictures)
        self.level_dimensions = tuple(sizes)
        width, height = sizes[0]
        self.level_downsamples = mean_ratios(sizes)
        self.tiles = [
            (levels[number].tile_width, levels[number].tile_height) if number in levels else None
            for number in range(len(pages))
        ]
        found = find_scales(self.level_dimensions, self.level_downsamples, self.tiles)
        self.scales = Scales(found.downsamples, found.left_out | unread)
        self.bounds = Bounds(0, 0, width, height)
        super().__init__(display_name or path, self.file, levels, self.scales.downsamples, WHITE)
        self._judge_left_out((width, height), self.scales.downsamples)
        self.reason = f"a TIFF with a pyramid of {len(self.scales.usable)} levels in its first page"


def _levels_of(pages: list[Any]) -> tuple[dict[int, TiledLevel], dict[int, str]]:
    """Return the tiles of the levels that are read, and why others are not; NotPlainError for level 0."""
    levels, unread = {0: _level_of(pages[0])}, {}
    for number, page in enumerate(pages[1:], 1):
        try:
            levels[number] = _level_of(page)
        except NotPlainError as error:
            unread[number] = str(error)
    return levels, unread


def _level_of(page: Any) -> TiledLevel:
    if not page.is_tiled:
        raise NotPlainError("pixels that are not stored in tiles")
    if page.compression != JPEG and int(page.compression) not in DECODERS:
        raise NotPlainError(f"tiles compressed with {name_of(page.compression)}")
    if page.photometric != RGB and (page.photometric, page.compression) != (YCBCR, JPEG):
        raise NotPlainError(f"colours stored as {name_of(page.photometric)}; expected RGB")
    if (told := _other_samples(page)) is not None:
        raise NotPlainError(told)
    if not page.tilewidth or not page.tilelength or page.tilewidth * page.tilelength > MAX_TILE_PX:
        raise NotPlainError(f"tiles of {page.tilewidth} x {page.tilelength} px")
    if not page.imagewidth or not page.imagelength:
        raise NotPlainError(f"a page of {page.imagewidth} x {page.imagelength} px")
    return tiles_of(page)


def _other_samples(page: Any) -> str | None:
    """Return how pixels are stored that are neither RGB nor RGB with transparency, a byte each; None where they are."""
    samples = 4 if tuple(page.extrasamples) in ((ALPHA,), (ALPHA_MULTIPLIED,)) else 3
    form = page.bitspersample, page.samplesperpixel, page.imagedepth
    if form != (8, samples, 1) or page.sampleformat not in UNSIGNED or page.planarconfig not in (CONTIGUOUS, SEPARATE):
        return "samples that are not three bytes a pixel, nor four with transparency"
    if page.compression == JPEG and (samples, page.planarconfig) != (3, CONTIGUOUS):
        return "JPEG of other than three colours"
    return None


def mpp_of_page(page: Any) -> StatedMpp:
    """Return the size of a pixel of a TIFF's page in micrometres, by its OME-XML, else by its tags; see :func:`ome_mpp`."""
    stated = ome_mpp(str(page.description), (page.imagewidth, page.imagelength))
    return _resolution_mpp(page) if stated is None else stated


def mpp_of_tiff(path: Path, number: int) -> StatedMpp:
    """Return the size of a pixel of a page of a TIFF, by its number, as :func:`mpp_of_page`; None where it cannot be read."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            return mpp_of_page(file.pages[number])
    except Exception:  # tifffile raises whatever odd tags lead to
        return None


def ome_mpp(text: str, size: tuple[int, int]) -> StatedMpp:
    """Return the size of a pixel that OME-XML states for an image of this width and height, in micrometres.

    Parameters
    ----------
    text : a TIFF's description of its first page, whatever it is

    Returns
    -------
    Width and height; None where nothing is stated. Else why what is stated is not understood, such as a size in an unknown
    unit, or of an image of another width or height: then the tags of the file may be those of another image, too.
    """
    if not OME.search(text):
        return None
    if (root := ome_root(text)) is None:
        return "its OME-XML is damaged"
    stated = root.findall("{*}Image/{*}Pixels")
    for pixels in stated:
        if (pixels.get("SizeX"), pixels.get("SizeY")) == tuple(map(str, size)):
            try:
                sizes = [_um_of(pixels, name) for name in ("PhysicalSizeX", "PhysicalSizeY") if name in pixels.attrib]
            except ValueError as error:
                return str(error)
            return (sizes[0], sizes[-1]) if sizes else None  # of one alone both: pixels are square
    others = ", ".join(f"{pixels.get('SizeX')} x {pixels.get('SizeY')}" for pixels in stated[:MOST_TOLD])
    return f"its OME-XML describes {others} px, not its picture of {size[0]} x {size[1]} px" if stated else None


def _um_of(pixels: Any, name: str) -> float:
    """Return a size that OME-XML states in micrometres; ValueError that says why it is not understood."""
    value, unit = pixels.attrib[name], pixels.get(f"{name}Unit", "µm").strip()
    um = um_per(BROKEN_MICRO.sub("µm", unit))
    if um is None:
        raise ValueError(f"its OME-XML states the size of a pixel in {unit!r}, which is not understood")
    try:
        return float(value.replace("_", "?")) * um  # Python passes over underscores within a number
    except ValueError:
        raise ValueError(f"its OME-XML states {name} {value!r}, which is no number with a decimal point") from None


def _resolution_mpp(page: Any) -> tuple[float, float] | None:
    """Return the size of a pixel that the tags of a TIFF's page state, in micrometres; None where they state none.

    As OpenSlide does for TIFFs; what no microscope has, such as 96 dots per inch, is refused where it is used.
    """
    unit = UM_PER_RESOLUTION_UNIT.get(int(page.tags.valueof(296, default=2)))
    ratios = [page.tags.valueof(code) for code in (282, 283)]
    if unit is None or None in ratios:
        return None
    values = [numerator / denominator if denominator else 0.0 for numerator, denominator in ratios]
    return (unit / values[0], unit / values[1]) if min(values) > 0 else None
