"""Which reader turns a file into pixels: one for its kind, the direct one where it is plain, else OpenSlide."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from wsi_meta.errors import SlideReadError, named_by_source
from wsi_meta.files.address import Address, SlidePath
from wsi_meta.files.image_series import SeveralPicturesError
from wsi_meta.files.partial_copy import PartialCopy, partial_copy
from wsi_meta.files.remote_file import RemoteFile
from wsi_meta.files.slide_file import refuse_no_file
from wsi_meta.outputs.zarr_folder import is_zarr
from wsi_meta.readers.direct_reader import DecodersDisagreeError, DirectReader, OtherPixelsError
from wsi_meta.readers.ome_tiff import OmeTiffReader
from wsi_meta.readers.openslide_reader import OpenSlideReader, warn_of_damage
from wsi_meta.readers.picture_reader import PICTURE_ENDINGS, TIFF_ENDINGS, PictureReader
from wsi_meta.readers.reader import Reader
from wsi_meta.readers.zarr_reader import ZarrReader
from wsi_meta.stored_tiles.jpeg_tiff import NotPlainError
from wsi_meta.tiffs.pixel_form import OtherFormError
from wsi_meta.tiffs.structure import DamagedPagesError, has_sub_pages, is_plain_picture
from wsi_meta.words import first_line

__all__ = ["READERS", "Opening", "opening"]

READERS = ("auto", "openslide", "direct", "picture", "zarr")
"""``auto`` is zarr for OME-Zarr, picture for PNG, JPEG and TIFFs without tiles, direct for plain TIFFs of JPEG tiles and those
with a pyramid in their first page, else OpenSlide."""

logger = logging.getLogger("wsi_meta")

Opened: TypeAlias = OpenSlideReader | OmeTiffReader | PictureReader | ZarrReader


@dataclass
class Opening:
    """A slide that is being opened: what it says of itself is known, who decodes it is still to be chosen."""

    facts: Opened
    asked: str = "auto"
    notes: list[str] = field(default_factory=list)
    """Why other readers were passed over."""
    copy: PartialCopy | None = None
    """What OpenSlide sees of a file at an address."""

    def choose(self) -> tuple[Reader, str]:
        """Return the reader, and the reason for it.

        Raises
        ------
        SlideReadError
            when the direct reader was asked for and cannot read the file, or only OpenSlide can, and it is at an address.
        """
        if not isinstance(self.facts, OpenSlideReader):
            return self.facts, self.facts.reason
        if self.asked == "openslide":
            self.facts.check_tiles()
            return self.facts, "asked for"
        try:
            direct = self._judged(self.facts)
        except NotPlainError as error:
            return self._left_to_openslide(self.facts, error)
        self.facts.close()
        return direct, direct.reason

    def _judged(self, judge: OpenSlideReader) -> DirectReader:
        if self.copy is None:
            return DirectReader(judge)
        return DirectReader(judge, show=self.copy.fill, display_name=self.copy.remote.address)

    def _left_to_openslide(self, facts: OpenSlideReader, error: NotPlainError) -> tuple[Reader, str]:
        reason = "; ".join([*self.notes, str(error)])
        if self.copy is not None:
            raise SlideReadError(
                f"{self.copy.remote.address}: {reason}; OpenSlide reads such a slide from a local file only; download it"
            ) from error
        if self.asked == "direct":
            raise SlideReadError(
                f"{facts.path}: {reason}; the direct reader expects a plain TIFF of JPEG tiles; leave --reader out"
            ) from error
        if isinstance(error, DecodersDisagreeError):
            warn_of_damage(facts.path, error)
        else:
            if isinstance(error, OtherPixelsError):
                logger.warning(
                    "%s: %s, which are used; look at its colours, and convert it if they are wrong", facts.path, error
                )
            facts.check_tiles()
        return facts, reason


@contextmanager
def opening(path: SlidePath, asked: str) -> Iterator[Opening]:
    """Open a file by its kind, for as long as it takes to choose who decodes it.

    Parameters
    ----------
    path : of the slide, or its address
    asked : one of :data:`READERS`

    Raises
    ------
    SlideReadError
    """
    if path.suffix.lower() == ".zarr" or (isinstance(path, Path) and path.is_dir() and is_zarr(path)):
        yield _opened_zarr(path, asked)
    elif isinstance(path, Address):
        yield from _opening_at(path, asked)
    else:
        try:
            opened = _opened(path, asked)
        except OSError as error:
            if isinstance(error, SlideReadError) or error.filename is not None:
                raise
            raise SlideReadError(f"{path}: cannot be opened ({first_line(error)}); try again, or copy it") from None
        yield opened


def _opened_zarr(path: SlidePath, asked: str) -> Opening:
    if isinstance(path, Path) and not path.is_dir():
        refuse_no_file(path)
    if asked not in ("auto", "zarr"):
        raise SlideReadError(f"{path}: a zarr store; expected another file for the reader '{asked}'; leave --reader out")
    return Opening(ZarrReader(path), asked)


def _opened(path: Path, asked: str) -> Opening:
    ending = path.suffix.lower()
    if asked in ("auto", "picture") and ending in PICTURE_ENDINGS:
        return Opening(PictureReader(path), asked)
    refuse_no_file(path)
    if asked == "zarr":
        raise SlideReadError(f"{path}: no zarr store; expected the folder of an OME-Zarr image; leave --reader out")
    if asked == "picture":
        if ending in TIFF_ENDINGS and is_plain_picture(path):
            return Opening(PictureReader(path), asked)
        raise SlideReadError(
            f"{path}: ending '{path.suffix}'; expected {', '.join(PICTURE_ENDINGS)} for the reader 'picture', "
            "or a TIFF without tiles"
        )
    notes = []
    if asked in ("auto", "direct") and has_sub_pages(path):
        try:
            return Opening(OmeTiffReader(path), asked)
        except NotPlainError as error:
            notes.append(str(error))
    try:
        return Opening(OpenSlideReader(path), asked, notes)
    except SlideReadError:
        if asked != "auto" or ending not in TIFF_ENDINGS or not is_plain_picture(path):
            raise
    return Opening(PictureReader(path), asked)


def _opening_at(address: Address, asked: str) -> Iterator[Opening]:
    """Open what lies at an address by a copy of the parts of it that are not pixels."""
    if asked == "zarr":
        raise SlideReadError(f"{address}: no zarr store; expected an address that ends with .zarr")
    if asked == "openslide":
        raise SlideReadError(f"{address}: OpenSlide reads local files only; leave --reader out, or download it first")
    remote = RemoteFile(address)
    with partial_copy(remote) as copy, named_by_source(address, copy.path):
        try:
            if address.suffix.lower() in PICTURE_ENDINGS:
                copy.fill_all()
                yield Opening(PictureReader(copy.path, file=remote), asked)
                return
            copy.fill_structure()
            yield _opened_copy(copy, asked)
        except SlideReadError:
            raise
        except OSError as error:
            raise SlideReadError(f"{address}: cannot be opened ({first_line(error)}); try again, or download it") from None


def _opened_copy(copy: PartialCopy, asked: str) -> Opening:
    remote, notes = copy.remote, list[str]()
    if remote.address.suffix.lower() in TIFF_ENDINGS and is_plain_picture(copy.path):
        copy.fill_all()
        return Opening(PictureReader(copy.path, file=remote), asked)
    if has_sub_pages(copy.path):
        try:
            return Opening(OmeTiffReader(copy.path, remote, remote.address), asked)
        except NotPlainError as error:
            notes.append(str(error))
    try:
        return Opening(OpenSlideReader(copy.path, remote), asked, notes, copy)
    except (SeveralPicturesError, OtherFormError, DamagedPagesError):
        raise
    except SlideReadError as error:
        told = str(error).removeprefix(f"{copy.path}: ")
        raise SlideReadError(
            f"{remote.address}: cannot be read in parts ({told.partition(';')[0]}); expected a TIFF of JPEG tiles; download it"
        ) from error
