"""The file of a slide: whether it is there, why it cannot be opened, and whether it is still the one that was opened first."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from wsi_meta.errors import SlideReadError, first_line
from wsi_meta.slides.tiff_check import codecs_of

__all__ = ["SameFile", "SlideReplacedError", "refuse_no_file", "why_not_opened"]

ADDRESS = re.compile(r"(?:^|/)((?:https?|s3|gs|ftp|sftp|abfss?|az|gcs)):/+")
"""An address of the network. A path keeps only one of its two slashes."""


class SlideReplacedError(SlideReadError):
    """Another file stands where the slide was, or the slide was written to. No part of it can be trusted any more."""


@dataclass(frozen=True)
class SameFile:
    """A file as it was when it was opened first."""

    path: Path
    mark: tuple[int, int, int, int]
    """Device, inode, size and time of the last change in nanoseconds."""

    @classmethod
    def at(cls, path: Path) -> SameFile:
        """Return the file that stands at a path now."""
        return cls(path, _mark(path.stat()))

    @property
    def size(self) -> int:
        """Bytes."""
        return self.mark[2]

    def check(self, descriptor: int | None = None) -> None:
        """Check that the file is still the same.

        Parameters
        ----------
        descriptor : the file, open; None looks at what stands at the path

        Raises
        ------
        SlideReplacedError
        OSError
            when there is no file any more.
        """
        if _mark(self.path.stat() if descriptor is None else os.fstat(descriptor)) != self.mark:
            raise SlideReplacedError(
                f"{self.path}: the slide was replaced or changed while it was read; "
                "expected the same file to the end; leave it alone, and start again with --overwrite"
            )


def _mark(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def refuse_no_file(path: Path) -> None:
    """Refuse what is no file with something in it.

    Raises
    ------
    SlideReadError
    """
    if not path.exists():
        if address := ADDRESS.search(str(path)):
            told = f"{address[1]}://{str(path)[address.end() :]}"
            raise SlideReadError(f"{told}: an address; slides are read from files; download it first")
        raise SlideReadError(f"{path}: no such file; expected a whole-slide image")
    if path.is_dir():
        raise SlideReadError(f"{path}: a directory; expected a whole-slide image file")
    if path.stat().st_size == 0:
        raise SlideReadError(f"{path}: an empty file; expected a whole-slide image; copy it again")


def why_not_opened(path: Path, error: Exception) -> SlideReadError:
    """Make the error for a file that OpenSlide refused with an OpenSlideError."""
    from openslide import OpenSlideUnsupportedFormatError

    said, folder = first_line(error), path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and not (folder / "Slidat.ini").exists():
        found = "lacks Slidat.ini" if folder.is_dir() else "is missing"
        return SlideReadError(f"{path}: its pixels lie in the folder {folder} beside it, which {found}; copy that folder too")
    if "compression" in said.lower():
        named = " and ".join(codecs_of(path)) or "a compression of its own"
        return SlideReadError(
            f"{path}: stored as {named}, which OpenSlide does not read ({said}); "
            "convert the slide (vips tiffsave --tile --pyramid --compression jpeg)"
        )
    if isinstance(error, OpenSlideUnsupportedFormatError):
        return SlideReadError(
            f"{path}: not a slide that OpenSlide knows (a plain or truncated image?); expected a tiled, pyramidal one; "
            "convert it (vips tiffsave --tile --pyramid) or copy it again"
        )
    return SlideReadError(f"{path}: OpenSlide cannot open it: {said}; if the file is not whole, copy it again, else convert it")
