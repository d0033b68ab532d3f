from __future__ import annotations

import base64
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from wsi_meta.cli import main
from wsi_meta.datasets.layouts import Patches, open_patches
from wsi_meta.datasets.patches import content_of, contents_of
from wsi_meta.errors import DataError, OutputExistsError, OutputPathError
from wsi_meta.evaluation import figures
from wsi_meta.evaluation.cautions import cautions_of
from wsi_meta.evaluation.evaluate import evaluate, evaluate_patches
from wsi_meta.evaluation.metrics import bootstrap_intervals, figures_of
from wsi_meta.evaluation.report import Pictures, check_report, draw_plots, of_another_share, write_report
from wsi_meta.evaluation.results import Evaluation, Subject, read_losses
from wsi_meta.evaluation.wording import describe_losses, explain_intervals, rows, tiles
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.card import Calibration, ModelCard
from wsi_meta.models.dihedral import VIEWS, dihedral
from wsi_meta.models.model import Model

HERE: dict[str, Any] = {"device": "cpu", "precision": "fp32", "workers": 0, "batch_size": 8}
HISTORY = "epoch,stage,lr,train_loss,valid_loss\n1,head,0.1,0.9,0.8\n2,all,0.01,0.5,0.6\n"


class Page(HTMLParser):
    """What a page asks its browser for, and what it says."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.said: list[str] = []
        self.feed(path.read_text())
        self.text = " ".join(" ".join(self.said).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self.said.append(data)


@pytest.fixture(scope="module")
def model(model_file: Path, thin_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The thin model under the path of the random one, in a folder of its own, with a history beside it; never change it."""
    folder = tmp_path_factory.mktemp("named")
    shutil.copy(model_file, folder / "my <model>.safetensors")
    (folder / "my <model>.history.csv").write_text(HISTORY)
    training = {"best_epoch": 2, "best_losses": {"train_loss": 0.5, "valid_loss": 0.6}}
    return replace(thin_model, path=folder / "my <model>.safetensors", card=replace(thin_model.card, training=training))


@pytest.fixture(scope="module")
def valid(patch_folder: Path) -> Patches:
    return open_patches(patch_folder)["valid"]


def evaluation_of(
    patches: Patches, probabilities: list[float], threshold: float = 0.5, *, intervals: bool = True
) -> Evaluation:
    values = np.array(probabilities, np.float32)
    return Evaluation(
        n=len(patches),
        threshold=threshold,
        **figures_of(values, patches.labels, threshold),
        probabilities=values,
        logits=np.log(values / (1 - values)),
        intervals=bootstrap_intervals(values, patches.labels, threshold, n=50) if intervals else None,
        robustness=None,
        contents=None,
        known_patches=None,
        all_patches_known=True,
    )


WRONG_ON_TWO = [0.1, 0.9, 0.2, 0.25, 0.85, 0.05, 0.7, 0.6]
"""Of the eight validation patches (four normal, then four tumor): the second and the sixth are called wrongly."""


