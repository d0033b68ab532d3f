"""Slides copied to a faster disk before they are scanned, and removed from it afterwards."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from wsi_meta.cohorts.jobs import Job
from wsi_meta.errors import OVER_0, HeatmapError, OptionsError, OutputPathError, SlideReadError, number, settle
from wsi_meta.files.address import SlidePath
from wsi_meta.files.locks import own_folder
from wsi_meta.files.same_file import SameFile
from wsi_meta.files.slide_file import files_of_slide
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.outputs.paths import NO_ROOM, cannot_be_written
from wsi_meta.scanning.engine import SlideCopy
from wsi_meta.scanning.scanner import Scanner
from wsi_meta.words import first_line, one_line

__all__ = ["BUDGET_GB", "Stage", "Staging", "refuse_elsewhere", "staging"]

BUDGET_GB = 50.0
"""Gigabytes of copies at the same time, where nothing is said: some twenty slides of Camelyon."""
LEFT_FREE_BYTES = 1 << 30
"""So much of a disk stays free."""
PART_BYTES = 1 << 24
"""Bytes that are copied between two looks at whether to go on."""


@dataclass(frozen=True)
class Stage:
    """Where to copy slides to, and how much may lie there at the same time.

    Raises
    ------
    OptionsError
        when the budget is no size.
    """

    folder: Path
    budget_gb: float = BUDGET_GB
    """In units of 10^9 bytes."""

    def __post_init__(self) -> None:
        settle(self, budget_gb=number("stage budget", self.budget_gb, "more than 0 GB", least=OVER_0))

    @property
    def budget_bytes(self) -> float:
        """Bytes."""
        return self.budget_gb * 1e9

    def check(self) -> None:
        """Make sure that the folder takes files, or would if the disk were not full; OutputPathError if not."""
        if not self.folder.is_dir():
            raise OutputPathError(f"{self.folder}: no such folder; expected one on a fast disk for --stage; make it first")
        try:
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise OutputPathError(cannot_be_written(f"{self.folder}: a folder in it", error)) from error


@contextmanager
def staging(stage: Stage | None, scanner: Scanner, jobs: Sequence[Job]) -> Iterator[Staging]:
    """Begin to copy the slides that a scanner will read; yield the copies, which are removed in the end.

    Parameters
    ----------
    stage : None copies nothing; nor is anything copied where its disk is full, which is told

    Raises
    ------
    OptionsError
        when the scanner's workers may be on other machines.
    OutputPathError
        when the folder cannot be written to.
    """
    if stage is None:
        yield Staging(None, 0, scanner.note)
        return
    refuse_elsewhere(scanner, stage)
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(own_folder(stage.folder.absolute(), "staged"))
        except OutputPathError as error:
            if getattr(error.__cause__, "errno", None) not in NO_ROOM:
                raise
            folder = None
            scanner.note(f"slides are read where they lie: {one_line(error)}", level=logging.WARNING)
        copying = Staging(folder, stage.budget_bytes, scanner.note)
        try:
            copying.begin([(job.slide.path, partial(_is_to_be_read, scanner, job)) for job in jobs])
            yield copying
        finally:
            copying.close()


def refuse_elsewhere(scanner: Scanner, stage: Stage | None) -> None:
    """Refuse to stage for workers that do not see this machine's disks; OptionsError."""
    if stage is not None and scanner.options.on_other_machines:
        raise OptionsError("stage: workers on other machines do not see the copies of this one; expected no cluster with it")


def _is_to_be_read(scanner: Scanner, job: Job) -> bool:
    """Tell whether most of a slide's pixels will be read: it is not passed over, and has no finished heatmap."""
    try:
        scanner.journal.refuse(job.slide.path)
        return job.of_slide.overwrite or not (job.store.exists() and Heatmap.open(job.store).finished)
    except SlideReadError:
        return False
    except (HeatmapError, OSError):
        return True


