"""DICOM: where cells lie, by arithmetic without any library, and as highdicom reads the files back."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imagecodecs
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from slide_files import texture, write_slide
from stores import make_record, write_block, write_store

from wsi_meta.cli import main
from wsi_meta.errors import DeviceError, HeatmapError, OutputExistsError, OutputPathError
from wsi_meta.exports.dicom import segment_cells
from wsi_meta.exports.dicom_frame import Placement, made_placement, stated_placement
from wsi_meta.exports.export import export
from wsi_meta.heatmaps.lesions import find_lesions, lesion_thresholds
from wsi_meta.heatmaps.regions import label_regions, measure_regions
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiling.grid import PatchGrid

GRID = PatchGrid(5000, 3100, 0.25, 0.972, 96, 32)
"""A cell is 124.416 level-0 pixels, 31.104 um."""
MARKS = ((0, 0), (3, 17), (20, 5), (24, 40))
"""Cells (row, col) of 25 x 41 that are lesions of one cell."""


def placement(
    orientation: tuple[float, ...] = (0, -1, 0, -1, 0, 0), spacing: tuple[float, float] = (0.00025, 0.00025)
) -> Placement:
    return Placement("1.2.3", (20.0, 40.0, 0.5), orientation, spacing)


class TestWhereCellsLie:
    def test_a_position_is_counted_from_the_centre_of_the_first_pixel(self) -> None:
        where = placement()
        np.testing.assert_allclose(where.position(0.5, 0.5), [20, 40, 0.5])
        np.testing.assert_allclose(where.position(1000.5, 0.5), [20, 39.75, 0.5], err_msg="columns along -y")
        np.testing.assert_allclose(where.position(0.5, 1000.5), [19.75, 40, 0.5], err_msg="rows along -x")

    def test_unequal_spacing_and_another_orientation(self) -> None:
        where = placement((1, 0, 0, 0, -1, 0), (0.0004, 0.0002))
        np.testing.assert_allclose(where.position(100.5, 10.5), [20.02, 39.996, 0.5])
        assert where.cell_spacing(GRID) == pytest.approx((0.0004 * 124.416, 0.0002 * 124.416))

    @pytest.mark.parametrize("orientation", [(0, -1, 0, -1, 0, 0), (1, 0, 0, 0, -1, 0), (-1, 0, 0, 0, 1, 0)])
    def test_a_cell_lies_where_its_level_0_pixels_lie(self, orientation: tuple[float, ...]) -> None:
        """DICOM's equation C.7.6.2.1-1 for the picture of cells gives the place of the same cell in the slide."""
        where = placement(orientation)
        first, (between_rows, between_cols) = where.first_cell(GRID), where.cell_spacing(GRID)
        for row, col in MARKS:
            cell = (
                np.array(first)
                + col * between_cols * np.array(orientation[:3])
                + row * between_rows * np.array(orientation[3:])
            )
            np.testing.assert_allclose(cell, where.position((col + 0.5) * GRID.cell_l0, (row + 0.5) * GRID.cell_l0), atol=1e-12)

    def test_a_made_frame_holds_the_slide_and_is_the_same_each_time(self, tmp_path: Path) -> None:
        heatmap = write_store(tmp_path / "s.zarr", np.full((25, 41), 0.1, np.float32), mpp=0.25)
        where, grid = made_placement(heatmap), heatmap.grid
        assert where == made_placement(heatmap)
        assert where.uid.startswith("2.25.")
        assert len(where.uid) <= 64
        np.testing.assert_allclose(where.position(0, 0), [grid.height * 0.00025, grid.width * 0.00025, 0])
        np.testing.assert_allclose(where.position(grid.width, grid.height), [0, 0, 0], atol=1e-12)
        down = np.cross(where.orientation[:3], where.orientation[3:])
        assert down.tolist() == [0, 0, -1], "seen from above the glass, not from below"