@pytest.fixture(scope="module")
def written(model: Model, valid: Patches, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report; never change it."""
    subject = Subject.of(model, valid, data="folder & <more>", split="valid", tta=True)
    return write_report(tmp_path_factory.mktemp("out") / "report", subject, evaluation_of(valid, WRONG_ON_TWO))


UNPAINTED = Pictures(
    plots=lambda *args: ((name, lambda _theme: b"") for name, _ in draw_plots(*args)),
    gallery=lambda *_args: b"",
    evidence=lambda _model, patches, **_options: np.zeros(patches.shape[:3], np.float32),
)
"""Without plots, gallery and heatmaps, which take seconds, where only the folder or the words matter."""


# --- what it holds


def test_a_report_is_a_page_and_its_pictures(written: Path) -> None:
    names = {path.name for path in written.parent.iterdir()}

    assert names == {
        "report.html",
        "confusion.png",
        "roc.png",
        "precision_recall.png",
        "reliability.png",
        "probabilities.png",
        "losses.png",
        "top_losses.png",
    }
    assert [path.name for path in written.parent.parent.iterdir()] == ["report"]
    for path in written.parent.glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 500


def test_the_page_needs_no_network_and_no_script(written: Path) -> None:
    page = Page(written)

    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert len(page.links) == 6 * 2 + 8 * 2
    for link in page.links:
        Image.open(BytesIO(base64.b64decode(link.removeprefix("data:image/png;base64,"), validate=True))).verify()
    style = written.read_text().split("</style>")[0]
    assert "prefers-color-scheme: dark" in style
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_says_what_was_found(written: Path, model: Model) -> None:
    text = Page(written).text.replace("\N{NO-BREAK SPACE}", " ")

    assert f"AUC {9 / 16:.3f}, 95 % interval" in text
    assert "misses 1 of 4 tumor patches (25.0 %) and calls 1 of 4 normal patches tumor (25.0 %)" in text
    assert "bootstrap over 8 patches" in text
    assert "A research tool, not a medical device" in text
    assert "4 tumor (50.0 %), 4 normal" in text
    assert "eight of each patch" in text
    assert model.hash[:12] in text
    assert "default 0.5" in text


@pytest.mark.parametrize("raised", [0.0, 0.4])
def test_no_title_is_cut_and_no_legend_lies_over_a_point(
    model: Model, valid: Patches, monkeypatch: pytest.MonkeyPatch, raised: float
) -> None:
    """Also of a model whose probabilities are too high: its points lie in another corner."""
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "_finish", drawn.append)
    labels = np.arange(400, dtype=np.uint8) % 2
    values = np.clip(np.linspace(0.02, 0.6, 400) + raised, 0, 1).astype(np.float32)
    found = replace(evaluation_of(valid, WRONG_ON_TWO), n=400, probabilities=values, ece=0.125)
    for draw in (figures.draw_reliability, figures.draw_roc, figures.draw_precision_recall, figures.draw_probabilities):
        draw(labels, found)
    for figure in drawn:
        figure.canvas.draw()
        assert figure.get_suptitle()
        assert figure._suptitle.get_window_extent().x1 <= figure.bbox.x1, figure.get_suptitle()
    (axes,) = drawn[0].axes
    legend, dots = axes.get_legend().get_window_extent(), axes.collections[-1].get_offsets()
    assert not [dot for dot in axes.transData.transform(dots) if legend.contains(*dot)]


def test_names_are_text_and_never_markup(written: Path) -> None:
    page = Page(written)

    assert "my <model>.safetensors" in page.text
    assert "folder & <more>" in page.text
    assert not {"model", "more"} & set(page.tags)


def test_the_gallery_shows_the_worst_first(written: Path, valid: Patches) -> None:
    html = written.read_text()

    cases = re.findall(r"<em>(.*?)</em><span>(.*?)</span>.*?label (\w+) &middot; (.*?)<", html)
    order = [5, 1, 7, 6, 3, 2, 4, 0]  # by -log of the truth's probability
    assert [name for *_, name in cases] == [valid.files[index].name for index in order]
    assert [case[:3] for case in cases[:3]] == [
        ("missed tumor", "0.050", "tumor"),
        ("false alarm", "0.900", "normal"),
        ("tumor, found", "0.600", "tumor"),
    ]
    first = re.search(r'class="pair".*?base64,(.*?)"', html)
    assert first is not None
    assert np.array_equal(np.asarray(Image.open(BytesIO(base64.b64decode(first[1])))), valid.read(5))
    assert "inset: 33.333%" in html  # the centre 32 of 96 px
    assert "The 8 patches of the highest loss: 2 called wrongly, and 6 that the model was least sure of." in html


def test_only_so_many_cases_are_shown_and_misses_are_explained_by_the_evidence_against(
    model: Model, valid: Patches, tmp_path: Path
) -> None:
    asked = []

    def stand_in(_model: Model, patches: Any, *, towards_tumor: Any) -> Any:
        asked.append(towards_tumor.tolist())
        return np.zeros(patches.shape[:3], np.float32)

    pictures = replace(UNPAINTED, evidence=stand_in, top_losses=2)
    subject = Subject(model, valid, "", "", False, None)

    page = write_report(tmp_path / "r", subject, evaluation_of(valid, WRONG_ON_TWO), pictures=pictures)

    assert asked == [[False, True]]  # a miss, a false alarm
    assert page.read_text().count('class="pair"') == 2
    assert "The 2 patches that the model was most wrong about, the worst first." in page.read_text()


def test_a_long_list_is_folded(model: Model, valid: Patches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model.card.training, "int8_ranges", {f"layer1.{number}.downsample.1": 1.5 for number in range(53)})
    subject = Subject(model, valid, "", "", False, None)
    page = write_report(tmp_path / "r", subject, evaluation_of(valid, WRONG_ON_TWO), pictures=UNPAINTED).read_text()
    assert page.count("<details>") == 1
    assert "<dt>int8 ranges</dt><dd><details><summary>53 values</summary>layer1.0" in page


def test_without_history_or_intervals_the_page_says_so(model: Model, valid: Patches, tmp_path: Path) -> None:
    evaluation = evaluation_of(valid, WRONG_ON_TWO, threshold=0.65, intervals=False)

    page = write_report(tmp_path / "r", Subject(model, valid, "", "all", False, None), evaluation, pictures=UNPAINTED)

    text = Page(page).text
    assert not (tmp_path / "r" / "losses.png").exists()
    assert "there is no my <model>.history.csv of this model beside its file" in text
    assert "Without intervals" in text
    assert "Sensitivity 0.750" in text
    assert "Sensitivity at 0.65 0.500" in text


def test_names_that_are_no_text_are_escaped(model: Model, valid: Patches, tmp_path: Path) -> None:
    """Latin-1 from an old archive, in the names of folder, model and patches."""
    paths = [shutil.copy(path, tmp_path / os.fsdecode(b"caf\xe9_%d.png" % number)) for number, path in enumerate(valid.files)]
    patches = replace(valid, files=tuple(map(Path, paths)))
    subject = Subject(
        replace(model, path=tmp_path / os.fsdecode(b"\xe9.safetensors")), patches, str(paths[0]), "all", False, None
    )

    page = write_report(tmp_path / "r", subject, evaluation_of(patches, WRONG_ON_TWO), pictures=UNPAINTED)

    text = Page(page).text
    assert r"caf\xe9_1.png" in text
    assert rf"{tmp_path}/caf\xe9_0.png" in text
    assert r"there is no \xe9.history.csv of this model beside its file" in text


def test_a_figure_at_the_cards_threshold_says_so(valid: Patches) -> None:
    other = evaluation_of(valid, WRONG_ON_TWO, 0.311)
    assert [row["title"] for row in tiles(other)][2:5] == [
        f"{name} at 0.311" for name in ("Accuracy", "Sensitivity", "Specificity")
    ]
    assert {row["title"]: row["value"] for row in tiles(other)}.items() <= {
        row["title"]: row["value"] for row in rows(other)
    }.items()
    assert [row["title"] for row in tiles(evaluation_of(valid, WRONG_ON_TWO))][2] == "Accuracy"


def test_slides_are_named_as_what_was_drawn(valid: Patches) -> None:
    evaluation = evaluation_of(valid, WRONG_ON_TWO)

    def told(*slides: str) -> str:
        return explain_intervals(evaluation, replace(valid, slides=np.array(slides)))

    assert told(*(f"slide {number}" for number in range(11))) == "Intervals: 95 %, bootstrap over 11 slides."
    nodes = told("patient_1_node_0", "patient_1_node_3", "patient_2_node_0")
    assert nodes.startswith("Intervals: 95 %, bootstrap over 2 patients, of whom 3 slides are. With fewer than about 10 they")
    assert "by slide, which is not known here, they would be wider" in explain_intervals(evaluation, valid)
    assert "by slide, which is not known here, they would be wider" in told("slide 1", "slide 2", "")


def test_patches_that_made_the_model_are_told(valid: Patches) -> None:
    contents = contents_of(content_of(patch) for patch in valid.read_many(range(8)))
    read, others = replace(valid, contents=contents), replace(valid, contents=contents[::-1])
    evaluation = replace(evaluation_of(valid, WRONG_ON_TWO), contents=contents)
    chosen = read.summary() | {"sha256": "of a copy with other names"}
    trained = {"recipe": {"epochs": 1}, "train": chosen}

    assert cautions_of(ModelCard(training={"train": others.summary()}), valid, evaluation) == []
    (told,) = cautions_of(ModelCard(training=trained), valid, evaluation)
    assert "trained on exactly these patches" in told
    best, calibrated = cautions_of(ModelCard(training={"valid": chosen, "calibration": chosen}), valid, evaluation)
    assert "best epoch was chosen on exactly these" in best
    assert calibrated == "The model was made with exactly these patches (calibration)."
    (told,) = cautions_of(ModelCard(training={"train": valid.summary()}), valid, evaluation)
    assert "trained on patches of the same names and labels" in told


def test_patches_that_a_file_does_not_know_may_be_among_them(valid: Patches) -> None:
    """One sentence, and a machine does not read 0 as none."""
    unknown = replace(evaluation_of(valid, WRONG_ON_TWO), all_patches_known=False)
    sentence = (
        "It is not known which patches {} was trained on: where those that it is judged by are among them, figures flatter."
    )
    assert cautions_of(ModelCard(), valid, unknown) == [sentence.format("the model")]
    counted = replace(unknown, known_patches={"calibrated_on": 0})
    assert cautions_of(ModelCard(training={"init": "old.pth"}), valid, counted) == [sentence.format("the model")]
    child = ModelCard(training={"init": "old.pth", "init_known": False})
    assert cautions_of(child, valid, counted) == [sentence.format("old.pth, which the model began with,")]
    (told,) = cautions_of(ModelCard(training={"train": valid.summary()}), valid, unknown)
    assert "trained on patches of the same names and labels" in told, "they are known after all"
    assert unknown.to_dict()["all_patches_known"] is False
    assert "all_patches_known" not in evaluation_of(valid, WRONG_ON_TWO).to_dict()


@pytest.mark.parametrize(
    ("split", "told"),
    [
        ("train", "worse than chance (AUC 0.00 on 16 patches): labels 0 and 1 are probably exchanged."),
        ("valid", "no better than chance (AUC 0.00 on 8 patches)."),
    ],
)
def test_exchanged_labels_are_told_first(split: str, told: str, patch_folder: Path) -> None:
    patches = open_patches(patch_folder)[split]
    contents = contents_of(content_of(patch) for patch in patches.read_many(range(len(patches))))
    chosen = replace(patches, contents=contents).summary()
    swapped = replace(evaluation_of(patches, [0.1 if label else 0.9 for label in patches.labels]), contents=contents)
    first, *others = cautions_of(ModelCard(training={"valid": chosen, "calibration": chosen}), patches, swapped)
    assert first == f"The model is {told}"
    assert others[-1].startswith("The model was made with")
    assert len(others) == 1 + (split == "valid"), "where labels are exchanged nothing is slightly too good"


def test_patches_that_a_file_knows_are_counted(valid: Patches) -> None:
    card = ModelCard(training={"recipe": {}, "train": valid.summary(), "valid": valid.summary()})
    evaluation = replace(evaluation_of(valid, WRONG_ON_TWO), known_patches={"train": 3, "valid": 0})

    (told,) = cautions_of(card, valid, evaluation)
    assert told.startswith("The model was trained on 3 of these 8 patches. The figures show how well")
    assert evaluation.to_dict()["known_patches"] == {"train": 3, "valid": 0}
    assert "known_patches" not in evaluation_of(valid, WRONG_ON_TWO).to_dict()


@pytest.mark.parametrize(
    ("prior", "told"), [(0.05, True), (0.2, False), (0.5, True), (None, False), ("0.05", False), (5.0, False)]
)
def test_patches_of_another_share_of_tumor_than_expected_are_told(prior: Any, told: bool) -> None:
    """Four times as many of them are tumor as the model expects: its probabilities are not those of the patches."""
    labels = np.array([1, 0, 0, 0, 0], np.uint8)
    notes = of_another_share(ModelCard(training={"calibrated_on": {"prior": prior}}), labels)

    share = f"calibrated for {100 * prior:g} % of tumor, and 20 % of these patches are: figures at 0.5" if told else ""
    assert [share in note for note in notes] == [True] * told
    assert not of_another_share(ModelCard(), labels)


# --- where it may write


def put(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_report_is_refused_and_left_alone(tmp_path: Path, overwrite: bool) -> None:
    ours = '<meta name="generator" content="wsi-meta evaluate">'
    foreign = put(tmp_path / "foreign", report__html=ours, notes__txt="mine")
    alike = put(tmp_path / "alike", report__html="<h1>mine</h1>", roc__png="mine")
    pictures = put(tmp_path / "pictures", roc__png="mine")
    before = {path: path.read_text() for path in tmp_path.rglob("*.*")}

    for folder in (foreign, alike, pictures):
        with pytest.raises(OutputExistsError, match="choose another --out") as caught:
            check_report(folder, overwrite=overwrite)
        assert str(folder) in str(caught.value)
    assert {path: path.read_text() for path in tmp_path.rglob("*.*")} == before


def test_files_links_and_missing_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(put(tmp_path / "real"))

    for name in ("file", "link"):
        with pytest.raises(OutputPathError, match="a file or a link"):
            check_report(tmp_path / name, overwrite=True)
    with pytest.raises(OutputPathError, match="there is no folder"):
        check_report(tmp_path / "gone" / "report", overwrite=False)


def test_overwrite_replaces_a_report(written: Path, model: Model, valid: Patches, tmp_path: Path) -> None:
    out = tmp_path / "report"
    shutil.copytree(written.parent, out)
    subject = Subject(model, valid, "", "second", False, None)

    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_report(out, subject, evaluation_of(valid, WRONG_ON_TWO))
    (tmp_path / ".report.0123456789ab.partial").mkdir()  # a killed evaluation left it
    page = write_report(out, subject, evaluation_of(valid, WRONG_ON_TWO), overwrite=True, pictures=UNPAINTED)

    assert "second" in page.read_text()
    assert not (out / "losses.png").exists()  # the new one has none
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_report_that_fails_leaves_nothing_and_the_old_one_stays(
    written: Path, model: Model, valid: Patches, tmp_path: Path
) -> None:
    def fail(*_args: Any, **_options: Any) -> Any:
        raise DataError("a patch went away")

    failing = replace(UNPAINTED, plots=fail)
    subject, evaluation = Subject(model, valid, "", "", False, None), evaluation_of(valid, WRONG_ON_TWO)
    out = tmp_path / "report"

    with pytest.raises(DataError):
        write_report(out, subject, evaluation, pictures=failing)
    assert list(tmp_path.iterdir()) == []

    shutil.copytree(written.parent, out)
    before = (out / "report.html").read_bytes()
    with pytest.raises(DataError):
        write_report(out, subject, evaluation, overwrite=True, pictures=failing)
    assert (out / "report.html").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


# --- the history beside a model


def test_losses_are_read_past_columns_that_are_not_known(tmp_path: Path) -> None:
    (tmp_path / "m.history.csv").write_text(HISTORY)

    losses = {"epoch": [1, 2], "train_loss": [0.9, 0.5], "valid_loss": [0.8, 0.6], "stage": ["head", "all"]}
    assert read_losses(tmp_path / "m.safetensors") == losses
    (tmp_path / "m.history.csv").write_text("epoch,train_loss,valid_loss\n1,0.9,0.8\n")
    first = {"epoch": [1], "train_loss": [0.9], "valid_loss": [0.8], "stage": ["all"]}
    assert read_losses(tmp_path / "m.safetensors") == first
    assert read_losses(tmp_path / "other.safetensors") is None
    (tmp_path / "m.history.csv").write_text(HISTORY.replace(",", ";"), encoding="utf-8-sig")
    assert read_losses(tmp_path / "m.safetensors") == losses, "as a spreadsheet saves it"


@pytest.mark.parametrize(
    ("training", "shown"),
    [
        ({"best_epoch": 2, "best_losses": {"train_loss": 0.5, "valid_loss": 0.6}}, True),
        ({"best_epoch": 2}, True),
        ({"best_epoch": 2, "best_losses": {"train_loss": 0.5, "valid_loss": 0.61}}, False),
        ({"best_epoch": 2, "best_losses": [0.5, 0.6]}, True),
        ({"best_epoch": 3}, False),
        ({}, False),
    ],
    ids=["its own", "of an older model", "of other losses", "under no names", "of fewer epochs", "of no training"],
)
def test_losses_are_shown_of_the_models_own_training_alone(
    model: Model, valid: Patches, training: dict[str, Any], shown: bool
) -> None:
    other = replace(model, card=replace(model.card, training=training))
    assert (Subject.of(other, valid, data="", split="valid", tta=False).losses is not None) is shown


@pytest.mark.parametrize(
    ("training", "validation", "told"),
    [
        ([0.9, 0.5, 0.3], [0.8, 0.6, 0.5], "at its lowest at the end"),
        ([0.9, 0.5, 0.3, 0.2], [0.8, 0.6, 0.7, 0.8], "lowest after epoch 2 and rose while the training loss kept falling"),
        ([0.9, 0.5, 0.3], [0.8, 0.6, 0.609], "lowest after epoch 2: too few epochs after it to tell more"),
        ([0.9, 0.5], [0.8, 0.6], "That is too few to tell"),
        ([0.9, 0.5, 0.6, 0.6], [0.8, 0.6, 0.7, 0.7], "lowest after epoch 2; the training loss did not fall further"),
    ],
)
def test_how_training_went_is_told_in_words(training: list[float], validation: list[float], told: str) -> None:
    count = len(training)
    losses: dict[str, list[Any]] = {"epoch": [1.0, 2.0, 3.0, 4.0][:count], "train_loss": training, "valid_loss": validation}
    losses["stage"] = ["head", "all", "all", "all"][:count]

    words = describe_losses(losses)

    assert told in words
    assert words.startswith(f"{count} epochs, the first 1 with the new layers only.")


@pytest.mark.parametrize(
    "text",
    [
        "epoch,loss\n1,2\n",
        "epoch,train_loss,valid_loss\n1,2\n",
        "epoch,train_loss,valid_loss\n1,a,2\n",
        "",
        "epoch,train_loss,valid_loss\n",
        "epoch,train_loss,valid_loss\n1,0.5,nan\n",
        "epoch,train_loss,valid_loss\n1,inf,0.5\n",
        "epoch,train_loss,valid_loss\nnan,0.4,0.5\n",
    ],
)
def test_a_history_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.history.csv").write_text(text)

    with pytest.raises(DataError, match=r"m\.history\.csv: cannot be read") as caught:
        read_losses(tmp_path / "m.safetensors")

    assert "\n" not in str(caught.value)


# --- evaluate


def test_evaluate_gives_figures_with_their_intervals(model: Model, patch_folder: Path) -> None:
    figures = evaluate(model, patch_folder, **HERE).to_dict()

    assert figures["n"] == 8
    named = set(figures_of(np.array([0.0, 1.0]), np.array([0, 1]))) - {"ece", "auc", "f1", "f1_at_threshold"}
    assert figures["auc"] == 0, "of which, and of F1 then, all resamples agree"
    assert {name for name in figures if name.endswith("_ci")} == {f"{name}_ci" for name in named}
    assert all(isinstance(value, int | float) for name, value in figures.items() if not name.endswith("_ci"))
    assert all(isinstance(value, list) and len(value) == 2 for name, value in figures.items() if name.endswith("_ci"))


def test_evaluate_refuses_a_report_before_anything_is_read(model: Model, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()

    with pytest.raises(OutputExistsError):
        evaluate(model, tmp_path / "no data", out=tmp_path / "report", **HERE)


def test_evaluate_judges_calibrated_probabilities_at_the_cards_threshold(model: Model, patch_folder: Path) -> None:
    plain = evaluate(model, patch_folder, **HERE)
    middle = float(np.median(plain.logits))
    calibration = Calibration(temperature=2.0, bias=-middle / 2)
    card = replace(model.card, calibration=calibration, thresholds={"default": 0.6})

    result = evaluate(replace(model, card=card), patch_folder, **HERE)

    assert np.array_equal(result.logits, plain.logits)
    assert np.array_equal(result.probabilities, calibration.to_probability(plain.logits))
    assert (result.probabilities >= 0.5).sum() == 4
    truth = np.arange(8) >= 4
    assert result.threshold == 0.6
    assert result.accuracy == ((result.probabilities >= 0.5) == truth).mean()
    assert result.accuracy_at_threshold == ((result.probabilities >= 0.6) == truth).mean()


def test_intervals_are_drawn_by_slide_where_slides_are_known(model: Model, valid: Patches) -> None:
    slides = np.array(["a_node_0", "b", "a_node_1", "b"] * 2)
    predictor = Predictor(model, device="cpu", precision="fp32", batch_size=8)

    result = evaluate_patches(predictor, replace(valid, slides=slides), workers=0, intervals=True)

    odds = model.card.calibration.to_log_odds(result.logits)
    patients = np.array(["a", "b"] * 4)
    assert result.intervals == bootstrap_intervals(result.probabilities, valid.labels, 0.5, patients, log_odds=odds)
    assert result.intervals != bootstrap_intervals(result.probabilities, valid.labels, 0.5, log_odds=odds)


def test_tta_is_the_mean_logit_of_eight_views(model: Model, valid: Patches, tmp_path: Path) -> None:
    pair = valid.select(np.array([0, 4]))
    for label, path in enumerate(pair.files):
        (tmp_path / "valid" / str(label)).mkdir(parents=True)
        shutil.copy(path, tmp_path / "valid" / str(label))
    patches = torch.from_numpy(np.stack([pair.read(0), pair.read(1)]))
    predictor = Predictor(model, device="cpu", precision="fp32", batch_size=2)
    views = [predictor.predict_patches(dihedral(patches, torch.full((2,), view))) for view in range(VIEWS)]

    result = evaluate(model, tmp_path, tta=True, **HERE | {"batch_size": 2})

    assert result.logits == pytest.approx(np.mean(views, axis=0), abs=1e-5)
    assert not np.array_equal(result.logits, views[0])


def test_the_command_writes_a_report_and_refuses_to_write_it_twice(model: Model, few_patches: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(model.path), str(few_patches), "--out", str(tmp_path / "r"), "--batch-size", "4"]
    here = ["--device", "cpu", "--precision", "fp32", "--workers", "0"]

    made = CliRunner().invoke(main, [*words, *here])
    again = CliRunner().invoke(main, [*words, *here])

    assert made.exit_code == 0, made.output
    (auc,) = re.findall(r"^auc: (.*)$", made.stdout, re.MULTILINE)
    told = Page(tmp_path / "r" / "report.html").text
    assert f"AUC {float(auc):.3f}" in told
    assert "1.000 to 1.000" not in told
    assert re.search(r"^accuracy_ci: \[\d(\.\d{1,4})?, \d(\.\d{1,4})?\]$", made.stdout, re.MULTILINE)
    assert again.exit_code == 1
    assert again.stdout == ""
    assert again.stderr.startswith("Error: ")
    assert "--overwrite" in again.stderr
    assert len(again.stderr.splitlines()) == 1
