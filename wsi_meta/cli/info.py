"""``wsi-meta info``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from wsi_meta.cli import options
from wsi_meta.words import printable

__all__ = ["info"]


@click.command(epilog=options.example("wsi-meta info slide.tif"))
@click.argument("path", type=options.SLIDE_OR_WORD)
@options.reader_option
@click.option("--all", "everything", is_flag=True, help="Print all that is known, as --json does.")
@options.as_json_option
def info(path: str, reader: str, everything: bool, as_json: bool) -> None:
    """Print what is known of a slide, a model file (or 'default') or a heatmap.

    Without --all, what is asked for most: of a heatmap the result, the slide and the scan; of a model its figures and
    thresholds. Of a slide that cannot be scanned, all that is known is printed, then why not; the exit code is 1.
    """
    from wsi_meta.metadata import describe

    facts = describe(path, reader=reader)
    problem = facts.get("problem")
    shown = facts if as_json or everything else SHORT[facts["kind"]](facts)
    options.print_result(facts if as_json else shown | {"problem": None}, as_json=as_json)
    if problem:
        raise click.ClickException(printable(problem))


def _short_heatmap(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the result, then what was scanned by which model and how; nothing twice."""
    slide, identity, model = facts["slide"], facts["identity"], facts["model"]
    effort = facts.get("effort")
    return {
        "kind": facts["kind"],
        "path": facts["path"],
        **(facts["result"] or {"complete": "the scan has not reached its end"}),
        "verdict": options.told_verdict(facts["verdict"]),
        "lesions": facts["lesions"],
        "pieces": facts["pieces"],
        "slide": {name: slide[name] for name in ("file", "width", "height", "mpp")}
        | {"tissue_fraction": facts["tissue"]["fraction"]},
        "scan": {
            "mode": identity["mode"],
            "cell_um": facts["cell_um"],
            "rows": facts["rows"],
            "cols": facts["cols"],
            "views": facts["views"],
            "device": facts["device"],
            "precision": identity["precision"],
            "reader": identity["reader"],
            "seconds": effort["passed_s"] if effort else None,
            "wsi-meta": facts["versions"].get("wsi-meta"),
        },
        "model": {"sha256": identity["model"], "auc": model["metrics"].get("auc"), "thresholds": model["thresholds"]},
    }


def _short_model(facts: dict[str, Any]) -> dict[str, Any]:
    """Return figures, the patches that they are of, thresholds and what the model expects; not how it was trained."""
    on = facts["training"].get("calibrated_on", facts["training"].get("valid"))
    told = {name: on.get(name) for name in ("n", "tumor", "prior")} if isinstance(on, dict) else {}
    if told.get("prior"):
        told["note"] = (
            "metrics are of the patches' own share of tumor; with the prior, those at 0.5, log_loss, brier and ece differ"
        )
    head = {name: facts[name] for name in ("kind", "path", "metrics")} | {"calibrated_on": told or None}
    return head | {name: value for name, value in facts.items() if name not in (*head, "training", "versions", "features")}


SHORT: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "heatmap": _short_heatmap,
    "model": _short_model,
    "slide": dict,
}
"""What is printed of each kind unless all is asked for."""