class Staging:
    """Copies slides one after the other, ahead of their scans, as far as the budget allows.

    Parameters
    ----------
    folder : for the copies; None copies nothing
    budget_bytes : that may lie there at the same time
    tell : told in one line why a slide is read where it lies
    """

    def __init__(self, folder: Path | None, budget_bytes: float, tell: Callable[[str], None]) -> None:
        self._folder, self._budget, self._tell = folder, budget_bytes, tell
        self._copying = ThreadPoolExecutor(1, "staging")
        self._changed, self._lying, self._stopped = threading.Condition(), 0, False
        self._copies: dict[SlidePath, Future[tuple[Path, int] | None]] = {}

    def begin(self, slides: Sequence[tuple[SlidePath, Callable[[], bool]]]) -> None:
        """Begin to copy slides in this order, in a thread; each is asked, when it is its turn, whether it needs a copy."""
        for slide, is_needed in slides if self._folder is not None else ():
            self._copies[slide] = self._copying.submit(self._copy, slide, is_needed, f"{len(self._copies)}")

    @contextmanager
    def copy_of(self, slide: SlidePath) -> Iterator[SlidePath | SlideCopy]:
        """Wait for a slide's copy and yield both; the slide where it is read where it lies. Then remove the copy."""
        copied = self._copies[slide].result() if slide in self._copies else None
        if copied is None:
            yield slide
            return
        copy, taken = copied
        try:
            yield SlideCopy(slide, copy)
        finally:
            self._remove(copy.parent, taken)  # the copy may be gone: nothing here looks at it

    def stop(self) -> None:
        """Let nobody wait for a copy any more: the scans end."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stop copying."""
        self.stop()
        self._copying.shutdown(cancel_futures=True)

    def _copy(self, slide: SlidePath, is_needed: Callable[[], bool], place: str) -> tuple[Path, int] | None:
        """Copy all files of a slide; return the copy's path and its bytes, or None where it is read where it lies."""
        assert self._folder is not None
        try:
            if self._stopped or not isinstance(slide, Path) or slide.is_dir() or not is_needed():
                return None  # of an address little is read; an OME-Zarr image may be anything
            files = files_of_slide(slide)
            before = SameFile.at(*files)
            bytes_of_slide = _bytes_of(files)
            if (reason := self._take(bytes_of_slide)) is not None:
                self._tell(f"{slide}: is read where it lies: {reason}")
                return None
        except OSError:
            return None  # the scan will say what is wrong with it
        target = self._folder / place
        try:
            for file in files:
                self._copy_file(file, target / file.relative_to(slide.parent))
            before.check()  # a file may be replaced while another one is copied
        except (OSError, InterruptedError) as error:
            self._remove(target, bytes_of_slide)
            if not isinstance(error, InterruptedError):
                self._tell(f"{slide}: is read where it lies: it cannot be copied ({first_line(error)})")
            return None
        return target / slide.name, bytes_of_slide

    def _take(self, wanted: int) -> str | None:
        """Wait until so many bytes may be copied, and take them; return why that will never be, else None."""
        assert self._folder is not None
        if wanted > self._budget:
            return f"its {wanted / 1e9:.1f} GB are more than the budget of {self._budget / 1e9:g} GB (--stage-budget)"
        with self._changed:
            while not self._stopped:
                lacking = wanted + LEFT_FREE_BYTES > shutil.disk_usage(self._folder).free
                if lacking and not self._lying:
                    return f"the disk of {self._folder.parent} has no room for its {wanted / 1e9:.1f} GB"
                if not lacking and self._lying + wanted <= self._budget:
                    self._lying += wanted
                    return None
                self._changed.wait()
        return "the scan ends"

    def _copy_file(self, file: Path, target: Path) -> None:
        before = SameFile.at(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as source, target.open("xb") as copy:
            while part := source.read(PART_BYTES):
                if self._stopped:
                    raise InterruptedError
                copy.write(part)
        before.check()
        if target.stat().st_size != before.size:
            raise SlideReadError(f"{file}: was cut while it was copied")

    def _remove(self, copies: Path, freed: int) -> None:
        shutil.rmtree(copies, ignore_errors=True)
        with self._changed:
            self._lying -= freed
            self._changed.notify_all()


def _bytes_of(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)
