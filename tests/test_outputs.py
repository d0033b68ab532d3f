"""An output of several files is the old one or the new one, whenever its replacement ends."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import wsi_meta
from wsi_meta.errors import OptionsError, OutputExistsError, OutputPathError, SlideReadError
from wsi_meta.evaluation.calibrate import check_calibration
from wsi_meta.exchange.foreign import ImportOptions
from wsi_meta.exchange.importing import check_import
from wsi_meta.files.locks import locked
from wsi_meta.heatmaps.ownership import temporary_store
from wsi_meta.outputs.checks import check_folder, check_output, refuse_one_name
from wsi_meta.outputs.writing import (
    filled_folder,
    finish_replacing,
    replace_files,
    write_together,
    written_folder,
    written_whole,
)
from wsi_meta.slides.slide import open_slide
from wsi_meta.training.history import check_training
from wsi_meta.training.recipe import TrainOptions

NAMES = ("a.h5", "b.h5", "c.csv", "record.json")


class Killed(BaseException):
    """What no code of ours catches."""


def _fill(folder: Path, text: str, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(text)
    return folder


def _content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def _fail_at(monkeypatch: pytest.MonkeyPatch, method: str, number: int, error: BaseException) -> None:
    """Let the call of a method of Path fail, once, at its `number`-th use."""
    calls, usual = 0, getattr(Path, method)

    def counted(self: Path, *values: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == number:
            raise error
        return usual(self, *values, **options)

    monkeypatch.setattr(Path, method, counted)


def test_files_of_an_older_output_go_and_others_stay(tmp_path: Path) -> None:
    folder = _fill(tmp_path / "out", "old", *NAMES)
    _fill(folder, "mine", "notes.txt")
    replace_files(_fill(tmp_path / "made", "new", "a.h5", "record.json"), folder, NAMES)
    assert _content(folder) == {"a.h5": "new", "notes.txt": "mine", "record.json": "new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "out"]


@pytest.mark.parametrize("older", [(), NAMES], ids=["no older one", "an older one"])
@pytest.mark.parametrize("method", ["replace", "rename", "unlink", "rmdir", "mkdir"])
def test_killed_at_any_step_it_is_whole_again(tmp_path: Path, method: str, older: tuple[str, ...]) -> None:
    old, new = dict.fromkeys(older, "old"), {"a.h5": "new", "b.h5": "new", "record.json": "new"}
    for number in range(1, 20):
        folder = _fill(tmp_path / f"out{number}", "old", *older)
        made = _fill(tmp_path / f"made{number}", "new", *new)
        with pytest.MonkeyPatch.context() as monkeypatch:
            _fail_at(monkeypatch, method, number, Killed())
            try:
                replace_files(made, folder, NAMES)
                break
            except Killed:
                pass
        finish_replacing(folder, NAMES)
        assert _content(folder) in (old, new)
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        replace_files(_fill(tmp_path / "again", "new", *new), folder, NAMES)
        assert _content(folder) == new
    else:
        pytest.fail("it never came to its end")
    assert _content(folder) == new


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "make room and run it again"),
        (errno.EDQUOT, "make room and run it again"),
        (errno.ENOENT, "its folder is not there (any more); make it and run it again"),
        (errno.EIO, "make room, or choose another place, and run it again"),
    ],
)
def test_what_to_do_depends_on_why_it_cannot_be_written(tmp_path: Path, number: int, words: str) -> None:
    out = tmp_path / "out.bin"
    out.write_text("old")

    def write() -> None:
        with written_whole(out) as partial:
            partial.write_text("new")
            raise OSError(number, os.strerror(number))

    with pytest.raises(OutputPathError) as raised:
        write()

    assert str(raised.value) == f"{out}: cannot be written ({os.strerror(number)}); {words}; the one before is kept"
    assert [path.name for path in tmp_path.iterdir()] == ["out.bin"]
    assert out.read_text() == "old"


def test_a_folder_that_another_command_filled_meanwhile_is_no_lack_of_room(tmp_path: Path) -> None:
    out = tmp_path / "page"

    def write() -> None:
        with written_folder(out) as made:
            _fill(made, "mine", "index.html")
            _fill(out, "theirs", "index.html")

    with pytest.raises(
        OutputPathError, match=r"page: cannot be written \(.*\); something else was written there meanwhile; choose"
    ):
        write()
    assert _content(out) == {"index.html": "theirs"}


def test_a_missing_folder_is_not_called_a_lack_of_room(tmp_path: Path) -> None:
    told = r"No such file or directory\); its folder is not there"
    with pytest.raises(OutputPathError, match=told), written_whole(tmp_path / "gone" / "out.bin") as partial:
        partial.write_text("new")


def test_no_folder_for_temporary_files_is_not_the_outputs_folder(tmp_path: Path) -> None:
    told = r"out.bin: cannot be written \(No usable temporary directory found in \['/tmp'\]\); set TMPDIR to a folder"
    with pytest.raises(OutputPathError, match=told), written_whole(tmp_path / "out.bin"):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")


@pytest.mark.parametrize("number", range(1, 8))
def test_a_disk_that_refuses_keeps_the_older_one(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, made = _fill(tmp_path / "out", "old", *NAMES), _fill(tmp_path / "made", "new", *NAMES)
    _fail_at(monkeypatch, "replace", number, OSError(28, "No space left on device"))
    with pytest.raises(OutputPathError, match=r"out: cannot be written \(No space left on device\); make room"):
        replace_files(made, folder, NAMES)
    assert _content(folder) == dict.fromkeys(NAMES, "old")


def test_a_name_is_refused_before_the_work_where_its_temporary_one_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(OutputPathError, match=r"cannot be written \(File name too long\); choose a shorter name"):
        check_output(tmp_path / ("x" * 234), overwrite=False)
    check_folder(tmp_path / ("x" * 234), temporary=False)  # a folder of many outputs is made as it is
    with written_whole(check_output(tmp_path / ("x" * 233), overwrite=False)) as partial, locked(tmp_path / ("x" * 233)):
        partial.touch()
    with filled_folder(tmp_path / ("x" * 233)), locked(tmp_path / ("x" * 233)):
        temporary_store(tmp_path / ("x" * 233)).mkdir()


def test_a_pipe_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputPathError, match="pipe: a device or a pipe, never replaced"):
        check_output(tmp_path / "pipe", overwrite=True)


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "out.csv", tmp_path / "link.csv"
    link.symlink_to("disk/out.csv")
    for overwrite in (False, True):
        with pytest.raises(OutputPathError, match=r"link\.csv: a link to disk/out\.csv, which is not there; remove it"):
            check_output(link, overwrite=overwrite)
    target.write_text("old")
    with written_whole(check_output(link, overwrite=True)) as partial:
        assert partial.parent == target.parent
        partial.write_text("new")
    assert (link.readlink(), target.read_text(), link.read_text()) == (Path("disk/out.csv"), "new", "new")
    assert sorted(path.name for path in (*tmp_path.iterdir(), *target.parent.iterdir())) == ["disk", "link.csv", "out.csv"]


def test_a_link_to_itself_is_told(tmp_path: Path) -> None:
    loop = tmp_path / "loop.csv"
    loop.symlink_to("loop.csv")
    refuse_one_name(loop, tmp_path / "other.csv", "--out and --picture")
    with pytest.raises(OutputPathError, match=r"is to be written twice"):
        refuse_one_name(loop, loop, "--out and --picture")
    with pytest.raises(OutputPathError, match=r"loop\.csv: a link to loop\.csv, which is not there"):
        check_output(loop, overwrite=True)


def test_an_error_of_our_own_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(SlideReadError, match=r"^nope.tif: no such file$"), written_whole(tmp_path / "q.groovy"):
        raise SlideReadError("nope.tif: no such file")


def test_a_name_that_is_too_long_is_told(tmp_path: Path) -> None:
    """What cannot be made cannot be removed either."""
    with pytest.raises(OutputPathError, match="choose a shorter name"), written_whole(tmp_path / ("x" * 244)) as partial:
        partial.write_text("")


def test_a_name_that_no_file_can_have_is_told(tmp_path: Path) -> None:
    for wrong, told in (
        ("x" * 300, r"a path with a name of 300 bytes, 'x{59}\.\.\.; expected 255 at most; choose a shorter name"),
        ("/".join(["x" * 200] * 25), r"a path of 5,0\d\d bytes; expected 4,095 at most; choose a place with a shorter one"),
        ("a\0.tif", r"a text with a character of number 0; expected a path"),
    ):
        with pytest.raises(OptionsError, match=f"^file to write: is {told}"):
            check_output(f"{tmp_path}/{wrong}", overwrite=True)
        with pytest.raises(OptionsError, match=r"^slide: is a "):
            open_slide(wrong)


def _check_training(data: Path, out: Path) -> Any:
    return check_training([data], out, init="none", options=TrainOptions(overwrite=True))


def _check_calibration(data: Path, out: Path) -> Any:
    return check_calibration(None, data, out, overwrite=True)


def _check_import(data: Path, out: Path) -> Any:
    weights = data.with_name("net.pth")
    weights.touch()
    return check_import(weights, data, out, ImportOptions(pixels="imagenet", mpp=1, overwrite=True))


@pytest.mark.parametrize("check", [_check_training, _check_calibration, _check_import])
def test_a_model_is_never_written_over_a_patch(check: Callable[[Path, Path], Any], few_patches: Path, tmp_path: Path) -> None:
    data = shutil.copytree(few_patches, tmp_path / "data")
    (tmp_path / "link").symlink_to(data)
    patch = next(data.glob("valid/0/*.png")).relative_to(data)
    for out in (data / patch, tmp_path / "link" / patch, tmp_path / "new.pth"):
        with pytest.raises(OutputPathError, match=f"{out.name}: no name of a model file; expected .* ends in .safetensors"):
            check(data, out)
    (data / "old.safetensors").touch()
    check(data, data / "old.safetensors")


def test_a_full_disk_is_told_through_a_librarys_own_error(tmp_path: Path) -> None:
    """pydicom raises an OSError with a traceback as its text and no number, from the one that has it."""
    cause = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OutputPathError, match=r"\(No space left on device\); make room"), written_whole(tmp_path / "o.dcm"):
        raise OSError("with tag (7FE0,0010): Traceback") from cause


def test_a_folder_is_filled_beside_its_place_and_goes(tmp_path: Path) -> None:
    old, new, foreign = (tmp_path / f".out.{name}.partial" for name in ("0" * 12, "1" * 12, "mine"))
    for folder in (old, new, foreign):
        folder.mkdir()
        (folder / "file").write_text("x")
    for path in (old / "file", old):
        os.utime(path, (0, 0))
    os.utime(new, (0, 0))  # something in it is still written to
    with filled_folder(tmp_path / "out") as made:
        assert not old.exists()
        assert new.exists()
        assert foreign.exists()
        (made / "file").write_text("y")
    assert sorted(tmp_path.iterdir()) == sorted([new, foreign])
    with filled_folder(tmp_path / "out", alone=True):
        assert not new.exists(), "nobody else can be at work"
    assert sorted(tmp_path.iterdir()) == [foreign]
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(OutputPathError, match=r"out: cannot be written \(No space left on device\)"),
        filled_folder(tmp_path / "out"),
    ):
        raise full
    told = re.escape(f"{tmp_path}/out/table.csv: cannot be written (No space left on device)")
    with (
        pytest.raises(OutputPathError, match=f"^{told}"),
        filled_folder(tmp_path / "out") as made,
        written_whole(made / "table.csv"),
    ):
        raise full
    with pytest.raises(SlideReadError, match="damaged"), filled_folder(tmp_path / "out"):
        raise SlideReadError("damaged")


def test_a_folder_may_be_a_link_or_the_one_that_a_command_runs_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link may lead to another disk, and to what is not there yet; . has no name."""
    (tmp_path / "disk" / "there").mkdir(parents=True)
    for link, target in (("new", "disk/new"), ("old", "disk/there"), ("away", "nowhere/new")):
        (tmp_path / link).symlink_to(target)
    monkeypatch.chdir(tmp_path / "disk" / "there")
    for folder in (tmp_path / "new", tmp_path / "old", Path()):
        check_folder(folder)
        with filled_folder(folder) as made:
            assert made.parent == tmp_path / "disk"
            (made / "file").write_text("x")
            replace_files(made, folder, ["file"])
        finish_replacing(folder, ["file"])
        write_together(folder, {"other": b"y"})
        assert sorted(path.name for path in folder.iterdir()) == ["file", "other"]
        shutil.rmtree(tmp_path / "disk" / "new")
        (tmp_path / "disk" / "new").mkdir()
    with written_folder(tmp_path / "new"):
        pass
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["new", "there"]
    with pytest.raises(OutputPathError, match=r"away: there is no folder .*nowhere; make it first"):
        check_folder(tmp_path / "away")


