from __future__ import annotations

import csv
import json
import resource
import signal
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from json_output import result_of
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage import measure
from sklearn.metrics import roc_auc_score
from slide_files import write_ome_zarr, write_scn
from stores import write_store

from wsi_meta.annotations.camelyon_slides import EXCLUDED, loose, read_excluded
from wsi_meta.annotations.detections import Detections, read_detections, write_detections
from wsi_meta.annotations.outlines import read_annotations
from wsi_meta.annotations.truth import warn_of_small_masks
from wsi_meta.challenges.camelyon16 import FILES, froc
from wsi_meta.challenges.cohort import read_scores
from wsi_meta.challenges.froc import DOWNSAMPLE, froc_curve, froc_interval, label_lesions, match, script_curve
from wsi_meta.cli import main
from wsi_meta.errors import DataError, OutputExistsError, OutputPathError
from wsi_meta.evaluation.roc import delong
from wsi_meta.readers.reader import Bounds
from wsi_meta.viewer.corrections import Corrections, write_corrections

HEIGHT, WIDTH = 100, 120
Slide = tuple[list[tuple[float, int, int]], "NDArray[np.bool_] | None"]


def _oracle(slides: list[Slide]) -> tuple[list[float], list[float], float]:
    """The organisers' algorithm, step by step and slowly: false positives a slide, sensitivity, score."""
    all_false: list[float] = []
    all_best: list[float] = []
    tumors = 0
    for detections, tumor in slides:
        if tumor is None:
            all_false += [score for score, _, _ in detections]
            continue
        distance = ndimage.distance_transform_edt(~tumor) if tumor.any() else np.full(tumor.shape, np.inf)
        binary = distance < 75 / (0.243 * pow(2, 5) * 2)
        mask = measure.label(ndimage.binary_fill_holes(binary), connectivity=2)
        isolated = [
            region.label for region in measure.regionprops(mask) if region.axis_major_length < 275 / (0.243 * pow(2, 5))
        ]
        best = [0.0] * int(mask.max())
        for score, x, y in detections:
            label = int(mask[y // 32, x // 32])
            if label == 0:
                all_false.append(score)
            elif label not in isolated and score > best[label - 1]:
                best[label - 1] = score
        all_best += best
        tumors += len(best) - len(isolated)
    thresholds = sorted(set(all_false + all_best))[1:]
    total_false = [sum(score >= threshold for score in all_false) for threshold in thresholds] + [0]
    total_found = [sum(score >= threshold for score in all_best) for threshold in thresholds] + [0]
    false_positives = [false / len(slides) for false in total_false]
    sensitivity = [found / tumors if tumors else float("nan") for found in total_found]
    at = np.interp([1 / 4, 1 / 2, 1, 2, 4, 8], false_positives[::-1], sensitivity[::-1])
    return false_positives, sensitivity, float(np.mean(at))


@st.composite
def _tumors(draw: st.DrawFn) -> NDArray[np.bool_]:
    """Rectangles, some of them rings, of which some lie near each other, some are small and some reach the border."""
    tumor = np.zeros((HEIGHT, WIDTH), bool)
    for _ in range(draw(st.integers(0, 5))):
        height, width = draw(st.integers(1, 55)), draw(st.integers(1, 55))
        row, col = draw(st.integers(-5, HEIGHT - 1)), draw(st.integers(-5, WIDTH - 1))
        tumor[max(0, row) : row + height, max(0, col) : col + width] = True
        if draw(st.booleans()):
            tumor[max(0, row) + 3 : max(0, row + height - 3), max(0, col) + 3 : max(0, col + width - 3)] = False
    return tumor


# few different scores, so that there are ties, or many
_scores = st.one_of(st.integers(1, 20).map(lambda n: n / 20), st.floats(0, 1))
_points = st.tuples(_scores, st.integers(0, WIDTH * 32 - 1), st.integers(0, HEIGHT * 32 - 1))
_slides = st.tuples(st.lists(_points, max_size=25), st.one_of(st.none(), _tumors()))


def _detections(points: list[tuple[float, int, int]]) -> Detections:
    scores, x, y = np.array(points, np.float64).reshape(-1, 3).T
    return Detections(scores, x.astype(np.int64), y.astype(np.int64))


@given(st.lists(_slides, min_size=1, max_size=7))
def test_as_the_organisers_compute_it(slides: list[Slide]) -> None:
    false_positives, sensitivity, score = _oracle(slides)
    curve = froc_curve([match(_detections(points), tumor) for points, tumor in slides])
    np.testing.assert_allclose(curve.false_positives, false_positives, rtol=0, atol=1e-9)
    np.testing.assert_allclose(curve.sensitivity, sensitivity, rtol=0, atol=1e-9)
    np.testing.assert_allclose(curve.score, score, rtol=0, atol=1e-9)


def _mask(*squares: tuple[int, int, int]) -> NDArray[np.bool_]:
    tumor = np.zeros((HEIGHT, WIDTH), bool)
    for row, col, side in squares:
        tumor[row : row + side, col : col + side] = True
    return tumor


def test_lesions_merge_below_75_um() -> None:
    """Each grows by less than 4.82 px; with eight pixels between them they touch, with ten they do not."""
    for gap, lesions in ((1, 1), (8, 1), (10, 2)):
        labels, isolated = label_lesions(_mask((20, 5, 35), (20, 40 + gap, 35)))
        assert labels.max() == len(isolated) == lesions
        assert not isolated.any()
    assert label_lesions(_mask())[0].max() == 0


def test_isolated_tumor_cells_are_under_275_um() -> None:
    """A square of n px grows to about n + 8; its major axis is that times 2 / sqrt(3) and must reach 35.4 px."""
    assert label_lesions(_mask((20, 20, 10)))[1].tolist() == [True]
    assert label_lesions(_mask((20, 20, 30)))[1].tolist() == [False]
    far, isolated = label_lesions(_mask((2, 2, 3), (50, 60, 40)))
    assert isolated.tolist() == [True, False]
    assert far[3, 3] == 1
    assert far[60, 70] == 2


def test_detections_on_isolated_cells_count_neither_way() -> None:
    tumor = _mask((2, 2, 3), (50, 60, 40))
    points = [(0.9, 3 * 32, 3 * 32), (0.8, 70 * 32 + 31, 60 * 32 + 31), (0.7, 72 * 32, 60 * 32), (0.6, 100, 3000)]
    hits = match(_detections(points), tumor)
    assert hits.false_positives.tolist() == [0.6]
    assert hits.best.tolist() == [0, 0.8], "several hits keep the best"
    assert (hits.lesions, hits.isolated) == (1, 1)
    normal = match(_detections(points), None)
    assert sorted(normal.false_positives) == [0.6, 0.7, 0.8, 0.9]
    beyond = match(_detections([(0.5, 10**9, 10**9)]), tumor)
    assert beyond.false_positives.tolist() == [0.5]


def test_the_threshold_that_is_dropped_is_told() -> None:
    tumor = _mask((50, 50, 40))
    hits = [match(_detections([(0.9, 2000, 2000), (0.5, 0, 0), (0.25, 0, 0)]), tumor)]
    for curve in (froc_curve(hits), script_curve(hits)):
        assert curve.dropped == 0.25
        assert curve.thresholds.tolist()[:2] == [0.5, pytest.approx(0.9)]
    assert froc_curve([match(_detections([(0.5, 0, 0)]), tumor)]).dropped == 0
    assert froc_curve([match(_detections([]), None)]).dropped is None


def test_slides_without_detections_are_in_the_mean() -> None:
    empty, points = _detections([]), _detections([(0.9, 2000, 2000), (0.5, 0, 0)])
    tumor = _mask((50, 50, 40))
    few = froc_curve([match(points, tumor)])
    many = froc_curve([match(points, tumor), match(empty, None), match(empty, None), match(empty, None)])
    np.testing.assert_allclose(many.false_positives, few.false_positives / 4)


def test_a_perfect_and_a_blind_method() -> None:
    tumor = _mask((50, 50, 40))
    assert froc_curve([match(_detections([(0.9, 2000, 2000), (0.1, 0, 0)]), tumor)]).score == 1
    blind = froc_curve([match(_detections([(0.9, 0, 0)]), tumor)])
    assert blind.score == 0
    assert np.isnan(froc_curve([match(_detections([]), None)]).score)


def test_the_interval_holds_the_score_and_is_the_same_again() -> None:
    rng = np.random.default_rng(3)
    slides = []
    for number in range(20):
        points = [(float(score), int(x), int(y)) for score, x, y in rng.uniform(0, (1, 3800, 3200), (6, 3))]
        slides.append(match(_detections(points), _mask((30, 30, 60)) if number % 2 else None))
    interval = froc_interval(slides)
    assert interval is not None
    assert 0 <= interval[0] < froc_curve(slides).score < interval[1] <= 1
    assert interval == froc_interval(slides) != froc_interval(slides, seed=1)
    assert froc_interval(slides[:1]) is None
    assert froc_interval(slides[::2]) is None, "no lesions"
    assert froc_interval([slides[1], *slides[::2]]) is None, "all lesions are on one slide"


# AUC of slides


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), min_size=4, max_size=40))
def test_delong_by_its_definition(slides: list[tuple[bool, int]]) -> None:
    labels, scores = np.array([tumor for tumor, _ in slides]), np.array([score for _, score in slides], np.float64)
    if labels.all() or not labels.any():
        with pytest.raises(ValueError, match="both classes"):
            delong(scores, labels)
        return
    auc, interval = delong(scores, labels)
    assert auc == pytest.approx(roc_auc_score(labels, scores))
    wins = np.subtract.outer(scores[labels], scores[~labels])
    kernel = (wins > 0) + 0.5 * (wins == 0)
    if min(kernel.shape) < 2:
        assert interval is None
        return
    variance = kernel.mean(1).var(ddof=1) / kernel.shape[0] + kernel.mean(0).var(ddof=1) / kernel.shape[1]
    half = 1.959964 * variance**0.5
    if half < 1e-9:
        assert interval is None, "1.000 to 1.000 would say that it is certain"
        return
    assert interval == pytest.approx((max(0, auc - half), min(1, auc + half)), abs=1e-6)


