"""Versions of the libraries that a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import version

__all__ = ["library_versions"]

_LIBRARIES = ("wsi-meta", "torch", "torchvision", "numpy", "openslide-python", "scikit-image", "zarr", "dask")


def library_versions() -> dict[str, str]:
    """Return name and version of Python and of the libraries that a model or heatmap depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}
