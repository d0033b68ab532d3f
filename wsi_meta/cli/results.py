"""``wsi-meta lesions``, ``score``, ``fit-score``, ``overlay``, ``view`` and ``export``: what is read from heatmaps."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_meta.cli import options, running
from wsi_meta.errors import SlideReadError
from wsi_meta.outputs.checks import refuse_input
from wsi_meta.progress import note
from wsi_meta.words import one_line

if TYPE_CHECKING:
    from wsi_meta.files.address import SlidePath
    from wsi_meta.heatmaps.store import Heatmap

__all__ = ["export", "fit_score", "lesions", "overlay", "score", "view"]


FORMS = (
    "ome-tiff",
    "ome-zarr-0.4",
    "qupath",
    "qupath-cells",
    "qupath-project",
    "asap",
    "cells",
    "camelyon",
    "dicom-seg",
    "dicom-map",
)

FORMS_TOLD = """\b
Forms:
  ome-tiff        .ome.tif        the map, pyramidal, aligned by physical size
  ome-zarr-0.4    .ome.zarr       map, lesions and status, zarr format 2
  qupath          .geojson        lesions as annotations, in QuPath's frame
  qupath-cells    .geojson --as   cells as detections, for measurement maps
  qupath-project  .groovy         a script that adds slide and lesions to a project
  asap            .xml            lesions as ASAP's outlines
  cells           .csv .parquet   a table of cells
  camelyon        .csv --as       Camelyon16's probability,x,y of each lesion
  dicom-seg       .dcm            lesions as a Segmentation; needs highdicom
  dicom-map       .dcm --as       the map as a Parametric Map; needs highdicom
"""
"""What --as takes, in a table that click does not re-wrap."""

threshold_option = click.option(
    "--threshold",
    type=options.NumberRange(0, 1, min_open=True),
    help="Probability that all cells of a lesion have at least.  [model's default]",
)
peak_option = click.option(
    "--peak",
    type=options.NumberRange(0, 1, min_open=True),
    help="Probability that one of them has at least.  [model's specificity_99]",
)
min_area_option = click.option(
    "--min-area", type=options.NumberRange(0), default=0.0, show_default=True, help="Leave out smaller lesions, mm2."
)

heatmaps_argument = click.argument("heatmaps", nargs=-1, required=True, type=options.PATH)


def _region(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Read ``X,Y,WIDTH,HEIGHT``."""
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() for part in parts):
        raise click.BadParameter(f"{value!r}; expected X,Y,WIDTH,HEIGHT, whole numbers of level-0 pixels", context, parameter)
    return tuple(map(int, parts))


@click.command(epilog=options.example("wsi-meta lesions heat.zarr --out lesions.geojson"))
@heatmaps_argument
@threshold_option
@peak_option
@min_area_option
@click.option("--out", type=options.NEW_FILE, help="Table (.csv), or outlines for QuPath (.geojson).")
@click.option("--detections", type=options.NEW_FILE, help="CSV of peaks in Camelyon16's format, for froc.")
@options.overwrite_option
@options.as_json_option
def lesions(heatmaps: tuple[Path, ...], out: Path | None, detections: Path | None, as_json: bool, **settings: Any) -> None:
    """Find the lesions of heatmaps: place, size, size class, probability.

    Positions are level-0 pixels of OpenSlide. Outlines for QuPath count from the corner of what QuPath shows of the slide, and
    the file says so.

    HEATMAPS may be folders of them; files to write then have {name} in their names, as 'lesions/{name}.csv'.
    """
    work = partial(_find_lesions, as_json=as_json, **settings)
    running.over_heatmaps(heatmaps, work, as_json=as_json, out=out, detections=detections)


def _find_lesions(heatmap: Heatmap, *, as_json: bool, **settings: Any) -> dict[str, Any]:
    from wsi_meta.heatmaps.lesions import coverage, find_lesions, lesion_thresholds

    found = [lesion.to_dict() for lesion in find_lesions(heatmap, **settings)]
    known = {"heatmap": str(heatmap.root), "slide": heatmap.record.slide.name} | coverage(heatmap)
    thresholds = lesion_thresholds(heatmap.record, settings["threshold"], settings["peak"])
    known |= zip(("threshold", "peak"), thresholds, strict=True)
    if not as_json:
        found = [lesion | _told_size(lesion) for lesion in found]
        known["verdict"] = options.told_verdict(known["verdict"])
    return known | {"lesions": found if known["scanned"] else None}


