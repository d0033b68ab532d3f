"""Versions of the libraries that a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from wsi_meta import __version__

__all__ = ["library_versions"]

_LIBRARIES = ("torch", "numpy", "openslide-python", "scikit-image", "zarr", "dask")


def library_versions(libraries: tuple[str, ...] = _LIBRARIES) -> dict[str, str]:
    """Return name and version of Python, wsi-meta and the libraries that a model or heatmap depends on.

    What is not installed is left out: a training needs no library that reads or writes slides and heatmaps, and wsi-meta may
    run from its sources.
    """
    versions = {"python": platform.python_version(), "wsi-meta": __version__}
    for name in libraries:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
