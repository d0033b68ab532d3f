"""DICOM slides as files: which are one slide, and that their tiles lie and look as the files say."""

from __future__ import annotations

from mmap import ACCESS_READ, mmap
from pathlib import Path

from wsi_meta.dicom.elements import PREAMBLE_BYTES, is_dicom, read_header
from wsi_meta.dicom.frames import ITEM, ITEM_HEAD_BYTES, open_level
from wsi_meta.errors import SlideReadError
from wsi_meta.tiffs.codestreams import stated_colours
from wsi_meta.tiffs.pixel_form import refuse_other_colours, spread
from wsi_meta.tiffs.tags import JPEG, is_tiff

__all__ = ["check_dicom", "dicom_series"]

WHOLE_SLIDE_IMAGE = b"1.2.840.10008.5.1.4.1.1.77.1.6"
"""What a DICOM file says that it is, where it is a part of a slide."""
SERIES, CLASS = 0x0020000E, 0x00020002
"""Elements of a DICOM file: group and element number."""
HEAD_BYTES = 1 << 18
"""A JPEG says which colours it has in its first bytes."""


def dicom_series(path: Path) -> str | None:
    """Return the number of the series that a DICOM file belongs to; None where it is no part of a whole-slide image.

    All files of one series in one folder are one slide: its levels, label and overview.
    """
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            head = file.read(PREAMBLE_BYTES)
            if not is_dicom(head) or (is_tiff(head) and path.suffix.lower() in (".tif", ".tiff")):  # OpenSlide's rule
                return None
            with mmap(file.fileno(), 0, access=ACCESS_READ) as stored:
                said = read_header(stored, (CLASS, SERIES), SERIES).said
    except OSError:
        return None
    return said[SERIES].decode("latin-1") if said.get(CLASS) == WHOLE_SLIDE_IMAGE and SERIES in said else None


def check_dicom(path: Path) -> None:
    """Check where a level of a DICOM slide says that its tiles lie, and which colours they have; labels may be of any form.

    Raises
    ------
    SlideReadError
        when OpenSlide would take other bytes for a tile, which also ends the process, or would decode it to other colours.
    OSError
    """
    with open_level(path) as level:
        if level is None or (frames := level.frames()) is None:
            return
        heads, stored = frames.heads, level.stored
        few = [int(at) for at in heads[spread(len(heads))]] or [frames.first]
        if not frames.ordered or (len(heads) and any(stored[at : at + len(ITEM)] != ITEM for at in few)):
            raise SlideReadError(
                f"{path}: its list of where each of its {len(heads):,} tiles lies is damaged, or the file is not whole; "
                "expected one after the other, all in the file; copy the slide again, or convert it"
            )
        if level.codec == JPEG:
            said = stated_colours(stored[at + ITEM_HEAD_BYTES : at + HEAD_BYTES] for at in few)
            refuse_other_colours(path, level.colours, said)