class TestWhatAFileStates:
    def stated(self, **changed: Any) -> Placement | None:
        origin = SimpleNamespace(XOffsetInSlideCoordinateSystem="20", YOffsetInSlideCoordinateSystem="40", get={}.get)
        measures = SimpleNamespace(PixelSpacing=["0.0005", "0.00025"])
        known = {
            "TotalPixelMatrixOriginSequence": [origin],
            "SharedFunctionalGroupsSequence": [SimpleNamespace(PixelMeasuresSequence=[measures])],
            "ImageOrientationSlide": [0, -1, 0, -1, 0, 0],
            "FrameOfReferenceUID": "1.2.3",
        }
        return stated_placement(
            SimpleNamespace(**{name: value for name, value in (known | changed).items() if value is not None})
        )

    def test_all_of_it(self) -> None:
        assert self.stated() == Placement("1.2.3", (20, 40, 0), (0, -1, 0, -1, 0, 0), (0.0005, 0.00025))

    @pytest.mark.parametrize(
        "changed",
        [
            {"TotalPixelMatrixOriginSequence": None},
            {"TotalPixelMatrixOriginSequence": []},
            {"SharedFunctionalGroupsSequence": None},
            {"FrameOfReferenceUID": None},
            {"ImageOrientationSlide": None},
            {"ImageOrientationSlide": [0, -1, 0]},
            {"ImageOrientationSlide": [0, 0, 0, 0, 0, 0]},
            {"ImageOrientationSlide": ["a", -1, 0, -1, 0, 0]},
        ],
        ids=str,
    )
    def test_without_a_part_it_is_not_known(self, changed: dict[str, Any]) -> None:
        assert self.stated(**changed) is None


def probabilities() -> NDArray[np.float32]:
    values = np.full((25, 41), 0.1, np.float32)
    values[8:12, 8:12] = 0.9
    for row, col in MARKS:
        values[row, col] = 0.99
    values[15, 30:33] = np.nan
    return values


