"""Folders of files of which each is of one slide: detections, and truth, of which nothing may be overlooked."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from wsi_meta.annotations.outline_files import OUTLINE_ENDINGS
from wsi_meta.annotations.tables import SLIDE_ENDINGS, one_form, without_ending
from wsi_meta.errors import DataError
from wsi_meta.masks.tumor_masks import MASK_ENDINGS
from wsi_meta.words import some_of

__all__ = ["PICTURES", "files_by_slide", "refuse_unread_truth", "slide_of"]

logger = logging.getLogger(__name__)

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".npy")
"""Endings of what may be a mask, but is not read as one."""
SLIDES = tuple(ending for ending in SLIDE_ENDINGS if ending not in (*PICTURES, ".zarr", ".zip"))
"""Endings of what is a slide, which may lie beside its truth."""
NOTES = (".md5", ".sha1", ".sha256", ".sha512", ".csv", ".tsv", ".xls", ".xlsx", ".ods", ".txt", ".md", ".pdf", ".log")
"""Endings of checksums, tables and texts, which are no truth."""
MASK_NAME = re.compile("(_evaluation)?_mask$")
TRUTH_FOLDER = re.compile("mask|annot|lesion|truth|tumou?r")
"""What is in the name of a folder whose TIFFs are masks; others may be slides."""


def files_by_slide(folder: Path, endings: tuple[str, ...], expected: str) -> dict[str, Path]:
    """Return the folder's files by slide name; DataError when a slide has two. What else lies there is told."""
    if not folder.is_dir():
        raise DataError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}; expected one with {expected}")
    files: dict[str, Path] = {}
    others = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() not in endings or path.is_dir():
            others.append(path.name)
            continue
        name = slide_of(path)
        if files.setdefault(name, path) != path:
            raise DataError(f"{path}: is for the same slide as {files[name].name}; expected one file a slide")
    if not files:
        raise DataError(f"{folder}: holds no such file; expected {expected}")
    if others:
        logger.warning("%s: not read: %s; read are %s", folder, some_of(others), expected)
    return files


def slide_of(path: Path) -> str:
    """Return the name of the slide that a file is of: in lower case, without ``_mask`` and the ending of a slide."""
    return without_ending(MASK_NAME.sub("", one_form(path.stem.lower())))


def refuse_unread_truth(folder: Path, found: dict[str, Path], truths: dict[str, Path], stores: Iterable[Path] = ()) -> None:
    """Raise DataError when a slide has no truth but something of its name that is not read: it would count as normal.

    Parameters
    ----------
    folder : of the truth
    found, truths : the files by slide that were found and read, of detections and of truth
    stores : heatmaps in the folder; like slides, they may lie beside the truth
    """
    read, normal = {*found.values(), *truths.values(), *stores}, found.keys() - truths.keys()
    others = [path for path in sorted(folder.iterdir()) if path.name[0] != "." and path not in read]
    for path in others:
        if _named(path, found) in normal and not _is_slide(path) and not _is_note(path):
            told = "not read, so that its slide would count as normal; expected outlines or a mask as TIFF"
            raise DataError(f"{path}: {told}; convert it, or move it elsewhere if its slide is normal")
        for inner in sorted(path.iterdir()) if path.is_dir() else ():
            if slide_of(inner) in normal and _seems_truth(inner):
                raise DataError(f"{path}: holds {inner.name}; expected it in {folder} itself: its slide would count as normal")


def _named(path: Path, slides: Iterable[str]) -> str | None:
    """Return the slide, of some, whose name a file's begins with up to a dot: the longest; None where there is none."""
    parts = one_form(path.name.lower()).split(".")
    stems = [MASK_NAME.sub("", ".".join(parts[:count])) for count in range(len(parts), 0, -1)]
    return next((stem for stem in stems if stem in slides), None)


def _is_slide(path: Path) -> bool:
    """Tell whether a file is a slide, or a folder is that of one in MRXS."""
    return path.with_name(f"{path.name}.mrxs").exists() if path.is_dir() else path.suffix.lower() in SLIDES


def _is_note(path: Path) -> bool:
    """Tell whether a file is no truth. After outlines' ending (``.xml.txt``, ``.xml.md5``) it is not known where they are."""
    return path.suffix.lower() in NOTES and Path(path.stem).suffix.lower() not in OUTLINE_ENDINGS


def _seems_truth(inner: Path) -> bool:
    """Tell whether a file of a folder within the truth may be truth: outlines, or a TIFF where a name says mask or the like."""
    ending = inner.suffix.lower()
    named = MASK_NAME.search(inner.stem.lower()) or TRUTH_FOLDER.search(inner.parent.name.lower())
    return ending in OUTLINE_ENDINGS or (ending in MASK_ENDINGS and bool(named))
