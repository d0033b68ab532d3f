from __future__ import annotations

import json
import math
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from json_output import result_of, results_of
from stores import write_store

from wsi_meta.challenges.score_fitting import fit_score
from wsi_meta.cli import main
from wsi_meta.errors import DataError, HeatmapError, OutputExistsError, OutputPathError
from wsi_meta.heatmaps.score_model import FEATURES, load_score_model, map_features, score_heatmap
from wsi_meta.heatmaps.scoring import score_slide
from wsi_meta.heatmaps.store import Heatmap


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten patients with two nodes each; the first five have tumor in node 0: a lesion of 12 x 12 cells.

    Every node has a spot of 6 x 6 cells of probability 1, so the default score cannot tell them apart.
    """
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    for number in range(20):
        patient, node = divmod(number, 2)
        probability = rng.uniform(0, 0.2, (40, 50)).astype(np.float32)
        probability[30:36, 30:36] = 1
        if patient < 5 and node == 0:
            probability[5 : 15 + patient, 5:17] = 0.95
        write_store(folder / f"patient_{patient:03}_node_{node}.zarr", probability, slide=str(number))
    return folder


@pytest.fixture(scope="module")
def labels(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    names = sorted(store.stem for store in scans.iterdir())
    rows = [f"{name}.tif,{'macro' if name.endswith('node_0') and int(name[8:11]) < 5 else 'negative'}" for name in names]
    path.write_text("slide,label\n" + "\n".join([*rows, "patient_099_node_0.tif,itc"]) + "\n")
    return path


def test_features_of_a_known_map(tmp_path: Path) -> None:
    probability = np.zeros((30, 40), np.float32)
    probability[:2] = np.nan
    probability[5:15, 5:25] = 0.8
    probability[20, 30] = 0.5
    heatmap = write_store(tmp_path / "h.zarr", probability)
    features = map_features(heatmap)
    side = 0.031104
    assert features == pytest.approx(
        {
            "score": 0.8,
            "log_diameter": math.log1p(side * math.hypot(20, 9)),
            "log_area": math.log1p(201 * side**2),
            "log_metastases": math.log(2),
            "surest_mean": 0.8,
            "share": 201 / (28 * 40),
        }
    )
    assert list(features) == list(FEATURES)
    found = score_heatmap(heatmap.path)
    assert (found.slide, found.score, found.complete) == ("h", score_slide(probability), True)
    assert found.fitted_score is None


def _fitted(heatmap: Path, score_model: Path) -> float:
    found = score_heatmap(heatmap, score_model=score_model)
    assert found.score == found.features["score"], "the default score stays beside it"
    assert found.fitted_score is not None
    return found.fitted_score


def test_a_fitted_score_learns_what_the_default_cannot_tell(scans: Path, labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "score.json"
    model = fit_score(scans, labels, out=out)
    assert model.validation["auc"] == 1
    assert model.validation["auc_of_default_score"] < 0.9
    assert (model.validation["slides"], model.validation["tumor"], model.validation["patients"]) == (20, 5, 10)
    assert load_score_model(out).model == model
    sick, well = (_fitted(scans / f"patient_00{n}_node_0.zarr", out) for n in (1, 8))
    assert well < 0.5 < sick
    again = fit_score(scans, labels, out=tmp_path / "again.json")
    assert again == model
    with pytest.raises(OutputExistsError):
        fit_score(scans, labels, out=out)


def test_its_probability_is_scikit_learns(scans: Path, labels: Path, tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    model = fit_score(scans, labels, out=tmp_path / "score.json")
    rows = [map_features(Heatmap.open(store)) for store in sorted(scans.iterdir())]
    values = StandardScaler().fit_transform([list(row.values()) for row in rows])
    truth = [number % 2 == 0 and number < 10 for number in range(20)]
    expected = LogisticRegression(C=1.0).fit(values, truth).predict_proba(values)[:, 1]
    np.testing.assert_allclose([model.probability(row) for row in rows], expected, atol=1e-6)
    extreme = dict.fromkeys(FEATURES, -1e6)
    assert 0 <= model.probability(extreme) < 1e-9


def test_a_patients_slides_are_never_on_both_sides(scans: Path, labels: Path, tmp_path: Path) -> None:
    """With one patient for each class nothing can be held out."""
    table = tmp_path / "labels.csv"
    rows = [line.split(",") for line in labels.read_text().splitlines()[1:]]
    table.write_text("slide,label,patient\n" + "\n".join(f"{slide},{label},{label}" for slide, label in rows))
    with pytest.raises(DataError, match="1 patients in the smaller class"):
        fit_score(scans, table, out=tmp_path / "s.json")
    table.write_text("slide,label,patient\n" + "\n".join(f"{slide},{label},p{n % 4}" for n, (slide, label) in enumerate(rows)))
    assert fit_score(scans, table, out=tmp_path / "s.json").validation["patients"] == 4


def test_bad_input(scans: Path, labels: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    for content, told in [
        ("slide,label\na,maybe\n", "label 'maybe' of 'a'"),
        ("slide,label\na,tumor\n", "no label of 20 scans, first 'patient_000_node_0'"),
        ("slide\na\n", "expected 'slide' and 'label'"),
    ]:
        table.write_text(content)
        with pytest.raises(DataError, match=r"labels\.csv") as caught:
            fit_score(scans, table, out=tmp_path / "s.json")
        assert told in str(caught.value)
    with pytest.raises(DataError, match="no heatmap in this folder"):
        fit_score(tmp_path, labels, out=tmp_path / "s.json")
    with pytest.raises(HeatmapError, match="no such store"):
        score_heatmap(tmp_path / "gone.zarr")
    nothing = write_store(tmp_path / "n.zarr", np.full((4, 4), np.nan, np.float32))
    with pytest.raises(HeatmapError, match="no cell was scanned"):
        score_heatmap(nothing)
    result = CliRunner().invoke(main, ["score", str(nothing.path), str(scans / "patient_000_node_0.zarr"), "--json"])
    assert result.exit_code == 1
    assert [row["slide"] for row in results_of(result.stdout)] == ["patient_000_node_0"]
    assert result.stderr.count("n.zarr: no cell was scanned") == 1


def test_the_labels_are_never_replaced(scans: Path, labels: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.json"
    table.write_bytes(labels.read_bytes())
    with pytest.raises(OutputPathError, match="the table of labels, never replaced"):
        fit_score(scans, table, out=table, overwrite=True)
    assert table.read_bytes() == labels.read_bytes()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": "other"}', '{"format": "wsi-meta slide score 1"}', "broken", "[" * 100_000]
)
def test_files_that_are_no_score_model(scans: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "score.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"score\.json: not a score model"):
        load_score_model(path)
    with pytest.raises(DataError, match=r"gone\.json: no such file; expected a score model"):
        load_score_model(tmp_path / "gone.json")


def test_numbers_that_cannot_be(scans: Path, labels: Path, tmp_path: Path) -> None:
    path = tmp_path / "score.json"
    fit_score(scans, labels, out=path)
    whole = json.loads(path.read_text())
    numbers = [
        ("scale", 0),
        ("mean", float("nan")),
        ("coefficients", "x"),
        ("mean", "0"),
        ("scale", True),
        ("coefficients", 1e300),
    ]
    for part, value in numbers:
        path.write_text(json.dumps(whole | {part: whole[part] | {"score": value}}))
        with pytest.raises(DataError, match="not a score model"):
            load_score_model(path)


def test_commands(scans: Path, labels: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "score.json")
    fitted = CliRunner().invoke(main, ["fit-score", str(scans), "--labels", str(labels), "--out", out, "--json"])
    assert result_of(fitted.stdout)["validation"]["auc"] == 1
    stores = [str(scans / f"patient_00{n}_node_0.zarr") for n in (0, 9)]
    scored = results_of(CliRunner().invoke(main, ["score", *stores, "--score-model", out, "--json"]).stdout)
    assert [row["slide"] for row in scored] == ["patient_000_node_0", "patient_009_node_0"]
    assert scored[0]["fitted_score"] > 0.5 > scored[1]["fitted_score"]
    plain = result_of(CliRunner().invoke(main, ["score", stores[0], "--json"]).stdout)
    assert plain["score"] == plain["features"]["score"]


def test_a_slide_with_two_labels_is_refused(scans: Path, labels: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    for again in ("patient_000_node_0.tif,negative", "patient_000_node_0,macro"):
        table.write_text(labels.read_text() + again + "\n")
        with pytest.raises(DataError, match=r"'patient_000_node_0(\.tif)?' in line 2 and again in line 23"):
            fit_score(scans, table, out=tmp_path / "s.json")


@pytest.mark.parametrize(
    ("model", "slide", "told"),
    [
        ("1" * 64, "other", f"{{0}} and {{1}}: maps of two kinds: model {'0' * 12} and {'1' * 12}; expected one; "),
        ("0" * 64, "exchanged", "{0}: the map of slide patient_000_node_1, of which {labels} has another label or patient; "),
        ("0" * 64, "renamed", "{0}: the map of slide patient_000_node_1, of which {labels} has another label or patient; "),
    ],
)
def test_maps_that_do_not_belong_together_are_refused(
    scans: Path, labels: Path, tmp_path: Path, model: str, slide: str, told: str
) -> None:
    """Of two models, of exchanged names, and under another slide's name."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in sorted(store.stem for store in scans.iterdir())[:12]:
        write_store(folder / f"{name}.zarr", np.full((8, 8), 0.3, np.float32), slide=name)
    stores = sorted(folder.iterdir())
    write_store(stores[1], np.full((8, 8), 0.3, np.float32), slide=slide, model=model)
    if slide == "exchanged":
        for old, new in [(stores[0], folder / "x"), (stores[1], stores[0]), (folder / "x", stores[1])]:
            old.rename(new)
    elif slide == "renamed":
        shutil.rmtree(stores[0])
        stores[1].rename(stores[0])
    with pytest.raises(DataError) as caught:
        fit_score(folder, labels, out=tmp_path / "s.json")
    assert str(caught.value).startswith(told.format(*stores, labels=labels))


