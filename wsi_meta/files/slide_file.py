"""The files of a slide: which are one, whether they are there and still the same, and why they cannot be opened."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

from wsi_meta.errors import SlideReadError
from wsi_meta.files.address import refuse_mangled
from wsi_meta.tiffs.structure import codecs_of
from wsi_meta.words import first_line

__all__ = [
    "SLIDE_EXTENSIONS",
    "dicom_series",
    "files_of_slide",
    "is_mrxs_folder",
    "mrxs_of",
    "refuse_no_file",
    "why_not_opened",
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
WHOLE_SLIDE_IMAGE = b"1.2.840.10008.5.1.4.1.1.77.1.6"
"""What a DICOM file says that it is, where it is a part of a slide."""
SERIES, CLASS, SYNTAX, END_OF_SEQUENCE = 0x0020000E, 0x00020002, 0x00020010, 0xFFFEE0DD
"""Elements of a DICOM file: group and element number."""
IMPLICIT = b"1.2.840.10008.1.2"
"""The one transfer syntax in which the elements do not say of what kind they are."""
LONG_KINDS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
"""Kinds of elements whose length takes four bytes after two that are reserved."""
UNDEFINED = 0xFFFFFFFF
"""The length of a sequence that has an end mark instead."""
HEAD_BYTES = 1 << 18
"""The number of its series stands in these first bytes of a DICOM file, before anything large."""


def refuse_no_file(path: Path, expected: str = "a whole-slide image") -> None:
    """Refuse what is no file with something in it; `expected` says what it should be.

    Raises
    ------
    SlideReadError
    """
    if not path.exists():
        refuse_mangled(path)
        found = "a link that leads to no file" if path.is_symlink() else "no such file"
        raise SlideReadError(f"{path}: {found}; expected {expected}")
    if path.is_dir():
        raise SlideReadError(f"{path}: a directory; expected {expected}")
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
    """
    ending, beside = path.suffix.lower(), list[Path]()
    path.stat()
    if ending == ".mrxs":
        found = [file for file in path.with_suffix("").rglob("*") if file.is_file()]
        beside = [file for file in found if not read or file.suffix == ".dat" or file.name == "Slidat.ini"]
    elif ending == ".dcm" and (series := dicom_series(path)) is not None:
        others = (file for file in path.parent.iterdir() if file.suffix.lower() == ".dcm" and file.is_file())
        beside = [file for file in others if dicom_series(file) == series]
    elif ending in (".vms", ".vmu"):
        named = re.findall(r"=\s*(\S.*?)\s*$", path.read_text(errors="replace"), re.MULTILINE)
        beside = [path.with_name(name) for name in named if Path(name).name == name and path.with_name(name).is_file()]
    return [path, *sorted(set(beside) - {path})]


def is_mrxs_folder(folder: Path) -> bool:
    """Tell whether a folder holds the pixels of the ``.mrxs`` file of its name, so that it is no slide by itself."""
    return (folder / "Slidat.ini").is_file()


def mrxs_of(folder: Path) -> Path | None:
    """Return the ``.mrxs`` file that a folder of pixels belongs to; None where it is not beside it."""
    beside = (folder.with_name(folder.name + ending) for ending in (".mrxs", ".MRXS"))
    return next(filter(Path.is_file, beside), None)


def dicom_series(path: Path) -> str | None:
    """Return the number of the series that a DICOM file belongs to; None where it is no part of a whole-slide image.

    All files of one series in one folder are one slide: its levels, label and overview.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return None
    found = dict(_outer_elements(head)) if head[128:132] == b"DICM" else {}
    return found[SERIES].decode("latin-1") if found.get(CLASS) == WHOLE_SLIDE_IMAGE and SERIES in found else None


def _outer_elements(head: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number and value of a DICOM file's elements up to :data:`SERIES`, without those inside sequences."""
    at, depth, implicit = 132, 0, False
    while at + 12 <= len(head):
        group, element, short, long = struct.unpack_from("<HHxxHI", head, at)
        number, kind = group << 16 | element, head[at + 4 : at + 6]
        if group == 0xFFFE or (implicit and group != 2):
            at, length = at + 8, int.from_bytes(head[at + 4 : at + 8], "little")
        else:
            at, length = (at + 12, long) if kind in LONG_KINDS else (at + 8, short)
        if depth == 0 and number > SERIES and group != 0xFFFE:
            return
        depth += (length == UNDEFINED and group != 0xFFFE) - (number == END_OF_SEQUENCE)
        if length != UNDEFINED:
            value = head[at : at + length].rstrip(b"\0 ")
            implicit = implicit or (number == SYNTAX and value == IMPLICIT)
            if depth == 0:
                yield number, value
            at += length
