"""Which reader turns a file into pixels: the direct one where the file is plain, else OpenSlide; another one for pictures."""

from __future__ import annotations

import logging
from pathlib import Path

from wsi_meta.errors import SlideReadError
from wsi_meta.readers.direct_reader import DecodersDisagreeError, DirectReader
from wsi_meta.readers.jpeg_tiff import NotPlainError
from wsi_meta.readers.openslide_reader import OpenSlideReader
from wsi_meta.readers.picture_reader import PICTURE_ENDINGS, PictureReader

__all__ = ["READERS", "choose_reader", "open_file"]

READERS = ("auto", "openslide", "direct", "picture")
"""``auto`` is picture for PNG and JPEG, direct for plain TIFFs of JPEG tiles, else OpenSlide."""

logger = logging.getLogger("wsi_meta")


def open_file(path: Path, asked: str) -> OpenSlideReader | PictureReader:
    """Open a file as a picture where its name ends so, else with OpenSlide.

    Raises
    ------
    SlideReadError
    """
    if asked in ("auto", "picture") and path.suffix.lower() in PICTURE_ENDINGS:
        return PictureReader(path)
    if asked == "picture":
        raise SlideReadError(f"{path}: ending '{path.suffix}'; expected {', '.join(PICTURE_ENDINGS)} for the reader 'picture'")
    return OpenSlideReader(path)


def choose_reader(
    facts: OpenSlideReader | PictureReader, asked: str
) -> tuple[OpenSlideReader | DirectReader | PictureReader, str]:
    """Return the reader for a file, and the reason for it.

    Parameters
    ----------
    facts : the file, from :func:`open_file`
    asked : one of :data:`READERS`

    Raises
    ------
    SlideReadError
        when the direct reader was asked for and cannot read the file.
    """
    if isinstance(facts, PictureReader):
        return facts, "a picture without levels"
    if asked == "openslide":
        return facts, "asked for"
    try:
        direct = DirectReader(facts)
    except NotPlainError as error:
        if asked == "direct":
            raise SlideReadError(
                f"{facts.path}: {error}; the direct reader expects a plain TIFF of JPEG tiles; leave --reader out"
            ) from error
        if isinstance(error, DecodersDisagreeError):
            logger.warning(
                "%s: is read by OpenSlide, which may show damage as tissue (%s); copy the slide again", facts.path, error
            )
        return facts, str(error)
    facts.close()
    return direct, direct.reason
