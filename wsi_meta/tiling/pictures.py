"""Parts of the pictures of a slide: where they may be written, and the scale bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wsi_meta.errors import OutputPathError, WsiMetaError
from wsi_meta.outputs import check_output, refuse_input
from wsi_meta.slides.slide import open_slide

__all__ = ["DPI", "FORMATS", "add_scale_bar", "check_picture", "ending_of"]

FORMATS = ("png", "jpg", "jpeg", "tif", "tiff", "webp", "pdf", "svg", "svgz", "eps", "ps")
"""Endings of the pictures that can be written."""
DPI = 150


def check_picture(out: Path, slide: str | Path | None, *, overwrite: bool) -> Path:
    """Return the name that is written, checked: it is free or may be replaced, and no slide has it."""
    if out.is_dir():
        raise OutputPathError(f"{out}: a directory; expected the name of a picture to write")
    if not (ending := ending_of(out)):
        out, ending = out.with_name(out.name.rstrip(".") + ".png"), "png"
    if ending not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise OutputPathError(f"{out}: .{ending} is no kind of picture that can be written; expected one of {endings}")
    refuse_input(out, "the slide", slide)
    check_output(out, overwrite=overwrite)
    if _is_slide(out):
        raise OutputPathError(f"{out}: a slide, never replaced; choose another --out")
    return out


def ending_of(out: Path) -> str:
    """Return a picture's ending, in lower case and without the dot."""
    return out.suffix[1:].lower()


def _is_slide(path: Path) -> bool:
    """Tell whether a file is a slide of its own format; pictures, also TIFFs that were drawn here, are none."""
    if not path.exists():
        return False
    try:
        open_slide(path, reader="openslide").close()
    except WsiMetaError:
        return False
    return True


def add_scale_bar(axes: Any, width_mm: float) -> None:
    """Add a bar of a round length, about a fifth of the width."""
    from matplotlib.offsetbox import AnchoredOffsetbox, AuxTransformBox, TextArea, VPacker
    from matplotlib.patches import Rectangle

    round_lengths = [digit * 10.0**power for power in range(-3, 3) for digit in (1, 2, 5)]
    length = max((value for value in round_lengths if value <= width_mm / 4), default=round_lengths[0])
    bar = AuxTransformBox(axes.transData)
    bar.add_artist(Rectangle((0, 0), length, width_mm / 150, color="black"))
    packed = VPacker(children=[bar, TextArea(f"{length:g} mm")], align="center", pad=0, sep=3)
    axes.add_artist(AnchoredOffsetbox("lower left", child=packed, pad=0.4, borderpad=0.6, frameon=True))
