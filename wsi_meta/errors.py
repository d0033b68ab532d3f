"""Every error the package raises on bad input.

Each is a ``WsiMetaError`` and also the built-in that fits, so that a pipeline may catch either. A message is one line:
the file, what was found, what was expected, what to do.
"""

__all__ = [
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
    "one_line",
]


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
    """The device or precision asked for is not available on this machine."""


def one_line(error: BaseException) -> str:
    """Return an error's message without its line breaks."""
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """Return what another library's error says, as far as it fits into one line."""
    return " ".join(one_line(error).split()[:40]) or type(error).__name__