def _told_size(lesion: dict[str, Any]) -> dict[str, Any]:
    """Return class and diameter of a lesion as a person should read them, where it may be larger than what was seen."""
    from wsi_meta.heatmaps.regions import at_least

    length = f"{lesion['diameter_mm']:.4g}"
    told = {"size_class": at_least(lesion["size_class"], cut=True), "diameter_mm": at_least(length, cut=True)}
    return told if lesion["cut"] else {}


@click.command(epilog=options.example("wsi-meta score heat.zarr"))
@heatmaps_argument
@options.score_model_option
@options.as_json_option
def score(heatmaps: tuple[Path, ...], score_model: Path | None, as_json: bool) -> None:
    """Score slides from their heatmaps; print the features of each map, and score and lesions of each piece of tissue.

    HEATMAPS may be folders of them.
    """
    from wsi_meta.heatmaps.score_model import score_heatmap
    from wsi_meta.models.chance import TRAIN_AGAIN, warn_of_useless

    models = set[str]()

    def work(heatmap: Heatmap) -> dict[str, Any]:
        scored = {"heatmap": str(heatmap.root)} | asdict(score_heatmap(heatmap, score_model=score_model))
        if heatmap.record.identity.model not in models:
            warn_of_useless(heatmap.record.model, heatmap.path, TRAIN_AGAIN)
        models.add(heatmap.record.identity.model)
        return scored if as_json else scored | {"verdict": options.told_verdict(scored["verdict"])}

    running.over_heatmaps(heatmaps, work, as_json=as_json)


@click.command("fit-score", epilog=options.example("wsi-meta fit-score scans/ --labels labels.csv --out score.json"))
@click.argument("scans", type=options.PATH)
@click.option("--labels", required=True, type=options.PATH, help="CSV slide,label and, where known, patient.")
@click.option("--out", required=True, type=options.NEW_FILE, help="JSON file to write.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the cross-validation's parts.")
@options.overwrite_option
@options.as_json_option
def fit_score(scans: Path, labels: Path, out: Path, seed: int, overwrite: bool, as_json: bool) -> None:
    """Fit a score model to the heatmaps in the folder SCANS; its AUC comes from cross-validation over patients."""
    from wsi_meta.challenges.score_fitting import fit_score as fit

    options.print_result(asdict(fit(scans, labels, out=out, seed=seed, overwrite=overwrite, progress=True)), as_json=as_json)


@click.command(epilog=options.example("wsi-meta overlay heat.zarr --slide slide.tif --lesions --out overlay.png"))
@heatmaps_argument
@click.option("--out", required=True, type=options.NEW_FILE, help="Picture to write.")
@click.option("--slide", type=options.SLIDE, help="The slide, a folder of slides, or 'none'; without it, it is looked for.")
@click.option(
    "--layer",
    type=click.Choice(["probability", "uncertainty"]),
    default="probability",
    show_default=True,
    help="What to draw; uncertainty needs a heatmap from scan --tta --uncertainty.",
)
@click.option("--alpha", type=options.NumberRange(0, 1), default=0.7, show_default=True, help="Opacity of the highest value.")
@click.option(
    "--threshold", type=options.NumberRange(0, 1), default=0.0, show_default=True, help="Values below it are not coloured."
)
@click.option(
    "--max-side",
    type=click.IntRange(100, 20000),
    default=2000,
    show_default=True,
    help="Longer side, pixels; of a sheet of lesions, its width.",
)
@click.option("--lesions", is_flag=True, help="Outline and number the lesions, as wsi-meta lesions finds them.")
@click.option(
    "--region",
    callback=_region,
    metavar="X,Y,WIDTH,HEIGHT",
    help="Draw this part alone; level-0 pixels, as OpenSlide counts.",
)
@click.option("--largest", type=click.IntRange(1, 100), help="Draw a sheet of so many lesions instead: tissue beside map.")
@options.overwrite_option
@options.as_json_option
def overlay(heatmaps: tuple[Path, ...], out: Path, slide: SlidePath | None, as_json: bool, **settings: Any) -> None:
    """Draw heatmaps over their slides: colour bar, scale bar, name and score.

    A slide is looked for beside the heatmap, beside its folder, and where the folder's summary.csv says, as 'view' does; one
    at an address has to be given.

    The ending of --out says the kind of picture: .png, .jpg, .tif, .webp, or .pdf and .svg, where words are text and the map is
    an image.

    HEATMAPS may be folders of them; --out then has {name} in it, as 'pictures/{name}.png'.
    """
    given = None if str(slide) == "none" else slide
    work = partial(_draw, given=given, seek=slide is None, as_json=as_json, **settings)
    running.over_heatmaps(heatmaps, work, slide=given, as_json=as_json, out=out)


