"""The files of a slide: which are one, whether they are there and still the same, and why they cannot be opened."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from wsi_meta.dicom.series import dicom_series
from wsi_meta.errors import SlideReadError
from wsi_meta.files.address import SlidePath
from wsi_meta.tiffs.pixel_form import OtherFormError
from wsi_meta.tiffs.structure import codecs_of, pages_of
from wsi_meta.words import first_line, printable

__all__ = [
    "SLIDE_EXTENSIONS",
    "files_of_slide",
    "is_mrxs_folder",
    "may_have_parts",
    "mrxs_of",
    "refuse_no_file",
    "why_not_opened",
    "wrong_kind",
]

SLIDE_EXTENSIONS = (
    ".bif",
    ".czi",
    ".dcm",
    ".mrxs",
    ".ndpi",
    ".scn",
    ".svs",
    ".svslide",
    ".tif",
    ".tiff",
    ".vms",
    ".vmu",
    ".zarr",
)
"""How the files end that our readers open."""
KINDS = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
}
"""Kinds of pictures by their first bytes."""
UNREAD = {
    b"pk\3\4": ("a zip archive", "unpack it"),
    b"\x1f\x8b": ("a gzip archive", "unpack it"),
    b"<dataobject": ("Philips' iSyntax", "export it as TIFF"),
    b"<!doctype html": ("a web page", "download the slide again"),
    b"<html": ("a web page", "download the slide again"),
}
"""What is given for a slide and is none, by its first bytes in lower case, and what to do: CAMELYON17's patients are zips."""
ENDINGS = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg", ".mrxs"), "TIFF": (".tif", *SLIDE_EXTENSIONS)}
"""How files of the kinds end that are read; an ``.mrxs`` file is a small JPEG."""


def refuse_no_file(path: Path, expected: str = "a whole-slide image") -> None:
    """Refuse what is no file with something in it; `expected` says what it should be.

    Raises
    ------
    SlideReadError
    """
    if not path.exists():
        found = "a link that leads to no file" if path.is_symlink() else "no such file"
        raise SlideReadError(f"{path}: {found}; expected {expected}")
    if path.is_dir():
        raise SlideReadError(f"{path}: a directory; expected {expected}")
    if not path.is_file():
        raise SlideReadError(f"{path}: not a regular file but a pipe, socket or device; expected {expected}")
    if path.stat().st_size == 0:
        raise SlideReadError(f"{path}: an empty file; expected {expected}; copy it again")


def why_not_opened(path: Path, error: Exception) -> SlideReadError:
    """Make the error for a file that OpenSlide refused with an OpenSlideError."""
    from openslide import OpenSlideUnsupportedFormatError

    said, folder = first_line(error), path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and not (folder / "Slidat.ini").exists():
        found = "lacks Slidat.ini" if folder.is_dir() else "is missing"
        return SlideReadError(f"{path}: its pixels lie in the folder {folder} beside it, which {found}; copy that folder too")
    if "compression" in said.lower():
        named = " and ".join(codecs_of(path)) or "a compression of its own"
        return OtherFormError(
            f"{path}: stored as {named}, which OpenSlide does not read ({said}); "
            "convert the slide (vips tiffsave --tile --pyramid --compression jpeg)"
        )
    if isinstance(error, OpenSlideUnsupportedFormatError):
        if (wrong := wrong_kind(path)) is not None:
            return wrong
        if _is_big_endian(path) and any(page["tile"] for page in pages_of(path)):
            return SlideReadError(
                f"{path}: a TIFF of big-endian numbers, which OpenSlide reads in BigTIFF only; expected little-endian ones; "
                "convert the slide (vips tiffsave --tile --pyramid --compression jpeg)"
            )
        return SlideReadError(
            f"{path}: not a slide that OpenSlide knows (a plain or truncated image?); expected a tiled, pyramidal one; "
            "convert it (vips tiffsave --tile --pyramid) or copy it again"
        )
    return SlideReadError(f"{path}: OpenSlide cannot open it: {said}; if the file is not whole, copy it again, else convert it")


def _is_big_endian(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"MM\0*"


def wrong_kind(path: Path) -> SlideReadError | None:
    """Make the error for a picture of another kind than its name says, or of a file that is not read; None for any other."""
    with path.open("rb") as file:
        head = file.read(max(map(len, (*KINDS, *UNREAD))))
    for start, (found, todo) in UNREAD.items():
        if head.lower().startswith(start):
            return SlideReadError(f"{path}: {found}; expected a slide; {todo}")
    kind = next((kind for start, kind in KINDS.items() if head.startswith(start)), None)
    if kind is None or path.suffix.lower() in ENDINGS.get(kind, ()):
        return None
    todo = (
        f"name it {ENDINGS[kind][0]}" if kind in ENDINGS else "convert it to PNG, or a slide (vips tiffsave --tile --pyramid)"
    )
    return SlideReadError(f"{path}: a {kind} file; expected a slide, or a PNG, JPEG or TIFF that is named so; {todo}")


def files_of_slide(path: Path, *, read: bool = False) -> list[Path]:
    """Return all files that a slide is read from: its own first, then those beside it.

    An ``.mrxs`` file has a folder of its name, a DICOM slide the files of its series, ``.vms`` and ``.vmu`` name theirs.

    Parameters
    ----------
    read : without what else lies in an ``.mrxs`` file's folder, such as a viewer's notes

    Raises
    ------
    OSError
        when it is not there.
    SlideReadError
        when it is a DICOM slide to be read, and a pipe lies beside it.
    """
    ending, beside = path.suffix.lower(), list[Path]()
    path.stat()
    if ending == ".mrxs":
        found = [file for file in path.with_suffix("").rglob("*") if file.is_file()]
        beside = [file for file in found if not read or file.suffix == ".dat" or file.name == "Slidat.ini"]
    elif ending in (".vms", ".vmu"):
        named = re.findall(r"=\s*(\S.*?)\s*$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        beside = [path.with_name(name) for name in named if Path(name).name == name and path.with_name(name).is_file()]
    elif (series := dicom_series(path)) is not None:  # of any name, as OpenSlide finds them
        entries = list(path.parent.iterdir())
        if read:
            _refuse_pipes(path, entries)
        beside = [file for file in entries if dicom_series(file) == series]
    return [path, *sorted(set(beside) - {path})]


def _refuse_pipes(path: Path, entries: Iterable[Path]) -> None:
    """Refuse a DICOM slide beside which a pipe or a terminal lies: OpenSlide opens all that lies there."""
    for entry in entries:
        if entry.is_fifo() or entry.is_char_device():
            raise SlideReadError(
                f"{path}: beside it lies {printable(entry.name)}, a pipe or device, from which OpenSlide would wait for ever; "
                "expected only files in the folder of a DICOM slide; move one of them away"
            )


def may_have_parts(slide: SlidePath) -> bool:
    """Tell whether other files than the one that is opened may stand for a slide."""
    return slide.suffix.lower() == ".mrxs" or (isinstance(slide, Path) and dicom_series(slide) is not None)


def is_mrxs_folder(folder: Path) -> bool:
    """Tell whether a folder holds the pixels of the ``.mrxs`` file of its name, so that it is no slide by itself."""
    return (folder / "Slidat.ini").is_file()


def mrxs_of(folder: Path) -> Path | None:
    """Return the ``.mrxs`` file that a folder of pixels belongs to; None where it is not beside it."""
    beside = (folder.with_name(folder.name + ending) for ending in (".mrxs", ".MRXS"))
    return next(filter(Path.is_file, beside), None)
