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
    """A slide does not say how large its pixels are, or says something that cannot be."""


class ModelFileError(WsiMetaError, ValueError):
    """A file is not a model that this version can use."""


class DataError(WsiMetaError, ValueError):
    """A set of labelled patches, a mask or an annotation is missing, damaged or contradicts itself."""


class OutputExistsError(WsiMetaError, FileExistsError):
    """An output exists and is not this run's to continue or to replace."""


class OutputPathError(WsiMetaError, OSError):
    """An output cannot be written where it was asked for."""


class HeatmapError(WsiMetaError, ValueError):
    """A path does not hold a heatmap store, or not one that this version reads."""


class OptionsError(WsiMetaError, ValueError):
    """Options that do not exist or do not go together: wrong usage, not bad input. The command line exits with 2."""


class TrainingError(WsiMetaError, RuntimeError):
    """Training cannot go on (a loss that is not a number, say); the last good model is kept."""


class DeviceError(WsiMetaError, RuntimeError):
    """The device or precision asked for is not to be had on this machine."""


def one_line(error: BaseException) -> str:
    """Return an error's message with its line breaks taken out."""
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """Return what another library's error says, as far as it fits into one line."""
    return " ".join(one_line(error).split()[:40]) or type(error).__name__