def test_a_score_is_for_maps_of_its_kind(scans: Path, labels: Path, tmp_path: Path) -> None:
    """Those of the model, mode and stride that it was fitted to; an older file does not say which."""
    out, store = tmp_path / "score.json", scans / "patient_001_node_0.zarr"
    kind: dict[str, object] = {"model": "0" * 64, "mode": "patch", "stride_px": 32}
    assert fit_score(scans, labels, out=out).maps == kind
    score, content = _fitted(store, out), json.loads(out.read_text())
    for name, other in [("stride_px", 64), ("mode", "dense")]:
        out.write_text(json.dumps(content | {"maps": kind | {name: other}}))
        ended = CliRunner().invoke(main, ["score", str(store), "--score-model", str(out)])
        assert (ended.exit_code, ended.stderr.count("\n")) == (1, 1)
        assert f"{out}: fitted to other maps than {store}: {name} {other} and {kind[name]}; " in ended.stderr
    del content["maps"]
    out.write_text(json.dumps(content))
    assert _fitted(store, out) == score


def test_names_with_dots_are_matched_whole(tmp_path: Path) -> None:
    """TCGA's names: a barcode, a dot, a UUID."""
    rng = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    names = [f"TCGA-AA-000{number}.{number}a2b-0001" for number in range(4)]
    for name in names:
        write_store(tmp_path / "scans" / f"{name}.zarr", rng.uniform(0, 0.5, (20, 20)).astype(np.float32), slide=name)
    for ending in ("", ".svs"):
        table = tmp_path / "labels.csv"
        table.write_text("slide\tlabel\n" + "".join(f"{name}{ending}\t{n % 2}\n" for n, name in enumerate(names)))
        model = fit_score(tmp_path / "scans", table, out=tmp_path / "s.json", overwrite=True)
        assert (model.validation["slides"], model.validation["tumor"], model.validation["patients"]) == (4, 2, 4)


