"""What makes two scans the same, and the store of this very scan: opened where it stands, else made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_meta.errors import HeatmapError, OutputExistsError
from wsi_meta.heatmaps.store import Heatmap

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsi_meta.tiling.grid import PatchGrid

__all__ = ["open_or_create", "recorded"]

FIRST_STORES = {"reader": "openslide", "uncertainty": False, "halo_px": 0, "device": "cpu"}
"""What the identity of the first stores does not say."""


def recorded(out: Path, name: str) -> Any:
    """Return what an existing store's identity says under `name`; None where there is no store of ours."""
    try:
        return Heatmap.open(out).facts["identity"].get(name)
    except HeatmapError:
        return None


def open_or_create(out: Path, grid: PatchGrid, tissue: NDArray[np.bool_], facts: dict[str, Any], *, overwrite: bool) -> Heatmap:
    """Open the store of this very scan, or make a new one.

    Parameters
    ----------
    tissue : bool, the grid's shape
    facts : what to keep under ``wsi_meta``; under ``identity`` all that makes two scans the same
    overwrite : replace an older heatmap

    Raises
    ------
    OutputExistsError
        when `out` is something else, or another scan; names the difference.
    OutputPathError
    """
    identity = facts["identity"]
    if out.exists() and not overwrite:
        return _reopen(out, identity)
    return Heatmap.create(out, grid, tissue, facts, uncertainty=identity["uncertainty"], overwrite=overwrite)


def _reopen(out: Path, identity: dict[str, Any]) -> Heatmap:
    try:
        heatmap = Heatmap.open(out)
    except HeatmapError as error:
        raise OutputExistsError(f"{out}: exists and is not a heatmap store ({error}); choose another --out") from error
    there = FIRST_STORES | heatmap.facts["identity"]
    if different := [name for name, value in identity.items() if there.get(name) != value]:
        told = "; ".join(f"{name} is {_brief(there.get(name))}, now {_brief(identity[name])}" for name in different)
        raise OutputExistsError(f"{out}: holds another scan: {told}; choose another --out, or pass --overwrite to replace it")
    return heatmap


def _brief(value: Any) -> str:
    """Return a fingerprint's first letters, a grid's stride, any other value as it is."""
    if isinstance(value, dict):
        return f"stride {value.get('stride_px')}, {value.get('slide_mpp')} um per pixel, blocks of {value.get('block_px')} px"
    return str(value)[:12]
