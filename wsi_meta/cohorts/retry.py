"""The command that scans a slide once more."""

from __future__ import annotations

import inspect
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wsi_meta.errors import MissingMppError
from wsi_meta.files.address import SlidePath, slide_name
from wsi_meta.models.model import Model
from wsi_meta.scanning.gpus import GpuProcesses
from wsi_meta.scanning.scanner import Scanner
from wsi_meta.slides.pixel_size import UsualMpp

__all__ = ["retry_command", "shell_word"]

NAMES = {"stride_px": "stride"}
"""Options of the command that have another name in Python."""
USUAL: dict[str, tuple[Any, ...]] = {"model": (None, "default"), "reader": ("auto",), "mpp": (None,), "tissue_mask": (None,)}
"""Values that need no option, where they are not the scanner's default alone."""
BLIND = ("progress", "predictor", "overwrite", "block_px")
"""What no option stands for, or no result depends on."""


def retry_command(
    slide: SlidePath, store: Path, settings: Mapping[str, Any], *, why: str = "", kind: str | None = None, alone: bool = False
) -> str | None:
    """Return a command for a POSIX shell, from any folder, that scans a slide again with the same settings.

    Parameters
    ----------
    slide : the slide
    store : its heatmap. In the folder of a batch, where it is not named after the slide, the command says its name, and makes
        the folder's table anew
    settings : of the scanner and of the slide, by their names in Python
    why, kind : what it failed with, and the name of that error. Where it names ``--retry-crashed``, the command has it; where
        the pixel size is not known, the command has ``--mpp`` with a word to replace; it has no :class:`.UsualMpp`, which would
        overrule what this slide may say
    alone : whether it was the one slide of its scan, whose folder has no table

    Returns
    -------
    The command; None where a setting cannot be written in one, or where the user has to choose (``--overwrite``).
    """
    if settings.get("predictor") is not None or "--overwrite" in why:
        return None
    asks_mpp = kind == MissingMppError.__name__
    try:
        options = list(_options({name: value for name, value in settings.items() if not (asks_mpp and name == "mpp")}))
    except TypeError:
        return None
    options += ["--mpp", "UM_PER_PIXEL"] if asks_mpp else []
    options += ["--retry-crashed"] if "--retry-crashed" in why else []
    folder, path = store.absolute().parent, str(slide.absolute())
    if slide_name(slide) == store.stem and not alone:
        return " ".join(map(shell_word, ["wsi-meta", "scan", path, "--out-dir", str(folder), *options]))
    scan = " ".join(map(shell_word, ["wsi-meta", "scan", path, "--out", str(store.absolute()), *options]))
    return scan if alone else f"{scan} && wsi-meta summary {shell_word(str(folder))}"


def shell_word(text: str) -> str:
    r"""Return a text as one word of a POSIX shell; what is no printable text becomes bash's ``$'\xe9'``."""
    if text.isprintable():
        return shlex.quote(text)
    parts = (bytes([byte]).decode("ascii") if _is_plain(byte) else f"\\x{byte:02x}" for byte in os.fsencode(text))
    return f"$'{''.join(parts)}'"


def _is_plain(byte: int) -> bool:
    return re.match(rb"[\w/.,:=@%+ -]", bytes([byte])) is not None


def _options(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the words of the options that differ from the defaults; TypeError where a value is no text, number or path."""
    known = inspect.signature(Scanner).parameters
    for name, value in settings.items():
        value = value.path if isinstance(value, Model) and not value.card.foreign else value
        usual = (*USUAL.get(name, ()), *((known[name].default,) if name in known else (None, False)))
        if getattr(value, "ndim", 0):  # such as a tissue mask, which equals nothing
            raise TypeError(name)
        if name in BLIND or isinstance(value, UsualMpp) or any(value is each or value == each for each in usual):
            continue
        word = f"--{NAMES.get(name, name).replace('_', '-')}"
        if name == "tta":
            yield from (word, str(8 if value is True else value))
        elif isinstance(value, GpuProcesses):
            yield from ("--gpus", value.gpus)
        elif name == "scheduler" and isinstance(value, Path):
            yield from ("--scheduler-file", str(value.absolute()))
        elif value is True:
            yield word
        elif isinstance(value, Path) or (isinstance(value, str) and name in ("model", "score_model", "tissue_mask")):
            yield from (word, str(value) if value == "none" else str(Path(value).absolute()))
        elif isinstance(value, str | int | float) and value is not False:
            yield from (word, str(value))
        else:
            raise TypeError(name)
