"""The object behind :func:`wsi_meta.scan`: it owns model, predictors, threads and open slides, and closes them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakSet

from wsi_meta.errors import OptionsError, truth
from wsi_meta.files.address import Address, SlidePath
from wsi_meta.heatmaps.effort import Meter
from wsi_meta.heatmaps.ownership import claimed
from wsi_meta.heatmaps.score_model import fitted_score, score_model_for
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.inference.allocator import give_back_memory
from wsi_meta.inference.options import InferenceOptions, fit_to_model
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.chance import TRAIN_AGAIN, warn_of_useless
from wsi_meta.models.model import Model
from wsi_meta.outputs.paths import as_path
from wsi_meta.progress import Progress, counted_cells, tell
from wsi_meta.scanning.crashes import Journal
from wsi_meta.scanning.engine import Engine, LocalEngine, SlideCopy, SlideScan, SlideSource, refuse_nothing, tell_end
from wsi_meta.scanning.identity import cells_of, continue_or_refuse, find_store, keep_effort, make_record, refuse_other_slide
from wsi_meta.scanning.networks import Networks, choose_compiled
from wsi_meta.scanning.options import LatePlan, ScanOptions, ScanPlan, choose_mode, options_of
from wsi_meta.scanning.threads import Threads, Turn, Visits, interrupt_all
from wsi_meta.slides.slide import Slide
from wsi_meta.tiling.grid import BLOCK_PX
from wsi_meta.tiling.tissue import TissueMask, as_tissue_mask, describe_tissue

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    TissueSource: TypeAlias = str | Path | NDArray[np.bool_] | TissueMask | None

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
    journal : a command's, which tells later ones of the slides that a crash left open; None keeps none
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
        journal: Journal | None = None,
    ) -> None:
        asked = InferenceOptions(device, precision, batch_size, tta)
        options = ScanOptions(mode, stride_px, compiled, uncertainty, block_px, workers, scheduler)
        if predictor is not None and (model is not None or asked != InferenceOptions()):
            raise OptionsError("predictor: has its own model, device, precision, batch size and tta; expected one or the other")
        self._visits, self._lining_up, self._closed = Visits(), threading.RLock(), False
        self._progress = self._visits.counted(progress) if callable(progress) else truth("progress", progress)
        self._threads = Threads()
        self.networks = Networks(model, predictor, self._threads)
        warn_of_useless(self.networks.card, self.networks.path, TRAIN_AGAIN)
        self._turns: WeakSet[Turn] = WeakSet()
        self._last: Turn | None = None
        self.journal = Journal() if journal is None else journal
        self.options = options if predictor is None else options_of(predictor, options)
        self._late, self._engine = self._resolve(asked, predictor, score_model)

    def scan(
        self,
        slide: str | Path | Address | Slide | SlideCopy,
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
        slide : see :func:`wsi_meta.scan`; of one with a copy, the copy is read, and the slide is named
        out, mpp, reader, tissue_mask, overwrite : see :func:`wsi_meta.scan`
        turn : its place among other scans, from :meth:`line_up`; None takes the last one

        Returns
        -------
        The finished store, as :func:`wsi_meta.scan`.

        Raises
        ------
        InterruptedError
            when :meth:`stop` or :meth:`close` ended it; finished blocks are kept.
        others as :func:`wsi_meta.scan`; OptionsError also when the scanner is closed
        """
        out, source, overwrite = as_path("out", out), SlideSource(slide, mpp, reader), truth("overwrite", overwrite)
        with (
            self._working(turn, source.path) as turn,
            source.opened(self.journal, turn.meter) as opened,
            claimed(out, overwrite=overwrite),
        ):
            heatmap = self._begin(opened, out, tissue_mask, turn.meter, overwrite=overwrite)
            if not heatmap.finished:
                heatmap = self._fill(SlideScan(opened, heatmap, self.plan, turn, self.journal, source.path))
            refuse_nothing(heatmap, source.path)
            if self._score_file is not None:
                heatmap = heatmap.write_fitted_score(fitted_score(heatmap, self._score_file))
            tell_end(self.note, heatmap, source.path, opened, turn)
            return heatmap

    def line_up(self, place: str = "") -> Turn:
        """Return the next place in line, for a scan that is to come before those which other threads ask for later.

        Parameters
        ----------
        place : which slide of how many it is, ``[3/12]``, as bars show it
        """
        with self._lining_up:
            self._last = Turn(self._last, self.journal.most_ahead(self._engine.prepared_ahead), place=place)
            self._turns.add(self._last)
            return self._last

    def stop(self) -> None:
        """End all scans that are in work or in line, from any thread, as Ctrl-C does; later ones may begin."""
        with self._lining_up:
            interrupt_all(self._turns)

    def close(self) -> None:
        """End what is in work, then let go of model, predictors, threads and slides.

        Within a scan, from its progress function or a handler of signals, it returns at once; call it again to let go.
        """
        self._closed = True
        self.stop()
        if not self._visits.ended():
            return
        self._engine.close()
        self._threads.close()
        self.networks.close()
        give_back_memory()  # torch's libraries need a hundred megabytes more for an instant when the process ends

    def note(self, text: str, *, level: int = logging.INFO, **facts: Any) -> None:
        """Log one line, with the facts of an event; show it on stderr, above any bar, where progress is shown."""
        tell(text, show=self._progress is True, level=level, **facts)

    @property
    def slides_in_work(self) -> int:
        """How many slides of a stream to ask for at the same time, so that what computes is never idle."""
        return self._engine.slides_in_work

    @property
    def plan(self) -> ScanPlan:
        """What the options come to on the machine that computes; see :class:`wsi_meta.scanning.options.LatePlan`."""
        return self._late.plan

    def known_identity(self) -> dict[str, Any]:
        """Return what is known of the scans' identities before the plan; see :class:`wsi_meta.scanning.options.LatePlan`."""
        return self._late.known_identity() | {"model": self.networks.hash()}

    def tuned_memory(self) -> AbstractContextManager[None]:
        """Tune this process's allocator from :meth:`begin`, or the first scan that passed its checks, on; then undo that.

        For a command or a service that has the process to itself; see :func:`wsi_meta.inference.allocator.tuned_memory`.
        """
        return self._late.tuned_memory()

    def begin(self) -> None:
        """Do what the first scan would do once nothing is left to refuse: import torch, make the plan, tune the memory."""
        self._late.begin()

    def __enter__(self) -> Scanner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _resolve(
        self, asked: InferenceOptions, predictor: Predictor | None, score: str | Path | None
    ) -> tuple[LatePlan, Engine]:
        """Return the plan, and the engine that the blocks run on; read the score model, once for all scans."""
        asked = asked if predictor is not None else fit_to_model(asked, self.networks.card)
        mode = choose_mode(self.options, self.networks.card, views=asked.views if predictor is None else predictor.views)
        self._score_file = None
        if score is not None:  # refused before the work, not after it
            kind = {"model": self.networks.hash(), "mode": mode, "stride_px": self.options.stride_px}
            self._score_file = score_model_for(score, kind, "this scan's")
        engine = _make_engine(self.options, asked, self.networks, self._threads)
        late = LatePlan(self.options, mode, asked, lambda: engine.resolve(asked) if predictor is None else predictor.plan)
        try:
            known = self.options.cluster_is_reached if self.options.on_cluster else asked.may_be_refused
            if predictor is not None or known:
                _ = late.plan  # what it refuses is refused now
            return late, engine
        except BaseException:
            engine.close()
            raise

    @contextmanager
    def _working(self, turn: Turn | None, slide: SlidePath) -> Iterator[Turn]:
        """Wait for the scan before to begin; whatever happens, let the next one go on."""
        turn = turn or self.line_up()
        with self._visits.inside():
            try:
                if self._closed:
                    raise OptionsError("the scanner is closed; make another one")
                turn.prepare()
                turn.meter.start()
                level = logging.INFO if turn.place else logging.DEBUG  # who asked for one slide knows which
                self.note(f"{turn.place} {slide}", level=level, event="slide begun", place=turn.place, slide=str(slide))
                yield turn
            except BaseException:
                turn.stop.set()
                raise
            finally:
                turn.end()

    def _begin(self, slide: Slide, out: Path, tissue_mask: TissueSource, meter: Meter, *, overwrite: bool) -> Heatmap:
        """Find tissue while the model is loaded; then open the store of this very scan, or make it."""
        grid = self.options.grid(slide, self.networks.card)
        there = None if overwrite else find_store(out)
        if there is not None:
            refuse_other_slide(there, slide, grid)
        if tissue_mask is not None:
            tissue_mask = as_tissue_mask(tissue_mask, slide)
        self.begin()  # until here torch was not needed, and what can be refused was
        self.networks.begin_loading()
        with meter.timed("tissue_s"):
            tissue = as_tissue_mask(tissue_mask, slide)
        model, cells = self.networks.model(), cells_of(tissue, grid, there)
        give_back_memory()
        compiled = choose_compiled(self.plan, int(cells.sum()), there, self._engine.compiler_found, self.note)
        record = make_record(slide, model, self.plan, grid, tissue, compiled=compiled, there=there)
        heatmap = continue_or_refuse(there, record, cells) if there else Heatmap.create(out, record, cells, overwrite=overwrite)
        if not heatmap.finished:
            self.note(describe_tissue(tissue, slide))
        return heatmap

    def _fill(self, scan: SlideScan) -> Heatmap:
        """Scan the blocks that are still open, when it is this slide's turn; then write what comes of them."""
        status, turn = scan.heatmap.status, scan.turn
        todo = {block: status[block.cells] != Status.BACKGROUND for block in scan.heatmap.open_blocks(status)}
        cells = sum(int(wanted.sum()) for wanted in todo.values())
        turn.begin(len(todo))
        scan = scan.reopen()
        self.note(f"{scan.slide.name}: {cells:,} cells, {scan.way}")
        try:
            with counted_cells(scan.source, cells, self._progress, scan.slide.name, turn.place) as report:
                self._engine.run(scan, todo, report)
        except BaseException:
            keep_effort(scan.heatmap, turn.stop_meter())
            raise
        give_back_memory()  # before lesions are sought, which needs some
        return scan.finish(self.networks.unlikeness, self.note)


def _make_engine(options: ScanOptions, asked: InferenceOptions, networks: Networks, threads: Threads) -> Engine:
    """Return where blocks are computed, as the options say; a cluster is reached, or started, when it is first needed."""
    if not options.on_cluster:
        return LocalEngine(options, networks, threads)
    from wsi_meta.scanning.cluster import ClusterEngine

    return ClusterEngine(options.scheduler, asked, networks.file, threads=options.workers)
