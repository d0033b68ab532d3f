"""What is asked of a scan, and the plan that this comes to on the machine that computes, with the model at hand."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_meta.errors import OptionsError, one_of, settle, truth, whole_number
from wsi_meta.inference.allocator import tuned_memory
from wsi_meta.inference.options import InferenceOptions, InferencePlan, runs_in_bands
from wsi_meta.inference.predictor import DENSE_HALO_PX, DENSE_STRIDE_PX
from wsi_meta.models.dihedral import averaging_of
from wsi_meta.scanning.gpus import GpuProcesses
from wsi_meta.tiling.grid import BLOCK_PX, STRIDES, PatchGrid

if TYPE_CHECKING:
    from wsi_meta.inference.predictor import Predictor
    from wsi_meta.models.card import ModelCard
    from wsi_meta.slides.slide import Slide

__all__ = [
    "COMPILED",
    "MODES",
    "LatePlan",
    "ScanOptions",
    "ScanPlan",
    "choose_mode",
    "choose_scheduler",
    "options_of",
    "plan_of",
]

MODES = ("auto", "patch", "dense")
COMPILED = ("auto", "yes", "no")
SCHEDULERS = ("threads", "synchronous")
ADDRESS = re.compile(r"[a-z]+://.+")
"""Of a dask scheduler."""


@dataclass(frozen=True)
class ScanOptions:
    """What was asked of a scan beside the network; see :func:`wsi_meta.scan` for each.

    Raises
    ------
    OptionsError
        when a value does not exist.
    """

    mode: str = "auto"
    stride_px: int = 32
    compiled: str = "auto"
    uncertainty: bool = False
    block_px: int = BLOCK_PX
    workers: int = 2
    scheduler: Any = "threads"
    """``threads``, ``synchronous``; for a dask cluster a ``distributed.Client``, its scheduler's address, or the path of the
    scheduler's file; or :class:`.GpuProcesses`."""

    def __post_init__(self) -> None:
        settle(self, **{name: whole_number(name, getattr(self, name)) for name in ("stride_px", "block_px", "workers")})
        settle(self, uncertainty=truth("uncertainty", self.uncertainty), mode=one_of("mode", self.mode, MODES))
        settle(self, compiled=one_of("compiled", self.compiled, COMPILED))
        if self.stride_px not in STRIDES:
            raise OptionsError(f"stride {self.stride_px}; expected one of {STRIDES}")
        if self.mode == "dense" and self.stride_px != DENSE_STRIDE_PX:
            raise OptionsError(f"mode dense, stride {self.stride_px}; expected stride {DENSE_STRIDE_PX}, or mode patch")
        if self.block_px < 1 or self.workers < 0:
            raise OptionsError(f"blocks of {self.block_px} px, {self.workers} workers; expected at least 1 px and 0 workers")
        if self.on_cluster and not self._is_cluster:
            told = self.scheduler if isinstance(self.scheduler, str) else type(self.scheduler).__name__
            raise OptionsError(
                f"scheduler {told}; expected {' or '.join(SCHEDULERS)}, or a distributed.Client, a scheduler's address "
                "(tcp://HOST:PORT), the Path of its file, or GpuProcesses"
            )

    def grid(self, slide: Slide, card: ModelCard) -> PatchGrid:
        """Return the cells of a slide for a model; SlideReadError when the slide is too coarse for it."""
        shown = card.preprocessing
        slide.check_resolution(shown.mpp)
        return PatchGrid(
            slide.width, slide.height, slide.mpp, shown.mpp, shown.patch_px, self.stride_px, block_px=self.block_px
        )

    @property
    def on_cluster(self) -> bool:
        """Whether the blocks go to other processes."""
        return self.scheduler not in SCHEDULERS if isinstance(self.scheduler, str) else True

    @property
    def on_other_machines(self) -> bool:
        """Whether those processes may be on other machines."""
        return self.on_cluster and not isinstance(self.scheduler, GpuProcesses)

    @property
    def cluster_is_reached(self) -> bool:
        """Whether a client of a cluster was given, so that it is known already what its machines can do."""
        return hasattr(self.scheduler, "scheduler_info")

    @property
    def _is_cluster(self) -> bool:
        if isinstance(self.scheduler, str):
            return ADDRESS.fullmatch(self.scheduler) is not None
        return self.cluster_is_reached or isinstance(self.scheduler, Path | GpuProcesses)


@dataclass(frozen=True)
class ScanPlan:
    """What the options come to: nothing is ``auto`` any more, but for compiling, which depends on each slide's size."""

    mode: str
    """``patch`` or ``dense``."""
    stride_px: int
    block_px: int
    uncertainty: bool
    compiled: str
    """``yes``, ``no``, or ``auto`` until a slide's cells are counted."""
    inference: InferencePlan

    @property
    def dense(self) -> bool:
        """Whether the trunk passes over whole rectangles of cells."""
        return self.mode == "dense"

    @property
    def halo_px(self) -> int:
        """Pixels beyond a block's patches that are seen on each side."""
        return DENSE_HALO_PX if self.dense else 0

    @property
    def views(self) -> int:
        """How many views of each patch are predicted."""
        return self.inference.views

    @property
    def in_bands(self) -> bool:
        """Whether rectangles are computed in bands from top to bottom; what the allocator is tuned for."""
        return runs_in_bands(self.inference.device_kind, dense=self.dense, compiled=self.compiled == "yes")

    def describe(self, *, compiled: bool) -> str:
        """Return mode, precision and whether the network is compiled, in words."""
        return f"{self.mode} mode, {self.inference.precision}{', compiled' if compiled else ''}"


