"""Where there is tissue. Made for recall: what is left out is never scanned, so what is in doubt counts as tissue."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.annotations.outline_files import OUTLINE_ENDINGS
from wsi_meta.errors import DataError, of_kind
from wsi_meta.files.address import Address
from wsi_meta.masks.label_images import read_one_label
from wsi_meta.outputs.paths import as_path
from wsi_meta.slides.slide import Slide, open_slide
from wsi_meta.tiling.grid import PatchGrid
from wsi_meta.tiling.tissue_colours import join_tissue, segment_by_colour
from wsi_meta.tiling.tissue_outlines import MaskRaster, read_tissue_outlines
from wsi_meta.words import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TissueMask", "as_tissue_mask", "describe_tissue", "find_tissue", "found_mask", "inked_share", "read_tissue_mask"]

logger = logging.getLogger("wsi_meta")

NEAR_UM = 250.0
"""Ink is on tissue, or beside it, where there is tissue in its square of this side or in one of the squares around that."""
OUTLINES_OR_IMAGE = "an image or .npy with 0 for background and one value for tissue, outlines (.geojson, .xml), or 'none'"


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Tissue on a slide at low resolution. Each is equal to itself alone; two of one :meth:`fingerprint` are alike."""

    mask: NDArray[np.bool_]
    """True where there is tissue; shape (rows, cols) over the whole slide. Kept and not copied: leave it as it is."""
    downsample: tuple[float, float]
    """Level-0 pixels per pixel of the mask: (rows, cols)."""
    source: str
    """``found``, ``none`` (everything counts as tissue), ``array``, or the name of the file it was read from."""
    inked: float | None = None
    """Share of tissue and the ink on it that is under ink; None where the mask was not found by colour."""
    unread: bool = False
    """Whether it was found by colour, and parts of the overview could not be read, which count as tissue."""

    @property
    def fraction(self) -> float:
        """Share of the slide that is tissue."""
        return float(self.mask.mean())

    def cells(self, grid: PatchGrid) -> NDArray[np.bool_]:
        """Return the grid's cells that hold any tissue: bool (rows, cols)."""
        rows, cols = (
            _covering(count, grid.cell_l0 / step, length)
            for count, step, length in zip(grid.shape, self.downsample, self.mask.shape, strict=True)
        )
        return _any_within(_any_within(self.mask, *rows).T, *cols).T

    def fingerprint(self) -> str:
        """Return a SHA-256 (hexadecimal) over mask and place."""
        return hashlib.sha256(np.packbits(self.mask).tobytes() + repr((self.mask.shape, self.downsample)).encode()).hexdigest()


def find_tissue(slide: str | Path | Address | Slide) -> TissueMask:
    """Find tissue by colour saturation on an overview of about 8 um per pixel.

    Tissue is whatever is coloured beyond PCam's own floor of 0.07; ink and black borders are taken out, gaps and
    smaller holes filled. Parts of the overview that cannot be read count as tissue.

    Parameters
    ----------
    slide : an open slide, file, or its address

    Returns
    -------
    A mask over the whole of level 0; each of its pixels stands for ``downsample`` level-0 pixels, about 8 um.

    Raises
    ------
    SlideReadError
        when nothing of the overview can be read.
    MissingMppError
    """
    if not isinstance(slide, Slide):
        with open_slide(slide) as opened:
            return find_tissue(opened)
    raster = MaskRaster.of(slide)
    image, readable = slide.read_overview(raster.mpp)
    coloured, ink = segment_by_colour(image, raster.mpp)
    del image  # the largest array here; the model may be loaded at the same time
    return found_mask(join_tissue(coloured, ink, readable, raster.mpp), ink, readable, raster)


def found_mask(mask: NDArray[np.bool_], ink: NDArray[np.bool_], readable: NDArray[np.bool_], raster: MaskRaster) -> TissueMask:
    """Return the mask of tissue that was found by colour on a raster, of the ink that was, and of what could be read."""
    return TissueMask(mask, (raster.step,) * 2, "found", inked_share(mask, ink, raster.mpp), not readable.all())


def inked_share(mask: NDArray[np.bool_], ink: NDArray[np.bool_], mpp: float) -> float:
    """Return the share of tissue, and of the ink near it, that is ink: 0 to 1.

    Parameters
    ----------
    mask, ink : bool (rows, cols), what is tissue and what is ink
    mpp : micrometres along a side of their pixels
    """
    if not ink.any():
        return 0.0
    from scipy.ndimage import binary_dilation

    side = max(1, round(NEAR_UM / mpp))
    squares = [
        np.add.reduceat(np.add.reduceat(part, range(0, part.shape[0], side)), range(0, part.shape[1], side), 1)
        for part in (mask.astype(np.int64), ink.astype(np.int64))
    ]
    near = int(squares[1][binary_dilation(squares[0] > 0, np.ones((3, 3)))].sum())
    return near / max(1, near + int(squares[0].sum()))


def as_tissue_mask(source: str | Path | NDArray[np.bool_] | TissueMask | None, slide: Slide) -> TissueMask:
    """Return the tissue of a slide, whatever tells of it.

    Parameters
    ----------
    source : None finds it by colour; a file or the word ``none`` as for :func:`read_tissue_mask`; a bool array (rows, cols)
        over the whole slide, element (0, 0) at its level-0 corner; or a mask that was made of this slide

    Raises
    ------
    DataError
        when it cannot be read, or does not fit the slide.
    SlideReadError, MissingMppError
        as :func:`find_tissue`.
    """
    if source is None:
        return find_tissue(slide)
    if isinstance(source, TissueMask):
        _refuse_other_slide(source, slide)
        return source
    if isinstance(source, np.ndarray):
        if source.dtype != bool:
            raise DataError(f"tissue mask: an array of {source.dtype}; expected bool, True where there is tissue")
        return _over_slide(source, slide, "array")
    return read_tissue_mask(source, slide)


def describe_tissue(tissue: TissueMask, slide: Slide) -> str:
    """Return in one line how much of a slide is tissue; warn where none is, and by whose word."""
    if not tissue.mask.any():
        told = "NO TISSUE FOUND, nothing will be scanned; look at the slide, or pass --tissue-mask none"
        if tissue.source != "found":
            told = (
                f"THE TISSUE MASK IS EMPTY ({printable(tissue.source)}), nothing will be scanned; expected some of the slide "
                "as tissue; pass another --tissue-mask, or leave it out"
            )
        logger.warning("%s: %s", slide.path, told)
    return f"{slide.name}: tissue on {tissue.fraction:.1%} of the slide"


def read_tissue_mask(path: str | Path, slide: Slide) -> TissueMask:
    """Read a mask from outlines (QuPath GeoJSON, ASAP XML), an image (TIFF, PNG, BMP, GIF, JPEG) or a ``.npy`` array.

    Outlines of every class are tissue but those of :data:`wsi_meta.annotations.class_names.NOT_TISSUE_GROUPS`, which are
    taken out; see :func:`wsi_meta.tiling.tissue_outlines.read_tissue_outlines`.

    An image or array is over the whole slide: level 0 as OpenSlide shows it, not only the bounds that QuPath shows. One of
    the shape that :func:`find_tissue` makes lies as such a mask does, so that a mask that was written and read is the same.
    Its background is 0 (black), tissue is one other value: bool, 0 and 1, or 0 and 255. What the header says of the pixels
    counts; see :mod:`wsi_meta.masks.label_images`. What is no number (NaN) is background. The word ``none`` makes
    everything tissue.

    Returns
    -------
    A mask over the whole of level 0, of the file's resolution; outlines have that of :func:`find_tissue`.

    Raises
    ------
    DataError
        when it cannot be read, has several values or transparent pixels, its shape is not the slide's, larger or smaller, or
        an outline lies off the slide; when outlines say that they are of another slide.
    """
    of_kind("slide", slide, Slide, "an open slide, as open_slide returns it")
    if str(path) == "none":
        return TissueMask(np.ones((1, 1), bool), (float(slide.height), float(slide.width)), "none")
    path = as_path("tissue mask", path)
    if path.suffix.lower() in OUTLINE_ENDINGS:
        return TissueMask(read_tissue_outlines(path, slide), (MaskRaster.of(slide).step,) * 2, path.name)
    mask = read_one_label(path, "tissue mask", OUTLINES_OR_IMAGE)
    return _over_slide(mask, slide, path.name, named=str(path))


def _over_slide(mask: NDArray[np.bool_], slide: Slide, source: str, named: str = "tissue mask") -> TissueMask:
    """Lay a mask over the whole slide; DataError when its shape is not the slide's, larger or smaller."""
    if mask.ndim != 2 or not mask.size:
        raise DataError(f"{named}: shape {mask.shape}; expected an image (rows, cols) over the whole slide")
    if slide.known_mpp is not None and (raster := MaskRaster.of(slide)).shape == mask.shape:
        return TissueMask(mask, (raster.step,) * 2, source)
    downsample = (slide.height / mask.shape[0], slide.width / mask.shape[1])
    # a mask of rounded size may be off by a pixel on either side
    if abs(downsample[0] - downsample[1]) > 2 * max(downsample) / min(mask.shape):
        raise DataError(
            f"{named}: {mask.shape[1]}x{mask.shape[0]} px do not fit the slide's {slide.width}x{slide.height}; "
            "expected the same shape, scaled; is it the mask of another slide?"
        )
    return TissueMask(mask, downsample, source)


def _refuse_other_slide(tissue: TissueMask, slide: Slide) -> None:
    """Raise DataError unless a mask covers the slide, give or take a pixel of the mask."""
    covered = [length * step for length, step in zip(tissue.mask.shape, tissue.downsample, strict=True)]
    if any(
        abs(end - side) > step for end, side, step in zip(covered, (slide.height, slide.width), tissue.downsample, strict=True)
    ):
        raise DataError(
            f"tissue mask: covers {covered[1]:.0f}x{covered[0]:.0f} level-0 px, the slide has {slide.width}x{slide.height}; "
            "is it the mask of another slide?"
        )


def _any_within(mask: NDArray[np.bool_], first: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return, for each range of rows and each column, whether any element is True."""
    ranges = np.stack([first, end], -1).ravel()  # every second result is of the gap between two ranges
    return np.asarray(np.logical_or.reduceat(np.pad(mask, ((0, 1), (0, 0))), ranges)[::2])


def _covering(count: int, step: float, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return first and end index of the mask pixels that each of `count` cells of side `step` touches."""
    edges = step * np.arange(count + 1)
    first = np.floor(edges[:-1] + 1e-6).astype(np.int64).clip(0, length - 1)
    return first, np.ceil(edges[1:] - 1e-6).astype(np.int64).clip(first + 1, length)
