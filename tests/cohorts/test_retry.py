"""The command that a failed slide can be scanned with again."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from wsi_meta.cohorts.retry import retry_command, shell_word


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


def test_settings_that_are_no_words() -> None:
    assert retry_command(Path("a.tif"), Path("a.zarr"), {"scheduler": object()}) is None
    assert retry_command(Path("a.tif"), Path("a.zarr"), {"predictor": object()}) is None


def test_any_name_is_one_word_of_a_shell() -> None:
    name = os.fsdecode(b"it's $HOME; caf\xe9\n\x1b`x`")
    printed = subprocess.run(["bash", "-c", f"printf %s {shell_word(name)}"], capture_output=True, check=True).stdout
    assert printed == os.fsencode(name)
