"""One call from a heatmap to the file of another program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wsi_meta.annotations.detections import write_detections
from wsi_meta.errors import OptionsError, OutputExistsError, OutputPathError, number, one_of, shown, truth
from wsi_meta.exports.asap import write_asap
from wsi_meta.exports.cell_table import write_cell_table
from wsi_meta.exports.dicom import write_parametric_map, write_segmentation
from wsi_meta.exports.dicom_frame import is_exported_dicom
from wsi_meta.exports.ome_tiff import is_exported_tiff, write_ome_tiff
from wsi_meta.exports.ome_zarr import replaced_folder, write_ome_zarr
from wsi_meta.exports.qupath import write_annotations, write_cell_detections
from wsi_meta.exports.qupath_project import write_project_script
from wsi_meta.files.address import local_path
from wsi_meta.files.slide_file import files_of_slide
from wsi_meta.heatmaps.lesions import lesion_thresholds, lesions_of, qupath_origin, to_detections, warn_if_unfinished
from wsi_meta.heatmaps.soundness import open_sound
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.outputs.checks import check_output, refuse_input
from wsi_meta.outputs.kept_files import SLIDE
from wsi_meta.outputs.paths import as_path
from wsi_meta.outputs.writing import written_whole

__all__ = ["FORMATS", "USED_BY", "export"]

FORMATS = {
    "ome-tiff": (".ome.tif", ".ome.tiff"),
    "ome-zarr-0.4": (".ome.zarr",),
    "qupath": (".geojson",),
    "qupath-cells": (".geojson",),
    "qupath-project": (".groovy",),
    "asap": (".xml",),
    "cells": (".csv", ".parquet"),
    "camelyon": (".csv",),
    "dicom-seg": (".dcm",),
    "dicom-map": (".dcm",),
}
"""What can be written, and the endings of its files. Where several have an ending, the first one is meant by it."""
FOLDERS = ("ome-zarr-0.4",)
IS_OURS = {"ome-tiff": is_exported_tiff, "dicom-seg": is_exported_dicom, "dicom-map": is_exported_dicom}
"""What tells a file that was written here from others, for files that end as slides do."""
WITHOUT_LESIONS = ("ome-tiff", "qupath-cells", "qupath-project", "cells", "dicom-map")
OF_LESIONS = tuple(form for form in FORMATS if form not in WITHOUT_LESIONS)
USED_BY = dict.fromkeys(("threshold", "peak", "min_area"), OF_LESIONS) | {"least": ("qupath-cells", "cells")}
"""Which forms an option is for that says what is written. Others, such as the slide, may be given with any form."""


def export(
    heatmap: str | Path | Heatmap,
    out: str | Path,
    *,
    form: str | None = None,
    threshold: float | None = None,
    peak: float | None = None,
    min_area: float = 0.0,
    least: float = 0.0,
    smooth: bool = True,
    slide: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a heatmap as a file that another program reads.

    Parameters
    ----------
    heatmap : store, or path of one
    out : file to write
    form : what to write, one of :data:`FORMATS`; None goes by the file's ending:

        ``ome-tiff`` (.ome.tif) the map as a pyramidal OME-TIFF, see :func:`.write_ome_tiff`;
        ``ome-zarr-0.4`` (.ome.zarr, a folder) map, lesions and status for programs that do not read the store itself, which
        is OME-Zarr 0.5, see :func:`.write_ome_zarr`;
        ``qupath`` (.geojson) lesions as QuPath's annotations, ``qupath-cells`` (.geojson, only when named) cells as
        its detections; both in QuPath's frame, as :func:`wsi_meta.find_lesions` writes it;
        ``qupath-project`` (.groovy) a script that puts the slide, and the lesions in the .geojson beside it, into a project;
        ``asap`` (.xml) outlines of lesions for ASAP, level-0 pixels;
        ``cells`` (.csv, .parquet) a table of cells, level-0 pixels;
        ``camelyon`` (.csv, only when named) Camelyon16's ``probability,x,y`` of each lesion's peak, level-0 pixels;
        ``dicom-seg`` (.dcm) lesions as a DICOM Segmentation, ``dicom-map`` (.dcm, only when named) the map as a Parametric Map;
        both need highdicom
    threshold, peak, min_area : which lesions, as :func:`wsi_meta.find_lesions`
    least : for cells: the probability that they have at least
    smooth : for ``qupath``: outlines with round corners and the same area, instead of the cells' sides
    slide : the slide that the heatmap was made from; ``qupath-project`` needs it. Of a DICOM slide, DICOM files take frame of
        reference, patient and study; else they have a frame of reference of their own, which they say
    overwrite : replace the file if it exists; one that ends as slides do only if it was written here

    Returns
    -------
    `out`

    Raises
    ------
    HeatmapError, OutputExistsError, OutputPathError
    OptionsError
        for a form that does not exist, an option that it has not, or thresholds as for :func:`wsi_meta.find_lesions`.
    DeviceError
        for a missing library.
    """
    form = _form_of(as_path("out", out), form)
    _refuse_slide(Path(out), slide)
    least = number("least", least, "a probability from 0 to 1", least=0, most=1)
    min_area, smooth = number("min_area", min_area, "0 mm2 or more", least=0), truth("smooth", smooth)
    lesions_by = {"threshold": threshold, "peak": peak, "min_area": min_area or None}
    _refuse_unused(form, lesions_by | {"least": least or None})
    if form == "qupath-project" and slide is None:
        raise OptionsError("qupath-project needs the slide; pass --slide (slide=)")
    own = SLIDE if form in IS_OURS else ""  # which is looked at more closely
    target = Path(out) if form in FOLDERS else check_output(out, overwrite=overwrite, replaces=own)
    _refuse_foreign(target, form)
    opened = open_sound(heatmap)
    if form in WITHOUT_LESIONS:
        warn_if_unfinished(opened, "its other cells are not in the file")
        with written_whole(target, overwrite=overwrite) as partial:
            _write_map(form, opened, target, partial, least=least, slide=slide)
        return target
    lesions = lesions_of(opened, threshold, peak, min_area, as_detections=form == "camelyon")
    if form == "camelyon":
        return write_detections(target, to_detections(lesions), overwrite=overwrite)
    thresholds = lesion_thresholds(opened.record, threshold, peak)
    if form == "ome-zarr-0.4":
        facts = {"threshold": thresholds[0], "peak": thresholds[1], "found": [lesion.to_dict() for lesion in lesions]}
        with replaced_folder(target, overwrite=overwrite) as partial:
            write_ome_zarr(opened, facts, partial)
        return target
    with written_whole(target, overwrite=overwrite) as partial:
        if form == "qupath":
            write_annotations(opened, lesions, qupath_origin(opened, target), partial, smooth=smooth)
        elif form == "asap":
            write_asap(lesions, partial, why_incomplete=opened.record.why_incomplete)
        else:
            write_segmentation(opened, lesions, thresholds, partial, min_area=min_area, slide=slide)
    return target


