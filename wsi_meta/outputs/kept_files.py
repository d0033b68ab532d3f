"""What no output replaces or lies in: heatmap stores, slides, model files, corrections, the table of a folder of heatmaps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from wsi_meta.errors import OutputPathError
from wsi_meta.outputs.paths import real_path
from wsi_meta.outputs.zarr_folder import is_zarr_image
from wsi_meta.tiffs.tags import OME, UM_PER_RESOLUTION_UNIT, is_tiff
from wsi_meta.words import from_json

__all__ = ["CORRECTED", "MODEL", "OURS", "SLIDE", "is_heatmap", "is_store", "mark_of", "refuse_inside_store", "refuse_kept"]

SLIDE, MODEL = "a slide", "a model file"
CORRECTIONS, CORRECTED = "corrections of a heatmap", ".corrections.geojson"
"""What someone corrected in the viewer, and how the name of such a file ends, also of one that QuPath saved again."""
OURS = "wsi-meta"
"""Software that a TIFF of ours names which is a picture of a slide: an enlarged one says a size of pixels as slides have it."""
CELLS_UM = (0.05, 8.0)
"""Sizes of pixels in which cells can be seen; a page or a figure has 21 um (1,200 dpi) and more."""
HEAD_BYTES = 4096
"""So much of a file says what it is."""
MARKS = b"\xef\xbb\xbf\xff\xfe"
"""What a byte order mark is made of."""
HEADS = {
    "the table of a folder of heatmaps": re.compile(
        rb'"?slide"?[,;\t]"?heatmap"?[,;\t]"?score"?[,;\t]|\{"made_by": "wsi-meta [^"]*", "csv_crc32": '
    ),
    CORRECTIONS: re.compile(rb'\{"type": "FeatureCollection", "wsi_meta": \{[^{}]*"corrections": '),
    "the options of a scan": re.compile(rb"# wsi-meta \S+; start from it again: wsi-meta scan "),
}
"""What files of ours begin with that hold more than can be made again."""


def mark_of(path: Path) -> dict[str, Any] | None:
    """Return what a heatmap store says of itself, be it damaged otherwise; None of a folder that bears no such mark."""
    try:
        parts = from_json((path / "zarr.json").read_bytes())["attributes"]["wsi_meta"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return parts if isinstance(parts, dict) and "identity" in parts else None


def is_store(path: Path) -> bool:
    """Tell whether a folder bears the mark of our heatmap stores."""
    return mark_of(path) is not None


def is_heatmap(path: Path) -> bool:
    """Tell whether a folder is a heatmap: by what marks its blocks or, where that is lost, by its record."""
    return (path / "status" / "zarr.json").is_file() or is_store(path)


def refuse_inside_store(path: Path) -> None:
    """Make sure that an output would not lie inside a heatmap store, or an image that may be a slide; OutputPathError if so."""
    for folder in real_path(path).parents:
        if (ours := is_heatmap(folder)) or is_zarr_image(folder):
            store = "heatmap store" if ours else "OME-Zarr image"
            raise OutputPathError(f"{path}: lies inside the {store} {folder}; choose another place")


def refuse_kept(path: Path, *, replaces: str = "") -> None:
    """Refuse to write over a file that only its own writer may replace, or under its name; OutputPathError if it is one.

    Parameters
    ----------
    path : a file, which need not be there
    replaces : the kind of file that the caller writes, :data:`SLIDE` or :data:`MODEL`, which may stand there
    """
    kind = _kind_of(path)
    if kind is not None and kind != replaces:
        found = f"{kind}, never replaced; choose another place" if path.exists() else f"named as {kind}; choose another name"
        raise OutputPathError(f"{path}: {found}")


def _kind_of(path: Path) -> str | None:
    """Return what a file is if it is one that is kept."""
    if any(name.endswith(CORRECTED) for name in (path.name, real_path(path).name)):
        return CORRECTIONS
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            length = int.from_bytes(head[:8], "little")
            is_model = head[8:9] == b"{" and b'"wsi_meta"' in head + file.read(min(length, 1 << 24))
    except OSError:
        return None  # what cannot be read is told where it is written
    if is_model:
        return MODEL
    text = head.replace(b"\0", b"").lstrip(MARKS)  # a spreadsheet may have written it
    if kinds := [kind for kind, begin in HEADS.items() if begin.match(text)]:
        return kinds[0]
    return SLIDE if _is_slide(path, head) else None


def _is_slide(path: Path, head: bytes) -> bool:
    """Tell whether a file is a slide of its own format, also one that is refused or damaged; other pictures are none."""
    from openslide import OpenSlide

    return OpenSlide.detect_format(path) is not None or (is_tiff(head) and _is_slide_in_tiff(path))


def _is_slide_in_tiff(path: Path) -> bool:
    """Tell whether a TIFF is a slide that OpenSlide does not know: it has OME-XML, or says pixels that show cells."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            if OME.search(str(page.description)):
                return True
            per_unit, denominator = page.tags.valueof(282, default=(0, 1))
            mpp: float = UM_PER_RESOLUTION_UNIT.get(page.tags.valueof(296, default=2), 0) * denominator / per_unit
            return CELLS_UM[0] <= mpp <= CELLS_UM[1] and str(page.software) != OURS
    except Exception:  # what a damaged TIFF raises depends on what it is
        return False