def test_files_of_one_output_are_all_written_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, older = tmp_path / "new", _fill(tmp_path / "older", "old", "a.json", "b.png")
    contents = {"a.json": b"new", "b.png": b"new"}
    for folder in (new, older):
        with monkeypatch.context() as patch:
            _fail_at(patch, "write_bytes", 2, OSError(errno.ENOSPC, "No space left on device"))
            with pytest.raises(OutputPathError, match=r"b\.png: cannot be written \(No space left on device\); make room"):
                write_together(folder, contents)
    assert not new.exists(), "a folder that was made for them"
    assert _content(older) == {"a.json": "old", "b.png": "old"}
    for folder in (new, older):
        write_together(folder, contents)
        assert _content(folder) == {"a.json": "new", "b.png": "new"}


NOTHING: Any = None
THING: Any = object()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: wsi_meta.open_slide(NOTHING), "slide: is None; expected the path or address of a slide"),
        (lambda: wsi_meta.find_slides(NOTHING), "slide: is None; expected the path or address of a slide"),
        (lambda: wsi_meta.find_slides(""), "slide: is an empty text; expected the path or address of a slide"),
        (lambda: wsi_meta.scan_slides("s.tif", ""), "out: is an empty text; expected a path"),
        (lambda: wsi_meta.summarise_folder(""), "folder: is an empty text; expected a path"),
        (lambda: wsi_meta.scan_slides("s.tif", NOTHING), "out: is None; expected a path"),
        (lambda: wsi_meta.scan("s.tif", "s3://me:secret@b/h?key"), "out: is an address, s3://b/h; expected a path on a disk$"),
        (lambda: wsi_meta.Heatmap.open("https://b/h.zarr"), "heatmap: is an address, https://b/h.zarr; expected a path"),
        (lambda: wsi_meta.preview_scans("s.tif", NOTHING), "out: is None; expected a path"),
        (lambda: wsi_meta.find_tissue(THING), "slide: is of type object; expected the path or address"),
        (lambda: wsi_meta.find_lesions(NOTHING), "heatmap: is None; expected a Heatmap or the path of one"),
        (lambda: wsi_meta.write_lesions(THING, NOTHING), "file to write: is of type object; expected a path, text or Path"),
        (lambda: wsi_meta.export("l.csv", THING), "out: is of type object; expected a path"),
        (lambda: wsi_meta.open_patches([NOTHING]), "patches: is None; expected a folder of labelled patches"),
        (
            lambda: wsi_meta.score_slide(THING),
            "probability: is of type object; expected an array of cells .*; for a heatmap call score",
        ),
        (lambda: wsi_meta.scan_slides("s.tif", "maps", dry_run=True), "dry_run: no setting of a scanner; expected those of"),
    ],
)
def test_an_argument_of_another_kind_is_named(call: Callable[[], Any], told: str) -> None:
    """What Python says of it deep inside names no argument."""
    with pytest.raises(OptionsError, match=told):
        call()


@pytest.mark.parametrize("links", [True, False])
def test_a_name_that_was_free_is_taken_only_if_it_still_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:

        def link(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    out = tmp_path / "a.csv"
    with written_whole(out, overwrite=False) as partial:
        partial.write_text("ours")
    assert _content(tmp_path) == {"a.csv": "ours"}
    with (
        pytest.raises(OutputExistsError, match=r"a\.csv: another command wrote it"),
        written_whole(out, overwrite=False) as partial,
    ):
        partial.write_text("later")
    assert _content(tmp_path) == {"a.csv": "ours"}
