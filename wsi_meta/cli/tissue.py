"""``wsi-meta tissue``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from wsi_meta.cli import options

if TYPE_CHECKING:
    from wsi_meta.files.address import SlidePath

__all__ = ["tissue"]


@click.command(epilog=options.example("wsi-meta tissue slide.tif --out mask.geojson --picture left_out.png"))
@click.argument("slide", type=options.SLIDE)
@click.option("--out", type=options.NEW_FILE, help="Mask: outlines for QuPath (.geojson) or a picture (.png, .tif).")
@click.option("--picture", type=options.NEW_FILE, help="Picture of the slide and of what is left out, and why.")
@click.option(
    "--tissue-mask",
    type=options.FILE_OR_WORD,
    help="Mask to look at instead of the one that is found, as for scan; not with --out.",
)
@click.option("--mpp", type=float, help="Micrometres per level-0 pixel; overrules what the slide says.")
@options.reader_option
@options.overwrite_option
@options.as_json_option
def tissue(slide: SlidePath, as_json: bool, **settings: Any) -> None:
    """Find the tissue that a scan looks at, and say what it leaves out: glass, ink, black borders, large holes.

    Change the outlines in QuPath, then: wsi-meta scan SLIDE --tissue-mask mask.geojson. Outlines of every class are tissue;
    those of the classes Ignore*, Exclusion, Artifact, Background, Glass and Ink are taken out.
    """
    from wsi_meta.pictures.survey import survey_tissue

    found = survey_tissue(slide, **settings).to_dict()
    options.print_result(found if as_json else _with_units(found), as_json=as_json)


def _with_units(found: dict[str, Any]) -> dict[str, Any]:
    """Return the figures by names that say what they are in; those of JSON stay as they were."""
    areas = {kind: {f"{name}_mm2": area for name, area in found[kind].items()} for kind in ("tissue", "left_out")}
    return {"tissue_fraction" if name == "share" else name: areas.get(name, value) for name, value in found.items()}
