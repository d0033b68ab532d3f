"""Copies on a fast disk: the same store, within the budget, and nothing is left of them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import DarknessPredictor
from numpy.typing import NDArray
from slide_files import damage_tile, texture, write_slide

from wsi_meta.cohorts.batch import scan_slides
from wsi_meta.cohorts.copies import Stage, Staging
from wsi_meta.cohorts.preview import preview_scans
from wsi_meta.errors import OptionsError, OutputPathError, SlideReadError, WsiMetaError
from wsi_meta.files.locks import MARK, Holder, own_folder
from wsi_meta.files.slide_file import files_of_slide
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.models.model import Model
from wsi_meta.outputs.writing import ABANDONED_S
from wsi_meta.scanning.engine import SlideCopy
from wsi_meta.scanning.scanner import Scanner


class Looking(DarknessPredictor):
    """Notes which copies lie in a folder while blocks are computed."""

    folder: Path
    seen: list[set[str]]

    def predict_block(self, *arguments: Any) -> NDArray[np.float32]:
        self.seen.append({path.name for path in self.folder.rglob("*.tif")})
        return super().predict_block(*arguments)


@pytest.fixture
def looking(tmp_path: Path, thin_model: Model) -> Looking:
    predictor = Looking(thin_model)
    (tmp_path / "fast").mkdir()
    predictor.folder, predictor.seen = tmp_path / "fast", []
    return predictor


@pytest.fixture
def slides(tmp_path: Path) -> list[Path]:
    return [write_slide(tmp_path / f"{name}.tif", texture(130, 200, seed)) for seed, name in enumerate("abc")]


def test_a_copy_gives_the_same_store_and_is_removed(slides: list[Path], tmp_path: Path, looking: Looking) -> None:
    settings: dict[str, Any] = {"predictor": looking, "block_px": 160}
    scan_slides(slides, tmp_path / "plain", **settings)
    assert not any(looking.seen), "not asked for yet"
    told: list[Path] = []
    rows = scan_slides(
        slides, tmp_path / "out", stage=looking.folder, progress=lambda slide, *_cells: told.append(slide), **settings
    )
    assert [row["slide"] for row in rows] == list(map(str, slides))
    assert set(told) == set(slides)
    assert {name for names in looking.seen for name in names} == {"a.tif", "b.tif", "c.tif"}
    assert list(looking.folder.iterdir()) == []
    for slide in slides:
        plain, staged = (Heatmap.open(tmp_path / out / f"{slide.stem}.zarr") for out in ("plain", "out"))
        np.testing.assert_array_equal(staged.probability, plain.probability)
        np.testing.assert_array_equal(staged.status, plain.status)
        assert staged.record.identity == plain.record.identity
        assert staged.record.slide == plain.record.slide


def test_a_budget_holds_and_a_finished_or_larger_slide_is_not_copied(
    slides: list[Path], tmp_path: Path, looking: Looking, capsys: pytest.CaptureFixture[str]
) -> None:
    large = write_slide(tmp_path / "large.tif", texture(300, 300))
    budget_gb = 1.5 * slides[0].stat().st_size / 1e9
    scan_slides(slides[:1], tmp_path / "out", predictor=looking)
    looking.seen.clear()
    stage = Stage(looking.folder, budget_gb)
    with Scanner(predictor=looking, progress=True) as scanner:
        rows = scan_slides([*slides, large], tmp_path / "out", scanner=scanner, stage=stage)
    assert [row["complete"] for row in rows] == [True] * 4
    assert max(map(len, looking.seen)) == 1
    assert {name for names in looking.seen for name in names} == {"b.tif", "c.tif"}
    assert "large.tif: is read where it lies: its 0.0 GB are more than the budget" in capsys.readouterr().err


def test_errors_name_the_slide_and_copies_go_with_them(slides: list[Path], tmp_path: Path, looking: Looking) -> None:
    torn = write_slide(tmp_path / "torn.tif", texture(256, 256))
    damage_tile(torn, 0)
    (tmp_path / "cut.tif").write_bytes(slides[0].read_bytes()[:200])
    rows = scan_slides(
        [torn, tmp_path / "cut.tif", tmp_path / "gone.tif"], tmp_path / "out", predictor=looking, stage=looking.folder
    )
    assert all(str(row["error"]).startswith(str(row["slide"])) for row in rows)
    assert not any(str(looking.folder) in str(row["error"]) for row in rows)
    assert list(looking.folder.iterdir()) == []


def test_a_copy_that_goes_away_frees_its_bytes_and_hides_no_error(slides: list[Path], tmp_path: Path) -> None:
    (tmp_path / "fast").mkdir()
    copies = Staging(tmp_path / "fast", 1.5 * slides[0].stat().st_size, print)
    copies.begin([(slide, lambda: True) for slide in slides[:2]])

    def lose() -> None:
        with copies.copy_of(slides[0]) as first:
            assert isinstance(first, SlideCopy)
            shutil.rmtree(first.copy.parent)
            raise SlideReadError("its tiles are gone")

    try:
        with pytest.raises(SlideReadError, match="its tiles are gone"):
            lose()
        timer = threading.Timer(5, copies.stop)  # else the next one would wait for ever
        timer.start()
        with copies.copy_of(slides[1]) as second:
            assert isinstance(second, SlideCopy)
        timer.cancel()
    finally:
        copies.close()


def test_no_copy_is_of_two_slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is replaced before its own copy is begun."""
    for name in ("s.mrxs", "s/Slidat.ini", "s/Data0000.dat"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    usage, told = shutil.disk_usage, list[str]()

    def replacing(folder: Path) -> Any:
        (tmp_path / "s" / "Data0000.dat").write_text("of another slide")
        return usage(folder)

    monkeypatch.setattr(shutil, "disk_usage", replacing)
    (tmp_path / "fast").mkdir()
    copying = Staging(tmp_path / "fast", 1e9, told.append)
    copying.begin([(tmp_path / "s.mrxs", lambda: True)])
    with copying.copy_of(tmp_path / "s.mrxs") as slide:
        assert slide == tmp_path / "s.mrxs"
    copying.close()
    assert [line for line in told if "s.mrxs: is read where it lies: it cannot be copied" in line and "replaced" in line]
    assert not list((tmp_path / "fast").iterdir())


def test_an_interrupted_batch_leaves_no_copy(slides: list[Path], tmp_path: Path, thin_model: Model) -> None:
    class Interrupted(DarknessPredictor):
        def predict_block(self, *_arguments: Any) -> NDArray[np.float32]:
            raise KeyboardInterrupt

    (tmp_path / "fast").mkdir()
    with pytest.raises(KeyboardInterrupt):
        scan_slides(slides, tmp_path / "out", predictor=Interrupted(thin_model), stage=tmp_path / "fast")
    assert list((tmp_path / "fast").iterdir()) == []


@pytest.fixture
def dead() -> Holder:
    return replace(Holder.here(), start="an earlier boot")


def leave(folder: Path, holder: Holder | None) -> Path:
    """What a process leaves in its own folder when it is killed."""
    folder.mkdir()
    (folder / "0").mkdir()
    (folder / "0" / "s.tif").touch()
    if holder is not None:
        (folder / MARK).write_text(json.dumps(asdict(holder)))
    return folder


def test_only_what_dead_processes_left_is_removed(tmp_path: Path, dead: Holder) -> None:
    killed = leave(tmp_path / ".wsi-meta.0123456789ab.staged", dead)
    kept = [
        leave(tmp_path / ".wsi-meta.0123456789ac.staged", Holder.here()),
        leave(tmp_path / ".wsi-meta.0123456789ad.staged", replace(dead, host="another")),
        leave(tmp_path / ".wsi-meta.0123456789ae.staged", None),
        leave(tmp_path / ".wsi-meta.0123456789af.processes", dead),
        leave(tmp_path / "0123456789ab.staged", dead),
    ]
    with own_folder(tmp_path, "staged") as own:
        assert own.is_dir()
        assert not killed.exists()
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_an_empty_folder_of_a_process_that_was_killed_at_once_goes_when_it_is_old(tmp_path: Path) -> None:
    old, young = tmp_path / ".wsi-meta.0123456789ab.staged", tmp_path / ".wsi-meta.0123456789ac.staged"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, old.stat().st_mtime - ABANDONED_S - 1))
    with own_folder(tmp_path, "staged"):
        assert (old.exists(), young.exists()) == (False, True)


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EACCES])
def test_a_folder_that_cannot_be_marked(
    reason: int, slides: list[Path], looking: Looking, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a full disk slides are read where they lie; what the user has to mend ends the batch in a line."""
    write = Path.write_text

    def refuse(path: Path, *content: Any, **settings: Any) -> int:
        if path.name == MARK:
            raise OSError(reason, os.strerror(reason))
        return write(path, *content, **settings)

    monkeypatch.setattr(Path, "write_text", refuse)
    with Scanner(predictor=looking, progress=True) as scanner:
        if reason == errno.ENOSPC:
            (row,) = scan_slides(slides[:1], slides[0].parent / "out", scanner=scanner, stage=looking.folder)
            assert row["complete"]
            told = (
                f"slides are read where they lie: {looking.folder}: a folder in it cannot be written (No space left on device)"
            )
            assert told in capsys.readouterr().err
        else:
            with pytest.raises(OutputPathError, match=r"fast: a folder in it cannot be written \(Permission denied\)"):
                scan_slides(slides[:1], slides[0].parent / "out", scanner=scanner, stage=looking.folder)
    assert not any(looking.seen)
    assert not list(looking.folder.iterdir())


def test_what_cannot_be(tmp_path: Path, slides: list[Path], looking: Looking) -> None:
    with pytest.raises(OutputPathError, match="no such folder; expected one on a fast disk"):
        scan_slides(slides, tmp_path / "out", predictor=looking, stage=tmp_path / "none")
    with pytest.raises(OptionsError, match="expected more than 0"):
        Stage(tmp_path, 0)
    with pytest.raises(OptionsError, match="expected no cluster with it"):
        scan_slides(slides, tmp_path / "out", scheduler="tcp://127.0.0.1:9", stage=tmp_path)


def test_all_files_of_a_slide(tmp_path: Path) -> None:
    for name in ("s.mrxs", "s/Slidat.ini", "s/Data0000.dat", "t.tif", "v.vms", "tile(0,0).jpg", "map.jpg", "other.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "v.vms").write_text(
        "[Virtual Microscope Specimen]\nImageFile=tile(0,0).jpg\nMapFile = map.jpg\nMacro=none.jpg\n"
    )

    def names(slide: str) -> list[str]:
        return [path.relative_to(tmp_path).as_posix() for path in files_of_slide(tmp_path / slide)]

    assert names("s.mrxs") == ["s.mrxs", "s/Data0000.dat", "s/Slidat.ini"]
    assert names("t.tif") == ["t.tif"]
    assert names("v.vms") == ["v.vms", "map.jpg", "tile(0,0).jpg"]
    with pytest.raises(FileNotFoundError):
        files_of_slide(tmp_path / "none.tif")


def test_a_dry_run_refuses_the_stage_that_its_scan_refuses(tmp_path: Path, slides: list[Path], looking: Looking) -> None:
    out = tmp_path / "out"
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"predictor": looking, "stage": tmp_path / "none"}, "none: no such folder; expected one on a fast disk"),
        ({"predictor": looking, "stage": "/proc"}, "/proc: a folder in it cannot be written"),
        ({"predictor": looking, "stage": 7}, "stage: is of type int; expected a path"),
        ({"scheduler": "tcp://127.0.0.1:9", "stage": tmp_path}, "expected no cluster with it"),
    ]
    commands: list[Callable[..., Any]] = [scan_slides, preview_scans]
    for settings, told in refusals:
        refused = []
        for command in commands:
            with pytest.raises(WsiMetaError, match=told) as error:
                command(slides, out, **settings)
            refused.append(str(error.value))
        assert refused[0] == refused[1]
