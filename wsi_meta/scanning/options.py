"""What is asked of a scan, and what that comes to on this machine, with this model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from wsi_meta.errors import OptionsError
from wsi_meta.inference.device import resolve_device, resolve_precision
from wsi_meta.inference.predictor import DENSE_STRIDE_PX
from wsi_meta.models.dihedral import VIEWS
from wsi_meta.models.model import ModelCard, read_card
from wsi_meta.progress import note
from wsi_meta.scanning.identity import recorded
from wsi_meta.tiling.grid import STRIDES

__all__ = ["COMPILED", "MODES", "NetworkChoice", "choose_compiled", "choose_network", "compiler_at_hand"]

MODES = ("auto", "patch", "dense")
COMPILED = ("auto", "yes", "no")


@dataclass(frozen=True)
class NetworkChoice:
    """Which network a scan uses and how: all that a worker needs to make the predictor by itself."""

    model: str
    mode: str
    device: str
    precision: str
    compiled: str
    batch_size: int
    tta: bool


def choose_network(asked: NetworkChoice, stride_px: int) -> NetworkChoice:
    """Put in place of ``auto`` what it comes to here; all but `compiled`, which hangs on the slide.

    Raises
    ------
    OptionsError
        when options do not exist or do not go with each other, with the stride or with the model's card.
    ModelFileError, DeviceError
    """
    if asked.compiled not in COMPILED:
        raise OptionsError(f"compiled {asked.compiled!r}; expected one of {COMPILED}")
    device, file = resolve_device(asked.device), Path(asked.model)
    return replace(
        asked,
        model=str(file.absolute()),
        mode=_resolve_mode(asked.mode, stride_px, read_card(file)),
        device=device,
        precision=resolve_precision(asked.precision, device),
    )


def choose_compiled(network: NetworkChoice, cells: int, out: Path | None, *, progress: bool) -> str:
    """Return ``yes`` or ``no``: as asked; as the store at `out` was begun; else whether the slide's cells repay it."""
    if network.compiled != "auto":
        return network.compiled
    if out is not None and (begun := recorded(out, "compiled")) is not None:
        return "yes" if begun else "no"
    from wsi_meta.inference.fast_network import worth_compiling

    views = VIEWS if network.tta else 1
    worth = worth_compiling(network.device, network.precision, cells=cells, views=views, dense=network.mode == "dense")
    return "yes" if worth and compiler_at_hand(progress) else "no"


def _resolve_mode(mode: str, stride_px: int, card: ModelCard) -> str:
    """Return ``patch`` or ``dense``; ``auto`` is dense when the model's card allows it and the stride is the trunk's."""
    if mode not in MODES or stride_px not in STRIDES:
        raise OptionsError(f"mode {mode!r}, stride {stride_px}; expected one of {MODES} and one of {STRIDES}")
    if mode == "dense" and stride_px != DENSE_STRIDE_PX:
        raise OptionsError(f"mode dense, stride {stride_px}; expected stride {DENSE_STRIDE_PX}, or mode patch")
    if mode == "dense" and not card.dense:
        raise OptionsError("mode dense: the model's card does not allow it (dense: false); expected mode patch")
    if mode == "auto":
        return "dense" if card.dense and stride_px == DENSE_STRIDE_PX else "patch"
    return mode


@lru_cache(maxsize=1)
def compiler_at_hand(progress: bool) -> bool:
    """Tell whether there is a C++ compiler, and say once what its absence costs."""
    from wsi_meta.inference.fast_network import compiler_found

    if not (found := compiler_found()):
        note("no C++ compiler (g++ or clang++) was found: the network runs uncompiled, which is slower", enabled=progress)
    return found
