"""What each part of a slide is: tissue, and of what kind; or left out, and for what reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.slides.slide import Slide
from wsi_meta.tiling.pieces import SPECK, TissuePiece, label_pieces, measure_pieces
from wsi_meta.tiling.tissue import TissueMask, as_tissue_mask, found_mask
from wsi_meta.tiling.tissue_colours import FILL_MM2, MASK_MPP, MAX_DARKNESS, enclosed_areas, join_tissue, segment_by_colour
from wsi_meta.tiling.tissue_outlines import MaskRaster

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Kind", "TissueSurvey", "survey_kinds"]

CELL_UM = 4 * MASK_MPP
"""Side of a cell at the default stride."""


class Kind(IntEnum):
    """What a pixel of the mask is; those from GLASS on are left out."""

    COLOURED = 0
    FILLED = 1
    """A gap that was bridged, or a smaller hole."""
    SPECK = 2
    UNREADABLE = 3
    ADDED = 4
    """Tissue by a mask of the user's, not by colour."""
    GLASS = 5
    HOLE = 6
    """Enclosed by tissue, and too large to be filled."""
    INK = 7
    BLACK = 8
    MASKED = 9
    """Tissue by colour, but not by a mask of the user's."""
    UNSEEN = 10
    """Cannot be read, and is no tissue by a mask of the user's."""

    @property
    def left_out(self) -> bool:
        """Whether a scan does not look there."""
        return self >= Kind.GLASS


@dataclass(frozen=True, eq=False)
class TissueSurvey:
    """What of a slide counts as tissue, and why the rest does not."""

    slide: str
    """Name without ending."""
    tissue: TissueMask
    """As a scan uses it."""
    kinds: NDArray[np.uint8]
    """:class:`Kind` of every pixel of the raster of a found mask, (rows, cols)."""
    mpp: float
    """Micrometres along a side of such a pixel."""
    cell_px: int
    """Such pixels along a side of a cell."""
    labels: NDArray[np.int32]
    """Number of the piece of each cell; see :func:`wsi_meta.tiling.pieces.label_pieces`."""
    pieces: tuple[TissuePiece, ...]
    specks: int
    """Pieces under 0.1 mm2, which are scanned but not numbered; none that cannot be read at all."""

    def areas_mm2(self, *, left_out: bool) -> dict[str, float]:
        """Return the area of each kind that occurs, by its name in lower case: of what is left out, or of what is tissue."""
        counts = np.bincount(self.kinds.ravel(), minlength=len(Kind)) * (self.mpp / 1000) ** 2
        return {kind.name.lower(): float(counts[kind]) for kind in Kind if kind.left_out == left_out and counts[kind]}

    @property
    def tissue_mm2(self) -> float:
        """Area of all tissue."""
        return sum(self.areas_mm2(left_out=False).values())

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        return {
            "slide": self.slide,
            "source": self.tissue.source,
            "tissue_mm2": self.tissue_mm2,
            "share": self.tissue.fraction,
            "tissue": self.areas_mm2(left_out=False),
            "left_out": self.areas_mm2(left_out=True),
            "specks": self.specks,
            "pieces": [asdict(piece) for piece in self.pieces],
        }


def survey_kinds(slide: Slide, tissue_mask: str | Path | None = None) -> TissueSurvey:
    """Return the kinds of a slide's parts; parameters and errors as :func:`wsi_meta.survey_tissue`."""
    raster = MaskRaster.of(slide)
    image, readable = slide.read_overview(raster.mpp)
    coloured, ink = segment_by_colour(image, raster.mpp)
    mask = join_tissue(coloured, ink, readable, raster.mpp)
    tissue = found_mask(mask, ink, readable, raster)
    kinds = _kinds_left_out(image, mask, ink, raster.mpp)
    kinds[mask] = np.where(~readable, Kind.UNREADABLE, np.where(coloured, Kind.COLOURED, Kind.FILLED))[mask]
    if tissue_mask is not None:
        tissue = as_tissue_mask(tissue_mask, slide)
        given = _on_raster(tissue, raster)
        kinds[given & ~mask], kinds[mask & ~given] = Kind.ADDED, Kind.MASKED
        kinds[~readable & ~given] = Kind.UNSEEN
        mask = given
    cell_px = max(1, round(CELL_UM / raster.mpp))
    cell_um = cell_px * raster.mpp
    labels = label_pieces(_by_cell(mask, cell_px), cell_um)
    labels[(labels == SPECK) & ~_by_cell(mask & readable, cell_px)] = 0
    specks = labels == SPECK
    kinds[mask & readable & specks.repeat(cell_px, 0).repeat(cell_px, 1)[: mask.shape[0], : mask.shape[1]]] = Kind.SPECK
    pieces = measure_pieces(labels, cell_um, cell_px * raster.step, (slide.width, slide.height))
    return TissueSurvey(slide.name, tissue, kinds, raster.mpp, cell_px, labels, pieces, _count(specks))


def _kinds_left_out(image: NDArray[np.uint8], mask: NDArray[np.bool_], ink: NDArray[np.bool_], mpp: float) -> NDArray[np.uint8]:
    """Return why each pixel that is not in a mask was left out."""
    regions, areas = enclosed_areas(mask | ink)
    kinds = np.where(areas * (mpp / 1000) ** 2 > FILL_MM2, Kind.HOLE, Kind.GLASS).astype(np.uint8)[regions]
    brightest = np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])
    kinds[brightest <= MAX_DARKNESS * 255] = Kind.BLACK
    kinds[ink] = Kind.INK
    return kinds


def _on_raster(tissue: TissueMask, raster: MaskRaster) -> NDArray[np.bool_]:
    """Return a mask of any resolution at the centres of a raster's pixels."""
    rows, cols = (
        ((np.arange(count) + 0.5) * (raster.step / step)).astype(np.int64).clip(0, length - 1)
        for count, step, length in zip(raster.shape, tissue.downsample, tissue.mask.shape, strict=True)
    )
    found: NDArray[np.bool_] = tissue.mask[np.ix_(rows, cols)]
    return found


def _by_cell(mask: NDArray[np.bool_], cell_px: int) -> NDArray[np.bool_]:
    rows, cols = (-(-side // cell_px) for side in mask.shape)
    padded = np.pad(mask, ((0, rows * cell_px - mask.shape[0]), (0, cols * cell_px - mask.shape[1])))
    return np.asarray(padded.reshape(rows, cell_px, cols, cell_px).any((1, 3)))


def _count(cells: NDArray[np.bool_]) -> int:
    from scipy.ndimage import label

    return int(label(cells, np.ones((3, 3)))[1])