def _write_map(form: str, heatmap: Heatmap, target: Path, partial: Path, *, least: float, slide: str | Path | None) -> None:
    """Write what does not depend on lesions under the name `partial`, which will become `target`."""
    if form == "ome-tiff":
        write_ome_tiff(heatmap, partial)
    elif form == "qupath-cells":
        write_cell_detections(heatmap, qupath_origin(heatmap, target), partial, least=least)
    elif form == "dicom-map":
        write_parametric_map(heatmap, partial, slide=slide)
    elif form == "qupath-project" and slide is not None:
        write_project_script(heatmap, partial, target, slide=slide)
    else:
        write_cell_table(heatmap, partial, least=least, parquet=target.suffix.lower() == ".parquet")


def _refuse_slide(out: Path, slide: str | Path | None) -> None:
    """Refuse to write over a file of the slide; a DICOM slide has several, all of which end as what is written may."""
    refuse_input(out, "the slide", slide)
    if slide is not None and out.exists() and (path := local_path(slide)) is not None and path.is_file():
        refuse_input(out, "a file of the slide", *files_of_slide(path))


def _refuse_unused(form: str, given: dict[str, Any]) -> None:
    """Refuse what was given and has no part in a form; None was not given."""
    for name, value in given.items():
        if value is not None and form not in USED_BY[name]:
            raise OptionsError(f"{name} {shown(value)}: {form} has none; expected it with {', '.join(USED_BY[name])}")


def _refuse_foreign(target: Path, form: str) -> None:
    """Refuse to replace what may be a slide, whichever slide was given: only a file that was written here is."""
    if form in IS_OURS and target.exists() and not IS_OURS[form](target):
        raise OutputExistsError(f"{target}: 'wsi-meta export' did not write it, so it is not replaced; choose another --out")


def _form_of(out: Path, form: str | None) -> str:
    """Return what is to be written; an error where the ending says something else, or nothing."""
    if form is None:
        found = [name for name, endings in FORMATS.items() if out.name.lower().endswith(endings)]
        if not found:
            endings = ", ".join(dict.fromkeys(ending for endings in FORMATS.values() for ending in endings))
            raise OutputPathError(f"{out}: ending '{out.suffix}'; expected one of {endings}")
        return found[0]
    form = one_of("form", form, FORMATS)
    if not out.name.lower().endswith(FORMATS[form]):
        raise OutputPathError(f"{out}: ending '{out.suffix}'; expected {' or '.join(FORMATS[form])} for {form}")
    return form
