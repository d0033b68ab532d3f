"""Every error the package raises on bad input, and what refuses an option or a missing library.

Each is a ``WsiMetaError`` and also the built-in that fits, so that a pipeline may catch either. A message is one line:
the file, what was found, what was expected, what to do.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = [
    "EXIT_INTERRUPTED",
    "EXTRAS",
    "INTERRUPTED",
    "DataError",
    "DeviceError",
    "HeatmapError",
    "MissingMppError",
    "ModelFileError",
    "OptionsError",
    "OutputExistsError",
    "OutputPathError",
    "SlideReadError",
    "TrainingError",
    "WsiMetaError",
    "is_truth",
    "missing_libraries",
    "named_by_source",
    "require",
    "truth",
    "whole_number",
]

EXTRAS = {
    "cloud": {"fsspec": "fsspec", "aiohttp": "aiohttp", "s3fs": "s3fs"},
    "dicom": {"highdicom": "highdicom"},
    "onnx": {"onnx": "onnx", "onnxruntime": "onnxruntime", "onnxscript": "onnxscript"},
    "parquet": {"pyarrow": "pyarrow"},
    "tensorboard": {"tensorboard": "tensorboard"},
    "train": {"h5py": "h5py", "sklearn": "scikit-learn"},
}
"""The extras of an installation: of each, the modules that it brings and the names by which they are installed."""

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the number of the signal."""
INTERRUPTED = "interrupted; what was finished is kept (scan goes on when run again, train with --resume)"
"""What a command says after Ctrl-C."""


class WsiMetaError(Exception):
    """Base of all errors of this package."""


class SlideReadError(WsiMetaError, OSError):
    """A slide, or a region of one, cannot be read."""


class MissingMppError(WsiMetaError, ValueError):
    """A slide does not state the size of its pixels, or states one that is impossible."""


class ModelFileError(WsiMetaError, ValueError):
    """A file is not a model that this version can use."""


class DataError(WsiMetaError, ValueError):
    """A set of labelled patches, a mask or an annotation is missing, damaged or contradicts itself."""


class OutputExistsError(WsiMetaError, FileExistsError):
    """An output exists, and this run may neither continue nor replace it."""


class OutputPathError(WsiMetaError, OSError):
    """An output cannot be written where it was asked for."""

    rows: Sequence[dict[str, Any]] = ()
    """Of slides that were scanned nevertheless, where it is their table that cannot be written."""


class HeatmapError(WsiMetaError, ValueError):
    """A path holds no heatmap store, or one that this version cannot read."""


class OptionsError(WsiMetaError, ValueError):
    """Options that do not exist or do not go together: wrong usage, not bad input. The command line exits with 2."""


class TrainingError(WsiMetaError, RuntimeError):
    """Training cannot continue (for example the loss is not a number); the last good model is kept."""


class DeviceError(WsiMetaError, RuntimeError):
    """The device, precision or library that is asked for is not available on this machine."""


def missing_libraries(extra: str, *modules: str) -> list[str]:
    """Return those libraries of an extra, or of these modules of it, that are not installed, by their names in an index."""
    return [EXTRAS[extra][module] for module in modules or EXTRAS[extra] if not _is_installed(module)]


def require(extra: str, what: str, *, instead: str = "") -> None:
    """Refuse work whose libraries are not installed.

    Parameters
    ----------
    extra : name of one of :data:`EXTRAS`, which brings the libraries
    what : what needs them, as a message begins
    instead : what else could be done, as a message ends

    Raises
    ------
    DeviceError
        when one of them is missing.
    """
    if missing := missing_libraries(extra):
        raise DeviceError(f"{what} needs {' and '.join(missing)}: pip install 'wsi-meta[{extra}]'{instead}")


def is_truth(value: object) -> bool:
    """Tell whether a value is True or False, Python's or numpy's."""
    return isinstance(value, bool) or (type(value).__name__ in ("bool", "bool_") and type(value).__module__ == "numpy")


def truth(name: str, value: object) -> bool:
    """Return what was asked for as a bool; OptionsError where it is something else, such as ``no``."""
    if not is_truth(value):
        raise OptionsError(f"{name} {value!r}; expected True or False")
    return bool(value)


def whole_number(name: str, value: Any, expected: str = "a whole number") -> int:
    """Return what was asked for as an int, also where numpy made it; OptionsError where it is something else, such as 2.0."""
    try:
        if not is_truth(value):
            return operator.index(value)
    except TypeError:
        pass
    raise OptionsError(f"{name} {value!r}; expected {expected}")


@contextmanager
def named_by_source(source: object, copy: object) -> Iterator[None]:
    """Let errors of this package name a file itself where a copy of it was read; `copy` is None where none was."""
    try:
        yield
    except WsiMetaError as error:
        if copy is None or str(copy) not in str(error):
            raise
        raise type(error)(str(error).replace(str(copy), str(source))) from error


def _is_installed(module: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # what a module says that was kept from being imported, or made by hand
        return False
