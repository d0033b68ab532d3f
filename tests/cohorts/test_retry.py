"""The command that a failed slide can be scanned with again."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import numpy as np

from wsi_meta.cohorts.inputs import SlideInput
from wsi_meta.cohorts.jobs import SlideSettings, jobs_of
from wsi_meta.cohorts.retry import retry_command, shell_word
from wsi_meta.slides.pixel_size import UsualMpp
from wsi_meta.worklist.summary import failed


def test_only_what_was_asked_for_is_in_it(tmp_path: Path) -> None:
    settings = {"model": "default", "mode": "auto", "stride_px": 64, "tta": True, "score_model": Path("s.json"), "workers": 2}
    settings |= {"mpp": 0.25, "reader": "auto", "tissue_mask": "none", "overwrite": True, "uncertainty": False}
    command = retry_command(tmp_path / "a b.tif", tmp_path / "out" / "a b.zarr", settings) or ""
    assert shlex.split(command) == [
        *("wsi-meta", "scan", str(tmp_path / "a b.tif"), "--out-dir", str(tmp_path / "out"), "--stride", "64", "--tta", "8"),
        *("--score-model", str(Path("s.json").absolute()), "--mpp", "0.25", "--tissue-mask", "none"),
    ]


def test_a_store_of_another_name_and_a_crash(tmp_path: Path) -> None:
    command = retry_command(tmp_path / "a.tif", tmp_path / "n.zarr", {}, why="crashed; pass --retry-crashed")
    assert command == f"wsi-meta scan {tmp_path}/a.tif --out {tmp_path}/n.zarr --retry-crashed && wsi-meta summary {tmp_path}"


def test_an_unknown_pixel_size_is_asked_for(tmp_path: Path) -> None:
    for asked in ({}, {"mpp": 99.0}):
        command = retry_command(tmp_path / "a.tif", tmp_path / "a.zarr", asked, kind="MissingMppError")
        assert command == f"wsi-meta scan {tmp_path}/a.tif --out-dir {tmp_path} --mpp UM_PER_PIXEL"


def test_a_pixel_size_for_many_is_not_said_of_one(tmp_path: Path) -> None:
    command = retry_command(tmp_path / "a.tif", tmp_path / "a.zarr", {"mpp": UsualMpp(0.5)}, why="no space left")
    assert command == f"wsi-meta scan {tmp_path}/a.tif --out-dir {tmp_path}"


def test_none_where_the_user_has_to_choose(tmp_path: Path) -> None:
    why = "holds another scan; choose another --out, or pass --overwrite to replace it"
    assert retry_command(tmp_path / "a.tif", tmp_path / "a.zarr", {}, why=why) is None


def test_of_one_slide_it_makes_no_table(tmp_path: Path) -> None:
    for store in ("a.zarr", "n.zarr"):
        (job,) = jobs_of([SlideInput(tmp_path / "a.tif", "a")], tmp_path / store, SlideSettings(), {}, alone=True)
        row = job.row(failed(tmp_path / "a.tif", "bad", "SlideReadError"))
        assert row["retry"] == f"wsi-meta scan {tmp_path}/a.tif --out {tmp_path}/{store}"


def test_settings_that_are_no_words() -> None:
    assert retry_command(Path("a.tif"), Path("a.zarr"), {"scheduler": object()}) is None
    assert retry_command(Path("a.tif"), Path("a.zarr"), {"predictor": object()}) is None
    assert retry_command(Path("a.tif"), Path("a.zarr"), {"tissue_mask": np.ones((5, 5), bool)}) is None


def test_any_name_is_one_word_of_a_shell() -> None:
    name = os.fsdecode(b"it's $HOME; caf\xe9\n\x1b`x`")
    printed = subprocess.run(["bash", "-c", f"printf %s {shell_word(name)}"], capture_output=True, check=True).stdout
    assert printed == os.fsencode(name)
