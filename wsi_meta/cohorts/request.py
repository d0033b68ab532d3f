"""What one call asks for: slides, settings and a place become a batch of jobs, or are refused before anything is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_meta.cohorts.copies import Stage
from wsi_meta.cohorts.inputs import find_slides
from wsi_meta.cohorts.jobs import Job, SlideSettings, jobs_of
from wsi_meta.cohorts.shards import Shard
from wsi_meta.errors import OutputPathError
from wsi_meta.files.address import Address, several
from wsi_meta.outputs.checks import check_folder, check_name
from wsi_meta.outputs.kept_files import is_heatmap
from wsi_meta.outputs.paths import as_path
from wsi_meta.worklist.summary import check_summary, refuse_shared_rows

__all__ = ["Batch", "Request"]


@dataclass(frozen=True)
class Batch:
    """Slides that are scanned, or looked at, in one go."""

    jobs: list[Job]
    out: Path
    """Folder of the stores, which need not be there yet; `alone`, the one slide's store itself."""
    alone: bool = False
    """Whether it is one slide whose store lies anywhere, and no table is made."""
    stage: Stage | None = None

    @property
    def folder(self) -> Path:
        """Folder of the stores."""
        return self.out.absolute().parent if self.alone else self.out


@dataclass(frozen=True)
class Request:
    """What a scan and its dry run are asked for, in the same words."""

    slides: str | Path | Address | Sequence[str | Path | Address]
    out: str | Path
    of_slide: SlideSettings
    manifest: str | Path | None = None
    recursive: bool = False
    extensions: str | Sequence[str] = ()
    shard: str | tuple[int, int] | None = None
    stage: str | Path | Stage | None = None
    settings: dict[str, Any] | None = None
    """Of the scanner; None where they are not known."""
    store_of_one: bool = False
    """Whether `out` is the store itself where one slide is named, without shards."""

    def batch(self) -> Batch:
        """Return what is to be done, in the order of the slides.

        Raises
        ------
        DataError
            when there is no slide, two have one name, the manifest is wrong, or an address has another heatmap's row in `out`.
        OptionsError
            when the shard is none, `out` no path, or one file the tissue mask of several slides.
        OutputPathError, OutputExistsError
            when the folder of the stores, or the one to copy to, cannot be.
        """
        shard = None if self.shard is None else Shard.read(self.shard)
        stage = self.stage if isinstance(self.stage, Stage | None) else Stage(as_path("stage", self.stage))
        found = find_slides(self.slides, manifest=self.manifest, recursive=self.recursive, extensions=self.extensions)
        out, named = as_path("out", self.out), len(several(self.slides)) == len(found) == 1 and found[0].given
        alone = self.store_of_one and named and self.manifest is None and shard is None
        jobs = jobs_of(found, out, self.of_slide, self.settings, alone=alone, shard=shard)
        if not alone:
            _check_folder(out, len(jobs))
            refuse_shared_rows(out, {job.store.name: job.slide.path for job in jobs})
        if stage is not None:
            stage.check()
        return Batch(jobs, out, alone, stage)


def _check_folder(out: Path, slides: int) -> None:
    """Make sure that a folder may hold, or be made for, so many slides' heatmaps; OutputPathError, OutputExistsError."""
    check_name(out)
    if out.exists() and not out.is_dir():
        raise OutputPathError(f"{out}: a file; expected a folder for the heatmaps of {slides} slides")
    if is_heatmap(out):
        raise OutputPathError(f"{out}: a heatmap store, not a folder for the heatmaps of {slides} slides; choose another --out")
    check_folder(out / "summary.csv" if out.exists() else out, temporary=False)  # nothing is written beside a folder
    check_summary(out)
