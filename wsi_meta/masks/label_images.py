"""Label images: pictures whose pixels say what is there, such as masks of tissue and of tumor.

One reader for all commands. What a pixel means is taken from the header and not only from the stored number: white-is-zero,
palettes, planes that are stored one behind the other, and alpha. TIFF (with or without coarser levels), PNG, BMP, GIF, JPEG and
``.npy`` arrays are read, in bands of rows, and without Pillow's limit of pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import DataError
from wsi_meta.files.process_settings import no_warnings, whole_pictures
from wsi_meta.masks.mask_pages import MOST_PACKED, check_page, refuse_larger
from wsi_meta.tiffs.pixel_form import OtherFormError, exif_orientation, refuse_turned
from wsi_meta.tiffs.tags import ORIENTATION, is_tiff
from wsi_meta.words import first_line, some_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LabelImage", "distinct_labels", "opened_labels", "read_one_label", "tell_labels"]

logger = logging.getLogger(__name__)

AT_ONCE = 1 << 16
"""Pixels whose values are looked at together: all of a tile."""
BAND_ROWS = 512
"""Rows that are read together where the file does not say how its pixels are stored."""
COLOUR = 1 << 24
"""Label of a colour: this and its 24 bits, so that no colour has the label of a grey."""
NO_NUMBER = -(1 << 32)
"""Label of what is no number (NaN)."""


@dataclass(frozen=True)
class _Samples:
    """What a header says of the stored samples."""

    planes: bool = False
    """Whether the planes are stored one behind the other: (samples, rows, cols)."""
    colours: int = 1
    """Samples of a pixel that are its grey (1) or colour (3); those that follow are alpha or have no meaning."""
    white: int | None = None
    """The value of white-is-zero's black; None where zero is black."""
    palette: NDArray[np.uint8] | None = None
    """Colours of the values, shape (n, 3)."""


@dataclass(frozen=True)
class LabelImage:
    """An opened label image; see :func:`opened_labels`."""

    levels: tuple[Any, ...]
    """Arrays of stored samples, from the finest level."""
    samples: _Samples
    stored: tuple[int, ...] = ()
    """Bytes of each stored tile or strip of the finest level, 0 where the file leaves it out; none where that is not known."""

    def shape(self, level: int = 0) -> tuple[int, int]:
        """Return the rows and columns of a level."""
        rows, cols = self.levels[level].shape[1:] if self.samples.planes else self.levels[level].shape[:2]
        return int(rows), int(cols)

    def stored_rows(self, level: int = 0) -> int:
        """Return how many rows are best read together."""
        chunks = getattr(self.levels[level], "chunks", None)
        return int(chunks[int(self.samples.planes)]) if chunks else BAND_ROWS

    def read(self, start: int, stop: int, level: int = 0, columns: slice = slice(None)) -> NDArray[Any]:
        """Return the labels of some rows: grey values, 2^24 and more for colours, :data:`NO_NUMBER`; ValueError for others."""
        array = self.levels[level]
        values = np.asarray(array[:, start:stop, columns] if self.samples.planes else array[start:stop, columns])
        values = np.moveaxis(values, 0, -1) if self.samples.planes else values
        return _labels(values if values.ndim == 3 else values[..., None], self.samples)


@contextmanager
def opened_labels(path: Path, what: str, expected: str) -> Iterator[LabelImage]:
    """Open a label image; any failure while it is open becomes a DataError.

    Parameters
    ----------
    path : TIFF, PNG, BMP, GIF, JPEG or ``.npy``
    what, expected : what it should be and hold, for the error

    Raises
    ------
    DataError
        when it is no file, damaged, or no label image: several pictures, other colours than grey, transparent pixels, values
        that are not whole numbers, or pixels that a viewer would turn.
    """
    import struct
    import tokenize
    import zlib

    import tifffile

    errors = (OSError, ValueError, LookupError, RuntimeError, TypeError, EOFError, MemoryError, ArithmeticError, AttributeError)
    try:
        if not path.is_file():  # nobody may ever write to a pipe
            found = "no such file" if not path.exists() else "a directory" if path.is_dir() else "a pipe, socket or device"
            raise DataError(f"{path}: {found}; expected {expected}")
        with path.open("rb") as file:
            start = file.read(8)
        if is_tiff(start):
            with tifffile.TiffFile(path) as tiff:
                yield _of_tiff(tiff)
        elif start[:6] == b"\x93NUMPY":
            yield _of_array(np.load(path, mmap_mode="r"))
        else:
            yield _of_picture(path)
    except DataError:
        raise
    except OtherFormError as error:
        raise DataError(str(error)) from error
    except (*errors, SyntaxError, tokenize.TokenError, struct.error, zlib.error, tifffile.TiffFileError) as error:
        raise DataError(f"{path}: not a {what} ({first_line(error)}); expected {expected}") from error


