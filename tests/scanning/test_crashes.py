"""A native crash costs the slide that it came from, and no other; the next start says which one that was."""

from __future__ import annotations

import csv
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from fakes import DarknessPredictor
from slide_files import texture, write_slide

from wsi_meta.cohorts.batch import scan_slides
from wsi_meta.errors import OutputExistsError, SlideReadError
from wsi_meta.files.locks import Holder
from wsi_meta.models.model import Model
from wsi_meta.scanning.crashes import Journal, noted_crashes
from wsi_meta.scanning.scanner import Scanner
from wsi_meta.scanning.threads import Turn

WAIT_S = 20

START = """
import os, signal, sys, threading
from pathlib import Path
from wsi_meta.scanning.crashes import noted_crashes
folder = Path(sys.argv[1])
a, b, c = (folder / name for name in ("a.tif", "b.tif", "c.tif"))
def in_thread(*steps):
    thread = threading.Thread(target=lambda: [step() for step in steps])
    thread.start()
    thread.join()
with noted_crashes(folder, [a, b, c], retry=True) as journal:
"""
ONE = "with journal.opened(c): pass\n    with journal.opened(b): "
BOTH = "with journal.opened(a), journal.opened(b): "


def _die(folder: Path, steps: str) -> int:
    """Let a process scan in the folder as the steps say; return its exit code."""
    return subprocess.run([sys.executable, "-c", f"{START}    {steps}", folder], check=False).returncode


def _left(folder: Path) -> list[Path]:
    return list(folder.glob(".wsi-meta.*"))


@pytest.mark.parametrize(
    ("steps", "code", "told"),
    [
        (f"{ONE}os.abort()", signal.SIGABRT, "Aborted"),
        (f"{ONE}os.kill(os.getpid(), signal.SIGSEGV)", signal.SIGSEGV, "Segmentation fault"),
        (f"{ONE}os.kill(os.getpid(), signal.SIGTRAP)", signal.SIGTRAP, "Trace/breakpoint trap"),
        (f"{BOTH}in_thread(lambda: journal.working(a), lambda: journal.working(b), os.abort)", signal.SIGABRT, "Aborted"),
    ],
)
def test_the_slide_that_a_process_died_of_is_passed_over_until_asked(tmp_path: Path, steps: str, code: int, told: str) -> None:
    assert _die(tmp_path, steps) == -code
    slides = [tmp_path / name for name in ("a.tif", "b.tif", "c.tif")]
    for _ in range(2):
        with noted_crashes(tmp_path, slides, retry=False) as journal:
            with (
                pytest.raises(SlideReadError, match=rf"b.tif: an earlier scan died \({told}\).*--retry-crashed"),
                journal.opened(slides[1]),
            ):
                pass
            for slide in (slides[0], slides[2]):
                with journal.opened(slide):
                    pass
    with noted_crashes(tmp_path, slides, retry=True) as journal, journal.opened(slides[1]):
        pass
    assert not _left(tmp_path), "it is no longer under suspicion"


def test_a_slide_that_was_replaced_is_tried_again(tmp_path: Path) -> None:
    slide = tmp_path / "b.tif"
    slide.write_text("bad")
    _die(tmp_path, f"{ONE}os.abort()")
    slide.write_text("mended")
    with noted_crashes(tmp_path, [slide], retry=False) as journal, journal.opened(slide):
        pass
    assert not _left(tmp_path)


@pytest.mark.parametrize(
    "steps", [f"{ONE}os.kill(os.getpid(), signal.SIGKILL)", f"{ONE}os._exit(1)", f"{ONE}sys.exit(1)", f"{ONE}pass"]
)
def test_other_ends_leave_no_suspicion(tmp_path: Path, steps: str) -> None:
    _die(tmp_path, steps)
    with noted_crashes(tmp_path, [], retry=False) as journal:
        for name in ("b.tif", "c.tif"):
            with journal.opened(tmp_path / name):
                pass
    assert not _left(tmp_path)


def test_where_it_is_not_known_whose_crash_it_was_each_is_scanned_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _die(tmp_path, f"{BOTH}in_thread(os.abort)")
    slides = [tmp_path / name for name in ("a.tif", "b.tif", "c.tif")]
    seen: list[set[str]] = []
    open_now: set[str] = set()
    with caplog.at_level(logging.WARNING), noted_crashes(tmp_path, slides, retry=False) as journal:

        def scan(slide: Path) -> None:
            with journal.opened(slide):
                open_now.add(slide.name)
                seen.append(set(open_now))
                open_now.remove(slide.name)

        for _ in range(20):
            threads = [threading.Thread(target=scan, args=[slide]) for slide in slides]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert not [names for names in seen if names & {"a.tif", "b.tif"} and len(names) > 1]
    assert [message.partition(": ")[2].partition(";")[0] for message in caplog.messages] == [
        "was open when an earlier scan died (Aborted)"
    ] * 2
    assert not _left(tmp_path)


@pytest.mark.parametrize("error", [InterruptedError(), OutputExistsError("held by another"), KeyboardInterrupt()])
def test_what_was_not_tried_to_its_end_stays_under_suspicion(tmp_path: Path, error: BaseException) -> None:
    _die(tmp_path, f"{ONE}os.abort()")
    with noted_crashes(tmp_path, [], retry=True) as journal, pytest.raises(type(error)), journal.opened(tmp_path / "b.tif"):
        raise error
    with noted_crashes(tmp_path, [], retry=False) as journal, pytest.raises(SlideReadError), journal.opened(tmp_path / "b.tif"):
        pass


