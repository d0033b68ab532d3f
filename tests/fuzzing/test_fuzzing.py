"""A few trials of each part, those that once failed among them; and the fuzzer notices what it is there for."""

from __future__ import annotations

import gc
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import trials
from fuzzing.__main__ import PARTS, main
from fuzzing.commands import Ended
from fuzzing.counts import Counts, Finding, Outcome, table
from fuzzing.judge import pictures_of, what_is_wrong
from fuzzing.pool import run_trials
from fuzzing.sound import draw_tissue
from fuzzing.standin import HashPredictor
from fuzzing.stores import Answers
from numpy.typing import NDArray
from slide_files import write_slide

from wsi_meta.scanning.scan import scan
from wsi_meta.slides.slide import Slide

KEPT = {
    "slides": [(1, 374), (1, 593), (1, 212), (2, 839), (2, 1353)],
    "stores": [(0, 753), (0, 33), (0, 9), (606, 464)],
    "models": [(2, 7), (2, 65), (2, 205), (0, 1), (0, 3), (0, 82)],
    "drawn": [(0, 31), (0, 151), (0, 2), (0, 3), (0, 4)],
}
"""Seed and number of trials of each part: those that failed before what they showed was mended, and a few others."""


@pytest.mark.parametrize("part", KEPT)
def test_trials_that_were_kept(part: str, tmp_path: Path) -> None:
    gc.collect()  # what earlier tests left must not speak up in a trial, which counts every traceback that is logged
    for seed, number in KEPT[part]:
        (own := tmp_path / f"{seed}-{number}").mkdir()
        found = import_module(f"fuzzing.{part}").trial(seed, number, own)
        assert not found.outcome.failed, f"{part}: seed {seed}, trial {number}: {found.outcome}: {found.told}"


class Shifted(Slide):
    """A slide that is read a pixel beside the place."""

    def read_at(self, mpp: float, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        return super().read_at(mpp, x + 1, y, width, height)


@pytest.fixture
def slide_file(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "slide.tif", draw_tissue(np.random.default_rng(0), (128, 160)))


@pytest.mark.parametrize(("kind", "told"), [(Slide, ""), (Shifted, "20 of 20 scanned cells show other pixels, first [0, 0]")])
def test_a_reader_that_is_a_pixel_off_is_silently_wrong(kind: type[Slide], told: str, slide_file: Path, tmp_path: Path) -> None:
    predictor, pictures = HashPredictor(apart=True), pictures_of(slide_file)
    with kind(slide_file) as slide:
        heatmap = scan(slide, tmp_path / "heat.zarr", predictor=predictor, tissue_mask="none")
    assert what_is_wrong(heatmap, predictor.seen, pictures, pictures) == told


def test_a_value_of_another_patch_and_tissue_that_is_left_out_are_silently_wrong(slide_file: Path, tmp_path: Path) -> None:
    predictor, pictures = HashPredictor(apart=True), pictures_of(slide_file)
    left_out = np.ones((4, 5), bool)
    left_out[1, 2] = False
    heatmap = scan(slide_file, tmp_path / "heat.zarr", predictor=predictor, tissue_mask=left_out)
    assert what_is_wrong(heatmap, predictor.seen, pictures, pictures) == "1 cells of tissue were not scanned, first [1, 2]"
    some = next(iter(predictor.seen))
    del predictor.seen[some]
    assert "1 cells have values that no patch was given" in what_is_wrong(heatmap, predictor.seen, pictures, pictures)


def test_another_answer_is_silently_wrong_and_a_refusal_is_not(tmp_path: Path) -> None:
    def answers(score: float, code: int = 0) -> Answers:
        return Answers((Ended(("score", "--json"), code, f'{{"results": [{{"score": {score}}}]}}', ""),), tmp_path / "none.png")

    assert answers(0.4).differences(answers(0.5)) == ["score"]
    assert answers(0.5).differences(answers(0.5)) == answers(0.4, code=1).differences(answers(0.5)) == []


@pytest.mark.parametrize(
    ("code", "stderr", "outcome"),
    [
        (0, "", Outcome.RIGHT),
        (1, "Error: a.tif: cut; copy it again\n", Outcome.REFUSED),
        (1, "Error: KeyError ('x'); 'wsi-meta --debug ...' shows where it came from\n", Outcome.TRACEBACK),
        (1, "Traceback (most recent call last):\nKeyError: 'x'\n", Outcome.TRACEBACK),
        (1, "Error: one\nError: two\n", Outcome.TRACEBACK),
        (1, "", Outcome.TRACEBACK),
        (1, "Error: out of memory; close other programs\n", Outcome.MEMORY),
    ],
)
def test_how_a_command_ended(code: int, stderr: str, outcome: Outcome) -> None:
    assert Ended(("info",), code, "", stderr).outcome is outcome


def test_a_batch_has_a_line_for_each_bad_slide() -> None:
    ended = Ended(("scan",), 1, "", "Error: a.tif: cut; copy it again\nError: 1 of 2 slides failed\n")
    assert ended.foreseen
    assert not Ended(("scan",), 1, "", f"{ended.stderr}Traceback (most recent call last):\n").foreseen


def test_children_that_die_hang_or_take_all_memory_are_counted(tmp_path: Path) -> None:
    counts = run_trials("trials", trials.go_wrong, 5, 7, tmp_path, hang_s=3, most_bytes=100 << 20, preloaded=[])
    found = {finding.number: finding.outcome for finding in counts.findings}
    assert found == {
        trials.RIGHT: Outcome.RIGHT,
        trials.DIES: Outcome.DEATH,
        trials.HANGS: Outcome.HANG,
        trials.TAKES_MEMORY: Outcome.MEMORY,
        trials.RAISES: Outcome.TRACEBACK,
    }
    assert [finding.number for finding in counts.failed] == [1, 2, 3, 4]


def test_no_trial_begins_after_the_time_is_up(tmp_path: Path) -> None:
    assert run_trials("trials", trials.go_wrong, 5, 7, tmp_path, until=0, preloaded=[]).trials == 0


def test_the_table_and_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    counts = Counts("slides", (Finding(0, Outcome.RIGHT), Finding(1, Outcome.WRONG, "a cell"), Finding(2, Outcome.REFUSED)))
    assert counts.line() == "slides: 3 trials: 1 right, 1 refused in one line, 1 silently wrong"
    header, row = table([counts]).splitlines()
    assert header.split("  ")[0] == "part"
    assert row.split() == ["slides", "3", "1", "1", "0", "0", "0", "0", "1"]
    assert main(["models", "--trials", "0"]) == 0
    assert "models: 0 trials" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["mistyped"])
    assert "no part 'mistyped'; expected slides" in capsys.readouterr().err


def test_every_part_has_a_name() -> None:
    assert set(KEPT) <= set(PARTS)