def test_each_cell_has_the_number_of_its_lesion(tmp_path: Path) -> None:
    values = probabilities()
    values[7, 7] = 0.6  # joined by a corner
    values[18, 18] = 0.6  # a region without a peak is none
    heatmap = write_store(tmp_path / "s.zarr", values, mpp=0.25, specificity_99=0.8)
    lesions, thresholds = find_lesions(heatmap), lesion_thresholds(heatmap.record)
    status = heatmap.status
    status[2, 2], status[2, 3] = Status.UNREADABLE, Status.PENDING
    cells = segment_cells(heatmap.probability, status, lesions, thresholds, heatmap.grid)
    assert (
        [int((cells == lesion.number).sum()) for lesion in lesions] == [lesion.cells for lesion in lesions] == [17, 1, 1, 1, 1]
    )
    for lesion in lesions:
        row, col = int(lesion.peak_y // GRID.cell_l0), int(lesion.peak_x // GRID.cell_l0)
        assert cells[row, col] == lesion.number
    assert np.argwhere(cells == 6).tolist() == [[2, 2], [2, 3]]
    assert cells[18, 18] == 0
    assert not segment_cells(np.full((3, 3), np.nan, np.float32), np.ones((3, 3), np.uint8), (), (0.5, 0.5), GRID).any()


def test_a_lesion_in_a_last_cell_of_less_than_a_pixel_has_its_own_cell_alone() -> None:
    grid, values = PatchGrid(374, 374, 0.25, 0.972, 96, 32), np.full((4, 4), 0.1, np.float32)
    values[2, 3] = 0.9
    assert grid.shape == values.shape
    lesions = measure_regions(values, label_regions(values, 0.5, 0.5), grid, 0.0)
    cells = segment_cells(values, np.full((4, 4), Status.SCANNED, np.uint8), lesions, (0.5, 0.5), grid)
    assert np.argwhere(cells).tolist() == [[2, 3]]


def test_without_highdicom_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    store = write_store(tmp_path / "s.zarr", probabilities(), mpp=0.25)
    for form in ("dicom-seg", "dicom-map"):
        with pytest.raises(DeviceError, match=r"^DICOM needs highdicom: pip install 'wsi-meta\[dicom\]'") as caught:
            export(store, tmp_path / "x.dcm", form=form)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.dcm").exists()
    run = CliRunner().invoke(main, ["export", str(store.path), "--out", str(tmp_path / "x.dcm")])
    assert (run.exit_code, "pip install" in run.output) == (1, True)


# --- with highdicom, of the extra `test`


@pytest.fixture(scope="module")
def hd() -> Any:
    return pytest.importorskip("highdicom", reason="of the extra 'dicom'")


@pytest.fixture(scope="module")
def dicom_slide(hd: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DICOM slide of 5000 x 3100 px at 0.25 um with an origin, in tiles of JPEG."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID, JPEGBaseline8Bit

    tile, rows, cols = 512, -(-3100 // 512), -(-5000 // 512)
    blank = bytes(imagecodecs.jpeg8_encode(np.full((tile, tile, 3), 230, np.uint8), level=90))
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.77.1.6")
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = UID("2.25.11")
    image.SeriesInstanceUID, image.StudyInstanceUID, image.FrameOfReferenceUID = "2.25.12", "2.25.13", "2.25.14"
    image.PatientID, image.PatientName, image.Modality = "P-1", "Doe^Jane", "SM"
    image.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    image.Rows = image.Columns = tile
    image.TotalPixelMatrixRows, image.TotalPixelMatrixColumns = 3100, 5000
    image.NumberOfFrames = rows * cols
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "YBR_FULL_422", 0
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    image.DimensionOrganizationType = "TILED_FULL"
    image.TotalPixelMatrixFocalPlanes = image.NumberOfOpticalPaths = 1
    image.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    origin, measures, shared = Dataset(), Dataset(), Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = "21.5", "43.25"
    measures.PixelSpacing, measures.SliceThickness = [0.00025, 0.00025], 0.001
    shared.PixelMeasuresSequence = [measures]
    image.TotalPixelMatrixOriginSequence, image.SharedFunctionalGroupsSequence = [origin], [shared]
    image.PixelData = encapsulate([blank] * (rows * cols))
    path = tmp_path_factory.mktemp("dicom") / "slide.dcm"
    image.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(scope="module")
def store(dicom_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Heatmap:
    with open_slide(dicom_slide) as slide:
        assert (slide.width, slide.height, slide.mpp, slide.vendor) == (5000, 3100, 0.25, "dicom")
        fingerprint = slide.fingerprint()
    return store_of(tmp_path_factory.mktemp("stores") / "heat.zarr", fingerprint)


def store_of(path: Path, fingerprint: str) -> Heatmap:
    from wsi_meta.heatmaps.lesions import lesion_facts
    from wsi_meta.heatmaps.record import ScanResult

    values = probabilities()
    record = make_record(GRID, name=path.stem, slide=fingerprint, thresholds={"specificity_99": 0.8})
    heatmap = Heatmap.create(path, record, np.isfinite(values), overwrite=False)
    status = np.where(np.isfinite(values), Status.SCANNED, Status.BACKGROUND).astype(np.uint8)
    for block in GRID.blocks():
        write_block(heatmap, block, values[block.cells], status[block.cells])
    cells = {state.name.lower(): int((status == state).sum()) for state in Status}
    heatmap.finalise(ScanResult(0.9, True, cells), lesion_facts(record, values, status))
    return Heatmap.open(path)


def where_cells_lie(hd: Any, image: Any, cells: list[tuple[int, int]]) -> NDArray[np.float64]:
    """Where highdicom puts cells (row, col) of an image's total pixel matrix, mm."""
    place = hd.spatial.PixelToReferenceTransformer.for_image(image, for_total_pixel_matrix=True)
    return np.asarray(place(np.array([(col, row) for row, col in cells])))


def where_pixels_lie(hd: Any, slide: Path, cells: list[tuple[int, int]]) -> NDArray[np.float64]:
    """Where the slide's own DICOM file puts the middles of these cells."""
    from pydicom import dcmread

    image = dcmread(slide, stop_before_pixels=True)
    place = hd.spatial.ImageToReferenceTransformer.for_image(image, for_total_pixel_matrix=True)
    return np.asarray(place(np.array([((col + 0.5) * GRID.cell_l0, (row + 0.5) * GRID.cell_l0) for row, col in cells])))


class TestInTheSlidesFrame:
    def test_the_map_comes_back_with_its_values_where_they_were(
        self, hd: Any, store: Heatmap, dicom_slide: Path, tmp_path: Path
    ) -> None:
        written = hd.pm.ParametricMap.from_file(export(store, tmp_path / "map.dcm", form="dicom-map", slide=dicom_slide))
        values = written.get_total_pixel_matrix()
        np.testing.assert_array_equal(values, store.probability)
        cells = list(MARKS)
        error = np.abs(where_cells_lie(hd, written, cells) - where_pixels_lie(hd, dicom_slide, cells)).max()
        assert error < 1e-6, "mm; a cell has 0.031"
        assert (written.FrameOfReferenceUID, written.StudyInstanceUID, written.PatientID) == ("2.25.14", "2.25.13", "P-1")
        assert written.SeriesDescription == "wsi-meta: probability"

    def test_lesions_come_back_with_their_cells_where_they_were(
        self, hd: Any, store: Heatmap, dicom_slide: Path, tmp_path: Path
    ) -> None:
        written = hd.seg.segread(export(store, tmp_path / "lesions.dcm", slide=dicom_slide))
        lesions = find_lesions(store)
        assert [one.SegmentLabel for one in written.SegmentSequence] == [
            f"lesion {lesion.number}: {lesion.size_class}" for lesion in lesions
        ]
        found = written.get_total_pixel_matrix(combine_segments=True)
        assert [int((found == lesion.number).sum()) for lesion in lesions] == [lesion.cells for lesion in lesions]
        peaks = [(int(lesion.peak_y // GRID.cell_l0), int(lesion.peak_x // GRID.cell_l0)) for lesion in lesions]
        assert [found[peak] for peak in peaks] == [lesion.number for lesion in lesions]
        error = np.abs(where_cells_lie(hd, written, peaks) - where_pixels_lie(hd, dicom_slide, peaks)).max()
        assert error < 1e-6
        assert written.FrameOfReferenceUID == "2.25.14"

    def test_another_slide_and_the_slide_itself_are_refused(self, store: Heatmap, dicom_slide: Path, tmp_path: Path) -> None:
        other = write_slide(tmp_path / "other.tif", texture(300, 300))
        with pytest.raises(HeatmapError, match=r"not from .*other\.tif"):
            export(store, tmp_path / "x.dcm", slide=other)
        with pytest.raises(OutputPathError, match="never replaced"):
            export(store, dicom_slide, slide=dicom_slide, overwrite=True)
        parts = [Path(shutil.copy(dicom_slide, tmp_path / f"{level}.dcm")) for level in range(2)]
        with pytest.raises(OutputPathError, match=r"1\.dcm: a file of the slide, never replaced"):
            export(store, parts[1], slide=parts[0], overwrite=True)
        before = parts[0].read_bytes()
        with pytest.raises(OutputExistsError, match=r"0\.dcm: 'wsi-meta export' did not write it"):
            export(store, parts[0], overwrite=True)
        assert parts[0].read_bytes() == before
        for form in ("dicom-seg", "dicom-map"):  # of either kind
            export(store, tmp_path / "ours.dcm", form=form, overwrite=True)


class TestInAFrameOfItsOwn:
    def test_it_says_so_and_lies_as_the_slide_does(self, hd: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING)
        store = store_of(tmp_path / "Узел-の.zarr", "0" * 64)
        written = hd.seg.segread(export(store, tmp_path / "x.dcm"))
        where = made_placement(store)
        cells = list(MARKS)
        expected = [where.position((col + 0.5) * GRID.cell_l0, (row + 0.5) * GRID.cell_l0) for row, col in cells]
        assert np.abs(where_cells_lie(hd, written, cells) - expected).max() < 1e-6
        assert written.SeriesDescription == "frame of reference made by wsi-meta; fits no other image"
        drawn = hd.pm.ParametricMap.from_file(export(store, tmp_path / "m.dcm", form="dicom-map"))
        assert written.FrameOfReferenceUID == drawn.FrameOfReferenceUID == where.uid
        assert (written.PatientID, written.StudyDescription) == ("", "Узел-の")
        told = "no DICOM slide was given; the frame of reference is made, and fits no other image"
        assert [told in record.getMessage() for record in caplog.records] == [True, True]

    @pytest.mark.parametrize(
        ("value", "told", "kind"), [(0.1, "no lesion found", "Neo"), (np.nan, "nothing was scanned", "Unk")]
    )
    def test_no_lesion_is_an_empty_segment(
        self, value: float, told: str, kind: str, hd: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = write_store(tmp_path / "s.zarr", np.full((5, 5), value, np.float32), mpp=0.25)
        written = hd.seg.segread(export(store, tmp_path / "x.dcm"))
        (segment,) = written.SegmentSequence
        assert segment.SegmentLabel == told
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning.startswith(kind)
        assert not written.get_total_pixel_matrix(combine_segments=True).any()
        assert not [record for record in caplog.records if record.name.startswith("highdicom")]

    def test_no_lesion_of_an_area_is_not_no_lesion(self, hd: Any, tmp_path: Path) -> None:
        store = store_of(tmp_path / "s.zarr", "0" * 64)
        written = hd.seg.segread(export(store, tmp_path / "x.dcm", min_area=1000))
        (segment,) = written.SegmentSequence
        assert segment.SegmentLabel == "no lesion found (1000 mm2 or more)"
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert ",min_area_mm2=1000," in algorithm.AlgorithmParameters

    def test_lesions_of_other_thresholds_are_tracked_as_others(self, hd: Any, tmp_path: Path) -> None:
        values = np.full((5, 5), 0.6, np.float32)
        values[2, 2:4] = 0.9
        store = write_store(tmp_path / "s.zarr", values, mpp=0.25)
        written = [hd.seg.segread(export(store, tmp_path / f"{least}.dcm", threshold=least)) for least in (0.5, 0.8)]
        assert len({one.SegmentSequence[0].TrackingUID for one in written}) == 2