def test_a_manifest_says_how_stores_are_called(tmp_path: Path) -> None:
    """Also where the slides have one file name, or names of which macOS and a spreadsheet write the accents otherwise."""
    rng = np.random.default_rng(0)
    names = ["é_1", "é_2", "é_3", "é_4"]
    for name in names:
        store = tmp_path / "scans" / f"{unicodedata.normalize('NFD', name)}.zarr"
        store.parent.mkdir(exist_ok=True)
        aside = write_store(tmp_path / "slide.zarr", rng.uniform(0, 0.5, (20, 20)).astype(np.float32), slide=name).path
        aside.rename(store)
    table = tmp_path / "manifest.csv"
    table.write_text("slide,name,label\n" + "".join(f"{n}/slide.tif,{name},{n % 2}\n" for n, name in enumerate(names)))
    model = fit_score(tmp_path / "scans", table, out=tmp_path / "s.json")
    assert (model.validation["slides"], model.validation["tumor"], model.validation["patients"]) == (4, 2, 4)


def test_two_maps_of_one_slide_are_told_and_one_patients(
    scans: Path, labels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of other patients by their names; else one would be judged by a model that was fitted to the other."""
    shutil.copytree(scans, tmp_path / "scans")
    first, second = (tmp_path / "scans" / f"patient_00{number}_node_0.zarr" for number in (7, 9))
    write_store(second, np.full((8, 8), 0.3, np.float32), slide=Heatmap.open(first).record.identity.slide)
    assert fit_score(tmp_path / "scans", labels, out=tmp_path / "s.json").validation["patients"] == 9
    assert f"{first} and {second}: maps of one slide" in caplog.text


def test_one_slide_with_two_labels_is_told(scans: Path, labels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Copies for a try, or an error in the table: which of them, nobody but the user knows."""
    shutil.copytree(scans, tmp_path / "scans")
    first, second = (tmp_path / "scans" / f"patient_004_node_{node}.zarr" for node in (0, 1))
    write_store(second, np.full((8, 8), 0.3, np.float32), slide=Heatmap.open(first).record.identity.slide)
    fit_score(tmp_path / "scans", labels, out=tmp_path / "s.json")
    assert f"{first} and {second}: maps of one slide" in caplog.text
    assert f"which {labels} calls tumor and normal; one is wrong" in caplog.text