def options_of(predictor: Predictor, options: ScanOptions) -> ScanOptions:
    """Return options for a predictor that is given: it is dense or not, compiled or not, and stays in its process.

    Raises
    ------
    OptionsError
        when the options say otherwise.
    """
    mode, compiled = "dense" if predictor.halo_px else "patch", "yes" if predictor.compiled else "no"
    if options.mode not in ("auto", mode) or options.compiled not in ("auto", compiled) or options.on_cluster:
        raise OptionsError(
            f"predictor: {mode} mode, compiled {compiled}, in this process; expected options that agree, or none"
        )
    return replace(options, mode=mode, compiled=compiled)


def choose_mode(options: ScanOptions, card: ModelCard, *, views: int) -> str:
    """Return ``patch`` or ``dense``; ``auto`` is dense when the model's card allows it and the stride is the trunk's.

    Raises
    ------
    OptionsError
        when the model's card does not allow the mode, or uncertainty is asked for without test-time averaging.
    """
    if options.uncertainty and views == 1:
        raise OptionsError("uncertainty is the spread over the views of tta; expected tta with it")
    if card.foreign and (options.on_cluster or options.compiled == "yes"):
        found = "a cluster's scheduler" if options.on_cluster else "compiled yes"
        raise OptionsError(
            f"{card.architecture}, {found}: a module of one's own is run as it is, in this process; expected neither"
        )
    if options.mode == "dense" and not card.dense:
        raise OptionsError("mode dense: the model's card does not allow it (dense: false); expected mode patch")
    if options.mode == "auto":
        return "dense" if card.dense and options.stride_px == DENSE_STRIDE_PX else "patch"
    return options.mode


def choose_scheduler(address: str | None, file: Path | None, gpus: str | None) -> Any:
    """Return a scan's ``scheduler`` for what a command was told: one of them, or nothing, which is this process's threads.

    Raises
    ------
    OptionsError
        when it was told several.
    """
    told = {"--scheduler": address, "--scheduler-file": file, "--gpus": None if gpus is None else GpuProcesses(gpus)}
    given = {name: value for name, value in told.items() if value is not None}
    if len(given) > 1:
        raise OptionsError(f"{' and '.join(given)}; expected one of them")
    return next(iter(given.values()), "threads")


def plan_of(options: ScanOptions, mode: str, inference: InferencePlan) -> ScanPlan:
    """Return the plan for options whose mode and inference are known."""
    return ScanPlan(mode, options.stride_px, options.block_px, options.uncertainty, options.compiled, inference)


class LatePlan:
    """A scan's plan that is made when it is first needed, and memory that is tuned by it: both need torch, which takes seconds.

    Parameters
    ----------
    options, mode : of the scan, resolved
    asked : what was asked of the network
    resolve : returns what inference comes to on the machine that computes
    """

    def __init__(self, options: ScanOptions, mode: str, asked: InferenceOptions, resolve: Callable[[], InferencePlan]) -> None:
        self.options, self._mode, self._asked, self._resolve = options, mode, asked, resolve
        self._making = threading.Lock()
        self._plan: ScanPlan | None = None
        self._tuned: ExitStack | None = None

    @property
    def plan(self) -> ScanPlan:
        """Nothing in it is ``auto``, but for compiling, which depends on each slide. It is made when it is first asked for."""
        with self._making:
            if self._plan is None:
                self._plan = plan_of(self.options, self._mode, self._resolve())
            return self._plan

    def known_identity(self) -> dict[str, Any]:
        """Return what is known of the scans' identities without torch, by the names of :class:`.ScanIdentity`'s fields.

        What ``auto`` comes to is not among it, unless the plan is made.
        """
        asked, plan = self._asked, self._plan
        device, precision, views = asked.device.partition(":")[0], asked.precision, asked.views
        if plan is not None:
            device, precision, views = plan.inference.device_kind, plan.inference.precision, plan.views
        known = {"device": device, "precision": precision, "compiled": self.options.compiled}
        return {
            "mode": self._mode,
            "halo_px": DENSE_HALO_PX if self._mode == "dense" else 0,
            "test_time_averaging": averaging_of(views),
            "uncertainty": self.options.uncertainty,
        } | {name: value == "yes" if name == "compiled" else value for name, value in known.items() if value != "auto"}

    @contextmanager
    def tuned_memory(self) -> Iterator[None]:
        """Tune memory from :meth:`begin` on, until the end of the context."""
        with ExitStack() as self._tuned:
            yield
        self._tuned = None

    def begin(self) -> None:
        """Make the plan; within :meth:`tuned_memory`, tune the memory where a CPU of this machine computes."""
        plan = self.plan
        with self._making:
            stack, self._tuned = self._tuned, None
            if stack is not None and plan.inference.device_kind == "cpu" and not self.options.on_cluster:
                stack.enter_context(tuned_memory(in_bands=plan.in_bands))
