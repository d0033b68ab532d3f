from __future__ import annotations

import os
import resource
import signal
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import tifffile
from fakes import scan_darkness
from numpy.typing import NDArray
from PIL import Image
from slide_files import texture, write_slide

from wsi_meta.errors import HeatmapError, OptionsError, OutputExistsError, OutputPathError, SlideReadError
from wsi_meta.heatmaps.record import ScanResult
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.models.model import Model
from wsi_meta.pictures.colours import LAYERS, STYLES, VEIL, colour_cells
from wsi_meta.pictures.legend import class_entries, title_of
from wsi_meta.pictures.overlay import draw_overlay
from wsi_meta.pictures.picture_file import FORMATS, check_picture
from wsi_meta.quality.verdict import Verdict


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = np.full((640, 960, 3), 244, np.uint8)
    image[100:500, 100:500] = texture(400, 400)
    return write_slide(tmp_path_factory.mktemp("slides") / "node.tif", image)


@pytest.fixture(scope="module")
def heatmap(slide_file: Path, thin_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Heatmap:
    out = tmp_path_factory.mktemp("heat") / "node.zarr"
    return scan_darkness(slide_file, out, model=thin_model, tta=True, uncertainty=True)


def _words(path: Path) -> list[str]:
    """The texts of an SVG, which are text in it."""
    return ["".join(element.itertext()) for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def _pixels(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def test_picture_over_the_slide_and_alone(heatmap: Heatmap, slide_file: Path, tmp_path: Path) -> None:
    over = _pixels(draw_overlay(heatmap, tmp_path / "over.png", slide=slide_file, max_side=900))
    alone = _pixels(draw_overlay(heatmap.path, tmp_path / "alone.png", max_side=900))
    assert over.shape == alone.shape
    assert 900 <= over.shape[1] < 1300
    assert (over != alone).any(-1).mean() > 0.1, "the slide shows through"


def test_max_side(heatmap: Heatmap, tmp_path: Path) -> None:
    small = _pixels(draw_overlay(heatmap, tmp_path / "s.png", max_side=700))
    large = _pixels(draw_overlay(heatmap, tmp_path / "l.png", max_side=1000))
    assert large.shape[1] - small.shape[1] == pytest.approx(300, abs=15)


def test_the_first_row_is_above_whatever_the_program_around_wants_of_its_own_pictures(heatmap: Heatmap, tmp_path: Path) -> None:
    """Lesions were drawn where they are, the map below them upside down."""
    usual = _pixels(draw_overlay(heatmap, tmp_path / "usual.png", max_side=300))
    with matplotlib.rc_context({"image.origin": "lower"}):
        assert (_pixels(draw_overlay(heatmap, tmp_path / "lower.png", max_side=300)) == usual).all()


def test_not_scanned_differs_from_scored_zero(heatmap: Heatmap) -> None:
    """A cell without a value has a colour of its own; a cell of probability 0 leaves the slide as it is."""
    status, probability = heatmap.status, heatmap.probability
    colours = colour_cells(probability, status, "probability", 0.7, 0.0)
    np.testing.assert_allclose(
        colours[status == Status.BACKGROUND], np.tile(VEIL[Status.BACKGROUND][0], ((status == 1).sum(), 1))
    )
    scanned = status == Status.SCANNED
    np.testing.assert_allclose(colours[scanned, 3], 0.7 * probability[scanned], rtol=1e-6)
    assert len({colour for colour, _ in VEIL.values()}) == len(VEIL) == 3


def test_a_scanned_cell_whose_value_is_lost_is_not_drawn_as_zero() -> None:
    lost, status = np.full((1, 1), np.nan, np.float32), np.full((1, 1), Status.SCANNED, np.uint8)
    for layer in LAYERS:
        np.testing.assert_allclose(colour_cells(lost, status, layer, 0.7, 0.0)[0, 0], VEIL[Status.UNREADABLE][0])


def test_threshold_hides_what_is_below(heatmap: Heatmap) -> None:
    probability, status = heatmap.probability, heatmap.status
    middle = float(np.nanmedian(probability))
    colours = colour_cells(probability, status, "probability", 0.7, middle)
    scanned = status == Status.SCANNED
    np.testing.assert_array_equal(colours[scanned, 3] > 0, probability[scanned] >= middle)
    assert (colours[~scanned, 3] > 0.5).all(), "not scanned stays marked"


def test_the_uncertainty_is_another_picture(heatmap: Heatmap, slide_file: Path, tmp_path: Path) -> None:
    probable, uncertain = (
        _pixels(draw_overlay(heatmap, tmp_path / f"{layer}.png", slide=slide_file, layer=layer, max_side=600))
        for layer in LAYERS
    )
    height, width = (min(pair) for pair in zip(probable.shape[:2], uncertain.shape[:2], strict=True))
    assert (probable[:height, :width] != uncertain[:height, :width]).any(-1).mean() > 0.05
    assert len({(layer.colour_map, layer.label) for layer in STYLES.values()}) == len(LAYERS) == 2
    assert "spread over eight views" in STYLES["uncertainty"].label


def test_opacity_of_uncertainty(heatmap: Heatmap) -> None:
    """No spread leaves the slide as it is; from a quarter on it is as opaque as can be."""
    values = np.array([[0, 0.125, 0.25, 0.4, 0.5, np.nan]], np.float32)
    status = np.array([[2, 2, 2, 2, 2, 1]], np.uint8)
    colours = colour_cells(values, status, "uncertainty", 0.8, 0.0)
    np.testing.assert_allclose(colours[0, :5, 3], [0, 0.4, 0.8, 0.8, 0.8], rtol=1e-6)
    assert len({tuple(colour) for colour in colours[0, :5, :3]}) == 5
    np.testing.assert_allclose(colours[0, 5], VEIL[Status.BACKGROUND][0])


def test_title_says_what_is_unknown(heatmap: Heatmap) -> None:
    assert title_of(heatmap.record).startswith("node: score 0.")
    results = {
        "node: not scanned to the end": None,
        "node: no score, nothing scanned": ScanResult(None, complete=True, cells={"unreadable": 0}),
        "node: score 0.250 (incomplete: 7 cells could not be read)": ScanResult(0.25, complete=False, cells={"unreadable": 7}),
    }
    for title, result in results.items():
        assert title_of(replace(heatmap.record, result=result)) == title
    told = [class_entries(replace(heatmap.record, result=result), [])[0].words for result in results.values()]
    assert told == ["no lesion in what was read", "nothing was scanned", "no lesion in what was read"]
    assert class_entries(heatmap.record, [])[0].words == "no lesion found"
    part = [class_entries(replace(heatmap.record, result=result), [], elsewhere=True)[0].words for result in results.values()]
    assert "no lesion in what was read of this part" in part


def test_title_says_what_may_be_wrong(heatmap: Heatmap) -> None:
    """What says no more than that cells are unread, or that nothing was scanned, is not told twice."""

    def title(unread: int, *words: str) -> str:
        result = ScanResult(0.25, complete=not unread, cells={"unreadable": unread})
        return title_of(replace(heatmap.record, result=result, verdict=Verdict(words)))

    assert title(0, "ok") == "node: score 0.250"
    assert title(0, "blurred", "unlike training") == "node: score 0.250; blurred; unlike training"
    assert title(7, "incomplete", "inked") == "node: score 0.250 (incomplete: 7 cells could not be read); inked"


def test_refusals(heatmap: Heatmap, tmp_path: Path) -> None:
    other = write_slide(tmp_path / "other.tif", texture(300, 300, seed=9))
    with pytest.raises(HeatmapError, match=r"made from node\.tif, not from .*other\.tif"):
        draw_overlay(heatmap, tmp_path / "o.png", slide=other)
    with pytest.raises(SlideReadError, match="no such file"):
        draw_overlay(heatmap, tmp_path / "o.png", slide=tmp_path / "gone.tif")
    with pytest.raises(HeatmapError, match="no such store"):
        draw_overlay(tmp_path / "gone.zarr", tmp_path / "o.png")
    with pytest.raises(OutputPathError, match="there is no folder"):
        draw_overlay(heatmap, tmp_path / "gone" / "o.png")
    with pytest.raises(OptionsError, match="layer 'status'; expected one of"):
        draw_overlay(heatmap, tmp_path / "o.png", layer="status")
    assert not (tmp_path / "o.png").exists()
    (tmp_path / "o.png").write_text("precious")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        draw_overlay(heatmap, tmp_path / "o.png")
    assert (tmp_path / "o.png").read_text() == "precious"


# --- where it is written


def test_without_an_ending_the_name_that_is_written_is_the_one_that_is_checked(heatmap: Heatmap, tmp_path: Path) -> None:
    precious = tmp_path / "picture.png"
    precious.write_text("precious")
    for name in ("picture", "picture."):
        with pytest.raises(OutputExistsError, match=r"picture\.png: exists"):
            draw_overlay(heatmap, tmp_path / name, max_side=300)
    assert precious.read_text() == "precious"

    assert draw_overlay(heatmap, tmp_path / "picture", max_side=300, overwrite=True) == precious
    assert _pixels(precious).ndim == 3
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("name", ["map.xyz", "map.raw", "map.pgf", "TCGA-01.2.3-overlay", "map.zarr", "map.safetensors"])
def test_an_ending_that_is_no_pictures_is_refused_with_those_that_are(heatmap: Heatmap, tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputPathError, match=r"is no kind of picture that can be written; expected one of \.png, ") as caught:
        draw_overlay(heatmap, tmp_path / name)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [*FORMATS, "PNG", "Tif"])
def test_every_ending_that_is_named_works(heatmap: Heatmap, tmp_path: Path, ending: str) -> None:
    out = draw_overlay(heatmap, tmp_path / f"map.{ending}", max_side=300)

    assert out == tmp_path / f"map.{ending}"
    assert out.stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert check_picture(out, None, overwrite=True) == out, "a picture may be replaced"


def test_a_picture_is_replaced_by_another(heatmap: Heatmap, tmp_path: Path) -> None:
    out = draw_overlay(heatmap, tmp_path / "map.tif", max_side=300)
    before = out.read_bytes()
    assert draw_overlay(heatmap, out, max_side=300, layer="uncertainty", overwrite=True) == out
    assert out.read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["map.tif"]


def test_a_slide_is_never_replaced(heatmap: Heatmap, slide_file: Path, tmp_path: Path) -> None:
    own, other, link = tmp_path / "own.tif", tmp_path / "other.tif", tmp_path / "link.tif"
    own.write_bytes(slide_file.read_bytes())
    write_slide(other, texture(300, 300, seed=9))
    link.symlink_to(own)
    refused = tmp_path / "refused.tif"
    tifffile.imwrite(refused, texture(300, 300).astype(np.uint16), tile=(256, 256), photometric="rgb")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    cases: list[tuple[Path, Path | None]] = [(own, own), (link, own), (own, link), (own, None), (link, None), (other, own)]
    cases.append((refused, own))

    for out, slide in cases:
        for overwrite in (False, True):
            with pytest.raises((OutputPathError, OutputExistsError)) as caught:
                draw_overlay(heatmap, out, slide=slide, overwrite=overwrite, max_side=300)
            assert not overwrite or "never replaced" in str(caught.value)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert link.is_symlink()


def test_a_store_is_never_replaced(heatmap: Heatmap, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for out in (heatmap.path, tmp_path / "folder", tmp_path):
        with pytest.raises(OutputPathError, match="a directory"):
            draw_overlay(heatmap, out, overwrite=True)
    assert Heatmap.open(heatmap.path).finished
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("ending", ["png", "pdf", "svg", "tif"])
def test_a_picture_that_fails_keeps_the_one_before(heatmap: Heatmap, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"map.{ending}"
    out.write_text("before")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputPathError, match=r"map\.\w+: cannot be written \(File too large\)"):
            draw_overlay(heatmap, out, max_side=300, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)

    assert out.read_text() == "before"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a$^$b", "a$^$b"),
        (r"$\frac{", r"$\frac{"),
        ("x_1^2 {y} %", "x_1^2 {y} %"),
        ("two\nlines", r"two\nlines"),
        ("\x1b[31mred", r"\x1b[31mred"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
    ],
    ids=ascii,
)
def test_a_name_is_drawn_as_it_is(heatmap: Heatmap, slide_file: Path, tmp_path: Path, name: str, shown: str) -> None:
    named = tmp_path / f"{name}.tif"
    named.write_bytes(slide_file.read_bytes())
    store = scan_darkness(named, tmp_path / "h.zarr")

    assert title_of(store.record).startswith(f"{shown}: score 0.")
    drawn = _words(draw_overlay(store, tmp_path / "map.svg", max_side=300))
    assert [words.startswith(f"{shown}: score 0.") for words in drawn].count(True) == 1
