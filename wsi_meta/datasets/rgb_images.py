"""Colour images: which there are in a folder, and what they show, as Pillow opens them and as RGB of 8 bits."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.tiffs.pixel_form import UNSAID
from wsi_meta.tiffs.tags import BITS, COMPRESSION, PHOTOMETRIC, PLANES, SAMPLE_FORMAT, SEPARATE, WHITE_IS_ZERO

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["IMAGE_SUFFIXES", "check_mode", "images_in", "read_rgb", "tell_held"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
"""Endings of images that are read."""
DEEP_MODE = ";16"
"""In the names by which Pillow decodes values of 16 bits, colours as well, of which it keeps the upper byte."""
TWELVE_BITS = 1 << 12
SHOWN = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
"""Modes that Pillow converts to what the picture shows."""


def check_mode(image: Any) -> None:
    """Raise ValueError when an opened image shows several pictures, its values have no agreed colour, or Pillow mistakes them.

    They have none where they are floats, have more than 16 bits, or are signed. Uncompressed planes of 16 bits are taken for
    planes of 8 bits, a TIFF that does not say what 0 is for one whose 0 is white.
    """
    if getattr(image, "is_animated", False):
        raise ValueError("several pictures in one file; expected one")
    tags = getattr(image, "tag_v2", None)
    if tags is not None and PHOTOMETRIC not in tags:
        raise ValueError(UNSAID)
    if _is_16_bit(image):
        bits = 16 if tags is None else int(np.max(tags.get(BITS, 16)))
        if bits != 16 or (tags is not None and int(np.max(tags.get(SAMPLE_FORMAT, 1))) != 1):
            raise ValueError(f"grey values of {bits} bits, or signed; expected 8 or 16 bits")
        if "transparency" in image.info:
            raise ValueError("transparent pixels in a grey image of 16 bits; expected 8 bits")
    elif image.mode not in SHOWN:
        kind = "floats" if image.mode == "F" else "whole numbers of up to 32 bits"
        raise ValueError(f"values are {kind}; expected 8 or 16 bits")
    elif tags is not None and (tags.get(PLANES), tags.get(COMPRESSION, 1)) == (SEPARATE, 1) and np.max(tags.get(BITS, 1)) > 8:
        raise ValueError("a plane of 16 bits for each colour, uncompressed; expected 8 bits, or colours pixel by pixel")


def read_rgb(image: Any) -> NDArray[np.uint8]:
    """Return the pixels of an opened image, uint8 (height, width, 3).

    Values of 16 bits are scaled to 8 as OpenSlide does: the upper byte counts. Transparent pixels are laid on white.

    Raises
    ------
    ValueError
        as :func:`check_mode`, or when values of 16 bits reach no farther than those of 12: they are black, or nearly.
    """
    check_mode(image)
    _refuse_12_in_16_bits(image)
    if _is_16_bit(image):
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow inverts only 8 bits
            grey = 255 - grey
        return np.repeat(grey[..., None], 3, 2)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        from PIL import Image

        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _refuse_12_in_16_bits(image: Any) -> None:
    """Raise ValueError when values of 16 bits are those of 12, of 8 or fewer, that were not scaled.

    Neither PNG's sBIT nor TIFF's MaxSampleValue tells: by their standards values are scaled all the same.
    """
    if DEEP_MODE not in str(image.tile) or image.mode == "CMYK":  # what is to be decoded; once it was, nothing is left of it
        return
    values = np.asarray(image)
    colours = values if values.ndim == 2 else values[..., : {"LA": 1, "La": 1}.get(image.mode, 3)]
    most = int(colours.max())
    # of colours Pillow keeps the upper byte, which is 0 in values of 8 bits; what is truly black looks the same
    if 0 < most < TWELVE_BITS if _is_16_bit(image) else most << 8 < TWELVE_BITS:
        told = "values of 16 bits that are all under 4096, as of 12 or 8 bits"
        raise ValueError(f"{told}; expected them scaled to 16 bits, or stored in 8")


def _is_16_bit(image: Any) -> bool:
    """Tell whether an image has greys of 16 bits; Pillow also opens some PNG files of 16 bits with the mode of 32."""
    return bool(image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"))


def tell_held(folder: Path) -> str:
    """Return in words what a folder holds: how many files of each ending, and folders."""
    if not folder.is_dir():
        return "nothing"
    with os.scandir(folder) as entries:
        kinds = Counter("in folders" if entry.is_dir() else PurePath(entry.name).suffix for entry in entries)
    folders = kinds.pop("in folders", 0)
    told = [f"{count} {kind or 'without ending'}" for kind, count in sorted(kinds.items())]
    return ", ".join(told + [f"{folders} folder{'s' * (folders > 1)}"] * bool(folders)) or "nothing"


def images_in(folder: Path) -> list[Path]:
    """List a folder's images by name, without the hidden ``._`` files of macOS; what is no file, such as a pipe, is none."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        files = [folder / entry.name for entry in entries if entry.is_file() or entry.is_symlink()]
    return sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != ".")
