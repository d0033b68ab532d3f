"""Pictures without a pyramid: PNG and JPEG files, TIFFs without tiles, and arrays. All pixels are held in memory."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.errors import SlideReadError
from wsi_meta.files.same_file import SameFile, WatchedFile
from wsi_meta.files.slide_file import refuse_no_file, wrong_kind
from wsi_meta.readers.levels import find_scales
from wsi_meta.readers.picture_tiff import read_picture_tiff, refuse_larger
from wsi_meta.readers.reader import WHITE, Bounds, OpenedReader, before
from wsi_meta.tiffs.codestreams import decode_jpeg
from wsi_meta.tiffs.pixel_form import PNG, exif_orientation, refuse_turned
from wsi_meta.words import first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PICTURE_ENDINGS", "TIFF_ENDINGS", "PictureReader"]

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg")
"""How the files end that are read as pictures."""
TIFF_ENDINGS = (".tif", ".tiff")
"""How those end that are pictures where they have no tiles."""
HEADER = struct.Struct(">II")
"""The width and height in a PNG's header."""


class PictureReader(OpenedReader):
    """The pixels of a picture.

    Parameters
    ----------
    path : the file, or what pixels are called
    pixels : an array instead of a file
    file : what is watched instead, where `path` is a copy

    Raises
    ------
    SlideReadError
        when the file is no whole picture of 8 bits a colour, too large, or to be turned.
    """

    name, reason = "picture", "a picture without levels"

    def __init__(self, path: Path, pixels: NDArray[np.uint8] | None = None, file: WatchedFile | None = None) -> None:
        self.path, self.background = path, WHITE
        self.file = None
        self.properties = {"openslide.vendor": "picture"}
        if pixels is None:
            refuse_no_file(path)
            self.file = file or SameFile.at(path)
            pixels = self._decode()
            self.file.check()
        else:
            pixels = _rgb_of(path, pixels)
        self.properties["openslide.quickhash-1"] = hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
        self._pixels = pixels
        height, width = pixels.shape[:2]
        self.level_dimensions = ((width, height),)
        self.level_downsamples: tuple[float, ...] = (1.0,)
        self.bounds = Bounds(0, 0, width, height)
        self.tiles = [None]
        self.scales = find_scales(self.level_dimensions, self.level_downsamples, self.tiles)

    def read_into(self, region: NDArray[np.uint8], _level: int, left: int, top: int) -> None:
        """Fill an array (height, width, 3) with the pixels at (left, top); all of it lies in the picture."""
        height, width = region.shape[:2]
        region[:] = self._pixels[top : top + height, left : left + width]

    def _decode(self) -> NDArray[np.uint8]:
        if self.path.suffix.lower() not in TIFF_ENDINGS:
            return _decode(self.path)
        picture = read_picture_tiff(self.path, getattr(self.file, "address", None))
        self._state_mpp(picture.mpp)
        return _rgb_of(self.path, picture.pixels)


def _decode(path: Path) -> NDArray[np.uint8]:
    import imagecodecs
    import simplejpeg

    data = path.read_bytes()
    refuse_turned(path, exif_orientation(data))
    try:
        if data.startswith(PNG):
            width, height = HEADER.unpack_from(data, 16)
            refuse_larger(path, width, height)
            return _rgb_of(path, imagecodecs.png_decode(data))
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        refuse_larger(path, width, height)
        if colours in ("CMYK", "YCCK"):
            raise SlideReadError(f"{path}: colours for printing ({colours}); expected RGB; save it as RGB")
        return decode_jpeg(data)
    except KeyError:  # simplejpeg has names of the common samplings
        raise SlideReadError(
            f"{path}: a JPEG of a rare sampling of colours; expected 4:2:0, 4:2:2 or 4:4:4; save it so"
        ) from None
    except (ValueError, RuntimeError, struct.error) as error:
        if (wrong := wrong_kind(path)) is not None:
            raise wrong from error
        raise SlideReadError(f"{path}: not a whole PNG or JPEG ({first_line(error)}); copy it again") from error


def _rgb_of(path: Path, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return pixels as RGB: grey three times; what is transparent on white."""
    if pixels.dtype != np.uint8:
        raise SlideReadError(f"{path}: values of type {pixels.dtype}; expected uint8, 8 bits a colour; save it so")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4) or not pixels.size:
        raise SlideReadError(f"{path}: shape {pixels.shape}; expected (height, width, 3) of a colour picture")
    refuse_larger(path, pixels.shape[1], pixels.shape[0])
    if pixels.shape[2] == 3:
        return pixels
    colours = pixels[..., :3] if pixels.shape[2] == 4 else np.repeat(pixels[..., :1], 3, axis=2)
    return colours if pixels.shape[2] == 1 else before(WHITE, colours, pixels[..., -1:])
