"""The whole check-up, part by part."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from wsi_meta.checkup import machine
from wsi_meta.checkup.findings import Checkup, Part, looked_at
from wsi_meta.errors import OutputPathError, truth
from wsi_meta.files.locks import own_folder
from wsi_meta.files.process_settings import Silence
from wsi_meta.outputs.paths import as_path
from wsi_meta.progress import note

__all__ = ["Looks", "doctor", "look_at_all"]

REINSTALL = "install wsi-meta and its libraries again"
NO_TORCH = "left out, since torch cannot be imported"


def _decoders(scratch: Path) -> Part:
    from wsi_meta.checkup.decoders import decoders

    return decoders(scratch)


def _openslide() -> Part:
    from wsi_meta.checkup.decoders import openslide_facts

    return openslide_facts()


def _output(folder: Path, scratch: Path) -> Part:
    from wsi_meta.checkup.folder import output_folder

    return output_folder(folder, scratch)


def _cluster(scheduler: str) -> Part:
    from wsi_meta.scanning.cluster_client import look_at_cluster

    facts, line, problems = look_at_cluster(scheduler)
    return Part("cluster", facts, (line,), tuple(f"cluster: {problem}" for problem in problems))


def _self_test(scratch: Path) -> Part:
    from wsi_meta.checkup.self_test import self_test

    return self_test(scratch)


@dataclass(frozen=True)
class Looks:
    """What looks at each part that this machine does not decide alone."""

    versions: Callable[[], Part] = machine.versions
    output: Callable[[Path, Path], Part] = _output
    """Given the output folder and a scratch folder in it."""
    cluster: Callable[[str], Part] = _cluster
    """Given the scheduler's address."""
    self_test: Callable[[Path], Part] = _self_test
    """Given an empty folder."""


USUAL_LOOKS = Looks()
_silence = Silence("wsi_meta")
"""For warnings about slides, which are drawn here, and odd on purpose."""


def doctor(out: str | Path = ".", *, scheduler: str | None = None, self_test: bool = True, progress: bool = False) -> Checkup:
    """Look at everything that scans need on this machine, and scan a drawn slide.

    Parameters
    ----------
    out : folder that heatmaps are to go to; locks and renames are tried in it, and it is left as it was
    scheduler : address of a dask scheduler, ``tcp://HOST:PORT``; None looks at no cluster
    self_test : scan the drawn slide in every mode, and write every export; takes some seconds
    progress : show notes on stderr

    Returns
    -------
    :class:`wsi_meta.checkup.findings.Checkup`. Nothing is raised for what is broken: it is among its ``problems``.

    Raises
    ------
    OutputPathError
        when there is no folder `out`.
    """
    return look_at_all(as_path("out", out), scheduler, self_test=truth("self_test", self_test), progress=progress)


def look_at_all(
    out: Path, scheduler: str | None, *, self_test: bool, progress: bool = False, looks: Looks = USUAL_LOOKS
) -> Checkup:
    """Do what :func:`doctor` does, with given looks at some of the parts."""
    if not out.is_dir():
        raise OutputPathError(f"{out}: no such folder; expected the one that heatmaps are to go to")
    parts = [looked_at("versions", looks.versions, REINSTALL)]
    parts.append(looked_at("processor", machine.processor, "report this"))
    parts.append(looked_at("memory", machine.memory, "report this"))
    torch_works = "torch" not in parts[0].facts.get("broken", {})
    for name, look in (("devices", machine.devices), ("precision", machine.precision)):
        driver = "see that the driver and torch fit together"
        parts.append(looked_at(name, look, driver) if torch_works else Part(name, {}, (NO_TORCH,)))
    parts.append(looked_at("openslide", _openslide, "install openslide-python and openslide-bin again"))
    temporary = _temporary_folder()
    with _silence.held():
        parts.append(_in_scratch("decoders", temporary, lambda _folder, scratch: _decoders(scratch), REINSTALL))
    output = _in_scratch("output", out, looks.output, "choose another --out")
    parts.append(output)
    if scheduler is not None:
        parts.append(looked_at("cluster", partial(looks.cluster, scheduler), "see that dask's scheduler runs there"))
    if self_test and torch_works:
        note("scanning a drawn slide, which takes some seconds", enabled=progress)
        # in the output folder, where a store on a network would fail too; elsewhere where that one is broken
        where = temporary if output.problems else out
        with _silence.held():
            parts.append(_in_scratch("self_test", where, lambda _folder, scratch: looks.self_test(scratch), REINSTALL))
    else:
        parts.append(Part("self_test", {}, (NO_TORCH if self_test else "left out",)))
    return Checkup(tuple(parts))


def _temporary_folder() -> Path | None:
    """Return the folder for temporary files; None where none can be written to."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return None


def _in_scratch(name: str, folder: Path | None, look: Callable[[Path, Path], Part], remedy: str) -> Part:
    """Look at a part with a scratch folder inside a folder, which goes with all that is in it; see :func:`looked_at`."""

    def inside() -> Part:
        if folder is None:
            raise OutputPathError("no folder for temporary files can be written to; make room, or set TMPDIR to another one")
        with own_folder(folder, "doctor") as scratch:
            return look(folder, scratch)

    return looked_at(name, inside, remedy, hidden=[] if folder is None else [folder])