def test_delongs_interval_covers_as_it_says() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(80) < 40
    covered = 0
    for _ in range(400):
        _, interval = delong(rng.normal(labels * 1.0, 1), labels)
        assert interval is not None
        covered += interval[0] <= 0.7602 <= interval[1]  # the AUC of two normal distributions one deviation apart
    assert 0.91 < covered / 400 < 0.985


# folders and files


@pytest.fixture
def cohort(tmp_path: Path) -> tuple[Path, Path]:
    """Four slides: outlines, a mask, a normal one with a false alarm, a normal one with an empty file."""
    found, truth = tmp_path / "found", tmp_path / "truth"
    found.mkdir()
    truth.mkdir()
    square = (np.array([[0, 0], [60, 0], [60, 60], [0, 60]]) * 32 + 320).tolist()
    (truth / "Test_001.json").write_text(json.dumps({"positive": [{"name": "a", "vertices": square}], "negative": []}))
    tifffile.imwrite(truth / "test_002_Mask.tif", _mask((50, 50, 40)).astype(np.uint8) * 255)
    (found / "test_001.csv").write_text("probability,x,y\n0.9,1000,1000\n0.3,3500.0,3100.5\n")
    (found / "Test_002.csv").write_text("0.4,100,100\n0.2,2000,2000\n")
    (found / "test_003.csv").write_text("0.5,100,100\n")
    (found / "test_004.csv").write_text("")
    return found, truth


