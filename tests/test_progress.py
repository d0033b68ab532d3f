"""What a run says: lines where nobody watches, a bar on a terminal, logs of whole lines."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wsi_meta.errors import OutputExistsError, OutputPathError
from wsi_meta.logs import Console, LogFile
from wsi_meta.progress import FIRST_S, TELL_S, ProgressBar, counted_cells, note, progress_bar, tell

logger = logging.getLogger("wsi_meta")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def attach() -> Iterator[Callable[[logging.Handler], None]]:
    """Attaches handlers, as the command line does, for the time of a test."""
    before, level = list(logger.handlers), logger.level
    logger.setLevel(logging.DEBUG)
    yield logger.addHandler
    logger.setLevel(level)
    for handler in set(logger.handlers) - set(before):
        logger.removeHandler(handler)
        handler.close()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_line_after_ten_seconds_and_then_each_minute(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with ProgressBar(1000, "cells", "[3/12] node", show=True, clock=clock, slide="node.tif") as bar:
        for _ in range(3):
            clock.now += FIRST_S / 3 + 0.1
            bar.update(50)
        assert capsys.readouterr().err == "[3/12] node: 150 of 1,000 cells (15%), 15 cells/s, 58 s left\n"
        bar.update(60)
        clock.now += TELL_S / 2
        bar.update(-10)
        assert not capsys.readouterr().err
        clock.now += TELL_S / 2
        bar.update(300)
        assert capsys.readouterr().err == "[3/12] node: 500 of 1,000 cells (50%), 7 cells/s, 1 min 10 s left\n"
        clock.now += TELL_S
        bar.update(500)
        assert not capsys.readouterr().err, "the end has a line of its own"


def test_no_time_is_foretold_by_the_first_few(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with ProgressBar(1000, "cells", "node", show=True, clock=clock) as bar:
        clock.now += FIRST_S
        bar.update(49)
    assert capsys.readouterr().err == "node: 49 of 1,000 cells (5%), 5 cells/s\n"


def test_a_line_is_an_event(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with (
        caplog.at_level(logging.INFO, "wsi_meta"),
        ProgressBar(40, "cells", "a", show=False, clock=clock, slide="a.tif") as bar,
    ):
        clock.now += 2 * TELL_S
        bar.update(30)
    (record,) = caplog.records
    assert vars(record)["facts"] == {
        "event": "cells done",
        "slide": "a.tif",
        "done": 30,
        "of": 40,
        "per_s": 0.2,
        "left_s": 40.0,
    }
    assert capsys.readouterr() == ("", "")


def test_nothing_is_said_by_what_is_not_enabled(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.DEBUG, "wsi_meta"), progress_bar(3, "patches", "reading", enabled=False) as bar:
        bar.update(3)
        bar.set_postfix(loss="1")
        note("hidden", enabled=False)
    assert not caplog.records
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, attach: Callable[[logging.Handler], None]) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    attach(Console(logging.INFO))
    clock = Clock()
    with ProgressBar(1000, "cells", "[3/12] \x1b[2J", show=True, clock=clock) as bar:
        clock.now += 2 * TELL_S
        bar.update(250)
        tell("a note\x07")
    shown = terminal.getvalue()
    assert r"[3/12] \x1b[2J:  25%" in shown
    assert "cells/s" in shown
    assert "\na note\\x07\n" in shown.replace("\r", "\n"), "above the bar, on a line of its own"
    assert "250 of 1,000" not in shown, "the bar says so"


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_quiet_keeps_bars_and_notes_away(
    level: int, monkeypatch: pytest.MonkeyPatch, attach: Callable[[logging.Handler], None]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    attach(Console(level))
    with progress_bar(1000, "cells", "node", enabled=True) as bar:
        bar.update(1000)
        note("a note", enabled=True)
        logger.warning("a warning")
        logger.error("a failure")
    shown = terminal.getvalue()
    assert ("node:" in shown, "a note" in shown) == (level == logging.INFO,) * 2
    assert "a warning\n" in shown
    assert "Error: a failure\n" in shown


def test_a_note_is_shown_once_whatever_the_host_logs(
    capsys: pytest.CaptureFixture[str], attach: Callable[[logging.Handler], None]
) -> None:
    logger.setLevel(logging.WARNING)
    tell("asked for", show=True)
    tell("not asked for")
    tell("details", show=True, level=logging.DEBUG)
    assert capsys.readouterr().err == "asked for\n"
    logger.setLevel(logging.INFO)
    attach(logging.StreamHandler(sys.stderr))
    tell("by the host", show=True)
    assert capsys.readouterr().err == "by the host\n"


def test_a_function_is_told_and_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[Path, int, int]] = []
    with counted_cells(Path("a.tif"), 9, lambda *now: told.append(now), "a", "[1/1]") as count:
        count(5)
        count(-2)
    assert told == [(Path("a.tif"), 5, 9), (Path("a.tif"), 3, 9)]
    assert capsys.readouterr() == ("", "")


def failing() -> None:
    raise RuntimeError("here\x1b[1m")


def write_records() -> None:
    tell("café \udce9\x1b[2J\nnext", event="slide begun", slide="café \udce9\x1b[2J\nnext", place="[1/2]")
    logger.warning("%s: odd", "a.tif")
    try:
        failing()
    except RuntimeError as error:
        logger.debug("failed", exc_info=error)


def test_a_json_log_is_an_object_a_line(tmp_path: Path, attach: Callable[[logging.Handler], None]) -> None:
    path = tmp_path / "log.jsonl"
    attach(LogFile(path, as_json=True))
    write_records()
    attach(LogFile(path, as_json=True))
    tell("twice", event="finished", score=None, seconds=1.5)
    lines = path.read_text("ascii").splitlines()
    begun, odd, failed, *twice = map(json.loads, lines)
    assert (begun["event"], begun["place"], begun["slide"]) == ("slide begun", "[1/2]", "café \udce9\x1b[2J\nnext")
    assert begun["time"].endswith("Z")
    assert (odd["event"], odd["level"], odd["text"]) == ("message", "warning", "a.tif: odd")
    assert failed["trace"][-1] == r"RuntimeError: here\x1b[1m"
    assert [told["seconds"] for told in twice] == [1.5, 1.5], "a log is gone on with, by several at a time"


def test_a_log_is_text_that_a_terminal_can_show(tmp_path: Path, attach: Callable[[logging.Handler], None]) -> None:
    path = tmp_path / "run.log"
    attach(LogFile(path, as_json=False))
    write_records()
    begun, odd, failed, *trace = path.read_text().splitlines()
    assert begun.endswith(r"Z INFO café \xe9\x1b[2J\nnext")
    assert odd.endswith("Z WARNING a.tif: odd")
    assert failed.endswith("Z DEBUG failed")
    assert all(line.startswith("    ") and line.isprintable() for line in trace)
    LogFile(path, as_json=False).close()


def test_a_full_disk_does_not_end_the_work_and_is_told_once(
    attach: Callable[[logging.Handler], None], capsys: pytest.CaptureFixture[str]
) -> None:
    attach(LogFile(Path("/dev/full"), as_json=True))
    tell("lost")
    tell("lost too")
    assert capsys.readouterr().err.splitlines() == ["/dev/full: a log that lacks lines from here on (No space left on device)"]


def test_what_is_no_log_is_never_added_to(tmp_path: Path) -> None:
    (tmp_path / "slide.tif").write_text("pixels")
    (tmp_path / "empty").touch()
    attached = LogFile(tmp_path / "empty", as_json=False)
    attached.emit(logging.makeLogRecord({"msg": "hello", "levelno": logging.INFO, "levelname": "INFO"}))
    attached.close()
    for name, as_json in (("slide.tif", False), ("slide.tif", True), ("empty", True)):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(OutputExistsError, match=r"is no .*log of wsi-meta"):
            LogFile(tmp_path / name, as_json=as_json)
        assert (tmp_path / name).read_bytes() == before
    for path in (tmp_path, tmp_path / "gone" / "log"):
        with pytest.raises(OutputPathError):
            LogFile(path, as_json=False)
