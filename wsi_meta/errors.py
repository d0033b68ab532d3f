"""Every error the package raises on bad input, and how an error or a name is shown.

Each is a ``WsiMetaError`` and also the built-in that fits, so that a pipeline may catch either. A message is one line:
the file, what was found, what was expected, what to do.
"""

from __future__ import annotations

import operator
import unicodedata
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
    "first_line",
    "is_truth",
    "missing_libraries",
    "named_by_source",
    "one_line",
    "out_of_memory",
    "printable",
    "require",
    "some_of",
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

_ESCAPED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
"""Unicode categories of what a terminal may obey or cannot show: controls, direction marks, undecoded bytes, line ends."""


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


class HeatmapError(WsiMetaError, ValueError):
    """A path holds no heatmap store, or one that this version cannot read."""


class OptionsError(WsiMetaError, ValueError):
    """Options that do not exist or do not go together: wrong usage, not bad input. The command line exits with 2."""


class TrainingError(WsiMetaError, RuntimeError):
    """Training cannot continue (for example the loss is not a number); the last good model is kept."""


class DeviceError(WsiMetaError, RuntimeError):
    """The device, precision or library that is asked for is not available on this machine."""


def missing_libraries(extra: str) -> list[str]:
    """Return those libraries of an extra that are not installed, by the names by which they are installed."""
    return [name for module, name in EXTRAS[extra].items() if not _is_installed(module)]


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


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a number and what it is of: ``1 lesion``, ``1,200 lesions``; `plural` where that does not end in s alone."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def printable(text: str) -> str:
    r"""Return a text as one line that any terminal, table or picture can show.

    A file's name may hold line ends, terminal escapes and bytes that are no text: each becomes what Python writes for it, such
    as ``\n``, ``\x1b`` or, for the byte E9, ``\xe9``.
    """
    if text.isprintable():
        return text
    return "".join(_escape(char) if unicodedata.category(char) in _ESCAPED else char for char in text)


def one_line(error: BaseException) -> str:
    """Return an error's message as one printable line.

    The errors of this package are one line already: a line end in one belongs to a name, and is escaped. The lines of other
    errors are joined.
    """
    return printable(str(error) if isinstance(error, WsiMetaError) else " ".join(str(error).split()))


def out_of_memory(error: BaseException) -> str | None:
    """Return in words that memory, or a GPU's, did not suffice, and what to do; None for another error."""
    if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":  # the second is torch's, on a GPU
        return None
    found = one_line(error)
    return f"out of memory{f' ({found[:400]})' if found else ''}; close other programs, or lower --workers or --batch-size"


def first_line(error: BaseException) -> str:
    """Return what another library's error says, as far as it fits into one line."""
    return printable(" ".join(str(error).split()[:40])) or type(error).__name__


def some_of(names: Sequence[str]) -> str:
    """Return the first five of some names in words, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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


def _escape(char: str) -> str:
    undecoded = 0xDC80 <= ord(char) <= 0xDCFF  # a byte that is no text, as Python keeps it in a name
    return f"\\x{ord(char) - 0xDC00:02x}" if undecoded else char.encode("unicode_escape").decode()
