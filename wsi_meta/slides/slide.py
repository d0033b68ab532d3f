"""Whole-slide images as arrays, on a disk or at an address.

Coordinates follow OpenSlide: ``x, y`` are level-0 pixels, x first; sizes are pixels of the level that is read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import nullcontext
from fractions import Fraction
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from wsi_meta.errors import MissingMppError, OptionsError, SlideReadError, named_by_source, of_kind, one_of
from wsi_meta.files.address import Address, SlidePath, slide_name, slide_path
from wsi_meta.files.fingerprints import Fingerprint
from wsi_meta.files.remote_file import RemoteFile
from wsi_meta.outputs.paths import as_path
from wsi_meta.readers.choice import READERS, Opening, opening
from wsi_meta.readers.levels import best_level, check_region, cut_to, find_window
from wsi_meta.readers.picture_reader import PictureReader
from wsi_meta.slides.overview import read_in_parts
from wsi_meta.slides.pixel_size import find_mpp, ratio_to, refuse_larger_than_any, warn_of_another_mpp
from wsi_meta.slides.resampling import resample
from wsi_meta.slides.strange_levels import COMMON_TILE_PX, BelievedLevels

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Slide", "open_slide"]

logger = logging.getLogger("wsi_meta")


def open_slide(path: str | Path | Address, *, mpp: float | None = None, reader: str = "auto") -> Slide:
    """Return a whole-slide image, opened; the end of a ``with`` block closes it.

    Parameters
    ----------
    path : file in any format that OpenSlide reads, OME-TIFF, OME-Zarr, or a picture (.png, .jpg, a TIFF without tiles), which
        needs `mpp`; or the address (http, https, s3) of one that needs no OpenSlide: only the tiles needed are fetched
    mpp : micrometres per level-0 pixel, 0.05 to 50; needed where the file does not state it or states it wrongly
    reader : ``openslide``; ``direct``, several times faster, for plain TIFFs of JPEG tiles (Camelyon, Philips, most Aperio)
        and OME-TIFF; ``picture``, for PNG, JPEG and TIFFs without tiles; ``zarr``; ``auto``, the one that fits

    Raises
    ------
    SlideReadError
        when the file is missing, a folder, empty, damaged or of no known format, or when `reader` cannot read it.
    MissingMppError, OptionsError
        when `mpp` cannot be the size of a pixel, or there is no such reader.
    """
    slide = Slide(slide_path(path), mpp, one_of("reader", reader, READERS))
    warn_of_another_mpp(slide.path, slide.stated_mpp, slide.known_mpp, mpp, slide.properties)
    return slide


class Slide:
    """An opened slide; see :func:`open_slide`. Threads may share it.

    Attributes
    ----------
    path, name : the file or its address, and its name without ending
    width, height : level-0 pixels
    bounds : x, y, width and height of the part of level 0 that holds all scanned pixels (``openslide.bounds-x`` and so on); all
        of it where the file does not say. QuPath shows only this part and counts from its corner, we from level 0's own
    level_dimensions : (width, height) of each level, level 0 first
    level_downsamples : factor of each level relative to level 0
    level_tiles : (width, height) of each level's stored tiles; None where it is not known
    background : RGB of what lies outside the slide or is transparent; the slide's own background colour, else white
    vendor : format, as OpenSlide names it
    known_mpp : micrometres per level-0 pixel, or None; see :attr:`mpp`
    mpp_problem : why it is not known, in one line; None where it is
    stated_mpp : what the file says instead, where another one was given that differs by more than 2 %; else None
    properties : what the file says of itself, by OpenSlide's names
    levels_left_out : levels that are never read, because their pixels are not where they should be, with the reasons
    reader, reader_reason : which one decodes its pixels, and why
    """

    def __init__(
        self, path: SlidePath, mpp: float | None = None, reader: str = "auto", picture: PictureReader | None = None
    ) -> None:
        self.path, self.name = path, slide_name(path)
        here = path.absolute()  # readers open it again, maybe after the process went to another folder
        source = opening(here, reader) if picture is None else nullcontext(Opening(picture))
        with named_by_source(path, None if here == path else here), source as opened:
            self._take(opened, mpp)
        for level, reason in self.levels_left_out.items():
            logger.warning("%s: level %d is left out, finer ones are read instead: %s", path, level, reason)

    def _take(self, opened: Opening, mpp: float | None) -> None:
        """Keep what the file says of itself; choose who decodes it."""
        facts = opened.facts
        self.level_dimensions, self.level_downsamples = facts.level_dimensions, facts.scales.downsamples
        self.levels_left_out, self._usable = facts.scales.left_out, facts.scales.usable
        (self.width, self.height), *_ = self.level_dimensions
        self.level_tiles, self._file, self._extents = facts.tiles, facts.file, facts.scales.extents(self.level_dimensions)
        self.bounds, self.properties, self.background = facts.bounds, facts.properties, facts.background
        self._believed = BelievedLevels(self.path, self._usable, self._extents, self.level_tiles, self.background)
        self.vendor = str(facts.properties.get("openslide.vendor"))
        self._print = Fingerprint(facts.file, facts.level_dimensions, facts.properties.get("openslide.quickhash-1", ""))
        self.known_mpp, self.stated_mpp, self.mpp_problem = find_mpp(self.path, mpp, facts.properties, facts.mpp_problem)
        self._reader, self.reader_reason = opened.choose()
        self.reader = self._reader.name

    @classmethod
    def from_array(cls, pixels: NDArray[np.uint8], *, mpp: float, name: str = "array") -> Slide:
        """Return pixels in memory as a slide, for :func:`wsi_meta.scan`; on a cluster, write a file instead.

        Parameters
        ----------
        pixels : uint8 (height, width, 3), RGB, not copied; also (height, width), grey, or with transparency, made white
        mpp : micrometres per pixel
        name : the slide's name

        Raises
        ------
        SlideReadError, MissingMppError
            for another type or shape, or when `mpp` cannot be the size of a pixel.
        """
        path, pixels = as_path("name", name), of_kind("pixels", pixels, np.ndarray, "an array, uint8 (height, width, 3)")
        return cls(path, mpp, picture=PictureReader(path, pixels))

    @property
    def mpp(self) -> float:
        """Micrometres per level-0 pixel; MissingMppError when the file does not say and none was given."""
        if self.known_mpp is None:
            raise MissingMppError(self.mpp_problem)
        return self.known_mpp

    def fingerprint(self) -> str:
        """Return 64 hexadecimal digits that differ between slides, whatever path or time; see :class:`.Fingerprint`."""
        return self._print.now

    def has_fingerprint(self, told: str) -> bool:
        """Tell whether a fingerprint is this slide's, be it of a copy at an address or by the rule of an earlier version."""
        return self._print.fits(told)

    def read_region(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> NDArray[np.uint8]:
        """Read a rectangle of one level.

        Parameters
        ----------
        x, y : corner, level-0 pixels, rounded to whole pixels of `level`; may lie outside the slide
        width, height : pixels of `level`
        level : pyramid level, 0 finest

        Returns
        -------
        uint8 array (height, width, 3), RGB. What lies outside the slide, or is transparent, has the background colour.

        Raises
        ------
        SlideReadError
            when the stored pixels cannot be decoded, or the level is left out. The slide stays usable for other regions.
        OptionsError
            when there is no such level, a side is below 0, or a number is none.
        """
        asked = (x, y, width, height)
        x, y, width, height, level = check_region(self.path, asked, level, len(self.level_dimensions))
        if level in self.levels_left_out:
            raise SlideReadError(f"{self.path}: level {level} is not read: {self.levels_left_out[level]}; read a finer one")
        downsample = self.level_downsamples[level]
        return self._read_level(level, round(x / downsample), round(y / downsample), width, height)

    def read_at(self, mpp: float, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a rectangle at a given resolution.

        Pixel (i, j) of the plane covers the square [j, j+1) x [i, i+1) times `mpp` from the slide's corner. It is the nearest
        one of a level whose pixels differ in size by less than a 400th; else of the next finer level the average by exact area.

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
        MissingMppError, OptionsError
        """
        return self._read_plane(self._usable, mpp, x, y, width, height)

    def _read_plane(self, levels: dict[int, float], mpp: float, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        x, y, width, height, _ = check_region(self.path, (x, y, width, height))
        window = find_window(levels, self.check_resolution(mpp), x, y, width, height)
        inside = cut_to(self._extents, window.rectangle)
        if min(inside[3:]) <= 0 or self._reader.is_empty(*inside):  # a level of 100,000 px may hold little more than that
            return np.full((height, width, 3), self.background, np.uint8)
        pixels = self._read_level(*window.rectangle)
        return resample(pixels, window.scale, (height, width), (y, x), (window.top, window.left))

    def read_overview(self, mpp: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read the whole slide in parts, small ones around damage, so that a damaged tile costs little more than itself.

        A level that clearly shows something else than finer ones is passed over, with a warning; see :class:`.BelievedLevels`.

        Parameters
        ----------
        mpp : micrometres per pixel of the overview

        Returns
        -------
        uint8 array (height, width, 3), RGB, and bool array (height, width): False where it could not be read; the
        image has the background colour there.

        Raises
        ------
        SlideReadError
            when nothing at all can be read, or as :meth:`read_at`.
        """
        l0_per_px = self.check_resolution(mpp)
        shape = ceil(self.height / l0_per_px), ceil(self.width / l0_per_px)
        least_px = self.tile_px_at(mpp) / 2  # little of its neighbours is lost with a damaged tile
        read = partial(self._read_plane, self._believed.up_to(self._level_at(mpp), self._read_level), mpp)
        image, readable, failure = read_in_parts(read, shape, least_px, self.background)
        if failure is not None and not readable.any():
            raise SlideReadError(f"{self.path}: nothing of it can be read; copy the slide again") from failure
        return image, readable

    def check_resolution(self, mpp: float) -> Fraction:
        """Return the number of level-0 pixels per pixel at `mpp`, exactly.

        Raises
        ------
        SlideReadError
            when the slide is more than 5 % coarser than `mpp`, or larger than any.
        """
        refuse_larger_than_any(self.path, self.width, self.height, self.mpp)
        return ratio_to(self.path, self.mpp, mpp)

    def expect(self, mpp: float, windows: Iterable[tuple[int, int, int, int]]) -> int | None:
        """Say what :meth:`read_at` will read, so that a stored tile which several windows share is decoded once.

        Parameters
        ----------
        mpp : micrometres per pixel of the windows
        windows : (x, y, width, height) of each, as for :meth:`read_at`; all are read soon, neighbours shortly after each other

        Returns
        -------
        Number of stored tiles that they need; None where they are not counted.
        """
        l0_per_px = self.check_resolution(mpp)
        parts = (cut_to(self._extents, find_window(self._usable, l0_per_px, *window).rectangle) for window in windows)
        return self._reader.expect([part for part in parts if part[3] > 0 and part[4] > 0])

    @property
    def tiles_decoded(self) -> int | None:
        """Stored tiles decoded since the slide was opened; None where they are not counted."""
        return self._reader.tiles_decoded

    @property
    def bytes_fetched(self) -> tuple[int, int] | None:
        """Bytes that came of a slide at an address, and bytes of all of it; None on a disk."""
        return (self._file.fetched, self._file.size) if isinstance(self._file, RemoteFile) else None

    def close(self) -> None:
        """Close the file as soon as the reads of other threads have ended. A later read opens it again."""
        self._reader.close()

    def __reduce__(self) -> NoReturn:
        raise OptionsError(f"{self.path}: an open slide cannot be copied or sent to another process; send its path")

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def tile_px_at(self, mpp: float) -> float:
        """Return the shorter side of the stored tiles that are read for a resolution, in pixels at `mpp`."""
        level = self._level_at(mpp)
        tile = min(self.level_tiles[level] or (COMMON_TILE_PX,))
        return tile * self.level_downsamples[level] / float(self.check_resolution(mpp))

    def _read_level(self, level: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read pixels of a level; those outside it have the background colour."""
        region = np.empty((height, width, 3), np.uint8)
        _, l_x, l_y, l_width, l_height = cut_to(self._extents, (level, left, top, width, height))
        if (l_width, l_height) != (width, height):  # whole rows: 3 bytes at a time are slow
            region.reshape(height, width * 3)[:] = np.tile(np.array(self.background, np.uint8), width)
        if l_width > 0 and l_height > 0:
            part = region[l_y - top : l_y - top + l_height, l_x - left : l_x - left + l_width]
            self._reader.read_into(part, level, l_x, l_y)
        return region

    def _level_at(self, mpp: float) -> int:
        return best_level(self._usable, self.check_resolution(mpp))
