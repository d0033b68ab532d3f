"""One slide's scan and what came of it, and what runs a scanner's blocks.

The latter is the one thing that differs between this machine, which is here, and a dask cluster.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wsi_meta.errors import OptionsError, SlideReadError, named_by_source
from wsi_meta.files.address import Address, SlidePath, slide_name, slide_path
from wsi_meta.heatmaps.effort import Meter, ScanEffort
from wsi_meta.heatmaps.lesions import lesion_facts
from wsi_meta.heatmaps.ownership import remove_store
from wsi_meta.heatmaps.record import ScanResult
from wsi_meta.heatmaps.scoring import sum_up
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.inference.options import InferenceOptions, InferencePlan, compiler_found, resolve_inference
from wsi_meta.outputs.paths import real_path
from wsi_meta.quality.judging import Unlikeness, judge_slide
from wsi_meta.quality.verdict import blurred_share, folded_share
from wsi_meta.scanning.crashes import Journal
from wsi_meta.scanning.networks import Networks
from wsi_meta.scanning.options import ScanOptions, ScanPlan
from wsi_meta.scanning.threads import Threads, Turn
from wsi_meta.scanning.worker import BlockWorker
from wsi_meta.slides.slide import Slide, open_slide
from wsi_meta.tiling.grid import Block
from wsi_meta.words import format_probability, format_score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Engine", "LocalEngine", "SlideCopy", "SlideScan", "SlideSource", "Todo", "refuse_nothing", "tell_end"]

logger = logging.getLogger(__name__)

FEW_CELLS = 20
"""Fewer may well look alike."""
SAME = 1e-3
"""Probabilities differ by less where all are one, for each unit of the odds."""
Todo = Mapping[Block, "NDArray[np.bool_]"]
"""The blocks that are still to be scanned, in order, each with its cells that hold tissue: bool (rows, cols)."""


@dataclass(frozen=True)
class SlideCopy:
    """A slide, and a copy of it on a faster disk, which is read instead."""

    slide: SlidePath
    copy: Path


@dataclass(frozen=True)
class SlideSource:
    """Where a slide's pixels come from: a file, a copy of it, or a slide that is open and stays so."""

    slide: str | Path | Address | Slide | SlideCopy
    mpp: float | None
    reader: str

    @property
    def path(self) -> SlidePath:
        """The slide itself, not its copy."""
        if isinstance(self.slide, SlideCopy):
            return self.slide.slide
        return self.slide.path if isinstance(self.slide, Slide) else slide_path(self.slide)

    @contextmanager
    def opened(self, journal: Journal, meter: Meter) -> Iterator[Slide]:
        """Open the slide and close it in the end; errors name the slide itself."""
        if not isinstance(self.slide, Slide):
            copy = self.slide.copy if isinstance(self.slide, SlideCopy) else None
            with (
                named_by_source(self.path, copy),
                journal.opened(self.path),
                open_slide(copy or self.path, mpp=self.mpp, reader=self.reader) as opened,
            ):
                yield opened
        elif self.mpp is not None or self.reader != "auto":
            raise OptionsError(f"{self.path}: is open already; expected mpp and reader where it is opened")
        else:
            meter.count_tiles(self.slide.tiles_decoded, before=True)
            yield self.slide


@dataclass(frozen=True)
class SlideScan:
    """One slide's scan: what is read, where the values go, how, its place among other scans, and who notes that it is open."""

    slide: Slide
    heatmap: Heatmap
    plan: ScanPlan
    turn: Turn
    journal: Journal
    source: SlidePath
    """Where the slide lies; what is read may be a copy."""

    @property
    def way(self) -> str:
        """How the cells are computed, in words."""
        return self.plan.describe(compiled=self.heatmap.record.identity.compiled)

    def reopen(self) -> SlideScan:
        """Write that the scan goes on: what it came to before will be something else, as unreadable cells are tried again."""
        return replace(self, heatmap=self.heatmap.reopen())

    def finish(self, unlikeness: Unlikeness, note: Callable[[str], None]) -> Heatmap:
        """Write what comes of the blocks once all are scanned: score, lesions, verdict, and what the scan took."""
        heatmap, meter = self.heatmap, self.turn.meter
        status, probability = heatmap.status, heatmap.probability
        result, lesions = sum_up(status, probability), lesion_facts(heatmap.record, probability, status)
        with meter.timed("computing_s"):
            known, scanned = _known_figures(heatmap, result), status == Status.SCANNED
            verdict = judge_slide(self.slide, heatmap.grid, scanned, known, unlikeness)
        _warn_of_one_value(self.slide.name, probability[scanned])
        if not verdict.ok:
            note(f"{self.slide.name}: {verdict.summary_with_figures}")
        meter.count_tiles(self.slide.tiles_decoded)
        heatmap = replace(heatmap, record=heatmap.record.with_run(self.turn.stop_meter()))
        return heatmap.finalise(result, lesions, verdict)


def refuse_nothing(heatmap: Heatmap, slide: SlidePath) -> None:
    """Leave no store behind that holds nothing but unreadable tissue.

    Raises
    ------
    SlideReadError
    """
    cells = heatmap.result.cells if heatmap.result else {}
    if cells.get("unreadable") and not cells["scanned"]:
        remove_store(real_path(heatmap.root))
        raise SlideReadError(f"{slide}: none of its tissue can be read; this scan leaves no heatmap; copy the slide again")


