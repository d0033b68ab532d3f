"""Settings of torch that hold for the whole process: passes compute by their own, whatever the program around them has set.

How cuDNN chooses its algorithms, and what a float32 product is rounded to, change the last bits of a map, or more. A program
may have set them for itself, so passes neither rely on them nor leave them changed.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.files.process_settings import Setting, SharedSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["cpu_settings", "gpu_settings", "own_modes"]

_gpu, _cpu, _types = SharedSettings(), SharedSettings(), SharedSettings()
"""One for the process, because the settings are those of the process. It is no state: outside of passes nothing is changed."""


@contextmanager
def gpu_settings(*, exact: bool) -> Iterator[None]:
    """Let passes on a GPU choose the same algorithms at every time, and multiply float32 numbers as they are.

    Parameters
    ----------
    exact : convolve float32 numbers as they are, too; else rounded to the 10 bits of TF32
    """
    with _gpu.holding(exact, partial(_for_gpu, exact)), _no_autocast():
        yield


@contextmanager
def cpu_settings() -> Iterator[None]:
    """Let passes on a CPU compute by oneDNN, and with float32 numbers as they are."""
    with _cpu.holding(True, _for_cpu), _no_autocast():
        yield


@contextmanager
def own_modes() -> Iterator[None]:
    """Let no modes of the program around change what tensors are: gradients, autocast, default device and default type.

    Nor what numpy makes of a number that is too small to be one: 0, and no error. May be nested: all want the same. The default
    type is that of the whole process, and put back as the other settings are.
    """
    with np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"), ExitStack() as modes:
        if "torch" not in sys.modules:  # nobody has set a mode yet, and what is refused at once need not wait seconds for it
            yield
            return
        import torch

        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        modes.enter_context(_no_autocast())
        if torch.get_default_device().type != "cpu":  # else for nothing: it takes a microsecond of each call of torch
            modes.enter_context(torch.device("cpu"))
        modes.enter_context(_types.holding(True, _for_tensors))
        yield


def _for_tensors() -> list[Setting]:
    import torch

    return [Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32)]


def _for_gpu(exact: bool) -> list[Setting]:
    from torch import backends

    cudnn, rounding = backends.cudnn, "ieee" if exact else "tf32"
    wanted = [_of(cudnn, "enabled", True), _of(cudnn, "benchmark", False), _of(cudnn, "deterministic", False)]
    wanted.append(_of(cudnn, "allow_tf32", not exact))  # the older word for the next two; the three have to agree
    wanted += [_rounding_of(getattr(cudnn, part, None), rounding) for part in ("conv", "rnn")]
    return [*wanted, _of_products(backends.cuda.matmul)]


def _for_cpu() -> list[Setting]:
    from torch import backends

    onednn: Any = backends.mkldnn
    convolutions = _rounding_of(getattr(onednn, "conv", None), "ieee")
    return [_of(onednn, "enabled", True), convolutions, _of_products(getattr(onednn, "matmul", None))]


def _of_products(matmul: object) -> Setting:
    """Return the setting of a device's products of matrices; before torch 2.9 there is one for all devices."""
    import torch

    if hasattr(matmul, "fp32_precision"):
        return _rounding_of(matmul, "ieee")
    return Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest")


def _rounding_of(owner: Any, wanted: str) -> Setting:
    """Return the setting of a device's convolutions or products; where it is inherited from a wider one it goes on being so."""

    def read() -> str:
        shown: str = owner.fp32_precision
        owner.fp32_precision = "none"
        if owner.fp32_precision == shown:
            return "none"
        owner.fp32_precision = shown
        return shown

    return Setting(read, partial(setattr, owner, "fp32_precision"), wanted)


def _of(owner: object, name: str, wanted: object) -> Setting:
    return Setting(partial(getattr, owner, name), partial(setattr, owner, name), wanted)


@contextmanager
def _no_autocast() -> Iterator[None]:
    """Let no surrounding ``torch.autocast`` of this thread change a network's precision."""
    import torch

    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield
