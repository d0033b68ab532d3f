"""Shards: each slide is in one of them, whatever the order it is given in, and they share a folder."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import DarknessPredictor
from slide_files import texture, write_slide

from wsi_meta.cohorts.batch import scan_slides
from wsi_meta.cohorts.inputs import SlideInput
from wsi_meta.cohorts.jobs import SlideSettings, jobs_of
from wsi_meta.cohorts.preview import preview_scans
from wsi_meta.cohorts.shards import Shard
from wsi_meta.errors import OptionsError
from wsi_meta.models.model import Model


@pytest.mark.parametrize("names", ["abcdefg", "gfbacde"])
def test_each_slide_is_in_one_shard_in_whatever_order(names: str) -> None:
    found = [SlideInput(Path(f"{name}.tif"), name) for name in names]
    jobs = jobs_of(found, Path("out"), SlideSettings())
    parts = [jobs_of(found, Path("out"), SlideSettings(), shard=Shard.read(f"{number}/3")) for number in range(3)]
    assert [{job.slide.name for job in part} for part in parts] == [set("adg"), set("be"), set("cf")]
    assert [job for job in jobs if job in parts[0]] == parts[0], "in the order in which they were given"
    assert jobs_of(found, Path("out"), SlideSettings(), shard=Shard(9, 10)) == []


@pytest.mark.parametrize("given", ["3/3", "1", "-1/3", "0/0", "a/b", "1/2/3", (3, 3), (-1, 2)])
def test_no_shard(given: str | tuple[int, int]) -> None:
    with pytest.raises(OptionsError, match="expected I/N with I from 0 to N - 1"):
        Shard.read(given)


@pytest.mark.parametrize("given", [(0.0, 2.0), (0.5, 2), (Fraction(0), 2), (True, 2)])
def test_a_shard_is_of_whole_numbers(given: Any) -> None:
    with pytest.raises(OptionsError, match=r"shard .*; expected I/N, or two whole numbers"):
        Shard.read(given)
    assert Shard.read((np.int64(0), np.int64(2))) == Shard(0, 2)  # type: ignore[arg-type]


def test_shards_at_once_make_one_whole_summary(tmp_path: Path, thin_model: Model) -> None:
    slides = [write_slide(tmp_path / f"{name}.tif", texture(130, 130, seed)) for seed, name in enumerate("abcdefg")]

    def run(number: int) -> list[dict[str, Any]]:
        return scan_slides(slides, tmp_path / "out", predictor=DarknessPredictor(thin_model), shard=(number, 3))

    with ThreadPoolExecutor(3) as pool:
        rows = [row for part in pool.map(run, range(3)) for row in part]
    assert sorted(row["slide"] for row in rows) == list(map(str, slides))
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert sorted(row["slide"] for row in table) == list(map(str, slides))
    assert all(row["complete"] == "True" for row in table)
    told = preview_scans(slides, tmp_path / "out", shard="1/3", model=None, device="cpu")
    assert [slide.slide.stem for slide in told.slides] == ["b", "e"]
