"""Parts of the pictures of a slide: where they may be written, how, and the scale bar."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

from wsi_meta.errors import OutputPathError
from wsi_meta.outputs.checks import check_output, refuse_input
from wsi_meta.outputs.kept_files import OURS
from wsi_meta.outputs.writing import written_whole

__all__ = ["DPI", "FORMATS", "check_picture", "ending_of", "round_length", "write_figure"]

FORMATS = ("png", "jpg", "jpeg", "tif", "tiff", "webp", "pdf", "svg", "svgz", "eps", "ps")
"""Endings of the pictures that can be written."""
DPI = 150
SAVED_BY: dict[str, dict[str, Any]] = {"png": {"compress_level": 4}, "tif": {"software": OURS}, "tiff": {"software": OURS}}
"""How kinds of pictures are saved. PNG: half the time of zlib's usual level 6, for files that are a fourteenth larger."""


def check_picture(out: Path, slide: str | Path | None, *, overwrite: bool) -> Path:
    """Return the name that is written, checked: it is free or may be replaced, and no slide has it."""
    if out.exists() and not out.is_file():
        check_output(out, overwrite=overwrite)  # before an ending is added to its name
    if not (ending := ending_of(out)):
        out, ending = out.with_name(out.name.rstrip(".") + ".png"), "png"
    if ending not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise OutputPathError(f"{out}: .{ending} is no kind of picture that can be written; expected one of {endings}")
    refuse_input(out, "the slide", slide)
    check_output(out, overwrite=overwrite)
    return out


def ending_of(out: Path) -> str:
    """Return a picture's ending, in lower case and without the dot."""
    return out.suffix[1:].lower()


def write_figure(figure: Any, out: Path, *, overwrite: bool) -> None:
    """Write a figure whole. In PDF and SVG text is text, which can be searched and edited.

    Raises
    ------
    OutputExistsError, OutputPathError
        as :func:`.written_whole`; an older picture stays.
    """
    ending = ending_of(out)
    with written_whole(out, overwrite=overwrite) as partial:
        if ending in ("svg", "svgz"):
            _write_svg(figure, partial, compressed=ending == "svgz")
        else:
            options = {"pil_kwargs": SAVED_BY[ending]} if ending in SAVED_BY else {}
            written = io.BytesIO()  # written to a file, PDF of matplotlib would not say why that failed
            figure.savefig(written, format=ending, **options)
            partial.write_bytes(written.getvalue())


def _write_svg(figure: Any, file: Path, *, compressed: bool) -> None:
    """Write text as text. matplotlib has one setting for that for the whole process, which other threads may draw by."""
    from matplotlib.backends import backend_mixed, backend_svg

    mixed: Any = backend_mixed
    svg: Any = backend_svg
    image_dpi = figure.get_dpi()
    figure.set_dpi(72)  # SVG's unit is the point
    width, height = figure.get_size_inches()
    with gzip.open(file, "wt", encoding="utf-8") if compressed else file.open("w", encoding="utf-8") as text:
        vectors = svg.RendererSVG(width * 72, height * 72, text, image_dpi=image_dpi)
        vectors.draw_text = vectors._draw_text_as_text
        renderer = mixed.MixedModeRenderer(figure, width, height, image_dpi, vectors)
        figure.draw(renderer)
        renderer.finalize()


def round_length(width_mm: float) -> tuple[float, str]:
    """Return the longest round length up to a quarter of a width, mm, and in words."""
    round_lengths = [digit * 10.0**power for power in range(-3, 3) for digit in (1, 2, 5)]
    length = max((value for value in round_lengths if value <= width_mm / 4), default=round_lengths[0])
    return length, f"{length:g} mm" if length >= 0.1 else f"{length * 1000:g} µm"
