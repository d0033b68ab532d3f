from __future__ import annotations

import json
import logging
import multiprocessing
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import HERE
from torch import nn

from wsi_meta.datasets.checks import check_patches
from wsi_meta.datasets.layouts import open_patches
from wsi_meta.errors import DataError, DeviceError, OptionsError, OutputExistsError
from wsi_meta.evaluation.evaluate import evaluate
from wsi_meta.models.model import Model
from wsi_meta.models.preprocessing import Preprocessing


def test_evaluate_takes_test_else_valid_else_all(thin_model: Model, tmp_path: Path) -> None:
    sizes = {"train": 4, "valid": 3, "test": 2}
    chosen = []
    for split, n in sizes.items():
        for number in range(n):
            place = tmp_path / split / str(number % 2)
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (96, 96), (50 * number, 0, 0)).save(place / f"{number}.png")
        chosen.append(evaluate(thin_model, tmp_path, batch_size=4, **HERE).n)

    assert chosen == [4, 3, 2]
    folders = [tmp_path, tmp_path / "train"]
    with pytest.raises(DataError, match=r"train: has no 'test' patches, other folders have; name a split with --split"):
        evaluate(thin_model, folders, batch_size=4, **HERE)
    assert evaluate(thin_model, folders, split="test", batch_size=4, **HERE).n == 2
    assert {split: evaluate(thin_model, tmp_path, split=split, batch_size=4, **HERE).n for split in sizes} == sizes


def test_evaluate_refuses_a_split_that_is_not_there(model_file: Path, patch_folder: Path) -> None:
    with pytest.raises(DataError, match="no 'test' split; found train, valid") as caught:
        evaluate(model_file, patch_folder, split="test", **HERE)

    assert str(patch_folder) in str(caught.value)
    splits: tuple[Any, ...] = (["valid"], "val", "")
    for split in splits:
        with pytest.raises(OptionsError, match=r"split .*; expected one of train, valid, test"):
            evaluate(model_file, patch_folder, split=split, **HERE)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: fork beside torch's threads
def test_reading_in_other_processes_gives_the_same_probabilities(thin_model: Model, patch_folder: Path) -> None:
    alone = evaluate(thin_model, patch_folder, split="valid", batch_size=8, **HERE)
    shared = evaluate(thin_model, patch_folder, split="valid", batch_size=8, **HERE | {"workers": 1})

    assert np.array_equal(alone.probabilities, shared.probabilities)
    assert len(set(alone.probabilities.tolist())) == 8
    splits = open_patches(patch_folder)
    read = check_patches(splits["train"], splits["valid"]).valid.contents
    assert alone.contents is not None
    assert read is not None
    assert np.array_equal(alone.contents, read)


class EndsOthers(nn.Module):
    """Ends the processes that decode patches when it sees the first of them, as a system without memory does."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for process in multiprocessing.active_children():
            process.kill()
        return inputs.mean((1, 2, 3))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_process_that_died_is_told_with_what_to_do(patch_folder: Path) -> None:
    model = Model.from_module(EndsOthers(), Preprocessing())
    with pytest.raises(DeviceError, match=r"a process that decodes patches has ended, .*; expected .* fewer workers .*, or 0"):
        evaluate(model, patch_folder, split="train", batch_size=1, **HERE | {"workers": 1})


def test_evaluate_counts_what_the_probabilities_say(model_file: Path, tmp_path: Path) -> None:
    for number, grey in enumerate([0, 200, 120, 250, 90, 160, 230]):
        (tmp_path / str(int(number > 2))).mkdir(exist_ok=True)
        Image.new("RGB", (96, 96), (grey, grey // 2, 250 - grey)).save(tmp_path / str(int(number > 2)) / f"{number}.png")

    result = evaluate(model_file, tmp_path, batch_size=7, **HERE)

    truth, called = np.array([0] * 3 + [1] * 4, bool), result.probabilities >= 0.5
    assert 0 < called.sum() < 7
    assert 0 < result.auc < 1
    pairs = result.probabilities[truth][:, None] > result.probabilities[~truth]

    assert result.accuracy == (called == truth).mean()
    assert (result.sensitivity, result.specificity) == (called[truth].mean(), (~called[~truth]).mean())
    assert result.auc == pytest.approx(pairs.mean())
    assert result.log_loss == pytest.approx(
        -np.log(np.where(truth, result.probabilities, 1 - result.probabilities.astype(float))).mean()
    )
    assert "probabilities" not in result.to_dict()


class _PutsAFileThere(logging.Handler):
    """Makes a folder with a file in it at the first record: somebody else was faster."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def emit(self, _: logging.LogRecord) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "mine.txt").touch()


def test_figures_are_told_where_the_report_cannot_be_written(
    thin_model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "report"
    for number in range(8):
        (data / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (96, 96), (30 * number, 0, 0)).save(data / str(number % 2) / f"{number}.png")
    (data / "unread").mkdir()  # the warning of it comes when the report's place was found free
    logger, handler = logging.getLogger("wsi_meta"), _PutsAFileThere(out)
    logger.addHandler(handler)

    try:
        with pytest.raises(OutputExistsError, match="report: exists"):
            evaluate(thin_model, data, out=out, batch_size=8, progress=True, **HERE)
    finally:
        logger.removeHandler(handler)

    expected = evaluate(thin_model, data, batch_size=8, **HERE)
    told = re.search("no report of these figures: (.*)", capsys.readouterr().err)
    assert told is not None
    assert json.loads(told[1])["auc"] == expected.auc
