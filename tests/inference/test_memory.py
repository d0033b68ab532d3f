"""When free memory is given back; how much that helps is for the benchmarks."""

from __future__ import annotations

import os

import pytest

import wsi_meta.inference.allocator
from wsi_meta.inference.allocator import MemoryBound, prepare_memory


def test_memory_is_given_back_when_it_has_grown_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    held, given = {"now": 1000}, []

    def give_back() -> None:
        given.append(held["now"])
        held["now"] -= 30

    monkeypatch.setattr(wsi_meta.inference.allocator, "MOST_SPARE", 100)
    monkeypatch.setattr(wsi_meta.inference.allocator, "LEAST_SPARE", 20)
    monkeypatch.setattr(wsi_meta.inference.allocator, "_resident", lambda: held["now"])
    monkeypatch.setattr(wsi_meta.inference.allocator, "give_back_memory", give_back)
    bound = MemoryBound()
    assert given == [1000]
    for now, times in [(1070, 1), (1071, 2), (1061, 2), (1071, 3), (1090, 4), (1080, 4), (1200, 5), (1190, 5), (1191, 6)]:
        held["now"] = now
        bound.check()
        assert len(given) == times, now


def test_libraries_keep_the_code_of_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    prepare_memory(in_bands=True)
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"
    assert os.environ["LRU_CACHE_CAPACITY"] == "7", "what the user asked for stays"