def test_folders(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    result = froc(*cohort, mask_level=5, out=tmp_path / "out")
    assert (result.slides, result.lesions, result.isolated, result.excluded) == (4, 2, 0, {})
    # thresholds 0.2 (dropped), 0.3, 0.4, 0.5, 0.9
    np.testing.assert_allclose(result.curve.false_positives, [3 / 4, 2 / 4, 1 / 4, 0, 0])
    np.testing.assert_allclose(result.curve.sensitivity, [0.5, 0.5, 0.5, 0.5, 0])
    assert result.score == 0.5
    assert result.slide_auc is not None
    assert result.slide_auc.auc == 0.75, "0.9 and 0.4 against 0.5 and 0"
    assert np.array(result.slide_auc.roc).tolist() == [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]]
    assert result.slide_auc.delong is not None
    assert result.slide_auc.bootstrap is not None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    with (tmp_path / "out" / "froc.csv").open() as file:
        rows = [[float(value) for value in row] for row in list(csv.reader(file))[1:]]
    np.testing.assert_array_equal(
        np.array(rows).T, [result.curve.thresholds, result.curve.false_positives, result.curve.sensitivity]
    )
    assert json.loads((tmp_path / "out" / "froc.json").read_text())["score"] == 0.5
    assert np.ptp(np.asarray(Image.open(tmp_path / "out" / "froc.png").convert("RGB"))) > 100


