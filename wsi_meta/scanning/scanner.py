"""The object behind :func:`wsi_meta.scan`: it owns model, predictors, threads and open slides, and closes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from wsi_meta.errors import OptionsError
from wsi_meta.heatmaps.lesions import lesion_facts
from wsi_meta.heatmaps.ownership import claimed
from wsi_meta.heatmaps.score_model import fitted_score, load_score_model
from wsi_meta.heatmaps.scoring import known_figures, refuse_nothing, sum_up
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.inference.allocator import give_back_memory
from wsi_meta.inference.options import InferenceOptions, worth_compiling
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.model import Model
from wsi_meta.progress import Progress, counted_cells, note
from wsi_meta.quality.judging import judge_slide
from wsi_meta.scanning.crashes import Journal
from wsi_meta.scanning.engine import Engine, LocalEngine, SlideScan
from wsi_meta.scanning.identity import continue_or_refuse, find_store, make_record, refuse_other_slide
from wsi_meta.scanning.networks import Networks
from wsi_meta.scanning.options import LatePlan, ScanOptions, ScanPlan, choose_mode, options_of
from wsi_meta.scanning.threads import Threads, Turn, interrupt_all
from wsi_meta.slides.slide import Slide, open_slide
from wsi_meta.tiling.grid import BLOCK_PX
from wsi_meta.tiling.tissue import TissueMask, as_tissue_mask, describe_tissue

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Scanner"]


class Scanner:
    """Scans slides into heatmaps with one model. Threads may share it; several may live side by side.

    A scanner owns its model, its predictors, its threads and the slides that it opens. :meth:`close`, or the end of a ``with``
    block, closes them; nothing else is kept in the process. Slides are computed in the order in which they were asked for; the
    next one is prepared while one is computed.

    Parameters
    ----------
    model : model file, ``default`` or None for the embedded one, or a loaded :class:`wsi_meta.Model`
    predictor : a :class:`wsi_meta.Predictor` to use as it is, instead of `model`, `device`, `precision`, `compiled`,
        `batch_size`, `tta` and a dense or patch `mode`; it is not closed
    progress : True shows bars and notes on stderr; a function is told slide, cells done and cells in all
    others : see :func:`wsi_meta.scan`

    Raises
    ------
    OptionsError
        when options do not exist or do not go together.
    ModelFileError, DataError, DeviceError

    What can be refused is refused before torch is imported, which takes seconds.
    """

    def __init__(
        self,
        model: str | Path | Model | None = None,
        *,
        mode: str = "auto",
        stride_px: int = 32,
        device: str = "auto",
        precision: str = "auto",
        compiled: str = "auto",
        batch_size: int = 64,
        tta: bool | int = False,
        uncertainty: bool = False,
        workers: int = 2,
        score_model: str | Path | None = None,
        block_px: int = BLOCK_PX,
        scheduler: Any = "threads",
        predictor: Predictor | None = None,
        progress: Progress = False,
    ) -> None:
        asked = InferenceOptions(device, precision, batch_size, tta)
        self._options = ScanOptions(mode, stride_px, compiled, uncertainty, block_px, workers, scheduler)
        if predictor is not None and (model is not None or asked != InferenceOptions()):
            raise OptionsError("predictor: has its own model, device, precision, batch size and tta; expected one or the other")
        if score_model is not None:
            load_score_model(score_model)  # refused before the work, not after it
        self._score_model, self._progress = score_model, progress
        self._threads = Threads()
        self.networks = Networks(model, predictor, self._threads)
        self._idle, self._in_work = threading.Condition(), 0
        self._turns: WeakSet[Turn] = WeakSet()
        self._last: Turn | None = None
        self._closed = False
        self.journal = Journal()  # a command's own takes its place
        self.late, self._engine = self._resolve(asked, predictor)

    def scan(
        self,
        slide: str | Path | Slide,
        out: str | Path,
        *,
        mpp: float | None = None,
        reader: str = "auto",
        tissue_mask: str | Path | NDArray[np.bool_] | TissueMask | None = None,
        overwrite: bool = False,
        turn: Turn | None = None,
    ) -> Heatmap:
        """Scan a slide into a heatmap store; go on where an interrupted scan of the same identity stopped.

        Parameters
        ----------
        slide, out, mpp, reader, tissue_mask, overwrite : see :func:`wsi_meta.scan`
        turn : its place among other scans, from :meth:`line_up`; None takes the last one

        Returns
        -------
        The finished store, as :func:`wsi_meta.scan`.

        Raises
        ------
        InterruptedError
            when :meth:`stop` or :meth:`close` ended it; finished blocks are kept.
        others
            as :func:`wsi_meta.scan`.
        """
        out = Path(out)
        with self._working(turn) as turn, self._opened(slide, mpp, reader) as opened, claimed(out, overwrite=overwrite):
            heatmap = self._begin(opened, out, tissue_mask, overwrite=overwrite)
            if not heatmap.finished:
                heatmap = self._fill(SlideScan(opened, heatmap, self.plan, turn, self.journal))
            refuse_nothing(heatmap, opened.path)
            if self._score_model is not None:
                heatmap = heatmap.with_fitted_score(fitted_score(heatmap, self._score_model))
            return heatmap

    def line_up(self) -> Turn:
        """Return the next place in line, for a scan that is to come before those which other threads ask for later."""
        with self._idle:
            self._last = Turn(self._last)
            self._turns.add(self._last)
            return self._last

    def stop(self) -> None:
        """End all scans that are in work or in line, from another thread, as Ctrl-C does; later ones may begin."""
        interrupt_all(self._turns)

    def close(self) -> None:
        """End what is in work, then let go of model, predictors, threads and slides."""
        with self._idle:
            self._closed = True
            self.stop()
            self._idle.wait_for(lambda: not self._in_work)
        self._engine.close()
        self._threads.close()
        self.networks.close()
        give_back_memory()  # torch's libraries need a hundred megabytes more for an instant when the process ends

    def note(self, text: str) -> None:
        """Print one line on stderr, above any bar, where progress is shown."""
        note(text, enabled=self._progress is True)

    @property
    def plan(self) -> ScanPlan:
        """What the options come to on the machine that computes; see :class:`wsi_meta.scanning.options.LatePlan`."""
        return self.late.plan

    def tuned_memory(self) -> AbstractContextManager[None]:
        """Tune this process's allocator from :meth:`begin`, or the first scan that passed its checks, on; then undo that.

        For a command or a service that has the process to itself; see :func:`wsi_meta.inference.allocator.tuned_memory`.
        """
        return self.late.tuned_memory()

    def begin(self) -> None:
        """Do what the first scan would do once nothing is left to refuse: import torch, make the plan, tune the memory."""
        self.late.begin()

    def __enter__(self) -> Scanner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _resolve(self, asked: InferenceOptions, predictor: Predictor | None) -> tuple[LatePlan, Engine]:
        """Return the plan, and the engine that the blocks run on."""
        options = self._options if predictor is None else options_of(predictor, self._options)
        mode = choose_mode(options, self.networks.card, views=asked.views if predictor is None else predictor.views)
        engine: Engine = LocalEngine(options, self.networks, self._threads)
        if options.on_cluster:
            from wsi_meta.scanning.cluster import ClusterEngine

            engine = ClusterEngine(options.scheduler, asked, self.networks.path)
        late = LatePlan(options, mode, asked, lambda: engine.resolve(asked) if predictor is None else predictor.plan)
        try:
            if predictor is not None or options.on_cluster or asked.may_be_refused:
                late.make()
            return late, engine
        except BaseException:
            engine.close()
            raise

    @contextmanager
    def _working(self, turn: Turn | None) -> Iterator[Turn]:
        """Wait for the scan before to begin; whatever happens, let the next one go on."""
        turn = turn or self.line_up()
        with self._idle:
            self._in_work += 1
        try:
            if self._closed:
                raise RuntimeError("the scanner is closed; make another one")
            turn.prepare()
            yield turn
        except BaseException:
            turn.stop.set()
            raise
        finally:
            turn.end()
            with self._idle:
                self._in_work -= 1
                self._idle.notify_all()

    @contextmanager
    def _opened(self, slide: str | Path | Slide, mpp: float | None, reader: str) -> Iterator[Slide]:
        """Open a slide and close it in the end; one that is given open stays so."""
        if not isinstance(slide, Slide):
            with self.journal.opened(slide), open_slide(slide, mpp=mpp, reader=reader) as opened:
                yield opened
        elif mpp is not None or reader != "auto":
            raise OptionsError(f"{slide.path}: is open already; expected mpp and reader where it is opened")
        else:
            yield slide

    def _begin(
        self,
        slide: Slide,
        out: Path,
        tissue_mask: str | Path | NDArray[np.bool_] | TissueMask | None,
        *,
        overwrite: bool,
    ) -> Heatmap:
        """Find tissue while the model is loaded; then open the store of this very scan, or make it."""
        grid = self.late.options.grid(slide, self.networks.card)
        there = None if overwrite else find_store(out)
        if there is not None:
            refuse_other_slide(there, slide, grid)
        if tissue_mask is not None:
            tissue_mask = as_tissue_mask(tissue_mask, slide)
        self.begin()  # until here torch was not needed, and what can be refused was
        self.networks.begin_loading()
        tissue = as_tissue_mask(tissue_mask, slide)
        model, cells = self.networks.model(), tissue.cells(grid)
        give_back_memory()
        compiled = self._choose_compiled(int(cells.sum()), there)
        record = make_record(slide, model, self.plan, grid, tissue, compiled=compiled)
        if there is not None:
            heatmap = continue_or_refuse(there, record, cells)
        else:
            heatmap = Heatmap.create(out, record, cells, overwrite=overwrite)
        if not heatmap.finished:
            self.note(describe_tissue(tissue, slide))
        return heatmap

    def _fill(self, scan: SlideScan) -> Heatmap:
        """Scan the blocks that are still open, when it is this slide's turn; then write what comes of them."""
        heatmap, status = scan.heatmap, scan.heatmap.status
        todo = {block: status[block.cells] != Status.BACKGROUND for block in heatmap.open_blocks(status)}
        cells = sum(int(wanted.sum()) for wanted in todo.values())
        scan.turn.begin(len(todo))
        self.note(f"{heatmap.path.stem}: {cells:,} cells, {scan.plan.describe(compiled=heatmap.record.identity.compiled)}")
        with counted_cells(scan.slide.path, cells, self._progress) as report:
            self._engine.run(scan, todo, report)
        give_back_memory()  # before lesions are sought, which needs some
        status, probability = heatmap.status, heatmap.probability
        result, scanned = sum_up(status, probability), status == Status.SCANNED
        known = known_figures(heatmap, result)
        verdict = judge_slide(scan.slide, heatmap.grid, scanned, known, self.networks.unlikeness)
        if not verdict.ok:
            self.note(f"{heatmap.path.stem}: {verdict.told_with_figures}")
        return heatmap.finalise(result, lesion_facts(heatmap.record, probability), verdict)

    def _choose_compiled(self, cells: int, there: Heatmap | None) -> bool:
        """Tell whether to compile: as asked; as the store that is there was begun; else if the slide's cells repay it."""
        plan = self.plan
        if plan.compiled != "auto":
            return plan.compiled == "yes"
        if there is not None:
            return there.record.identity.compiled
        device, precision = plan.inference.device, plan.inference.precision
        if not worth_compiling(device, precision, cells=cells, views=plan.views, dense=plan.dense):
            return False
        if not (found := self._engine.compiler_found(device)):
            self.note("no C++ compiler (g++ or clang++) was found: the network runs uncompiled, which is slower")
        return found
