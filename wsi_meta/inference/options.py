"""How a network is run: the options that were asked for, and the plan that they become on the machine that computes."""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from wsi_meta.errors import DeviceError, OptionsError, settle, shown, whole_number
from wsi_meta.inference.device import PRECISIONS, resolve_device, resolve_precision
from wsi_meta.models.card import ModelCard
from wsi_meta.models.dihedral import averaging_of, count_views

__all__ = [
    "GPU_ROWS",
    "PRECISIONS",
    "CompilerVariables",
    "InferenceOptions",
    "InferencePlan",
    "compiler_errors",
    "compiler_found",
    "compiler_variables",
    "fit_to_model",
    "resolve_inference",
    "rows_of_pass",
    "runs_in_bands",
    "worth_compiling",
]

GPU_ROWS = 256
"""Rows of every pass on a GPU: its library chooses other sums for another number, and no map may depend on that."""
PATCHES_REPAY = 40_000
"""Patches of one slide from which :func:`worth_compiling` says yes (docs/benchmarks.md)."""


@dataclass(frozen=True)
class InferenceOptions:
    """What was asked for. Impossible values are refused here, before torch is imported.

    Raises
    ------
    DeviceError
        when `device` or `precision` does not exist.
    OptionsError
        when `batch_size` is below 1, or `tta` no number of views that can be averaged.
    """

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    precision: str = "auto"
    """``auto``, ``fp32``, ``bf16`` or ``int8``; see :func:`wsi_meta.inference.device.resolve_precision`."""
    batch_size: int = 64
    """Rows of one forward pass on a CPU; a row is one view of one patch. On a GPU every pass has :data:`GPU_ROWS`."""
    tta: bool | int = False
    """Test-time averaging: show every patch in 2, 4 or 8 (True) of its views, for so many times the work."""
    int8_agrees: bool = False
    """Whether ``auto`` may be int8; see :func:`fit_to_model`, which tells by the model's card."""

    def __post_init__(self) -> None:
        if not isinstance(self.device, str) or not re.fullmatch(r"auto|cpu(:0)?|cuda(:\d+)?", self.device):
            raise DeviceError(f"--device {shown(self.device)}: not supported; expected auto, cpu, cuda or cuda:N")
        if not isinstance(self.precision, str) or self.precision not in PRECISIONS:
            raise DeviceError(f"--precision {shown(self.precision)}: not supported; expected one of {', '.join(PRECISIONS)}")
        settle(self, batch_size=whole_number("batch size", self.batch_size), tta=averaging_of(count_views(self.tta)))
        if self.batch_size < 1:
            raise OptionsError(f"batch size {self.batch_size}; expected 1 or more")

    @property
    def views(self) -> int:
        """How many views of each patch are shown."""
        return count_views(self.tta)

    @property
    def may_be_refused(self) -> bool:
        """Whether a machine may lack what was asked for: a GPU, or instructions for integers."""
        return self.device.startswith("cuda") or self.precision == "int8"


@dataclass(frozen=True)
class InferencePlan:
    """What :class:`InferenceOptions` become on one machine: nothing is ``auto`` any more."""

    device: str
    """``cpu``, ``cuda`` or ``cuda:N``."""
    precision: str
    """``fp32``, ``bf16`` or ``int8``."""
    batch_size: int
    """Rows of one forward pass."""
    views: int
    """Views of each patch that are shown: 1, 2, 4 or 8."""

    @property
    def device_kind(self) -> str:
        """``cpu`` or ``cuda``: what the rounding of sums depends on; the number of the GPU does not matter."""
        return self.device.partition(":")[0]


