"""Which reader turns a file into pixels: the direct one where the file is plain, else OpenSlide."""

from __future__ import annotations

import logging

from wsi_meta.errors import SlideReadError
from wsi_meta.slides.direct_reader import DecodersDisagreeError, DirectReader
from wsi_meta.slides.jpeg_tiff import NotPlainError
from wsi_meta.slides.openslide_reader import OpenSlideReader

__all__ = ["READERS", "choose_reader"]

READERS = ("auto", "openslide", "direct")
"""``auto`` is direct for plain TIFFs of JPEG tiles, else OpenSlide."""

logger = logging.getLogger("wsi_meta")


def choose_reader(facts: OpenSlideReader, asked: str) -> tuple[OpenSlideReader | DirectReader, str]:
    """Return the reader for a file, and the reason for it.

    Parameters
    ----------
    facts : the file, opened with OpenSlide
    asked : one of :data:`READERS`

    Raises
    ------
    SlideReadError
        when the direct reader was asked for and cannot read the file.
    """
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
