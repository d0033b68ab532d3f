"""What readers take for granted of stored pixels: upright, 8 bits a colour, RGB or grey, and no value that means nothing.

Libraries decode what is stored otherwise to something, without a word: to what the file does not mean.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from io import BytesIO

import numpy as np

from wsi_meta.errors import SlideReadError
from wsi_meta.tiffs.pages import number_of, pages_in
from wsi_meta.tiffs.tags import (
    BITS,
    BLACK_IS_ZERO,
    CODECS,
    COMPRESSION,
    DIFFERENCES,
    EXTRA_SAMPLES,
    NONE,
    ORIENTATION,
    PACKBITS,
    PALETTE,
    PHOTOMETRIC,
    PREDICTED,
    PREDICTOR,
    RGB,
    SAMPLE_FORMAT,
    SAMPLES,
    UNSIGNED,
    WHITE_IS_ZERO,
    YCBCR,
)

__all__ = [
    "PNG",
    "UNSAID",
    "OtherFormError",
    "exif_orientation",
    "other_colours",
    "other_order",
    "refuse_other_colours",
    "refuse_other_form",
    "refuse_turned",
    "spread",
]

OTHER_COLOURS = {4: "MASK", 5: "SEPARATED", 8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32803: "CFA", 34892: "LINEAR_RAW"}
"""Names of others."""
UNSAID = "does not say whether 0 is black or white (PhotometricInterpretation)"
"""What is told of a TIFF that libraries take for one whose 0 is white, or refuse."""
JPEG_COLOURS = {RGB: "RGB", YCBCR: "YCbCr"}
"""Colours that JPEG tiles may have."""
SAMPLES_ASKED = 9
"""Tiles of each level that are asked for their colours, at most: one that is damaged does not say how the others are stored."""
PNG, JPEG, EXIF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"Exif\0\0"
"""How a PNG, a JPEG and the EXIF of one begin."""
APP1, START_OF_SCAN = 0xE1, 0xDA
"""Markers of a JPEG."""


class OtherFormError(SlideReadError):
    """A file whose pixels are stored in a way that is not read here, wherever it lies."""


def refuse_turned(display_name: object, orientation: int, what: str = "the picture") -> None:
    """Refuse pixels that a viewer would turn or mirror: a map would lie on them in another way.

    Parameters
    ----------
    display_name : what the message calls the file
    orientation : TIFF's and EXIF's number; 1 is upright, and what is not from 1 to 8 says nothing

    Raises
    ------
    OtherFormError
    """
    if orientation in range(2, 9):
        raise OtherFormError(
            f"{display_name}: {what} is to be turned (Orientation {orientation}), which is not done here; "
            "expected Orientation 1; convert it so that its pixels are stored upright"
        )


def other_colours(bits: Sequence[int], photometric: int | None) -> str | None:
    """Return how pixels are stored that are not RGB or grey of 8 bits a colour; None where they are, or nothing is said."""
    if odd := [number for number in bits if number != 8]:
        return f"{odd[0]} bits a colour; expected 8"
    if photometric not in (None, WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR):
        return f"colours stored as {OTHER_COLOURS.get(photometric, f'number {int(photometric)}')}; expected RGB or grey"
    return None


def other_order(compression: int, predictor: int, fill_order: int = 1) -> str | None:
    """Return how bits and values follow each other that are not read, by the numbers of TIFF's tags; None where they are."""
    if compression not in (NONE, PACKBITS, *PREDICTED):
        return None
    if fill_order != 1:
        return f"bytes whose first bit is their lowest (FillOrder {fill_order}); expected FillOrder 1"
    known = (1, DIFFERENCES) if compression in PREDICTED else (1,)
    if predictor in known:
        return None
    told = f"Predictor {int(predictor)} with the compression {CODECS[compression]}, of which libraries make different pixels"
    return f"{told}; expected {' or '.join(map(str, known))}"


def refuse_other_form(path: object, number: int, said: Mapping[int, Sequence[int]]) -> None:
    """Refuse a tiled page of a TIFF, a level, that OpenSlide would decode to what it does not mean.

    Parameters
    ----------
    number : of the page
    said : values of the tags in :data:`wsi_meta.tiffs.tags.FORM`, of those that it has

    Raises
    ------
    OtherFormError
    """
    refuse_turned(path, (said.get(ORIENTATION) or [1])[0], f"page {number}")
    photometric, samples = said[PHOTOMETRIC][0] if said.get(PHOTOMETRIC) else None, (said.get(SAMPLES) or [1])[0]
    if (told := other_order(*((said.get(code) or [1])[0] for code in (COMPRESSION, PREDICTOR)))) is not None:
        raise OtherFormError(f"{path}: {told}; convert the slide")
    told = other_colours(said.get(BITS, ()), photometric)
    if told is None and any(kind not in UNSIGNED for kind in said.get(SAMPLE_FORMAT, ())):
        told = "values that are no whole numbers from 0 on (SampleFormat)"
    elif told is None and photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) and samples > 1:
        told = f"grey of {samples} values a pixel, which OpenSlide's library mixes up; expected one"
    elif told is None and photometric == RGB and samples > 3 and not any(said.get(EXTRA_SAMPLES, ())[:1]):
        told = "a fourth value a pixel without a meaning (ExtraSamples), which would be taken for transparency; expected three"
    if told is not None:
        raise OtherFormError(f"{path}: {told}; convert the slide to RGB of 8 bits a colour")


def spread(count: int) -> list[int]:
    """Return the numbers of a few of so many tiles, the first and the last among them."""
    return [int(number) for number in np.unique(np.linspace(0, count - 1, min(count, SAMPLES_ASKED)).astype(int))]


def refuse_other_colours(display_name: object, photometric: int | None, said: Collection[int]) -> None:
    """Refuse a slide whose JPEG tiles say themselves which colours they have, and not those that the file says.

    Some libraries believe the file, others the tiles.

    Parameters
    ----------
    display_name : what the message calls the file
    photometric, said : TIFF's numbers of the colours that the file says, and of all that its tiles say

    Raises
    ------
    OtherFormError
    """
    others = sorted(set(said) - {photometric})
    if others and photometric in JPEG_COLOURS:
        raise OtherFormError(
            f"{display_name}: says that its colours are {JPEG_COLOURS[photometric]}, but its JPEG tiles say "
            f"{JPEG_COLOURS[others[0]]}; they would be shown in wrong colours; convert the slide again"
        )


def exif_orientation(data: bytes) -> int:
    """Return the Orientation that a PNG or JPEG states in its EXIF; 1 where it states none."""
    page = next(pages_in(BytesIO(_exif_of(data))), {})
    return number_of(page, ORIENTATION) or 1


def _exif_of(data: bytes) -> bytes:
    """Return the EXIF of a PNG or JPEG, which is a small TIFF; empty where it has none."""
    png = data.startswith(PNG)
    at = len(PNG if png else JPEG)
    while at + 12 <= len(data):
        if png:
            length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
            if kind == b"eXIf":
                return data[at + 8 : at + 8 + length].removeprefix(EXIF)
            at += 12 + length
        elif data[at] != 0xFF or data[at + 1] == START_OF_SCAN:
            break
        else:
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            if data[at + 1] == APP1 and data[at + 4 : at + 10] == EXIF:
                return data[at + 10 : at + 2 + length]
            at += 1 if data[at + 1] == 0xFF else 2 + length  # any number of FF may fill
    return b""
