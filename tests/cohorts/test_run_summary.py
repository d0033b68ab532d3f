"""A run tells its events, and at its end where the time went; its advice is from the figures alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from fakes import DarknessPredictor
from slide_files import texture, write_slide

from wsi_meta.cohorts.batch import scan_slides
from wsi_meta.cohorts.run_summary import closing_line, what_limits
from wsi_meta.heatmaps.effort import ScanEffort
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.models.model import Model

ON_CPU: dict[str, Any] = {"device": "cpu", "precision": "bf16", "views": 1}


def effort(**seconds: float) -> ScanEffort:
    return ScanEffort(cells=900, **{f"{name}_s": value for name, value in seconds.items()})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("taken", "passed_s", "machine", "told"),
    [
        (effort(reading=80, computing=30, waiting=40), 75, ON_CPU, "Reading is what limits; try more --workers, or --stage"),
        (effort(reading=20, computing=70, waiting=2), 75, ON_CPU, "a GPU, or --precision int8, which is less exact"),
        (
            effort(reading=20, computing=70, waiting=2),
            75,
            ON_CPU | {"precision": "int8"},
            "Computing is what limits; try a GPU",
        ),
        (effort(computing=70), 75, ON_CPU | {"precision": "fp32", "int8": False}, "Computing is what limits; try a GPU"),
        (
            effort(computing=70),
            75,
            {"device": "cuda", "precision": "bf16", "views": 8},
            "more GPUs (--gpus), or fewer than 8 views",
        ),
        (effort(reading=10, computing=20, writing=60), 60, ON_CPU, "Writing is what limits; try an --out on a faster disk"),
        (effort(reading=10, computing=20, tissue=60), 80, ON_CPU, "Finding tissue is what limits; try --tissue-mask"),
        (effort(reading=1, computing=2), 9, ON_CPU, "Starting is what took most of the time: scan more slides"),
        (effort(reading=40, computing=40, waiting=20), 60, ON_CPU, ""),
        (effort(reading=60, computing=30, waiting=5), 40, ON_CPU, ""),
    ],
)
def test_what_limits(taken: ScanEffort, passed_s: float, machine: dict[str, Any], told: str) -> None:
    limit = what_limits(taken, passed_s, **machine)
    assert told in limit
    assert bool(told) == bool(limit)
    assert "int8" not in limit or machine.get("int8", True)
    assert "--stage" not in what_limits(taken, passed_s, **machine, staged=True)


def test_the_line() -> None:
    taken = effort(reading=61, computing=30, writing=2, tissue=7, waiting=70)
    line = closing_line(taken, slides=12, failed=1, passed_s=90, limit="Reading is what limits")
    shares = "reading 61%, computing 30%, writing 2%, finding tissue 7%; the network waited for pixels 70% of its time"
    assert line == f"12 slides in 1 min 30 s, 1 failed, 900 cells, 10 cells/s: {shares}. Reading is what limits"
    assert closing_line(taken, slides=6, failed=1, incomplete=1, passed_s=90, limit="").startswith(
        "6 slides in 1 min 30 s, 1 failed, 1 incomplete, 900 cells"
    )
    assert (
        closing_line(ScanEffort(), slides=1, failed=0, passed_s=0.2, limit="") == "1 slide in 0.2 s: nothing was left to scan"
    )


def test_the_events_of_a_run(tmp_path: Path, thin_model: Model, caplog: pytest.LogCaptureFixture) -> None:
    slides = [write_slide(tmp_path / f"{name}.tif", texture(100, 130, seed)) for seed, name in enumerate("ab")]
    (tmp_path / "bad.tif").write_text("no slide")
    caplog.set_level(logging.DEBUG, "wsi_meta")
    asked: dict[str, Any] = {"predictor": DarknessPredictor(thin_model), "tissue_mask": "none"}
    scan_slides([slides[0], tmp_path / "bad.tif", slides[1]], tmp_path / "out", **asked)
    told = [vars(record)["facts"] for record in caplog.records if vars(record).get("facts")]
    assert [facts["event"] for facts in told[:1] + told[-1:]] == ["run begun", "run finished"]
    of_slides = [(facts["event"], Path(facts["slide"]).stem, facts["place"]) for facts in told[1:-1]]
    assert sorted(of_slides) == [
        ("failed", "bad", "[2/3]"),
        ("finished", "a", "[1/3]"),
        ("finished", "b", "[3/3]"),
        ("slide begun", "a", "[1/3]"),
        ("slide begun", "b", "[3/3]"),
        ("slide begun", "bad", "[2/3]"),
        ("traceback", "bad", "[2/3]"),
    ]
    finished = [facts for facts in told if facts["event"] == "finished"]
    for facts in finished:
        kept = Heatmap.open(facts["store"]).record.effort
        assert kept is not None
        assert facts["cells"] == kept.cells == 20
        assert facts["computing_s"] == pytest.approx(kept.computing_s, abs=1e-3)
        assert (facts["complete"], facts["runs"]) == (True, 1)
    end = told[-1]
    assert (end["slides"], end["failed"], end["cells"], end["error"]) == (3, 1, 40, None)
    assert end["reading_s"] == pytest.approx(sum(facts["reading_s"] for facts in finished), abs=0.01)

    caplog.clear()
    scan_slides([slides[0]], tmp_path / "out", **asked)
    assert "1 slide in " in caplog.text
    assert caplog.messages[-1].endswith("nothing was left to scan"), "what an earlier run took is not told again"


def test_a_run_that_is_broken_off_says_so(tmp_path: Path, thin_model: Model, caplog: pytest.LogCaptureFixture) -> None:
    class Interrupted(DarknessPredictor):
        def predict_block(self, *_arguments: Any) -> Any:
            raise KeyboardInterrupt

    slide = write_slide(tmp_path / "a.tif", texture(100, 130))
    caplog.set_level(logging.DEBUG, "wsi_meta")
    with pytest.raises(KeyboardInterrupt):
        scan_slides([slide], tmp_path / "out", predictor=Interrupted(thin_model))
    facts = vars(caplog.records[-1])["facts"]
    assert (facts["event"], facts["error"]) == ("run finished", "KeyboardInterrupt")
