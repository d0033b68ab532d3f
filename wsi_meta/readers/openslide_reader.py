"""Pixels through OpenSlide, for any format that it reads, and the properties of every slide."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.dicom.frames import dicom_grids
from wsi_meta.dicom.series import check_dicom
from wsi_meta.errors import SlideReadError
from wsi_meta.files.image_series import expect_one_in_tiff
from wsi_meta.files.same_file import REPLACED, SameFile, SlideReplacedError, WatchedFile
from wsi_meta.files.slide_file import files_of_slide, refuse_no_file, why_not_opened
from wsi_meta.readers.levels import find_scales
from wsi_meta.readers.ome_tiff import mpp_of_tiff, ome_mpp
from wsi_meta.readers.reader import Bounds, OpenedReader, UnreadableRegionError, before, undecodable
from wsi_meta.readers.tiff_reader import TiffReader
from wsi_meta.stored_tiles.checked_tiles import find_checked, tell_unchecked
from wsi_meta.stored_tiles.jpeg_tiff import NotPlainError, find_levels
from wsi_meta.stored_tiles.tile_check import TileCheck
from wsi_meta.tiffs.level_pages import REDRAWN, level_pages
from wsi_meta.tiffs.sparse_tiles import LeftOut, lacks_tiles
from wsi_meta.tiffs.structure import check_forms, check_tiff, tile_grids
from wsi_meta.words import first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OpenSlideReader", "warn_of_damage"]

SAMPLES, FEWER = 9, 2
"""Tiles of each page that are looked at first, at most; so few odd ones are damaged, however few others there are."""
MAX_READ_PX = 4000
"""OpenSlide gave wrong pixels for reads of 4,096 px and more at levels other than 0 (openslide issue 612)."""

logger = logging.getLogger("wsi_meta")


class OpenSlideReader(OpenedReader):
    """A file opened with OpenSlide. Threads may share it, and share the tiles that it keeps.

    OpenSlide opens the file by its name again and again. The path must lead to the same file after every read.

    Parameters
    ----------
    path : the file
    file : what is watched instead, where `path` is a copy of parts of it

    Attributes
    ----------
    path : the file
    file : the file as it was when it was opened first
    properties : what the file says of itself, by OpenSlide's names
    level_dimensions : (width, height) of each level, level 0 first
    level_downsamples : factor of each level relative to level 0, by OpenSlide
    bounds : the part of level 0 that holds all scanned pixels; all of it where the file does not say
    tiles : (width, height) of each level's stored tiles; None where OpenSlide does not say
    scales : the true factors, and the levels that are not to be read
    background : RGB of what is transparent; the slide's own background colour, else white

    Raises
    ------
    SlideReadError
        when the file is no slide, says of itself what cannot be, is stored otherwise than OpenSlide reads it, or holds another
        picture that is as large.
    """

    name = "openslide"
    file: WatchedFile

    def __init__(self, path: Path, file: WatchedFile | None = None) -> None:
        refuse_no_file(path)
        parts = files_of_slide(path, read=True)
        self.path, self.file = path, file or SameFile.at(*parts)
        self._handle: Any = None
        impossible = {tiles.size: tiles for tiles in check_tiff(path)}
        handle = self._open()
        self.level_dimensions = handle.level_dimensions
        named = handle.properties  # names that are no UTF-8 are listed with this character, and not found again
        self.properties = {name: named[name] for name in named if "\N{REPLACEMENT CHARACTER}" not in name}
        self.level_downsamples: tuple[float, ...] = handle.level_downsamples
        if self.properties.get("openslide.vendor") == "generic-tiff":  # of any other kind OpenSlide knows what its pages are
            self._judge_pages()
        self.bounds = _find_bounds(self.properties, self.level_dimensions[0])
        self._impossible = [impossible.pop(size, None) for size in self.level_dimensions]
        if impossible:
            raise SlideReadError(f"{path}: says that some of its tiles are longer than the file; copy the slide again")
        self.tiles = [_tile_of(self.properties, level) for level in range(len(self.level_dimensions))]
        self.scales = find_scales(self.level_dimensions, self.level_downsamples, self.tiles)
        self._vendor = str(self.properties.get("openslide.vendor"))
        check_forms(path, self._vendor, self.level_dimensions, self.scales.usable)
        if self._vendor == "dicom":
            for part in parts:
                check_dicom(part)
            self.file = SameFile.at(*parts).largest_first()
        self.background = tuple(bytes.fromhex(self.properties.get("openslide.background-color", "FFFFFF")))
        self._left_out, self._coarse = self._find_left_out(parts)
        self._checked: TileCheck | None = None

    def check_tiles(self) -> None:
        """From now on look at the bytes of tiles before OpenSlide, which passes over damage, is asked for their pixels.

        Where it reads most of a few tiles in spite of their bytes, a writer has its own way: the like is passed over.
        """
        levels, reasons = find_checked(self.path, self.file, self._vendor, self.level_dimensions, self.scales.usable)
        for told in tell_unchecked(reasons):
            logger.warning("%s: %s; convert the slide", self.path, told)
        checked = TileCheck(levels)
        sound, odd = 0, list[Exception]()
        for level, *place in checked.samples(SAMPLES):
            try:
                checked.refuse_damaged(level, *place)
                sound += 1
            except SlideReplacedError:
                raise
            except (ValueError, OSError) as error:
                odd += [error] if self._decodes(level, *place) else []
        if len(odd) > max(sound, FEWER):
            warn_of_damage(self.path, odd[0])
            checked.pass_over(odd, FEWER + 1)
        self._checked = checked

    def read_into(self, region: NDArray[np.uint8], level: int, left: int, top: int) -> None:
        """Fill an array (height, width, 3) with the pixels at (left, top) of a level; all of it lies in the level.

        Raises
        ------
        UnreadableRegionError
            when the stored pixels cannot be decoded, or the file went away. Other regions can still be read.
        SlideReplacedError
        """
        try:
            for row in range(0, region.shape[0], MAX_READ_PX):
                for col in range(0, region.shape[1], MAX_READ_PX):
                    part = region[row : row + MAX_READ_PX, col : col + MAX_READ_PX]
                    part[:] = self._read(level, left + col, top + row, part.shape[1], part.shape[0])
        except (SlideReplacedError, UnreadableRegionError):
            raise
        except SlideReadError as error:
            raise UnreadableRegionError(str(error)) from error

    def close(self) -> None:
        """Close the file as soon as the reads of other threads have ended. A later read opens it again."""
        self._handle = None
        for other in (self._coarse, self._checked):
            if other is not None:
                other.close()

    def _read(self, level: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        corner = (round(left * self.level_downsamples[level]), round(top * self.level_downsamples[level]))
        # where the corner is no whole pixel of the level, OpenSlide blends neighbours
        beside = int(any(at % self.level_downsamples[level] for at in corner))
        around = left - beside, top - beside, width + 2 * beside, height + 2 * beside
        if (tiles := self._impossible[level]) is not None and tiles.touch(*around):
            raise undecodable(self.path, corner, level, "a tile longer than a tile can be")
        try:
            self._refuse_lost(level, left, top, width, height)
            if self._checked is not None:
                self._checked.refuse_damaged(level, *around)
        except SlideReadError:
            raise
        except (ValueError, OSError) as error:
            raise undecodable(self.path, corner, level, error) from error
        return self._pixels(level, left, top, width, height)

    def _refuse_lost(self, level: int, left: int, top: int, width: int, height: int) -> None:
        """Refuse tiles that were left out and are no glass; ValueError or SlideReadError.

        In some formats OpenSlide draws coarser tiles anew from level 0 where they, or what lies below them, were left out.
        """
        if self._left_out is not None and self.properties.get("openslide.vendor") in REDRAWN:
            scale = self.scales.downsamples[level]
            rectangle = 0, int(left * scale), int(top * scale), ceil(width * scale), ceil(height * scale)
            self._left_out.refuse_lost(rectangle, _no_look if self._coarse is None else self._coarse.pixels)
        elif self._left_out is not None:
            self._left_out.refuse_lost((level, left, top, width, height), self._pixels)

    def _judge_pages(self) -> None:
        """Refuse another picture that is as large as level 0; take the size of a pixel from where it is that of level 0.

        OpenSlide takes that of the first page, whichever it takes for level 0, and passes over OME-XML.
        """
        size = self.level_dimensions[0]
        read = level_pages(self.path, "generic-tiff", self.level_dimensions)[0]
        expect_one_in_tiff(self.path, getattr(self.file, "address", self.path), read or 0)
        mpp = ome_mpp(self.properties.get("tiff.ImageDescription", ""), size)
        if read != 0 or isinstance(mpp, str):
            self.properties = {name: value for name, value in self.properties.items() if not name.startswith("openslide.mpp-")}
        if read and mpp is None:
            mpp = mpp_of_tiff(self.path, read)
        self._state_mpp(mpp)

    def _find_left_out(self, parts: Sequence[Path]) -> tuple[LeftOut | None, TiffReader | None]:
        """Find out which tiles that were left out are no glass, and who looks at coarser ones where OpenSlide cannot.

        None where there are none, or where they lie is not known; and where nobody can look.
        """
        vendor, sizes, factors = self._vendor, self.level_dimensions, self.scales.downsamples
        if vendor == "dicom":
            found = list(map(dicom_grids(parts).get, sizes))
        else:
            found = tile_grids(self.path, level_pages(self.path, vendor, sizes))
        grids = {level: grid for level in self.scales.usable if (grid := found[level]) is not None}
        if not lacks_tiles(grids):
            return None, None
        left_out, coarse = LeftOut(sizes[0], grids, factors, self.background), None
        if vendor in REDRAWN:
            try:
                levels = find_levels(self.path, vendor, sizes, grids, sparse=True)
                coarse = TiffReader(self.path, self.file, levels, factors, self.background)
            except NotPlainError:
                pass  # what is in doubt counts as lost
        return left_out, coarse

    def _decodes(self, level: int, left: int, top: int, width: int, height: int) -> bool:
        """Tell whether OpenSlide decodes a rectangle, whatever it makes of it."""
        try:
            self._pixels(level, left, top, width, height)
        except UnreadableRegionError:
            return False
        return True

    def _pixels(self, level: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        corner = (round(left * self.level_downsamples[level]), round(top * self.level_downsamples[level]))
        pixels = self._decode(corner, level, (width, height))
        colours, alpha = pixels[..., :3], pixels[..., 3:]
        return colours if alpha.min() == 255 else before(self.background, colours, alpha)

    def _decode(self, corner: tuple[int, int], level: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return RGBA pixels. After one bad tile every later read with the same handle fails, in other threads as well."""
        from openslide import OpenSlideError

        try:
            pixels = np.asarray(self._open().read_region(corner, level, size))
        except OpenSlideError:
            self._handle = None
            try:  # with a handle of its own
                pixels = np.asarray(self._open_another().read_region(corner, level, size))
            except OpenSlideError as error:
                self._check_file()
                raise undecodable(self.path, corner, level, error) from error
        self._check_file()
        return pixels

    def _open(self) -> Any:
        handle = self._handle
        if handle is None:
            self._handle = handle = self._open_another()
        return handle

    def _open_another(self) -> Any:
        from openslide import OpenSlide, OpenSlideError

        refuse_no_file(self.path)
        self._check_file()  # before, for its true cause; after, because it can be replaced in between
        try:
            handle = OpenSlide(self.path)
        except OpenSlideError as error:
            raise why_not_opened(self.path, error) from error
        self._check_file()
        if handle.level_dimensions != getattr(self, "level_dimensions", handle.level_dimensions):  # a file came to its series
            raise SlideReplacedError(f"{self.path}: {REPLACED}")
        return handle

    def _check_file(self) -> None:
        try:
            self.file.check()
        except SlideReadError:
            raise
        except OSError as error:
            raise SlideReadError(f"{self.path}: went away while it was read ({first_line(error)}); start again") from error


def warn_of_damage(path: Path, error: Exception) -> None:
    """Warn of a file whose damage is not told from the way in which it was written."""
    logger.warning("%s: is read by OpenSlide, which may show damage as tissue (%s); copy the slide again", path, error)


def _no_look(*_rectangle: int) -> NDArray[np.uint8]:
    raise ValueError("a tile that was left out, though other levels hold what lies there; they cannot be looked at")


def _tile_of(properties: dict[str, str], level: int) -> tuple[int, int] | None:
    width, height = (properties.get(f"openslide.level[{level}].tile-{side}", "") for side in ("width", "height"))
    return (int(width), int(height)) if width.isdigit() and height.isdigit() and int(width) and int(height) else None


def _find_bounds(properties: Mapping[str, str], size: tuple[int, int]) -> Bounds:
    """Return the bounds that a file states. As in QuPath they count only where all four numbers are there."""
    stated = [properties.get(f"openslide.bounds-{name}", "") for name in ("x", "y", "width", "height")]
    if all(value.isdecimal() for value in stated):
        x, y, width, height = map(int, stated)
        if width and height and x < size[0] and y < size[1]:
            return Bounds(x, y, width, height)
    return Bounds(0, 0, *size)
