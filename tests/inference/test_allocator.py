"""Memory tuned for as long as a context lasts, and free memory given back; how much that helps is for the benchmarks."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import textwrap
from contextlib import suppress

import pytest

from wsi_meta.inference.allocator import MemoryBound, tuned_memory

on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
VARIABLES = (
    "LRU_CACHE_CAPACITY",
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
)
BY_HAND = textwrap.dedent("""
    import ctypes
    from wsi_meta.inference.allocator import give_back_memory, resident_memory, tuned_memory

    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]

    def hold():
        places = [library.malloc(64 << 20) for _ in range(4)]
        for place in places:
            ctypes.memset(place, 1, 64 << 20)
        return places

    def kept(places):
        # megabytes of what is freed, 256, that stay in memory
        before = resident_memory()
        for place in places:
            library.free(place)
        return 256 - round((before - resident_memory()) / 2**20)
""")


def run_apart(code: str, **environment: str) -> list[str]:
    """Return what some code prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", BY_HAND + textwrap.dedent(code)],
        env={name: value for name, value in os.environ.items() if name not in VARIABLES} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@on_glibc
@pytest.mark.parametrize("asked", [{}, {"MALLOC_ARENA_MAX": "3"}])
def test_what_is_freed_after_leaving_goes_back_to_the_kernel(asked: dict[str, str]) -> None:
    (after,) = run_apart(
        """
        with tuned_memory(in_bands=False):
            library.free(library.malloc(1 << 20))
        print(kept(hold()))
        """,
        **asked,
    )

    assert int(after) < 50


@on_glibc
def test_what_was_freed_in_the_context_goes_back_on_leaving_it() -> None:
    inside, left, trimmed = run_apart(
        """
        def fallen(before):
            return round((before - resident_memory()) / 2**20)

        with tuned_memory(in_bands=False):
            places = hold()
            above = library.malloc(1000)
            print(kept(places))
            before = resident_memory()
        print(fallen(before))
        before = resident_memory()
        kept(hold())
        give_back_memory()
        print(fallen(before))
        """
    )

    assert int(inside) > 240
    assert int(left) > 240, "also below a block in use"
    assert int(trimmed) > -50, "what was allocated in that gap afterwards, when asked"


@on_glibc
def test_an_inner_context_leaves_the_outer_one_in_force() -> None:
    nested = "with tuned_memory(in_bands=False):\n    with tuned_memory(in_bands=True):\n        pass\n"
    (between,) = run_apart(nested + "    print(kept(hold()))")
    (after,) = run_apart(nested + "print(kept(hold()))")

    assert int(between) > 240
    assert int(after) < 50


@on_glibc
def test_bands_leave_freed_memory_to_the_kernel() -> None:
    inside, after = run_apart(
        """
        with tuned_memory(in_bands=True):
            print(kept(hold()))
        print(kept(hold()))
        """
    )

    assert int(inside) < 50
    assert int(after) < 50


@on_glibc
@pytest.mark.parametrize(("in_bands", "limited"), [(True, {"MALLOC_ARENA_MAX"}), (False, set(VARIABLES[1:6]))])
def test_environment_variables_come_back(in_bands: bool, limited: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "5")
    before = dict(os.environ)

    with suppress(ZeroDivisionError), tuned_memory(in_bands=in_bands):
        assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64", "libraries keep the code of few shapes"
        assert os.environ["LRU_CACHE_CAPACITY"] == "7", "what the user asked for stays"
        assert os.environ["MALLOC_ARENA_MAX"] == "1"
        within = dict(os.environ)
        with tuned_memory(in_bands=False):
            os.environ["MALLOC_ARENA_MAX"] = "9"
        assert dict(os.environ) == within
        assert {name for name in within if name.startswith("MALLOC") and within[name] != before.get(name)} == limited
        raise ZeroDivisionError

    assert dict(os.environ) == before


def test_memory_is_given_back_when_it_has_grown_enough() -> None:
    held, given = {"now": 1000}, []

    def give_back() -> None:
        given.append(held["now"])
        held["now"] -= 30

    bound = MemoryBound(most_spare=100, least_spare=20, measure=lambda: held["now"], give_back=give_back)
    assert given == [1000]
    for now, times in [(1070, 1), (1071, 2), (1061, 2), (1071, 3), (1090, 4), (1080, 4), (1200, 5), (1190, 5), (1191, 6)]:
        held["now"] = now
        bound.check()
        assert len(given) == times, now
