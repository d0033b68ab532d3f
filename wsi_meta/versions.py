"""Versions of the libraries that a result depends on."""

from __future__ import annotations

import platform
from functools import cache
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
            versions[name] = _version(name)
        except PackageNotFoundError:
            continue
    return versions


@cache
def _version(name: str) -> str:
    """Look it up once: a library that is loaded stays as it is, and reading what it says of itself takes milliseconds."""
    return version(name)