HEAD = b"wsi-meta is scanning here: "
MISHAPS: list[Callable[[Path], object]] = [
    lambda path: path.write_bytes(b"\xff\x00 nothing of ours"),
    lambda path: path.mkdir(),
    lambda path: path.symlink_to("nowhere"),
    lambda path: path.write_bytes(HEAD + json.dumps(asdict(Holder.here())).encode()),
]
TORN = [
    b"",
    bytes(50),
    HEAD + b'{"host": "elsewhere", "pi',
    HEAD + b'{"host": "h", "pid": [], "start": "", "space": ""}',
    HEAD
    + b'{"host": "h", "pid": 1e99, "start": "", "space": ""}\n{"slide": 3}\n[]\n7\n'
    + b"[" * 10**5
    + b'\n{"thread": 1e999}\n{"cl',
]


@pytest.mark.parametrize("mishap", MISHAPS)
def test_foreign_journals_and_those_of_running_processes_are_left_alone(
    tmp_path: Path, mishap: Callable[[Path], object]
) -> None:
    mishap(path := tmp_path / ".wsi-meta.0123456789ab.running")
    with noted_crashes(tmp_path, [], retry=False) as journal, journal.opened(tmp_path / "b.tif"):
        pass
    assert _left(tmp_path) == [path]


@pytest.mark.parametrize("content", TORN)
def test_torn_journals_are_removed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".wsi-meta.0123456789ab.running").write_bytes(content)
    with noted_crashes(tmp_path, [], retry=False) as journal, journal.opened(tmp_path / "b.tif"):
        pass
    assert not _left(tmp_path)


AT_ONCE = """
import os, sys
from pathlib import Path
from wsi_meta.scanning.crashes import noted_crashes
folder, write = Path(sys.argv[1]), os.write
def write_late(number, line):
    os.write = write
    with noted_crashes(folder, [], retry=False):
        return write(number, line)
os.write = write_late
with noted_crashes(folder, [], retry=False) as journal, journal.opened(folder / "a.tif"):
    os.abort()
"""


def test_another_start_leaves_a_journal_that_is_just_being_made(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", AT_ONCE, tmp_path], check=False)
    with (
        noted_crashes(tmp_path, [], retry=False) as journal,
        pytest.raises(SlideReadError, match=r"a\.tif: an earlier scan died"),
    ):
        journal.refuse(tmp_path / "a.tif")


def test_in_a_batch_the_others_go_on(tmp_path: Path, thin_model: Model) -> None:
    slides = [write_slide(tmp_path / f"{name}.tif", texture(300, 300, seed)) for seed, name in enumerate("abc")]
    _die(tmp_path, f"{ONE}os.abort()")
    journals = _left(tmp_path)
    (tmp_path / "out").mkdir()
    journals[0].rename(tmp_path / "out" / journals[0].name)
    for retry in (False, True):
        with (
            noted_crashes(tmp_path / "out", slides, retry=retry) as journal,
            Scanner(predictor=DarknessPredictor(thin_model), journal=journal) as scanner,
        ):
            rows = scan_slides(slides, tmp_path / "out", scanner=scanner)
        assert [row["complete"] for row in rows] == [True, retry, True]
        with (tmp_path / "out" / "summary.csv").open(newline="") as file:
            assert [
                line["error"].startswith(f"{line['slide']}: an earlier scan died (Aborted)") for line in csv.DictReader(file)
            ] == [
                False,
                not retry,
                False,
            ]
    assert not _left(tmp_path / "out")


def test_a_slide_that_must_be_alone_does_not_wait_for_later_ones(tmp_path: Path) -> None:
    """Where many slides are prepared ahead, as on a cluster, those after it would be open, and wait for it."""
    slides = [tmp_path / name for name in ("a.tif", "b.tif", "c.tif", "d.tif")]
    _die(tmp_path, f"{BOTH}in_thread(os.abort)")
    done: list[str] = []
    with noted_crashes(tmp_path, slides, retry=False) as journal:
        assert journal.most_ahead(8) == 1
        turns: list[Turn] = []
        for _ in slides:
            turns.append(Turn(turns[-1] if turns else None, journal.most_ahead(8)))

        def scan(slide: Path, turn: Turn) -> None:
            turn.prepare()
            with journal.opened(slide):
                turn.begin(1)
                turn.take_block()
            done.append(slide.name)
            turn.end()

        threads = [threading.Thread(target=scan, args=pair, daemon=True) for pair in zip(slides, turns, strict=True)]
        for thread in reversed(threads):
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert sorted(done) == ["a.tif", "b.tif", "c.tif", "d.tif"]
        assert journal.most_ahead(8) == 8, "none is left that must be alone"


def test_without_a_folder_nothing_is_noted(tmp_path: Path) -> None:
    journal = Journal()
    with journal.opened(tmp_path / "a.tif"), journal.opened(tmp_path / "b.tif"):
        journal.working(tmp_path / "b.tif")
    journal.close()
    assert not list(tmp_path.iterdir())
