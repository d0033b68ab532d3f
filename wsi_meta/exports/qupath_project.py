"""A script that puts a slide and its lesions into a QuPath project."""

from __future__ import annotations

import json
from pathlib import Path

from wsi_meta.errors import OutputPathError, SlideReadError, WsiMetaError
from wsi_meta.exports.qupath import CELLS_OF_LESION
from wsi_meta.heatmaps.scanned_slide import open_scanned_slide
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.words import printable

__all__ = ["write_project_script"]

TEMPLATE = "qupath_project.groovy"


def write_project_script(heatmap: Heatmap, file: Path, target: Path, *, slide: str | Path) -> None:
    """Write a Groovy script that adds the slide, and the lesions of the GeoJSON file beside the script, to a project.

    Parameters
    ----------
    heatmap : of the slide; its scan need not have ended
    file : file to write
    target : the path that the script will have; the lesions are expected beside it, with the ending .geojson
    slide : the slide that the heatmap was made from; the script names it by its absolute path

    Raises
    ------
    HeatmapError
        when it is another slide.
    SlideReadError
        also where its path is no UTF-8, as QuPath could not open it.
    OutputPathError
        where that is so of `target`.
    """
    _refuse_bytes(Path(slide), SlideReadError)
    _refuse_bytes(target, OutputPathError)
    from jinja2 import Environment, PackageLoader, StrictUndefined

    open_scanned_slide(heatmap, slide).close()
    lesions = target.with_suffix(".geojson").name
    environment = Environment(
        loader=PackageLoader("wsi_meta", "exports"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {"literal": _literal, "comment": _comment}
    written = environment.get_template(TEMPLATE).render(
        slide=str(Path(slide).absolute()),
        folder=str(target.absolute().parent),
        lesions=lesions,
        script=target.name,
        description=f"Scanned by wsi-meta with model {heatmap.record.identity.model}. Research use only.",
        mark=CELLS_OF_LESION,
    )
    file.write_text(written, encoding="utf-8")


def _refuse_bytes(path: Path, kind: type[WsiMetaError]) -> None:
    """Refuse a path that is no text: Java has no way to name such a file."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        told = "a path that is no UTF-8; expected one, as QuPath cannot open any other; rename it"
        raise kind(f"{printable(str(path.absolute()))}: {told}") from error


def _literal(text: str) -> str:
    """Return a text as a literal of Groovy, in ASCII: JSON's, but for the sign that begins an expression."""
    return json.dumps(text).replace("$", "\\$")


def _comment(text: str) -> str:
    """Return the name of a file as it may stand in a comment: on one line, and without the sign of an escape."""
    return printable(text).replace("\\", "/")
