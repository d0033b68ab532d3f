"""Where a slide lies in DICOM's slide coordinates, and where the cells of its map then lie. Millimetres."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np

from wsi_meta.errors import require
from wsi_meta.heatmaps.scanned_slide import open_scanned_slide
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.words import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsi_meta.tiling.grid import PatchGrid

__all__ = [
    "MADE",
    "MAKER",
    "Placement",
    "is_exported_dicom",
    "made_placement",
    "made_source",
    "made_uid",
    "read_level0",
    "source_of",
    "stated_placement",
]

logger = logging.getLogger(__name__)

MAKER = "wsi-meta"
"""Manufacturer of what is written, and of nothing else."""
MADE = "frame of reference made by wsi-meta; fits no other image"
"""What a file says whose slide has no place in DICOM's coordinates."""
EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""What DICOM wants of every image, if only to say that it is not known."""
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""VL Whole Slide Microscopy Image Storage."""
ORIENTATION = (0.0, -1.0, 0.0, -1.0, 0.0, 0.0)
"""Of rows, then of columns: as most scanners have it, seen from above the glass."""


@dataclass(frozen=True)
class Placement:
    """Where level 0 of a slide lies in a frame of reference."""

    uid: str
    """The frame of reference."""
    origin: tuple[float, float, float]
    """Centre of the level-0 pixel in the upper left corner, mm."""
    orientation: tuple[float, ...]
    """Direction in which the columns of a row follow each other, then that in which rows do: two unit vectors."""
    spacing: tuple[float, float]
    """Of level-0 rows, and of level-0 columns, mm."""

    def position(self, x: float, y: float) -> NDArray[np.float64]:
        """Return where a place of level 0 lies: x, y, z in mm; (0, 0) is the outer corner of the first pixel."""
        along_row, along_column = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        between_rows, between_columns = self.spacing
        return np.asarray(self.origin + (x - 0.5) * between_columns * along_row + (y - 0.5) * between_rows * along_column)

    def first_cell(self, grid: PatchGrid) -> tuple[float, float, float]:
        """Return the centre of the map's first cell, mm: the position of the first pixel of a picture of cells."""
        x, y, z = self.position(grid.cell_l0 / 2, grid.cell_l0 / 2)
        return float(x), float(y), float(z)

    def cell_spacing(self, grid: PatchGrid) -> tuple[float, float]:
        """Return the distance of rows, and of columns, of cells, mm."""
        return self.spacing[0] * grid.cell_l0, self.spacing[1] * grid.cell_l0


def made_uid(heatmap: Heatmap, what: str) -> str:
    """Return a UID that is the same for each scan of a slide; `what` says of what it is the name."""
    return f"2.25.{uuid5(NAMESPACE_URL, f'wsi-meta {heatmap.record.identity.slide} {what}').int}"


def made_placement(heatmap: Heatmap) -> Placement:
    """Return a frame of reference of the slide's own, in which all of it has positive coordinates."""
    grid = heatmap.grid
    mm = grid.slide_mpp / 1000
    corner = ((grid.height - 0.5) * mm, (grid.width - 0.5) * mm, 0.0)  # rows run along -x, columns along -y
    return Placement(made_uid(heatmap, "frame of reference"), corner, ORIENTATION, (mm, mm))


def stated_placement(level0: Any) -> Placement | None:
    """Return where a DICOM image (a pydicom dataset) says that it lies; None where it does not say."""
    try:
        (origin,) = level0.TotalPixelMatrixOriginSequence
        (measures,) = level0.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
        x, y = float(origin.XOffsetInSlideCoordinateSystem), float(origin.YOffsetInSlideCoordinateSystem)
        z = float(origin.get("ZOffsetInSlideCoordinateSystem") or 0.0)
        between_rows, between_columns = map(float, measures.PixelSpacing)
        orientation = tuple(map(float, level0.ImageOrientationSlide))
        placement = Placement(str(level0.FrameOfReferenceUID), (x, y, z), orientation, (between_rows, between_columns))
    except (AttributeError, IndexError, TypeError, ValueError):
        return None
    if len(orientation) != 6 or min(placement.spacing) <= 0:
        return None
    vectors = np.reshape(orientation, (2, 3))
    return placement if np.allclose(vectors @ vectors.T, np.eye(2), atol=1e-4) else None


