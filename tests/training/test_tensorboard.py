"""The figures of the history as TensorBoard's logs."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest
from click.testing import CliRunner
from tiny import HERE, TINY, train_tiny

from wsi_meta.cli import main
from wsi_meta.errors import OutputPathError
from wsi_meta.training.checkpoint import checkpoint_path
from wsi_meta.training.history import Epoch, check_outputs, log_epoch
from wsi_meta.training.recipe import Recipe, TrainOptions

ROW = Epoch(3, "all", 1e-3, 0.5, 0.4, 0.9, 0.8, 100.0, 12.5)


class Writer:
    """Keeps what torch's writer is told."""

    def __init__(self, folder: str, *, purge_step: int) -> None:
        self.folder, self.purge_step, self.closed = folder, purge_step, False
        self.told: dict[str, tuple[float, int]] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.told[name] = (value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_values: object) -> None:
        self.closed = True


def test_an_epoch_is_a_step_of_every_figure() -> None:
    opened: list[Writer] = []

    def open_writer(*values: Any, **options: Any) -> Writer:
        opened.append(Writer(*values, **options))
        return opened[-1]

    log_epoch("logs", ROW, open_writer)
    (writer,) = opened
    assert (writer.folder, writer.purge_step, writer.closed) == ("logs", 3, True)
    assert writer.told == {name: (value, 3) for name, value in asdict(ROW).items() if name not in ("epoch", "stage")}


def test_torchs_writer_writes_what_tensorboard_reads(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="of the extra 'tensorboard'")
    for row in (replace(ROW, epoch=1), replace(ROW, epoch=2, valid_auc=0.5), replace(ROW, epoch=2, valid_auc=0.75)):
        log_epoch(tmp_path / "logs", row)
    logs = reading.EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [(event.step, event.value) for event in logs.Scalars("valid_auc")] == [(1, pytest.approx(0.9)), (2, 0.75)]


def install_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it seem to be there."""
    module = ModuleType("tensorboard")
    module.__spec__ = ModuleSpec("tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard", module)


def test_a_folder_that_cannot_hold_logs_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_tensorboard(monkeypatch)
    (tmp_path / "file").touch()
    for folder, told in (
        (tmp_path / "file" / "logs", "file: a file; expected a folder"),
        ("/proc/x/logs", "cannot be written to"),
    ):
        with pytest.raises(OutputPathError, match=told):
            check_outputs(tmp_path / "m.safetensors", "none", TrainOptions(tensorboard=folder))
    check_outputs(tmp_path / "m.safetensors", "none", TrainOptions(tensorboard=tmp_path / "new" / "logs"))


def test_an_epoch_is_kept_where_its_curves_and_logs_cannot_be_written(
    patch_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install_tensorboard(monkeypatch)

    def fail(*_values: object) -> None:
        assert checkpoint_path(out).stat().st_size > 10_000  # the epoch is in it
        raise OSError("the disk is gone")

    out, recipe = tmp_path / "m.safetensors", Recipe(epochs=1, batch_size=8, freeze="none")
    parts = replace(TINY, draw_curves=fail, log_epoch=fail)
    train_tiny(patch_folder, out, recipe=recipe, parts=parts, tensorboard=tmp_path / "logs", **HERE)
    told = [text for text in caplog.messages if "not written" in text]
    assert told == ["curves not written: the disk is gone", "TensorBoard's logs not written: the disk is gone"]


def test_without_tensorboard_one_line_says_what_to_install(
    patch_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    words = ["train", patch_folder, "--init", "none", "--out", tmp_path / "m.safetensors", "--tensorboard", tmp_path / "logs"]
    run = CliRunner().invoke(main, [*map(str, words)])
    assert run.exit_code == 1
    assert run.stderr == "Error: --tensorboard needs tensorboard: pip install 'wsi-meta[tensorboard]'\n"
    assert list(tmp_path.iterdir()) == []