def read_one_label(path: Path, what: str, expected: str) -> NDArray[np.bool_]:
    """Return where an image has the one value that is not 0, bool (rows, cols); parameters as :func:`opened_labels`.

    Raises
    ------
    DataError
        as :func:`opened_labels`, and when it has several values besides 0, or what is no number (NaN).
    """
    seen: set[int] = set()
    with opened_labels(path, what, expected) as image:
        mask = np.zeros(image.shape(), bool)
        for top in range(0, len(mask), image.stored_rows()):
            band = image.read(top, top + image.stored_rows())
            mask[top : top + len(band)] = band != 0
            seen |= distinct_labels(band)
            if len(seen - {0}) > 1 or min(seen, default=0) < 0:
                raise ValueError(f"values {tell_labels(seen)}")
    return mask


def distinct_labels(labels: NDArray[Any]) -> set[int]:
    """Return the values that occur."""
    if labels.dtype not in (np.uint8, bool):
        return set(map(int, np.unique(labels).tolist()))
    seen, flat = np.zeros(256, bool), labels.view(np.uint8).reshape(-1)
    for start in range(0, len(flat), AT_ONCE):
        part = flat[start : start + AT_ONCE]
        seen[part if part.max() - part.min() > 1 else [part.min(), part.max()]] = True  # most parts hold one value, or two
    return set(np.flatnonzero(seen).tolist())


def tell_labels(labels: set[int]) -> str:
    """Return values for people: the first few, colours as red, green and blue."""
    return some_of([_tell_label(label) for label in sorted(labels)])


def _tell_label(value: int) -> str:
    if value == NO_NUMBER:
        return "NaN"
    return str(value) if value < COLOUR else str(tuple(value.to_bytes(4, "big")[1:]))


def _labels(values: NDArray[Any], samples: _Samples) -> NDArray[Any]:
    """Return the labels of samples (rows, cols, samples)."""
    values = _whole_numbers(values)
    pixel, others = values[..., : samples.colours], values[..., samples.colours :]
    for number in range(others.shape[-1]):
        _refuse_meaning(others[..., number], pixel)
    if samples.white is not None:
        pixel = ~pixel if pixel.dtype == bool else (samples.white - pixel.astype(np.int64)).astype(pixel.dtype)
    if samples.palette is not None:
        pixel = samples.palette[pixel[..., 0].astype(np.uint8)]
    if pixel.shape[-1] == 1 or not (coloured := (pixel != pixel[..., :1]).any(-1)).any():
        return np.asarray(pixel[..., 0])
    if pixel.dtype != np.uint8:
        raise ValueError(f"colours of {pixel.dtype}")
    red, green, blue = (pixel[..., number].astype(np.int32) for number in range(3))
    return np.where(coloured, COLOUR | red << 16 | green << 8 | blue, red)


def _whole_numbers(values: NDArray[Any]) -> NDArray[Any]:
    """Return values as integers or bool, NaN as :data:`NO_NUMBER`; ValueError for fractions and infinity."""
    if values.dtype.kind in "bui":
        return values
    if values.dtype.kind != "f":
        raise ValueError(f"values of type {values.dtype}")
    known = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.5, neginf=0.5)
    if (odd := (known != np.floor(known)) | (abs(known) > 2**31)).any():
        raise ValueError(f"float values such as {float(values[odd][0]):g}")
    return np.where(np.isnan(values), NO_NUMBER, known.astype(np.int64))