def fit_to_model(asked: InferenceOptions, card: ModelCard) -> InferenceOptions:
    """Return what was asked, with what a model's card leaves no choice of, and what it lets ``auto`` choose.

    Raises
    ------
    OptionsError
        when the card does not allow the precision that was asked for.
    """
    if asked.precision == "int8" and not card.allows_int8:
        raise OptionsError(
            "precision int8: it was not seen to agree with this model, which was imported, or trained on from another one; "
            "expected auto, bf16 or fp32, or a model that 'wsi-meta calibrate' measured on 1,000 patches or more"
        )
    if not card.foreign:
        return replace(asked, int8_agrees=True) if asked.precision == "auto" and card.prefers_int8 else asked
    if asked.precision not in ("auto", "fp32"):
        raise OptionsError(f"precision {asked.precision}: {card.architecture} is computed as it is; expected fp32 or auto")
    return replace(asked, precision="fp32")


def resolve_inference(options: InferenceOptions) -> InferencePlan:
    """Return the plan that the options become on this machine.

    A GPU gets its number here: which one ``cuda`` stands for is a matter of each thread, and a scan has several.

    Raises
    ------
    DeviceError
        when this machine lacks the device, or the device cannot compute in the precision asked for.
    """
    device = resolve_device(options.device)
    if device == "cuda":
        import torch

        device = f"cuda:{torch.cuda.current_device()}"
    rows = rows_of_pass(device, options.batch_size)
    precision = resolve_precision(options.precision, device, int8_agrees=options.int8_agrees)
    return InferencePlan(device, precision, rows, options.views)


def rows_of_pass(device: str, batch_size: int) -> int:
    """Return the rows of every forward pass on a device where `batch_size` was asked for."""
    return batch_size if device == "cpu" else GPU_ROWS


def runs_in_bands(device: str, *, dense: bool, compiled: bool) -> bool:
    """Tell whether a predictor works through blocks in bands (:mod:`.bands`): in dense mode on a CPU, not compiled."""
    return device == "cpu" and dense and not compiled


def compiler_found(device: str = "cpu") -> bool:
    """Tell whether the compiler that ``torch.compile`` needs is installed: for C++, or on a GPU (for Triton) for C."""
    names = ("CXX", "c++", "g++", "clang++") if device == "cpu" else ("CC", "cc", "gcc", "clang")
    return any(map(shutil.which, (os.environ.get(names[0], names[1]), *names[2:])))


@contextmanager
def compiler_errors(instead: str) -> Iterator[None]:
    """Raise DeviceError, which says to do `instead`, for what torch's compiler raises within: no room, a broken compiler."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        dynamo = sys.modules.get("torch._dynamo.exc")  # loaded by whatever compiles, and slow to load
        if not isinstance(error, (OSError, *([dynamo.TorchDynamoException] if dynamo else []))):
            raise
        cause = getattr(error, "inner_exception", error)
        reason = (str(cause).splitlines() or [""])[0]
        raise DeviceError(
            f"compiled: torch could not compile the network ({type(cause).__name__}: {reason}); expected a compiler that "
            f"works, and room for its files (TORCHINDUCTOR_CACHE_DIR); mend that, or {instead}"
        ) from error


class CompilerVariables:
    """Takes back the environment variables that torch's compiler sets, when the last thread that is within leaves.

    It sets them for the whole process, also where an optimiser only loads it, and reads them again while it compiles. So none
    is taken from a thread that is within, and those that were there before stay.
    """

    def __init__(self) -> None:
        self._lock, self._within, self._before = threading.Lock(), 0, frozenset[str]()

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                self._before = _compiler_names()
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                for name in _compiler_names() - self._before:
                    os.environ.pop(name, None)


def _compiler_names() -> frozenset[str]:
    return frozenset(name for name in os.environ if name.startswith(("TORCHINDUCTOR_", "_TORCHINDUCTOR_", "TRITON_")))


compiler_variables = CompilerVariables()
"""The one of this process, as its environment is one."""


def worth_compiling(
    device: str, precision: str, *, cells: int, views: int, dense: bool, patches_repay: int = PATCHES_REPAY
) -> bool:
    """Tell whether to compile for one slide. This depends on the scan alone, so the answer is always the same for it.

    It is yes on a CPU, in bf16, in patch mode, from `patches_repay` patches on; each view of a cell counts as a patch.
    """
    return device == "cpu" and precision == "bf16" and not dense and cells * views >= patches_repay
