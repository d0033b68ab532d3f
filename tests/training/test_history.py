from __future__ import annotations

import csv
import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from wsi_meta.errors import OutputPathError
from wsi_meta.evaluation.results import history_path
from wsi_meta.training.history import Epoch, best_epoch, curves_path, draw_curves, turned, write_history

ROW = Epoch(1, "head", 1e-3, 0.5, 0.4, 0.9, 0.8, 100.0, 12.5)


def course(train: list[float], valid: list[float]) -> list[Epoch]:
    both = zip(train, valid, strict=True)
    return [replace(ROW, epoch=number, train_loss=one, valid_loss=other) for number, (one, other) in enumerate(both, 1)]


# --- early stop

FALLING = [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


@pytest.mark.parametrize(
    ("valid", "patience", "stops_after"),
    [
        ([0.5, 0.4, 0.5, 0.5, 0.5, 0.5], 1, 3),
        ([0.5, 0.4, 0.5, 0.5, 0.5, 0.5], 2, 4),
        ([0.5, 0.4, 0.5, 0.5, 0.5, 0.5], 3, 5),
        ([0.5, 0.4, 0.5, 0.5, 0.5, 0.5], 0, None),
        ([0.5, 0.4, 0.5, 0.3, 0.5, 0.5], 2, 6),
        ([0.5, 0.4, 0.5, 0.3, 0.5, 0.2], 2, None),
        ([0.4, 0.4, 0.4, 0.4, 0.4, 0.4], 3, 4),
        ([0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 1, None),
    ],
)
def test_training_stops_when_the_validation_loss_turned(valid: list[float], patience: int, stops_after: int | None) -> None:
    epochs = course(FALLING, valid)

    stops = [n for n in range(1, len(epochs) + 1) if turned(epochs[:n], patience)]

    assert (stops[0] if stops else None) == stops_after


@pytest.mark.parametrize("train", [[0.3, 0.3, 0.3, 0.3], [0.3, 0.4, 0.5, 0.6], [0.3, 0.2, 0.1, 0.35]], ids=str)
def test_a_training_loss_that_does_not_fall_is_no_reason_to_stop(train: list[float]) -> None:
    assert turned(course(train, [0.4, 0.5, 0.6, 0.7]), 3) is None
    assert turned(course([0.3, 0.2, 0.1, 0.0], [0.4, 0.5, 0.6, 0.7]), 3) is not None


def test_the_reason_is_told_in_words() -> None:
    told = turned(course([0.6, 0.5, 0.4, 0.31], [0.5, 0.42, 0.5, 0.5]), 2)

    assert told is not None
    assert told.startswith("stopped early: the validation loss has not come below 0.4200 (epoch 2) for 2 epochs")
    assert "the training loss fell from 0.5000 to 0.3100" in told
    assert "\n" not in told


# --- table and curves


def test_the_best_epoch_is_the_first_of_highest_auc() -> None:
    epochs = [replace(ROW, epoch=number, valid_auc=auc) for number, auc in enumerate([0.7, 0.9, 0.8, 0.9], 1)]

    assert best_epoch(epochs) == 2
    assert best_epoch(epochs[:1]) == 1


def test_the_table_holds_every_figure_exactly(tmp_path: Path) -> None:
    epochs = [replace(ROW, train_loss=1 / 3), replace(ROW, epoch=2, stage="all", valid_auc=2 / 3)]

    path = write_history(tmp_path / "m.safetensors", epochs)

    assert path == history_path(tmp_path / "m.safetensors") == tmp_path / "m.history.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row.pop("stage") for row in rows] == ["head", "all"]
    for row, epoch in zip(rows, epochs, strict=True):
        assert {name: float(value) for name, value in row.items()} == {
            name: value for name, value in vars(epoch).items() if name != "stage"
        }


def test_the_curves_show_the_stages(tmp_path: Path) -> None:
    epochs = course([0.6, 0.5, 0.4], [0.5, 0.4, 0.45])
    everything = [replace(epoch, stage="all") for epoch in epochs]

    drawn = {}
    for name, rows in {"head": [epochs[0], *everything[1:]], "none": everything}.items():
        path = draw_curves(tmp_path / f"{name}.safetensors", rows)
        assert path == curves_path(tmp_path / f"{name}.safetensors") == tmp_path / f"{name}.curves.png"
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 300
            drawn[name] = np.asarray(picture.convert("L")) == 229  # the band's grey

    assert drawn["head"].mean() > 0.05 > drawn["none"].mean()


def test_the_only_epoch_is_a_whole_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    saved = Figure.savefig

    def save(figure: Figure, *where: Any, **settings: Any) -> None:
        figures.append(figure)
        saved(figure, *where, **settings)

    monkeypatch.setattr(Figure, "savefig", save)
    draw_curves(tmp_path / "m.safetensors", [ROW])
    for axes in figures[0].axes:
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1.0]
        assert axes.get_title("left")


def test_a_table_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "m.safetensors"
    before = write_history(out, [ROW]).read_text()

    def full(*_values: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputPathError, match=r"m\.history\.csv: cannot be written \(No space left on device\).*is kept"):
        write_history(out, [ROW, ROW])

    assert history_path(out).read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.history.csv"]