def _refuse_meaning(other: NDArray[Any], pixel: NDArray[Any]) -> None:
    """Raise ValueError unless a further sample says nothing: it is opaque alpha, or repeats the grey."""
    full = True if other.dtype == bool else np.iinfo(other.dtype).max
    if not ((other == full).all() or (pixel.shape[-1] == 1 and (other == pixel[..., 0]).all())):
        raise ValueError("transparent pixels or several channels that differ; make one channel without alpha")


def _of_array(array: NDArray[Any]) -> LabelImage:
    """Return an array (rows, cols) or (rows, cols, samples), where three or four samples are colours."""
    if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise ValueError(f"shape {array.shape}")
    return LabelImage((array,), _Samples(colours=3 if array.ndim == 3 and array.shape[2] > 2 else 1))


@whole_pictures()
def _of_picture(path: Path) -> LabelImage:
    """Decode a picture. Its class is called directly, because ``Image.open`` refuses pictures over a number of pixels."""
    from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin

    kinds: tuple[Any, ...] = (
        PngImagePlugin.PngImageFile,
        BmpImagePlugin.BmpImageFile,
        GifImagePlugin.GifImageFile,
        JpegImagePlugin.JpegImageFile,
    )
    for kind in kinds:
        try:
            image = kind(path)
        except SyntaxError:
            continue  # of another kind
        with image, no_warnings():
            if image.width * image.height > 8 * MOST_PACKED * path.stat().st_size:
                raise ValueError(f"{image.width} x {image.height} px in {path.stat().st_size} bytes: damaged")
            if getattr(image, "n_frames", 1) > 1:
                raise ValueError(f"{image.n_frames} pictures in one file")
            if kind in (PngImagePlugin.PngImageFile, JpegImagePlugin.JpegImageFile):
                refuse_turned(path, exif_orientation(path.read_bytes()))
            return _of_array(_decoded(image))
    raise ValueError("no PNG, TIFF, BMP, GIF or JPEG")


def _decoded(image: Any) -> NDArray[Any]:
    """Return the samples of a picture of Pillow's, colours in place of a palette's numbers."""
    if image.mode in ("P", "PA") or "transparency" in image.info:
        alpha = image.mode == "PA" or "transparency" in image.info
        image = image.convert("RGBA" if alpha else "RGB")
    if not (image.mode in ("1", "L", "LA", "RGB", "RGBA", "I", "F") or image.mode.startswith("I;16")):
        raise ValueError(f"colours as {image.mode}")
    return np.asarray(image)


def _of_tiff(tiff: Any) -> LabelImage:
    """Return the first series of a TIFF, whose axes must be rows, columns and, before or after them, samples."""
    import zarr
    from tifffile import PHOTOMETRIC

    series = tiff.series[0]
    for later in tiff.series[1:]:
        refuse_larger(series.keyframe, later.keyframe)
    page, axes = series.keyframe, series.axes
    if axes not in ("YX", "YXS", "SYX"):
        raise ValueError(f"several pictures in one file: shape {series.shape}, axes {axes}")
    grey = page.photometric in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.PALETTE)
    if not (grey or page.photometric in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR)):
        raise ValueError(f"colours as {getattr(page.photometric, 'name', page.photometric)}")
    palette = None
    if page.photometric == PHOTOMETRIC.PALETTE:
        table = np.asarray(page.colormap).T
        palette = (table >> 8 if table.max() > 255 else table).astype(np.uint8)
        if len(palette) > 256:
            raise ValueError(f"a palette of {len(palette)} colours")
    white = 2**page.bitspersample - 1 if page.photometric == PHOTOMETRIC.MINISWHITE else None
    if white is not None and page.dtype.kind not in "bu":
        raise ValueError(f"white is zero, in values of type {page.dtype}")
    if white == 1 and page.software.startswith("tifffile"):
        logger.warning(
            "%s: says that 0 is white, so zeros count as what is there; tifffile says so of every bool array; "
            "where ones are meant, write it with photometric='minisblack'",
            tiff.filehandle.path,
        )
    for level in series.levels:
        check_page(level.keyframe, tiff.filehandle.size)
        refuse_turned(tiff.filehandle.path, level.keyframe.tags.valueof(ORIENTATION, default=1))
    levels = tuple(zarr.open_array(series.aszarr(level=level), mode="r") for level in range(len(series.levels)))
    return LabelImage(levels, _Samples(axes == "SYX", 1 if grey else 3, white, palette), page.databytecounts)
