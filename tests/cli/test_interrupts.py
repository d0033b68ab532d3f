"""Ctrl-C ends a command wherever it comes: also where Python, or C code, drops what is raised."""

from __future__ import annotations

import ctypes
import gc
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress

import click
import pytest
from click.testing import CliRunner

from wsi_meta.cli import main
from wsi_meta.cli.interrupts import never_lost, was_interrupted
from wsi_meta.cli.running import describe_error
from wsi_meta.errors import INTERRUPTED


@pytest.fixture(autouse=True)
def hearing() -> Iterator[None]:
    """As a command on a terminal is; one in the background of a shell, as these tests may be, is deaf to Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def in_a_finaliser() -> None:
    class Closed:
        def __del__(self) -> None:
            press()

    Closed()


def in_a_callback_of_a_weak_reference() -> None:
    class Thing:
        pass

    thing = Thing()
    _reference = weakref.ref(thing, lambda _: press())
    del thing


def in_a_callback_of_c_code() -> None:
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    numbers = (ctypes.c_int * 2)(2, 1)

    def compared(_first: int, _second: int) -> int:
        press()
        return 0

    ctypes.CDLL(None).qsort(numbers, 2, ctypes.sizeof(ctypes.c_int), compare(compared))


def in_code_that_passes_over_errors() -> None:
    try:
        press()
    except BaseException:
        return


DROPPING = [in_a_finaliser, in_a_callback_of_a_weak_reference, in_a_callback_of_c_code, in_code_that_passes_over_errors]


@pytest.mark.parametrize("drop", DROPPING)
def test_an_interrupt_that_is_dropped_comes_again(drop: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), never_lost():
        wait_for_it(drop)
    assert "ignored" not in capsys.readouterr().err


def wait_for_it(drop: Callable[[], None]) -> None:
    """Drop an interrupt, then stay where one is heard; one that never comes ends that too."""
    drop()
    for _ in range(2000):
        time.sleep(0.005)


def test_what_it_left_half_made_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event loop that was not made to its end fails in its finaliser, and a coroutine was never awaited."""

    class HalfMade:
        def __del__(self) -> None:
            raise AttributeError("_ssock")

    async def never_awaited() -> None:
        pass

    def interrupted() -> None:
        left = [HalfMade(), never_awaited()]
        HalfMade()
        try:
            press()
        finally:
            del left[:]

    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: told.append(dropped.exc_type))
    before = list(warnings.filters)
    with pytest.raises(KeyboardInterrupt), never_lost():
        interrupted()
    assert told == [AttributeError], "the one before"
    assert warnings.filters == before


def test_a_second_one_counts_too() -> None:
    def both() -> None:
        try:
            press()
        finally:
            wait_for_it(in_a_finaliser)

    with pytest.raises(KeyboardInterrupt) as ended, never_lost():
        both()
    assert isinstance(ended.value.__context__, KeyboardInterrupt)


def test_one_that_is_answered_does_not_come_again() -> None:
    with never_lost():
        with pytest.raises(KeyboardInterrupt) as ended:
            press()
        assert was_interrupted(ended.value)
        del ended
        gc.collect()
        time.sleep(0.05)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_where_it_means_something_else_it_keeps_that(handler: Callable[..., None]) -> None:
    signal.signal(signal.SIGINT, handler)
    with never_lost():
        assert signal.getsignal(signal.SIGINT) is handler
        press()
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_thread_leaves_signals_alone() -> None:
    seen: list[object] = []

    def work() -> None:
        with never_lost():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_the_process_is_left_as_it_was() -> None:
    hook = sys.unraisablehook
    with suppress(RuntimeError), never_lost():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        raise RuntimeError
    assert (signal.getsignal(signal.SIGINT), sys.unraisablehook) == (signal.default_int_handler, hook)


def test_another_error_that_came_of_it_is_told_as_it() -> None:
    """A lock that is released without being held, a class whose body was cut short."""

    class Cut:
        def __set_name__(self, _owner: type, _name: str) -> None:
            press()

    def cut_short() -> None:
        type("Whole", (), {"part": Cut()})

    def released() -> None:
        lock = threading.Lock()
        try:
            press()
        finally:
            lock.release()

    for work in (cut_short, released):
        with never_lost():
            with pytest.raises((RuntimeError, KeyboardInterrupt)) as ended:
                work()
            assert describe_error(ended.value) == INTERRUPTED
    assert describe_error(RuntimeError("another")) != INTERRUPTED


def of_another_error(*_: object) -> None:
    raise RuntimeError("it came of that") from KeyboardInterrupt()


@pytest.mark.parametrize(("place", "what"), [("parse_args", press), ("invoke", press), ("invoke", of_another_error)])
def test_a_command_ends_in_one_way_wherever_it_is_interrupted(
    place: str, what: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(click.Group, place, lambda *_: what())
    done = CliRunner().invoke(main, ["info", "nothing.zarr"])
    assert (done.exit_code, done.stderr) == (130, f"Error: {INTERRUPTED}\n")