def test_command(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ["froc", *map(str, cohort), "--mask-level", "5", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert result_of(result.stdout) == json.loads(json.dumps(froc(*cohort, mask_level=5).to_dict()))
    told = CliRunner().invoke(main, arguments[:-1]).stdout
    assert "dropped:\n  threshold: 0.2\n  rule: the lowest of all scores" in told
    (tmp_path / "leave.csv").write_text("slide,task,reason\ntest_1,both,mine\n")
    result = CliRunner().invoke(main, [*arguments, "--exclude", str(tmp_path / "leave.csv")])
    assert result_of(result.stdout)["excluded"] == {"test_001": "both: mine"}
    assert result_of(result.stdout)["slides"] == 3


def test_masks_are_compared_with_their_slides(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    """Read as level 0, a mask of level 5 has an isolated cell where there is a lesion."""
    (cohort[0] / "Test_002.csv").write_text("")
    (tmp_path / "scans").mkdir()
    slide = write_store(tmp_path / "scans" / "test_002.zarr", np.zeros((30, 30), np.float32)).record.slide
    mask = np.zeros((slide.height // 32 + 1, slide.width // 32), np.uint8)
    mask[5:45, 5:45] = 255
    tifffile.imwrite(cohort[1] / "test_002_Mask.tif", mask)
    for level in (0, 3):
        with pytest.raises(
            DataError, match=f"expected level {level} of the slide's .*, but this is level 5; pass --mask-level 5"
        ):
            froc(*cohort, mask_level=level, slides=tmp_path / "scans")
    assert froc(*cohort, mask_level=5, slides=tmp_path / "scans").lesions == 2
    tifffile.imwrite(cohort[1] / "test_002_Mask.tif", mask[:, :-4])
    with pytest.raises(DataError, match=r"test_002_Mask\.tif: .* do not fit the slide's"):
        froc(*cohort, mask_level=5, slides=tmp_path / "scans")


def test_masks_of_implausibly_small_slides_are_told(cohort: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    (cohort[0] / "Test_002.csv").write_text("")
    froc(*cohort)
    assert "120 x 100 px, which at --mask-level 0 is a slide of 120 x 100 px (1 such masks); expected 16384" in caplog.text
    caplog.clear()
    (cohort[0] / "test_003.csv").write_text("0.5,100,221184\n")
    froc(*cohort, mask_level=5)
    assert "at --mask-level 5 is a slide of 3840 x 3200 px (1 such masks); expected 27648 or more" in caplog.text


@pytest.mark.parametrize(
    ("width", "level", "reach", "told"),
    [(1408, 5, 221184, False), (1024, 5, 400000, False), (800, 5, 221184, True), (800, 5, 90000, False), (6912, 0, 0, True)],
)
def test_small_nodes_beside_whole_slides_are_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, width: int, level: int, reach: int, told: bool
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((500, width), np.uint8), compression="deflate")
    warn_of_small_masks([tmp_path / "a.tif"], level, reach)
    assert bool(caplog.records) == told


def _outline(truth: Path, *rings: list[list[float]]) -> None:
    content = {"positive": [{"name": f"n{number}", "vertices": ring} for number, ring in enumerate(rings)]}
    (truth / "Test_001.json").write_text(json.dumps(content))


def _ring(left: float, top: float, side: float) -> list[list[float]]:
    return [[left, top], [left + side, top], [left + side, top + side], [left, top + side]]


def test_an_outline_smaller_than_a_pixel_is_isolated_tumor_cells(
    cohort: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    _outline(cohort[1], _ring(994, 994, 10))
    (cohort[0] / "test_001.csv").write_text("0.9,1000,1000\n")
    result = froc(*cohort, mask_level=5)
    assert (result.lesions, result.isolated) == (1, 1)
    assert 0.9 not in result.curve.thresholds, "neither a hit nor false"
    assert result.slide_auc is not None
    assert result.slide_auc.tumor == 2
    assert "Test_001.json: smaller than a pixel of 32 level-0 px: 1 outline of tumor" in caplog.text
    for path in (*cohort[0].glob("test_00[34].csv"), *cohort[0].glob("Test_002*"), *cohort[1].glob("test_002*")):
        path.unlink()
    assert (found := froc(*cohort, mask_level=5)).score is None
    assert "no lesion counts (1 group of isolated tumor cells): no score" in caplog.text
    assert found.slide_auc is None
    assert "1 of 1 slides have tumor: no AUC, which compares slides with tumor and without" in caplog.text


@pytest.mark.parametrize("idle", [_ring(-1000, -1000, 900), _ring(320, 320, 1920) * 2])
def test_outlines_that_draw_nothing_are_told(
    cohort: tuple[Path, Path], caplog: pytest.LogCaptureFixture, idle: list[list[float]]
) -> None:
    _outline(cohort[1], _ring(320, 320, 1920), idle)
    assert froc(*cohort, mask_level=5).lesions == 2
    assert "Test_001.json: counts nowhere, enclosing nothing on the slide: 1 outline of tumor, first 'n1' at x" in caplog.text
    _outline(cohort[1], idle)
    with pytest.raises(
        DataError, match=r"Test_001\.json: 1 outline of tumor, none of which encloses anything on the slide, first 'n0'"
    ):
        froc(*cohort, mask_level=5)


@pytest.mark.parametrize("kind", ["PointSet", "Rectangle"])
def test_tumor_that_encloses_nothing_makes_no_slide_normal(cohort: tuple[Path, Path], kind: str) -> None:
    points = '<Coordinate Order="0" X="9" Y="9"/><Coordinate Order="1" X="99" Y="99"/>'
    drawn = f'<Annotation Type="{kind}" PartOfGroup="Tumor"><Coordinates>{points}</Coordinates></Annotation>'
    path = cohort[1] / "test_003.xml"
    path.write_text("<ASAP_Annotations><Annotations/></ASAP_Annotations>")
    assert froc(*cohort, mask_level=5).lesions == 2, "without annotations there is no tumor"
    path.write_text(f"<ASAP_Annotations><Annotations>{drawn}</Annotations></ASAP_Annotations>")
    assert read_annotations(path).tumor == ()
    with pytest.raises(DataError, match=r"test_003\.xml: 1 annotation without an inside, and no outline of tumor; expected"):
        froc(*cohort, mask_level=5)


def test_outlines_beyond_the_slide_are_refused(tmp_path: Path) -> None:
    for folder in ("found", "scans"):
        (tmp_path / folder).mkdir()
    (tmp_path / "found" / "a.csv").write_text("")
    _drawn(tmp_path / "truth", "a", 50000, "Tumor")
    write_store(tmp_path / "scans" / "a.zarr", np.zeros((20, 300), np.float32), bounds=Bounds(0, 0, 9000, 2000))
    with pytest.raises(DataError, match=r"a\.geojson: 1 outline of tumor, none of .* at x 50000 to 56400"):
        froc(tmp_path / "found", tmp_path / "truth", slides=tmp_path / "scans")


@pytest.mark.parametrize("name", ["test_001", "test_003"])
def test_detections_beyond_their_slide_are_refused(cohort: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    """Whatever the truth of the slide is, also none."""
    (tmp_path / "scans").mkdir()
    extent = write_store(tmp_path / "scans" / f"{name}.zarr", np.zeros((40, 40), np.float32)).record.slide
    assert froc(*cohort, mask_level=5, slides=tmp_path / "scans").lesions == 2
    (cohort[0] / f"{name}.csv").write_text("0.9,9000000,100\n")
    told = rf"{name}\.csv: a detection lies at x 9000000, y 100, the slide has {extent.width} x {extent.height} level-0 px"
    with pytest.raises(DataError, match=told):
        froc(*cohort, mask_level=5, slides=tmp_path / "scans")


def _correct(scans: Path, name: str, *, corner: tuple[int, int] = (40, 30), **squares: tuple[int, int, int]) -> None:
    """Save corrections as the page does: kind = x, y and side of a square, level-0 pixels."""
    scans.mkdir(exist_ok=True)
    heatmap = write_store(scans / f"{name}.zarr", np.full((35, 35), 0.1, np.float32), bounds=Bounds(*corner, 4000, 4000))
    marked = [
        {"kind": kind, "polygons": [[[float(x), y, x + side, y, x + side, y + side, x, y + side]]]}
        for kind, (x, y, side) in squares.items()
    ]
    write_corrections(heatmap, Corrections.from_dict({"corrections": marked, "revision": ""}, heatmap.grid))


def test_corrections_of_maps_correct_the_truth(
    cohort: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found, truth = cohort
    scans = tmp_path / "scans"
    _correct(scans, "Test_001", false=(320, 320, 1920), missed=(2600, 2600, 1600))  # outlines: the lesion is another one
    _correct(scans, "test_002", missed=(0, 0, 1200))  # a mask: one lesion more
    _correct(scans, "test_003", missed=(0, 0, 1200))  # normal: it is not
    _correct(scans, "test_004")  # looked at, nothing to correct
    _correct(scans, "stranger", missed=(64, 64, 640))
    result = froc(found, truth, mask_level=5, corrections=scans)
    assert (result.lesions, result.isolated) == (4, 0)
    assert result.slide_auc is not None
    assert (result.slide_auc.tumor, result.slide_auc.normal) == (3, 1)
    # found: 0.3 in the missed lesion of the first, 0.4 and 0.2 on the second, 0.5 on the third; 0.9 is on what is none
    np.testing.assert_allclose(result.curve.thresholds.tolist()[:4], [0.3, 0.4, 0.5, 0.9])
    np.testing.assert_allclose(result.curve.sensitivity[:4], [3 / 4, 2 / 4, 1 / 4, 0])
    np.testing.assert_allclose(result.curve.false_positives[:4], [1 / 4] * 4)
    assert "of no slide that is judged: stranger.corrections.geojson" in caplog.text
    command = ["froc", str(found), str(truth), "--mask-level", "5", "--corrections", str(scans), "--json"]
    assert result_of(CliRunner().invoke(main, command).stdout) == json.loads(json.dumps(result.to_dict()))


def test_corrections_of_a_slide_that_was_replaced_are_refused(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    """Scanned again, the heatmap is of the new slide; without a heatmap nobody knows."""
    scans = tmp_path / "scans"
    _correct(scans, "test_003", missed=(0, 0, 1200))
    write_store(scans / "test_003.zarr", np.full((35, 35), 0.1, np.float32), slide="another")
    with pytest.raises(DataError, match=r"test_003\.corrections\.geojson: corrections of another slide; .*correct it again"):
        froc(*cohort, mask_level=5, corrections=scans)
    (scans / "test_003.zarr").rename(scans / "moved.zarr")
    assert froc(*cohort, mask_level=5, corrections=scans).lesions == 3


def _save_again(path: Path) -> None:
    """Save a file as QuPath does: what the program wrote beside the outlines is lost."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"type": content["type"], "features": content["features"]}))


def test_corrections_that_qupath_saved_again_count_from_its_corner(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    _correct(scans, "test_003", corner=(1000, 800), missed=(2000, 2000, 600))
    (cohort[0] / "test_003.csv").write_text("0.9,2550,2550\n")  # within the lesion, and far beyond it where the corner is lost
    whole = froc(*cohort, mask_level=5, corrections=scans)
    _save_again(scans / "test_003.corrections.geojson")
    again = froc(*cohort, mask_level=5, corrections=scans)
    np.testing.assert_array_equal(again.curve.sensitivity, whole.curve.sensitivity)
    assert again.curve.sensitivity.max() == 1
    (scans / "test_003.zarr").rename(tmp_path / "moved.zarr")
    with pytest.raises(DataError, match=r"test_003\.corrections\.geojson: does not say where its coordinates count from"):
        froc(*cohort, mask_level=5, corrections=scans)


def test_a_missed_lesion_smaller_than_a_pixel_counts_as_one(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    """As an outline of the truth does; without it the slide would be normal."""
    scans = tmp_path / "scans"
    before = froc(*cohort, mask_level=5)
    _correct(scans, "test_003", missed=(2034, 2034, 10))
    after = froc(*cohort, mask_level=5, corrections=scans)
    assert (after.lesions, after.isolated) == (before.lesions, before.isolated + 1)
    assert after.slide_auc is not None
    assert before.slide_auc is not None
    assert after.slide_auc.tumor == before.slide_auc.tumor + 1


def test_a_folder_without_corrections_is_refused(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone", cohort[0]):
        with pytest.raises(DataError, match=r"holds no corrections of these slides; expected <slide>\.corrections\.geojson"):
            froc(*cohort, mask_level=5, corrections=folder)


def test_nothing_is_overwritten(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    froc(*cohort, mask_level=5, out=out)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        froc(*cohort, mask_level=5, out=out)
    froc(*cohort, mask_level=5, out=out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(OutputPathError, match="a file; expected a folder"):
        froc(*cohort, mask_level=5, out=out / "notes.txt")


def test_on_a_full_disk_nothing_is_written(cohort: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the same command works when there is room."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OutputPathError, match=r"froc\.png: cannot be written \(File too large\); make room"):
            froc(*cohort, mask_level=5, out=tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "out").exists()


def test_what_is_judged_is_never_replaced(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    """A table in the folder to write to, and that folder itself: the next time its files would be judged, too."""
    out = tmp_path / "out"
    out.mkdir()
    scores = out / "froc.csv"
    scores.write_text("slide,score\n" + "".join(f"test_00{number},0.5\n" for number in (1, 2, 3, 4)))
    before = scores.read_bytes()
    with pytest.raises(OutputPathError, match="what is judged, never replaced"):
        froc(*cohort, mask_level=5, scores=scores, out=out, overwrite=True)
    assert scores.read_bytes() == before
    found, truth = cohort
    for folder in cohort:
        before_all = sorted(folder.iterdir())
        with pytest.raises(OutputPathError, match="what is judged, never replaced"):
            froc(found, truth, mask_level=5, out=folder, overwrite=True)
        assert sorted(folder.iterdir()) == before_all


def test_known_bad_slides(cohort: tuple[Path, Path]) -> None:
    found, truth = cohort
    assert {name: exclusion.task for name, exclusion in read_excluded(EXCLUDED).items()} == {
        "normal_86": "both",
        "normal_144": "both",
        "test_49": "both",
        "test_114": "lesions",
    }
    assert loose("Normal_086") == loose("normal_86") == "normal_86"
    assert loose("test_100") == "test_100"
    (found / "test_001.csv").rename(found / "test_114.csv")
    (truth / "Test_001.json").rename(truth / "Test_114.json")
    (found / "test_049.csv").write_text("0.99,0,0\n")
    (truth / "test_049.tif").write_text("never read")
    result = froc(found, truth, mask_level=5)
    assert list(result.excluded) == ["test_049", "test_114"]
    assert (result.slides, result.lesions) == (3, 1)
    assert result.slide_auc is not None
    assert (result.slide_auc.tumor, result.slide_auc.normal) == (2, 2), "test_114 is out of the lesions only"
    (truth / "test_049.tif").unlink()
    assert list(froc(found, truth, mask_level=5, exclude="camelyon16").excluded) == ["test_049", "test_114"]
    for nothing in (None, "none"):
        everything = froc(found, truth, mask_level=5, exclude=nothing)
        assert (everything.slides, everything.lesions, everything.excluded) == (5, 2, {})


def test_scores_of_slides_from_a_table(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    table = tmp_path / "summary.csv"
    rows = ["slide,score", "slides/Test_001.tif,0.9", "test_002,0.8", "test_003.tif,0.1", "test_004.tif,0.2", "broken.svs,"]
    table.write_text("\n".join(rows))
    result = froc(*cohort, mask_level=5, scores=table)
    assert result.slide_auc is not None
    assert result.slide_auc.auc == 1
    for content, told in [
        ("slide,score\ntest_001,0.5\n", "no score of 3 slides, first 'test_002'"),
        ("slide,score\ntest_001,x\n", "score 'x' of 'test_001'"),
        ("slide,score,complete,error\ntest_001,,False,gone\n", "no score of 4 slides, first 'test_001' (gone); "),
        ("slide,score\ntest_001,nan\n", "not finite"),
        ("name,score\n", "expected 'slide' and 'score'"),
    ]:
        table.write_text(content)
        with pytest.raises(DataError, match=r"summary\.csv") as caught:
            froc(*cohort, mask_level=5, scores=table)
        assert told in str(caught.value)


@pytest.mark.parametrize("slide", ["{number}/slide.tif", "é{number}.tif"])
def test_the_scores_of_a_summary_are_found_by_its_heatmaps(tmp_path: Path, slide: str) -> None:
    """A manifest may name stores otherwise than their slides, which may all have one name; macOS may keep accents apart."""
    detections, truth, table = tmp_path / "found", tmp_path / "truth", tmp_path / "summary.csv"
    detections.mkdir()
    truth.mkdir()
    for number, name in enumerate(("ä_1", "ä_2")):
        (detections / f"{unicodedata.normalize('NFD', name)}.csv").write_text(f"0.{number + 1},640,640\n")
    square = [[0, 0], [1280, 0], [1280, 1280], [0, 1280]]
    (truth / "ä_1.json").write_text(json.dumps({"positive": [{"name": "a", "vertices": square}], "negative": []}))
    rows = [f"/s/{slide.format(number=number)},/m/ä_{number}.zarr,0.{number}\n" for number in (2, 1)]
    table.write_text("slide,heatmap,score\n" + "".join(rows) + "/s/gone.tif,,\n")
    result = froc(detections, truth, scores=table)
    assert (result.slides, result.lesions) == (2, 1)
    assert result.slide_auc is not None
    assert (result.slide_auc.tumor, result.slide_auc.auc) == (1, 0)


def test_slides_that_were_not_wholly_read_are_told(
    cohort: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What a scan did not reach is no negative: by the table of scores, or by the heatmaps beside it."""
    table, scans = tmp_path / "summary.csv", tmp_path / "scans"
    rows = ["test_001.tif,0.9,1.0,", "test_002.tif,0.8,False,9 cells could not be read", "test_003.tif,0.1,FALSE,"]
    table.write_text("\n".join(["slide,score,complete,error", *rows, "test_004.tif,0.2,,", "other.tif,0.2,False,"]))
    told = {"test_002": "9 cells could not be read", "test_003": "complete is FALSE in summary.csv"}
    result = froc(*cohort, mask_level=5, scores=table, out=tmp_path / "out")
    assert result.incomplete == json.loads((tmp_path / "out" / "froc.json").read_text())["incomplete"] == told
    named = "test_002 (9 cells could not be read), test_003 (complete is FALSE in summary.csv)"
    assert f"2 slides were not wholly read; their score is of what was read: {named}" in caplog.text
    scans.mkdir()
    for name, value in (("test_001", 0.1), ("Test_003", np.nan), ("other", np.nan)):
        write_store(scans / f"{name}.zarr", np.full((40, 40), value, np.float32))
    write_store(scans / "test_004.zarr", np.full((5, 5), 0.1, np.float32)).reopen()
    (scans / "test_002.zarr").mkdir()
    (scans / "test_002.zarr" / "zarr.json").write_text('{"attributes": {"wsi_meta": {"identity": 1}}}')
    told = froc(*cohort, mask_level=5, slides=scans).incomplete
    assert list(told) == ["test_002", "test_003", "test_004"], "damaged, blank, unfinished"
    assert (told["test_003"], told["test_004"]) == ("no cell was scanned", "not scanned to the end")
    assert froc(*cohort, mask_level=5).incomplete == {}


def test_rows_of_an_own_table_that_match_no_slide_are_told(
    cohort: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    froc(*cohort, mask_level=5)
    assert "names no slide" not in caplog.text, "the built-in list is of other slides"
    (tmp_path / "leave.csv").write_text("slide,task,reason\ntest_3.tif,both,x\ntest_0O4,both,a typing error\n")
    assert list(froc(*cohort, mask_level=5, exclude=tmp_path / "leave.csv").excluded) == ["test_003"]
    assert "leave.csv: names no slide that is here: test_0o4;" in caplog.text


def test_only_normal_slides_or_only_isolated_cells_have_no_score(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    found, truth = cohort
    (truth / "Test_001.json").write_text('{"positive": []}')
    tifffile.imwrite(truth / "test_002_Mask.tif", _mask((50, 50, 2)).astype(np.uint8))
    result = froc(found, truth, mask_level=5, out=tmp_path / "out")
    assert (result.score, result.interval, result.sensitivity, result.lesions, result.isolated) == (None, None, {}, 0, 1)
    assert result.slide_auc is not None, "cells are tumor all the same"
    json.loads((tmp_path / "out" / "froc.json").read_text())


def test_contradictions(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    found, truth = cohort
    cases: list[tuple[str, Any]] = [
        ("no such folder", lambda: froc(tmp_path / "gone", truth)),
        ("not a folder", lambda: froc(found, truth / "Test_001.json")),
        ("holds no such file; expected <slide>.csv", lambda: froc(truth, truth)),
        ("covers 128 x 96 level-0 pixels, but a detection lies at x 2000, y 2000", lambda: froc(found, truth)),
    ]
    for told, call in cases:
        with pytest.raises(DataError) as caught:
            call()
        assert told in str(caught.value)
    (truth / "test_009.xml").write_text("<ASAP_Annotations/>")
    with pytest.raises(DataError, match=r"1 slides with truth have no detections, first 'test_009'; expected test_009\.csv"):
        froc(found, truth, mask_level=5)
    (truth / "test_002.xml").write_text("<ASAP_Annotations/>")
    with pytest.raises(DataError, match=r"is for the same slide as"):
        froc(found, truth, mask_level=5)
    (tmp_path / "leave.csv").write_text("slide,task,reason\ntest_001,all,x\n")
    with pytest.raises(DataError, match="task 'all' of 'test_001'"):
        froc(found, truth, exclude=tmp_path / "leave.csv")
    (tmp_path / "leave.csv").write_text("slide,task,reason\n" + "".join(f"test_{n},both,x\n" for n in (1, 2, 3, 4, 9)))
    (truth / "test_002.xml").unlink()
    with pytest.raises(DataError, match="every slide is left out"):
        froc(found, truth, exclude=tmp_path / "leave.csv")


@pytest.mark.parametrize("line", ["0.5,1", "0.5,a,3", "nan,1,2", "0.5,-1,2", "-0.1,1,2", "0.5,1,2,3", "0.5,1e300,2", "p,1,2"])
def test_bad_detections(tmp_path: Path, line: str) -> None:
    path = tmp_path / "d.csv"
    path.write_text(f"0.5,1,2\n{line}\n")
    with pytest.raises(DataError, match=r"d\.csv: line 2 is"):
        read_detections(path)
    with pytest.raises(DataError, match=r"gone\.csv: no such file; expected a list of detections"):
        read_detections(tmp_path / "gone.csv")
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match=r"d\.csv: not a list of detections"):
        read_detections(path)


@given(st.lists(_points, max_size=8))
def test_detections_come_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, points: list[tuple[float, int, int]]
) -> None:
    path = tmp_path_factory.mktemp("d") / "slide.csv"
    write_detections(path, _detections(points))
    back = read_detections(path)
    assert list(zip(back.scores.tolist(), back.x.tolist(), back.y.tolist(), strict=True)) == points
    assert (path.stat().st_size == 0) == (not points)
    with pytest.raises(OutputExistsError):
        write_detections(path, back)


def test_spaces_blank_lines_and_headers(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("\ufeffconfidence, X, Y\n\n 0.5 , 1.9 , 2 \n , , \n")
    found = read_detections(path)
    assert (found.scores.tolist(), found.x.tolist(), found.y.tolist()) == ([0.5], [1], [2])


def test_level_five_of_the_protocol() -> None:
    assert DOWNSAMPLE == 2**5


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["", "probability,x,y", "y,x,Confidence", "id,x,y,score"])
def test_detections_under_any_separator_and_header(tmp_path: Path, separator: str, header: str) -> None:
    values = {"x": "15000", "y": "7000", "id": "3"}
    row = [values.get(name, "0.9") for name in (header or "probability,x,y").split(",")]
    content = "\n".join([header.replace(",", separator), separator.join(row)] if header else [separator.join(row)])
    (tmp_path / "d.csv").write_text(content)
    found = read_detections(tmp_path / "d.csv")
    assert (found.scores.tolist(), found.x.tolist(), found.y.tolist()) == ([0.9], [15000], [7000])


@pytest.mark.parametrize("first", ["x,y", "a,b,c", "x,x,probability", "p,score,x,y", "0.9 15000 7000"])
def test_a_header_that_does_not_say_which_column_is_which_is_refused(tmp_path: Path, first: str) -> None:
    (tmp_path / "d.csv").write_text(f"{first}\n")
    with pytest.raises(DataError, match=r"d\.csv: first line '"):
        read_detections(tmp_path / "d.csv")


def test_decimal_commas_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("probability,x,y\n0.9,1,2\n0,9,15000,7000\n")
    with pytest.raises(DataError, match="line 3 has 4 values, the header 3"):
        read_detections(tmp_path / "d.csv")
    (tmp_path / "d.csv").write_text("0,9;15000;7000\n")
    told = r"d\.csv: line 1 is '0,9;15000;7000'; expected probability,x,y, none below 0, with decimal points"
    with pytest.raises(DataError, match=told):
        read_detections(tmp_path / "d.csv")
    (tmp_path / "s.csv").write_text("slide;score\na;0,9\n")
    with pytest.raises(DataError, match="score '0,9' of 'a', line 2; expected a number for each slide, with a decimal point"):
        read_scores(tmp_path / "s.csv")


def test_names_with_dots_and_endings_of_slides(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    found, truth = cohort
    expected = froc(found, truth, mask_level=5).to_dict()
    for folder in cohort:
        for path in list(folder.iterdir()):
            stem = path.name.rpartition(".")[0]
            path.rename(path.with_name(path.name.replace(stem, f"{stem}.0a1b.tif" if folder == found else f"{stem}.0a1b")))
    (truth / "test_002_Mask.0a1b.tif").rename(truth / "test_002.0a1b_mask.tif")
    assert froc(found, truth, mask_level=5).to_dict() == expected
    table = tmp_path / "scores.csv"
    table.write_text("slide,score\n" + "".join(f"Test_00{n}.0a1b,{5 - n}\n" for n in (1, 2, 3, 4)))
    result = froc(found, truth, mask_level=5, scores=table)
    assert result.slide_auc is not None
    assert result.slide_auc.auc == 1
    table.write_text(table.read_text() + "test_002.0A1B.svs,0\n")
    with pytest.raises(DataError, match=r"'test_002\.0a1b' in line 3 and again in line 6"):
        froc(found, truth, mask_level=5, scores=table)


def test_a_slide_left_out_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "leave.csv").write_text("slide;task;reason\ntest_1.tif;both;x\ntest_001;slides;y\n")
    with pytest.raises(DataError, match="'test_1' in line 2 and again in line 3"):
        read_excluded(tmp_path / "leave.csv")


def test_what_is_not_read_is_told(cohort: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    found, truth = cohort
    (found / "notes.txt").write_text("mine")
    (truth / "more").mkdir()
    (truth / "Test_001.png").write_text("a picture beside its outlines")
    froc(found, truth, mask_level=5)
    for name in ("found: not read: notes.txt", "truth: not read: Test_001.png, more"):
        assert name in caplog.text
    (truth / "test_003_mask.PNG").write_text("the only truth")
    with pytest.raises(DataError, match=r"test_003_mask\.PNG: not read, so that its slide would count as normal"):
        froc(found, truth, mask_level=5)


@pytest.mark.parametrize(
    "name",
    [
        "test_003.xml.gz",
        "Test_003_mask.tif.gz",
        "test_003.ndpa",
        "test_003.zip",
        "test_003.zarr/0",
        "test_003.xml.txt",
        "test_003/a.xml",
        "more/test_003.xml",
        "more/Test_003_mask.tif",
        "Lesions/test_003.tif",
    ],
)
def test_truth_that_is_not_read_makes_no_slide_normal(cohort: tuple[Path, Path], name: str) -> None:
    found, truth = cohort
    allowed = ["test_003.svs", "test_004.mrxs", "test_004/Slidat.ini", "test_001.0a.xml.gz", "notes.txt", "more/b.txt"]
    allowed += ["slides/test_003.tif", "test_003.tif.md5", "test_003.csv", "test_003.log"]
    for file in (*allowed, name):
        if file == name == "test_003.ndpa":  # once, because nothing of this is truth
            froc(found, truth, mask_level=5)
        (truth / file).parent.mkdir(exist_ok=True)
        (truth / file).touch()
    with pytest.raises(DataError, match=r"would count as normal") as caught:
        froc(found, truth, mask_level=5)
    assert str(caught.value).startswith(f"{truth / name.partition('/')[0]}: ")


def _script(hits: list[Any], key: Any = None) -> float:
    """What the organisers' script makes of hits: Python's floats for false positives, NumPy's float32 for the best hits."""
    false = [score for slide in hits for score in slide.false_positives.tolist()]
    best = [score for slide in hits for score in slide.best.astype(np.float32)]
    thresholds = sorted(set(false + best), key=key)[1:]
    alarms = [(np.asarray(false) >= threshold).sum() for threshold in thresholds] + [0]
    found = [(np.asarray(best) >= threshold).sum() for threshold in thresholds] + [0]
    lesions = sum(slide.lesions for slide in hits)
    per_slide, sensitivity = np.asarray(alarms) / len(hits), np.asarray(found) / lesions
    return float(np.mean(np.interp([0.25, 0.5, 1, 2, 4, 8], per_slide[::-1], sensitivity[::-1])))


@pytest.mark.parametrize("digits", [1, 2, 9])
def test_the_score_is_the_scripts_where_hits_and_false_positives_share_scores(digits: int) -> None:
    rng = np.random.default_rng(4)
    differ = 0
    for _ in range(60):
        slides = []
        for number in range(4):
            points = [(round(float(score), digits), int(x), int(y)) for score, x, y in rng.uniform(0, (1, 3800, 3200), (9, 3))]
            slides.append(match(_detections(points), _mask((5, 5, 40), (55, 60, 40)) if number % 2 else None))
        assert script_curve(slides).score == _script(slides)
        # in the exact order of the scores, as NumPy 1 sorted them
        assert froc_curve(slides, hits=np.float32).score == _script(slides, key=float)
        differ += abs(script_curve(slides).score - froc_curve(slides).score) > 1e-6
    assert (differ > 5) == (digits == 1), "else this shows nothing"


def test_both_scores_are_told_where_they_differ(cohort: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    found, truth = cohort
    assert froc(found, truth, mask_level=5).float64_score == 0.5
    assert "float32" not in caplog.text
    for name, content in [("test_001", "0.6,1000,1000\n"), ("test_003", "0.6,100,100\n" * 3)]:
        (found / f"{name}.csv").write_text(content)
    result = froc(found, truth, mask_level=5)
    assert result.score is not None
    assert result.float64_score is not None
    assert result.score > result.float64_score, "0.6 is more in float32 than in float64"
    assert f"{result.score:.4f} with hits in float32" in caplog.text
    assert f"{result.float64_score:.4f} in float64" in caplog.text


def _drawn(folder: Path, name: str, left: int, group: str) -> None:
    """A square of 6,400 level-0 pixels (1.6 mm) as QuPath exports it."""
    ring = [[left, 0], [left + 6400, 0], [left + 6400, 6400], [left, 6400]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    feature = {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": group}}}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))


def test_qupaths_truth_counts_from_the_bounds_of_the_slide(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "found").mkdir()
    _drawn(tmp_path / "truth", "a.b", 0, "Tumor")
    (tmp_path / "found" / "A.B.csv").write_text("0.9,21000,2000\n")
    (tmp_path / "found" / "n.csv").write_text("0.1,5,5\n")
    assert froc(tmp_path / "found", tmp_path / "truth").score == 0
    assert "GeoJSON of 1 slides is taken as level-0 pixels; pass --slides" in caplog.text
    caplog.clear()
    for name, folder in (("a.b.zarr", "scans"), ("a.scn", "others")):
        (tmp_path / folder).mkdir()
        write_store(tmp_path / folder / name, np.zeros((20, 300), np.float32), bounds=Bounds(20000, 0, 9000, 2000))
    assert froc(tmp_path / "found", tmp_path / "truth", slides=tmp_path / "scans").score == 1
    assert not caplog.records
    for folder in ("others", "gone"):
        with pytest.raises(DataError, match=f"{folder}: no s"):
            froc(tmp_path / "found", tmp_path / "truth", slides=tmp_path / folder)
    write_scn(tmp_path / "others" / "A.B.SCN", np.zeros((256, 256, 3), np.uint8), (20000, 0), (30000, 8000))
    assert froc(tmp_path / "found", tmp_path / "truth", slides=tmp_path / "others").score == 1


def test_the_bounds_of_a_slide_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "a.csv").write_text("0.9,100,300\n")
    _drawn(tmp_path / "truth", "a", 0, "Tumor")
    write_ome_zarr(tmp_path / "slides" / "a.ome.zarr", np.zeros((300, 300, 3), np.uint8))
    assert froc(tmp_path / "found", tmp_path / "truth", slides=tmp_path / "slides").lesions == 1


def test_classes_that_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "found").mkdir()
    for number, group in enumerate(("Krebs: G2", "Stroma")):
        _drawn(tmp_path / "truth", f"s{number}", 0, group)
        (tmp_path / "found" / f"s{number}.csv").write_text("0.9,3000,3000\n")
    command = ["froc", str(tmp_path / "found"), str(tmp_path / "truth"), "--json"]
    result = CliRunner().invoke(main, [*command, "--tumor", "krebs"])
    assert result_of(result.stdout)["lesions"] == 1
    assert "s1.geojson: outlines of other classes are left out: 'Stroma'" in caplog.text
    both = CliRunner().invoke(main, [*command, "--tumor", "krebs", "--tumor", "stroma"])
    assert result_of(both.stdout)["lesions"] == 2
    absent = CliRunner().invoke(main, [*command, "--tumor", "krebs", "--exclude-class", "Fat"])
    assert absent.exit_code == 1
    assert "truth: no outline has the class 'Fat'; found: 'Krebs: G2', 'Stroma'" in absent.stderr
    assert CliRunner().invoke(main, [*command, "--tumor", "a", "--exclude-class", "A"]).exit_code == 2


@pytest.mark.parametrize(
    "content",
    ["1000,2000,0.9\n3000,40,1\n", "15000,15000,1\n", "15000,15000,0\n", "15000,1,15000\n", "15000,9000,97\n", "7,2000,0\n"],
)
def test_columns_in_another_order_without_a_header_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "d.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=r"d\.csv: the first column of '.*' reaches .*; expected probability,x,y in this order"):
        read_detections(path)
    path.write_text(f"probability,x,y\n{content}")
    read_detections(path)  # as it says


@pytest.mark.parametrize("content", ["7.5,2000,0\n3,40,9\n", "90,15000,15000\n", "1,0,0\n", "0.5,1,1\n", "100,5000,90\n"])
def test_scores_may_be_any_numbers(tmp_path: Path, content: str) -> None:
    (tmp_path / "d.csv").write_text(content)
    assert read_detections(tmp_path / "d.csv").highest == float(content.partition(",")[0])
