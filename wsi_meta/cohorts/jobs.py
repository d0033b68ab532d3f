"""What is to be done for each of many slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsi_meta.cohorts.inputs import SlideInput
from wsi_meta.cohorts.retry import retry_command
from wsi_meta.cohorts.shards import Shard
from wsi_meta.errors import OptionsError, settle, truth
from wsi_meta.outputs.paths import as_path
from wsi_meta.slides.pixel_size import UsualMpp, given_mpp

__all__ = ["Job", "SlideSettings", "groups_of", "jobs_of"]


@dataclass(frozen=True)
class SlideSettings:
    """How each slide is read and where its tissue is, as :func:`wsi_meta.scan` takes it; the defaults are its own."""

    mpp: float | None = None
    """Overrules what a slide says, unless it is a :class:`.UsualMpp`."""
    reader: str = "auto"
    tissue_mask: str | Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        settle(self, overwrite=truth("overwrite", self.overwrite))
        if isinstance(self.tissue_mask, str):
            as_path("tissue mask", self.tissue_mask)


@dataclass(frozen=True)
class Job:
    """One slide of a batch."""

    place: str
    """Which one of how many: ``[2/5]``."""
    slide: SlideInput
    store: Path
    of_slide: SlideSettings
    """Its own where it has them."""
    settings: dict[str, Any] | None = None
    """Of its scanner, its own where it has them; None where they are not known."""
    alone: bool = False
    """Whether its store lies anywhere, and no table is made."""

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row of the summary with what the manifest says of the slide, and how to scan it again if that failed."""
        slide = self.slide
        drawn = None if slide.annotations is None else str(slide.annotations.absolute())
        row = row | {"patient": slide.patient or None, "label": slide.label or None, "annotations": drawn}
        if row["error"] is None or self.settings is None:
            return row
        asked = self.settings | vars(self.of_slide)
        why: dict[str, Any] = {"why": str(row["error"]), "kind": row["error_kind"], "alone": self.alone}
        return row | {"retry": retry_command(slide.path, self.store, asked, **why)}


def jobs_of(
    found: Sequence[SlideInput],
    out: Path,
    of_slide: SlideSettings,
    settings: dict[str, Any] | None = None,
    *,
    alone: bool = False,
    shard: Shard | None = None,
) -> list[Job]:
    """Return a job for each slide that is to be scanned here, with its own settings before those of all.

    Parameters
    ----------
    out : folder of the stores; `alone`, the one slide's store itself
    of_slide : for slides that have none of their own. The ``mpp`` overrules what a file says only where that is the one slide,
        and was named
    settings : of the scanner, for slides that have none of their own; None where they are not known
    shard : part of the slides; None for all

    Raises
    ------
    OptionsError
        when several slides would have one file as their tissue mask.
    """
    _refuse_one_mask(found, of_slide.tissue_mask)
    if of_slide.mpp is not None and not (len(found) == 1 and found[0].given):
        of_slide = replace(of_slide, mpp=UsualMpp(given_mpp(found[0].path, of_slide.mpp)))
    own = range(len(found)) if shard is None else shard.places_of([slide.name for slide in found])
    return [
        Job(
            f"[{place + 1}/{len(found)}]",
            slide,
            out if alone else out.absolute() / f"{slide.name}.zarr",  # it may begin after the process went to another folder
            replace(of_slide, **slide.slide_settings),
            None if settings is None else settings | slide.scanner_settings,
            alone,
        )
        for place, slide in ((place, found[place]) for place in own)
    ]


def _refuse_one_mask(found: Sequence[SlideInput], mask: str | Path | None) -> None:
    users = sum(slide.tissue_mask is None for slide in found)
    if mask is not None and str(mask) != "none" and users > 1:
        raise OptionsError(
            f"tissue mask {mask}: one file for {users} slides; expected one slide, or 'none'; a --manifest names each slide's "
            "own in its column tissue_mask"
        )


def groups_of(jobs: Sequence[Job]) -> list[tuple[dict[str, Any], list[Job]]]:
    """Return the jobs that one scanner serves together, so that a network is loaded once, with its settings."""
    groups: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.slide.scanner_settings.items()), []).append(job)
    return [(dict(own), together) for own, together in groups.items()]