def tell_end(note: Callable[..., None], heatmap: Heatmap, source: SlidePath, opened: Slide, turn: Turn) -> None:
    """Note what came of a slide's scan, and what was fetched of a slide at an address."""
    told, facts = _describe_end(heatmap, source, turn.place, turn.stop_meter())
    note(told, event="finished", **facts)
    if opened.bytes_fetched is not None:
        note(_describe_fetched(*opened.bytes_fetched, opened.name, turn.place))


class Engine(Protocol):
    """Where the blocks of a scanner are computed."""

    slides_in_work: int
    """How many slides of a stream are in work at the same time, at most."""
    prepared_ahead: int
    """How many slides are prepared while the blocks of the one before them have not begun."""

    def resolve(self, options: InferenceOptions) -> InferencePlan:
        """Return what the options come to where the blocks are computed; DeviceError when something is missing there."""

    def compiler_found(self, device: str) -> bool:
        """Tell whether the compiler that ``torch.compile`` needs is there."""

    def run(self, scan: SlideScan, todo: Todo, report: Callable[[int], None]) -> None:
        """Scan blocks and write them; `report` is told how many cells are done, as they are."""

    def close(self) -> None:
        """Let go of all that is kept."""


class LocalEngine:
    """Runs a scanner's blocks in this process; see :class:`Engine`. One slide is computed, the next one prepared."""

    slides_in_work, prepared_ahead = 2, 1

    def __init__(self, options: ScanOptions, networks: Networks, threads: Threads) -> None:
        self._options, self._networks, self._threads = options, networks, threads

    def resolve(self, options: InferenceOptions) -> InferencePlan:
        """Return what the options come to on this machine."""
        return resolve_inference(options)

    def compiler_found(self, device: str) -> bool:
        """Tell whether this machine has the compiler that ``torch.compile`` needs."""
        return compiler_found(device)

    def run(self, scan: SlideScan, todo: Todo, report: Callable[[int], None]) -> None:
        """Scan blocks on as many threads as the options say."""
        grid = scan.heatmap.grid
        predictor = self._networks.predictor(scan.plan, compiled=scan.heatmap.record.identity.compiled)
        working = partial(scan.journal.working, scan.source)
        worker = BlockWorker(scan.slide, predictor, self._threads, grid, scan.turn.stop, working, scan.turn.meter)
        scan.slide.expect(grid.mpp, chain.from_iterable(worker.windows(block, wanted) for block, wanted in todo.items()))

        def run(block: Block) -> None:
            scan.turn.take_block()
            worker.scan(scan.heatmap, block, report)

        self._compute(run, list(todo), scan.turn)

    def close(self) -> None:
        """Keep nothing: what was opened is the scanner's."""

    def _compute(self, run: Callable[[Block], None], blocks: Sequence[Block], turn: Turn) -> None:
        # and not dask.compute, which loads distributed, and that silences other libraries' logs
        from dask import local, threaded

        # dask takes tasks by the order of their names: neighbours follow each other and share stored tiles
        tasks = {f"block-{number:08d}": (run, block) for number, block in enumerate(blocks)}
        with ThreadPoolExecutor(max(1, self._options.workers), "scanning") as pool:
            try:
                if self._options.scheduler == "synchronous":
                    local.get_sync(tasks, list(tasks))
                else:
                    threaded.get(tasks, list(tasks), pool=pool)
            except BaseException:
                turn.stop.set()  # or blocks that are in work would be waited for to their end
                raise


def _warn_of_one_value(name: str, found: NDArray[np.float32]) -> None:
    """Warn where all scanned cells have one probability, as a head of zeros or a senseless temperature gives it."""
    if len(found) >= FEW_CELLS and (least := float(found.min())) >= (most := float(found.max())) - SAME * min(least, 1 - most):
        told = "%s: all %s scanned cells have the probability %s: the model tells nothing apart; check it on labelled patches"
        logger.warning(told, name, f"{len(found):,}", format_probability(most, 4))


def _known_figures(heatmap: Heatmap, result: ScanResult) -> dict[str, float | None]:
    """Return what a store whose blocks are written says of its slide, by the names of a verdict's figures."""
    measures = heatmap.measures
    unread, scanned = result.cells["unreadable"], result.cells["scanned"]
    return {
        "unread": unread / (unread + scanned) if unread + scanned else None,
        "inked": heatmap.record.tissue.inked,
        "blurred": blurred_share(measures["focus"]) if "focus" in measures else None,
        "folded": folded_share(measures["darkness"]) if "darkness" in measures else None,
    }


def _describe_end(heatmap: Heatmap, slide: SlidePath, place: str, effort: ScanEffort) -> tuple[str, dict[str, Any]]:
    """Return what came of a slide's scan and what this run of it took: as one line, and as plain JSON values."""
    complete, score = heatmap.finished, heatmap.result.score if heatmap.result is not None else None
    found = heatmap.record.why_incomplete if score is None else f"score {format_score(score, 4, complete=complete)}"
    facts = {"place": place, "slide": str(slide), "store": str(heatmap.path), "score": score, "complete": complete}
    how = f"; {effort.summary}" if effort.cells else "" if score is None else "; finished before"
    return f"{place} {slide_name(slide)}: {found}{how}".lstrip(), facts | effort.to_facts()


def _describe_fetched(fetched: int, whole: int, name: str, place: str) -> str:
    """Return in one line how many bytes were fetched of a slide at an address, and how many it has."""
    return f"{place} {name}: {fetched / 1e6:,.1f} MB fetched of {whole / 1e6:,.1f} MB ({100 * fetched / whole:.1f} %)".lstrip()
