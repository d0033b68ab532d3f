"""TIFF's numbers by their names: its tags, and what their values mean."""

from __future__ import annotations

import re

__all__ = [
    "ALPHA",
    "ALPHA_MULTIPLIED",
    "BITS",
    "BLACK_IS_ZERO",
    "CODECS",
    "COMMON_CODECS",
    "COMPRESSION",
    "CONTIGUOUS",
    "DIFFERENCES",
    "EXTRA_SAMPLES",
    "FORM",
    "HEIGHT",
    "IS_MASK",
    "JPEG",
    "KIND",
    "LENGTHS",
    "LZW",
    "MAX_TILE_PX",
    "NONE",
    "OFFSETS",
    "OME",
    "ORIENTATION",
    "PACKBITS",
    "PALETTE",
    "PHOTOMETRIC",
    "PLANES",
    "PREDICTED",
    "PREDICTOR",
    "REDUCED",
    "RGB",
    "ROWS_PER_STRIP",
    "SAMPLES",
    "SAMPLE_FORMAT",
    "SEPARATE",
    "STRIP_LENGTHS",
    "STRIP_OFFSETS",
    "SUB_PAGES",
    "TILE_HEIGHT",
    "TILE_LENGTHS",
    "TILE_OFFSETS",
    "TILE_WIDTH",
    "UM_PER_RESOLUTION_UNIT",
    "UNSIGNED",
    "WHITE_IS_ZERO",
    "WIDTH",
    "YCBCR",
    "is_tiff",
]

KIND, WIDTH, HEIGHT, PLANES, SUB_PAGES = 254, 256, 257, 284, 330
"""Tags of a page: NewSubfileType, sizes, and where the pages within it stand."""
TILE_WIDTH, TILE_HEIGHT = 322, 323
STRIP_OFFSETS, ROWS_PER_STRIP, STRIP_LENGTHS, TILE_OFFSETS, TILE_LENGTHS = 273, 278, 279, 324, 325
OFFSETS, LENGTHS = (STRIP_OFFSETS, TILE_OFFSETS), (STRIP_LENGTHS, TILE_LENGTHS)
"""Tags of where its strips or tiles stand, and of their bytes."""
BITS, PHOTOMETRIC, ORIENTATION, SAMPLES, EXTRA_SAMPLES, SAMPLE_FORMAT = 258, 262, 274, 277, 338, 339
COMPRESSION, PREDICTOR = 259, 317
FORM = (BITS, PHOTOMETRIC, ORIENTATION, SAMPLES, EXTRA_SAMPLES, SAMPLE_FORMAT, COMPRESSION, PREDICTOR)
"""Tags that say how pixels are stored."""
ALPHA_MULTIPLIED, ALPHA = 1, 2
"""What a further value of a pixel is: how opaque it is; multiplied, the colours are multiplied by it already."""
REDUCED, IS_MASK = 1, 4
"""Bits of a page's kind: a coarser level, label or overview; which pixels of another page count."""
CONTIGUOUS, SEPARATE = 1, 2
"""Planar configurations: the colours of a pixel side by side, or each in a plane of its own."""
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
"""Photometric interpretations: what values mean."""
UNSIGNED = (1, 4)
"""SampleFormats of values from 0 on: 4, undefined, is read as if nothing were said."""
DIFFERENCES = 2
"""The predictor of values that are stored as differences from the pixel before."""
UM_PER_RESOLUTION_UNIT = {2: 25_400.0, 3: 10_000.0}
"""Micrometres of an inch and a centimetre, by the numbers of ResolutionUnit."""
OME = re.compile(r"<(\w+:)?OME[\s>]")
"""What only OME-XML holds, which may be the description of a page."""
NONE, LZW, JPEG, PACKBITS = 1, 5, 7, 32773
CODECS = {
    NONE: "none",
    LZW: "LZW",
    JPEG: "JPEG",
    8: "deflate",
    PACKBITS: "PackBits",
    32946: "deflate",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG (DNG)",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
}
"""Some compressions, and the names of all."""
PREDICTED = (LZW, 8, 32946, 34925, 50000)
"""Those that know predictors. A JPEG or JPEG 2000 is a picture of its own, for which no library asks for one."""
COMMON_CODECS = frozenset({NONE, LZW, JPEG, 8, PACKBITS, 32946, 33003, 33005})
"""Those that every build of OpenSlide reads."""
MAX_TILE_PX = 2**26
"""Pixels of the largest tile that is read of any file, 8,192 x 8,192: OpenSlide needs four bytes for each, and aborts when it
gets none."""


def is_tiff(head: bytes) -> bool:
    """Tell whether a file that begins so is a TIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
