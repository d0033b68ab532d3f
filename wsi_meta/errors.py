"""Every error the package raises on bad input, and what refuses an argument or a missing library.

Each is a ``WsiMetaError`` and also the built-in that fits, so that a pipeline may catch either. A message is one line:
the file, what was found, what was expected, what to do.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from math import inf, ulp
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

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
    "goes_through",
    "is_truth",
    "kind_name",
    "missing_libraries",
    "named_by_source",
    "number",
    "numbers",
    "of_kind",
    "one_of",
    "require",
    "settle",
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
INTERRUPTED = "interrupted; run again, a scan goes on where it was, and train with --resume; all else begins anew"
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


def kind_name(error: BaseException) -> str:
    """Return the name by which programs know an error: that of the nearest kind above, which may be a parent; else its own."""
    return next((kind.__name__ for kind in type(error).__mro__ if kind.__module__ == __name__), type(error).__name__)


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
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # a whole number of more digits than Python writes
        text = f"of type {type(value).__name__}"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def truth(name: str, value: object) -> bool:
    """Return what was asked for as a bool; OptionsError where it is something else, such as ``no``."""
    if not is_truth(value):
        raise OptionsError(f"{name} {shown(value)}; expected True or False")
    return bool(value)


def one_of(name: str, value: Any, choices: Collection[str]) -> str:
    """Return the word that was chosen, as a plain text; OptionsError where it is none of the choices."""
    for choice in choices if isinstance(value, str) else ():
        if choice == value:
            return choice
    raise OptionsError(f"{name} {shown(value)}; expected one of {', '.join(choices)}")


def number(name: str, value: Any, expected: str = "a number", *, least: float = -inf, most: float = inf) -> Any:
    """Return a finite number from `least` to `most` as a plain int or float; OptionsError where it is something else.

    It may be of any kind: numpy's, a fraction, or an array or tensor without dimensions. A float32 is taken by its decimals.
    """
    plain = _plain(value)
    if plain is not None and abs(plain) <= sys.float_info.max and least <= plain <= most:
        return plain
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
    """Return so many numbers, as plain ones; OptionsError where it is something else."""
    found = tuple(value) if goes_through(value) else ()
    if len(found) != count:
        raise OptionsError(f"{name} {shown(value)}; expected {expected}")
    return tuple(number(name, one, expected) for one in found)


def goes_through(values: object) -> TypeGuard[Iterable[Any]]:
    """Tell whether values can be gone through one by one; an array without dimensions cannot, though it has the method."""
    return isinstance(values, Iterable) and getattr(values, "ndim", 1) != 0


def of_kind(name: str, value: Any, kind: type[T], expected: str) -> T:
    """Return what was given; OptionsError, with its own kind, where it is of another."""
    if not isinstance(value, kind):
        found = "None" if value is None else f"of type {type(value).__name__}"
        raise OptionsError(f"{name}: is {found}; expected {expected}")
    return value


def all_of(name: str, values: Any, kind: type[T], expected: str) -> tuple[T, ...]:
    """Return all that was given, such as by a generator, which gives it once; OptionsError where one is of another kind."""
    given = values if goes_through(values) else (values,)
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


def settle(settings: object, **values: object) -> None:
    """Set fields of frozen settings to what their doors returned, within ``__post_init__``: plain values of Python."""
    for name, value in values.items():
        object.__setattr__(settings, name, value)


@contextmanager
def named_by_source(source: object, copy: object) -> Iterator[None]:
    """Let errors of this package name a file itself where a copy of it was read; `copy` is None where none was."""
    try:
        yield
    except WsiMetaError as error:
        if copy is None or str(copy) not in str(error):
            raise
        raise type(error)(str(error).replace(str(copy), str(source))) from error


def _plain(value: Any) -> int | float | None:
    """Return a number as Python's, a float by its decimals: 0.1 of a float32 is 0.1. None where it is no single number."""
    one = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    if is_truth(one) or not isinstance(one, Real | Decimal):
        return None
    if isinstance(one, Integral):
        return int(one)
    for written in (str(value), one):  # a fraction and a tensor are not written as a number
        with suppress(ValueError, OverflowError):
            return float(written)
    return None


def _is_installed(module: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # what a module says that was kept from being imported, or made by hand
        return False