def _draw(
    heatmap: Heatmap, *, out: Path, given: SlidePath | None, seek: bool, as_json: bool, **settings: Any
) -> dict[str, Any]:
    """Draw one heatmap; with `seek` its slide is looked for, and does not have to be readable."""
    from wsi_meta.heatmaps.scoring import none_found
    from wsi_meta.pictures.overlay import draw_overlay
    from wsi_meta.worklist.slide_places import find_slide, given_slide

    found = find_slide(heatmap) if given is None and (seek or out.exists()) else None
    refuse_input(out, "the slide", found)  # also where it is not to be drawn
    slide = given_slide(heatmap.record, given) if given is not None else found if seek else None
    note(f"{heatmap.record.slide.file}: slide not found: map only; pass --slide", enabled=seek and slide is None)
    try:
        picture = draw_overlay(heatmap, out, slide=slide, **settings)
    except SlideReadError as error:
        if not seek or slide is None or settings["largest"] is not None:
            raise
        note(f"{one_line(error)}: map only", enabled=True)
        picture = draw_overlay(heatmap, out, **settings)
    told = _written({"overlay": str(picture)}, heatmap, as_json=as_json)
    if settings["largest"] is not None and not as_json and not (heatmap.record.lesions or {}).get("found", True):
        told["shown"] = f"{none_found(heatmap.record)}: the whole slide is drawn"
    return told


@click.command(epilog=options.example("wsi-meta view heat.zarr --slide slide.tif"))
@click.argument("stores", nargs=-1, required=True, type=options.PATH)
@click.option("--slide", type=options.SLIDE, help="The slide, or a folder of slides; without it they are looked for.")
@click.option("--host", help="Address to listen at, 0.0.0.0 for all; the link then holds a token.  [this machine alone]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen at.  [one that is free]")
@click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page in the browser.")
@click.option("--static", type=options.PATH, help="Folder to write instead: a page that needs no server.")
@options.as_json_option
def view(stores: tuple[Path, ...], as_json: bool, **settings: Any) -> None:
    """Show heatmaps over their slides in the browser, until Ctrl-C; nothing is loaded from the network.

    STORES are heatmaps, or folders of them. Lesions can be marked as false and missed ones drawn; they are kept in
    NAME.corrections.geojson beside the store.
    """
    from wsi_meta.viewer.view import view as view_heatmaps

    def tell(link: str) -> None:
        hint = "" if settings["static"] else "\nCtrl-C ends it."
        if as_json:
            options.print_result({"page": link}, as_json=True)
        else:
            click.echo(f"{link}{hint}")

    view_heatmaps(*stores, opened=tell, **settings)


@click.command(epilog=f"{FORMS_TOLD}\n{options.example('wsi-meta export heat.zarr --out map.ome.tif')}")
@heatmaps_argument
@click.option("--out", required=True, type=options.PATH, help="File to write (.ome.zarr: folder); its ending says what.")
@click.option("--as", "form", type=click.Choice(FORMS), help="What to write, where the ending leaves it open.")
@threshold_option
@peak_option
@min_area_option
@click.option(
    "--least", type=options.NumberRange(0, 1), default=0.0, show_default=True, help="Cells: leave out those less probable."
)
@click.option("--smooth/--no-smooth", default=True, show_default=True, help="qupath: round corners; the area is kept.")
@click.option("--slide", type=options.PATH, help="DICOM, qupath-project: the slide, or a folder of slides.")
@options.overwrite_option
@options.as_json_option
def export(heatmaps: tuple[Path, ...], out: Path, slide: Path | None, as_json: bool, **settings: Any) -> None:
    """Write heatmaps as files that QuPath, ASAP, Fiji or a spreadsheet reads.

    HEATMAPS may be folders of them; --out then has {name} in it, as 'qupath/{name}.geojson'.
    """
    from wsi_meta.exports.export import export as write
    from wsi_meta.worklist.slide_places import given_slide

    def work(heatmap: Heatmap, out: Path) -> dict[str, Any]:
        own = None if slide is None else given_slide(heatmap.record, slide)
        return _written({"file": str(write(heatmap, out, slide=own, **settings))}, heatmap, as_json=as_json)

    running.over_heatmaps(heatmaps, work, slide=slide, as_json=as_json, out=out)


def _written(told: dict[str, Any], heatmap: Heatmap, *, as_json: bool) -> dict[str, Any]:
    """Return what to print of what was written; as JSON, also of which heatmap, and how much of the tissue it is of."""
    from wsi_meta.heatmaps.lesions import coverage

    return told | {"heatmap": str(heatmap.root)} | coverage(heatmap) if as_json else told
