"""Every error the package raises on bad input, and what refuses an argument or a missing library.

Each is a ``WsiMetaError`` and also the built-in that fits, so that a pipeline may catch either. A message is one line:
the file, what was found, what was expected, what to do.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import inf, ulp
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "EXIT_INTERRUPTED",
    "EXTRAS",
    "INTERRUPTED",
    "OVER_0",
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
    "all_of",
    "array",
    "is_truth",
    "missing_libraries",
    "named_by_source",
    "number",
    "numbers",
    "of_kind",
    "one_of",
    "require",
    "shown",
    "truth",
    "whole_number",
]

T = TypeVar("T")

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
OVER_0 = ulp(0.0)
"""The least number over 0."""
SHOWN_CHARACTERS = 60


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


def shown(value: object) -> str:
    """Return a value as a message shows it: on one line, and cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def truth(name: str, value: object) -> bool:
    """Return what was asked for as a bool; OptionsError where it is something else, such as ``no``."""
    if not is_truth(value):
        raise OptionsError(f"{name} {shown(value)}; expected True or False")
    return bool(value)


def one_of(name: str, value: Any, choices: Collection[str]) -> str:
    """Return the word that was chosen; OptionsError where it is none of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise OptionsError(f"{name} {shown(value)}; expected one of {', '.join(choices)}")
    return value


def number(name: str, value: Any, expected: str = "a number", *, least: float = -inf, most: float = inf) -> Any:
    """Return what was asked for as it is; OptionsError unless it is a finite number from `least` to `most`."""
    is_number = isinstance(value, Real) and not is_truth(value)
    if is_number and abs(value) < inf and least <= value <= most:
        return value
    raise OptionsError(f"{name} {shown(value)}; expected {expected}")


def whole_number(name: str, value: Any, expected: str = "a whole number", *, least: float = -inf, most: float = inf) -> int:
    """Return what was asked for as an int, also where numpy made it.

    Raises
    ------
    OptionsError
        where it is something else, such as 2.0, or not from `least` to `most`.
    """
    try:
        if not is_truth(value) and least <= (whole := operator.index(value)) <= most:
            return whole
    except TypeError:
        pass
    raise OptionsError(f"{name} {shown(value)}; expected {expected}")


def numbers(name: str, value: Any, count: int, expected: str) -> tuple[Any, ...]:
    """Return so many numbers, as they are; OptionsError where it is something else."""
    found = tuple(value) if isinstance(value, Iterable) else ()
    if len(found) != count:
        raise OptionsError(f"{name} {shown(value)}; expected {expected}")
    return tuple(number(name, one, expected) for one in found)


def of_kind(name: str, value: Any, kind: type[T], expected: str) -> T:
    """Return what was given; OptionsError, with its own kind, where it is of another."""
    if not isinstance(value, kind):
        found = "None" if value is None else f"of type {type(value).__name__}"
        raise OptionsError(f"{name}: is {found}; expected {expected}")
    return value


def all_of(name: str, values: Any, kind: type[T], expected: str) -> tuple[T, ...]:
    """Return all that was given, such as by a generator, which gives it once; OptionsError where one is of another kind."""
    given = of_kind(name, values, Iterable, expected)  # type: ignore[type-abstract]
    return tuple(of_kind(name, one, kind, expected) for one in given)


def array(name: str, value: Any, expected: str, *, kinds: str, ndim: int) -> NDArray[Any]:
    """Return an array as it is; OptionsError where it is something else, or has another shape or type.

    Parameters
    ----------
    kinds : numpy's letters of the types: ``f`` of floating numbers, ``i`` and ``u`` of whole ones
    """
    import numpy as np

    found = of_kind(name, value, np.ndarray, expected)
    if found.dtype.kind not in kinds or found.ndim != ndim:
        raise OptionsError(f"{name}: {found.dtype} of shape {found.shape}; expected {expected}")
    return found


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