def read_level0(heatmap: Heatmap, slide: str | Path) -> Any | None:
    """Return what the DICOM file of a slide's level 0 says (a pydicom dataset without pixels); None for other slides.

    The level-0 file is looked for beside `slide`, in the same series.

    Raises
    ------
    HeatmapError
        when it is another slide than that of the heatmap.
    SlideReadError
    """
    with open_scanned_slide(heatmap, slide) as opened:
        if opened.vendor != "dicom":
            return None
    path, shape = Path(slide), (heatmap.grid.height, heatmap.grid.width)
    given = _header(path)
    others = (_header(other) for other in sorted(path.parent.iterdir()) if other != path and other.is_file())
    for header in (given, *others):
        if header is None or given is None or header.get("SeriesInstanceUID") != given.get("SeriesInstanceUID"):
            continue
        is_volume = "VOLUME" in (header.get("ImageType") or ())
        if is_volume and (header.get("TotalPixelMatrixRows"), header.get("TotalPixelMatrixColumns")) == shape:
            return header
    return None


def source_of(level0: Any) -> Any:
    """Return an image's words with nothing left out that DICOM wants of one: absent is unknown, which it writes as empty."""
    for name in EMPTY:
        if name not in level0:
            setattr(level0, name, None if name.endswith(("Date", "Time")) else "")
    return level0


def made_source(heatmap: Heatmap, placement: Placement) -> Any:
    """Return the words of an image that never was DICOM: no patient, and a study of its own."""
    from pydicom.dataset import Dataset

    grid, source = heatmap.grid, Dataset()
    source.SOPClassUID, source.SOPInstanceUID = WHOLE_SLIDE, made_uid(heatmap, "image")
    source.StudyInstanceUID, source.SeriesInstanceUID = made_uid(heatmap, "study"), made_uid(heatmap, "series")
    source.SpecificCharacterSet = "ISO_IR 192"
    source.Modality, source.ContainerIdentifier = "SM", _long_string(heatmap.record.slide.name)
    source.StudyDescription = source.ContainerIdentifier
    source.FrameOfReferenceUID, source.PositionReferenceIndicator = placement.uid, "UNKNOWN"
    source.Rows = source.Columns = 256
    source.NumberOfFrames = -(-grid.height // 256) * -(-grid.width // 256)
    source.TotalPixelMatrixRows, source.TotalPixelMatrixColumns = grid.height, grid.width
    source.ImageOrientationSlide = list(placement.orientation)
    origin, shared, measures = Dataset(), Dataset(), Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = (f"{mm:.10g}" for mm in placement.origin[:2])
    measures.PixelSpacing, measures.SliceThickness = [f"{mm:.10g}" for mm in placement.spacing], 0
    shared.PixelMeasuresSequence = [measures]
    source.TotalPixelMatrixOriginSequence, source.SharedFunctionalGroupsSequence = [origin], [shared]
    return source_of(source)


def _long_string(text: str) -> str:
    """Return a text as DICOM's type LO has it: 64 characters at most, no backslash, nothing that cannot be seen."""
    return printable(text).replace("\\", "/")[:64].strip()


def _header(path: Path) -> Any | None:
    """Return all but the pixels of a DICOM file; None of any other."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        return dcmread(path, stop_before_pixels=True)
    except (InvalidDicomError, OSError):
        return None


def is_exported_dicom(path: Path) -> bool:
    """Tell whether a file is a Segmentation or a Parametric Map of ours; DeviceError without the library that can tell."""
    require("dicom", "DICOM")
    try:
        header = _header(path)
    except Exception:  # what a damaged file raises depends on the damage
        return False
    return header is not None and header.get("Manufacturer") == MAKER
