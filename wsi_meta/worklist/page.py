"""What the worklist page says: the values of its template ``worklist.html``, and the page made of them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from wsi_meta import __version__
from wsi_meta.errors import SlideReadError
from wsi_meta.files.address import from_file_uri, is_address, name_in, slide_name
from wsi_meta.heatmaps.regions import NODE_OF_CLASS, at_least
from wsi_meta.heatmaps.store import Status
from wsi_meta.pictures.colours import COLOUR_MAP, VEIL
from wsi_meta.quality.verdict import LIMITS, MEANINGS, NO_TISSUE, OK
from wsi_meta.words import counted, duration, format_probability, printable
from wsi_meta.worklist.cohort_agreement import CohortAgreement, CohortFroc, judge_rows, why_not_comparable
from wsi_meta.worklist.patients import find_patients
from wsi_meta.worklist.table import Row

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["GENERATOR", "read_template", "reason_of", "render_page", "row_name"]

GENERATOR = "wsi-meta worklist"
"""The page's head contains this: a folder with another page is not ours."""
NOTHING, UNKNOWN, EMPTY = "nothing", "unknown", "empty"
"""Kinds of slides on which no lesion was found, of those of which that is not known, and of those without tissue to scan.

Not known: not all was read, or the table of an older version does not say.
"""
NONE = {NOTHING: "none found", UNKNOWN: "not known", EMPTY: "nothing scanned"}
"""What the table says of a slide without a lesion, by its kind."""
UNLIKE = LIMITS["unlikeness"].word
DASH = "\N{EN DASH}"
"""Stands for what is not known."""
NO_AUC = "There is no AUC: it takes slides with a score that are labelled tumor, and others that are labelled normal."
CURVE_PX = (300, 170)
"""Width and height of the FROC curve."""


def render_page(
    folder: Path,
    rows: Sequence[Row],
    pictures: Mapping[str, str],
    *,
    lesions: bool,
    running: tuple[int, int] | None,
) -> str:
    """Return the page.

    Parameters
    ----------
    folder : of the stores
    rows : of its table
    pictures : path of each thumbnail from the page, by the store's name
    lesions : whether to compare lesions with annotations, which takes a while
    running : how many slides a run that goes on has done, and has in all; None where none goes on
    """
    names = [row_name(row) for row in rows]
    by, ranking = _ranking([row for row in rows if row["score"] is not None])
    ranked = sorted(zip(rows, names, strict=True), key=lambda pair: (-_rank(pair[0], by), pair[1]))
    listed = [pair for pair in ranked if pair[0]["score"] is not None or _kind(pair[0]) == EMPTY]
    shown = [_shown(row, name, by, pictures.get(name)) for row, name in listed]
    failing = sorted((pair for pair in ranked if pair[0]["error"]), key=lambda pair: pair[0]["score"] is not None)
    values = {
        "generator": GENERATOR,
        "version": __version__,
        "folder": printable(folder.absolute().name),
        "path": printable(str(folder.absolute())),
        "now": time.strftime("%Y-%m-%d %H:%M"),
        "running": running,
        "lead": _lead(rows),
        "failures": [_failure(row, name) for row, name in failing],
        "slides": shown,
        "verdicts": sorted({word for slide in shown for word in slide["verdicts"]}),
        "classes": NODE_OF_CLASS,
        "ranking": ranking,
        "patients": (patients := find_patients(rows, names)),
        "labelled": any(patient.labelled for patient in patients),
        "agreement": _agreement(judge_rows(folder, rows, names, lesions=lesions)),
        "colours": _colours(),
    }
    return read_template().render(values)


@cache
def read_template() -> Template:
    """Return the page's template. Compiling it takes ten times as long as rendering: a process that goes on keeps it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("wsi_meta", "worklist"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("worklist.html")


def row_name(row: Row) -> str:
    """Return the name of a row's slide as its store has it, else as a scan would name it."""
    return printable(Path(name_in(row["heatmap"])).stem if row["heatmap"] else slide_name(Path(name_in(row["slide"]))))


def _ranking(scored: Sequence[Row]) -> tuple[str, str]:
    """Return the column by which slides are ranked, the same for all, and that in words."""
    fitted = [row for row in scored if row["fitted_score"] is not None]
    if not fitted:
        return "score", "score"
    why = why_not_comparable(fitted) or (f"{len(fitted):,} of {len(scored):,} have one" if len(fitted) < len(scored) else "")
    return ("score", f"score, not by the fitted ones: {why}") if why else ("fitted_score", "the fitted score")


def _rank(row: Row, by: str) -> float:
    """Return what a slide is ranked by; -1 without a score."""
    return -1.0 if row[by] is None else float(row[by])


def _kind(row: Row) -> str:
    """Return the kind of a slide's largest lesion: one of NODE_OF_CLASS, NOTHING where none was found, UNKNOWN or EMPTY."""
    if row["score"] is None and row["complete"] and row["scanned"] == 0:
        return EMPTY
    return NODE_OF_CLASS.get(row["largest_lesion"] or "", NOTHING if row["lesions"] == 0 and row["complete"] else UNKNOWN)


def _lead(rows: Sequence[Row]) -> list[str]:
    """Return what the page says first, in sentences."""
    scored, errors = [row for row in rows if row["score"] is not None], sum(bool(row["error"]) for row in rows)
    told = [f"{len(scored):,} of {len(rows):,} slides have a score."]
    kinds = [_kind(row) for row in scored]
    counts = [f"{name} on {kinds.count(kind):,}" for name, kind in NODE_OF_CLASS.items() if kind in kinds]
    nothing, unknown = kinds.count(NOTHING), kinds.count(UNKNOWN)
    if counts:
        told.append(f"The largest lesion is: {', '.join(counts)}{f'; nothing was found on {nothing:,}' if nothing else ''}.")
    elif nothing:
        told.append(f"No lesion was found on {nothing:,}." if unknown else "No lesion was found.")
    if unknown:
        told.append(f"Whether there are lesions on {unknown:,} is not known.")
    if empty := sum(_kind(row) == EMPTY for row in rows):
        told.append(f"On {empty:,} nothing was scanned: no tissue was found, or the mask has none.")
    if unlike := sum(UNLIKE in str(row["verdict"]).split(", ") for row in scored):
        are, theirs = ("is", "its score and lesions") if unlike == 1 else ("are", "their scores and lesions")
        told.append(f"{unlike:,} of {len(scored):,} {are} unlike the training slides: {theirs} mean little.")
    if errors:
        told.append(f"{errors:,} need{'s' if errors == 1 else ''} attention.")
    return told


def reason_of(row: Row) -> str:
    """Return a row's error without the slide or heatmap that it begins with."""
    slide, heatmap = _shown_paths(row)
    reason = str(row["error"]).removeprefix(f"{slide}: ").removeprefix(f"{heatmap}: ")
    named, _, rest = reason.partition(": ")
    return rest if slide.endswith(named) or heatmap.endswith(named) else reason  # as the scan was given them


def _shown_paths(row: Row) -> tuple[str, str]:
    """Return a row's slide and heatmap as they are shown."""
    slide, heatmap = (printable(from_file_uri(row[name] or "")) for name in ("slide", "heatmap"))
    return slide, heatmap


def _failure(row: Row, name: str) -> dict[str, Any]:
    reason, (slide, _) = reason_of(row), _shown_paths(row)
    damaged = row["error_kind"] == SlideReadError.__name__ and "try again" not in reason and not is_address(slide)
    return {
        "name": name,
        "slide": slide,
        "reason": reason,
        "retry": row["retry"],
        "partly": row["score"] is not None,
        "first": "After you have replaced the file" if damaged else "",
    }


def _shown(row: Row, name: str, by: str, picture: str | None) -> dict[str, Any]:
    """Return what the table says of a slide that has a score, or no tissue."""
    rank, unread, kind = _rank(row, by), row["unreadable_fraction"], _kind(row)
    other, words = ("fitted_score", "fitted") if by == "score" else ("score", "unfitted")
    facts = (("patient", row["patient"]), ("label", row["label"]))
    verdicts = str(row["verdict"]).split(", ") if row["verdict"] else ([] if row["complete"] else ["incomplete"])
    if kind == EMPTY:  # which a store of before has no word for
        verdicts = [NO_TISSUE, *(word for word in verdicts if word not in (OK, NO_TISSUE))]
    return {
        "name": name,
        "facts": " · ".join(f"{what} {value}" for what, value in facts if value),
        "picture": None if picture is None else quote(os.fsencode(picture)),
        "rank": f"{rank:.4f}".removeprefix("0"),
        "score": format_probability(rank),
        "incomplete": not row["complete"],
        "other": "" if row["fitted_score"] is None else f"{words} {format_probability(row[other])}",
        "share": round(100 * min(1.0, max(0.0, rank))),
        "kind": kind,
        "none": "none in what was read" if row["lesions"] == 0 and kind == UNKNOWN else NONE.get(kind, ""),
        "lesion": at_least(row["largest_lesion"] or "", cut=row["largest_lesion_cut"]),
        "length": at_least(f"{row['largest_lesion_mm'] or 0:.2f} mm", cut=row["largest_lesion_cut"]),
        "mm": row["largest_lesion_mm"] or 0.0,
        "lesions": row["lesions"] or 0,
        "tissue": _percent(row["tissue_fraction"]),
        "tissue_value": f"{row['tissue_fraction'] or 0:.4f}",
        "unread": _percent(unread),
        "unread_value": f"{unread or 0:.4f}",
        "verdicts": {word: _explain(word, row["verdict_figures"] or "") for word in verdicts},
        "seconds": row["seconds"],
        "time": None if row["seconds"] is None else duration(row["seconds"]),
        "rate": None if row["cells_per_second"] is None else f"{row['cells_per_second']:,.0f} cells/s",
        "hosts": row["hosts"],
    }


def _explain(word: str, figures: str) -> str:
    """Return a word of a verdict with its figure, where the table has that, and what follows from it."""
    told = re.search(rf"\b{re.escape(word)} \([^)]*\)", figures)
    return ". ".join(filter(None, [told[0] if told else word, MEANINGS.get(word, "")]))


def _percent(share: float | None) -> str:
    """Return a share as a percentage that is 0 or 100 only where it is; a dash where it is unknown."""
    if share is None:
        return DASH
    if 0 < share < 0.001 or 0.999 < share < 1:
        return "< 0.1 %" if share < 0.5 else "> 99.9 %"
    return f"{100 * share:.1f} %" if 0 < share < 0.1 or 0.995 <= share < 1 else f"{100 * share:.0f} %"


def _agreement(found: CohortAgreement | None) -> dict[str, Any] | None:
    if found is None:
        return None
    words = {"score": "the score", "fitted_score": "the fitted score"}
    aucs = [
        {
            "words": words[auc.score],
            "value": f"{auc.auc:.3f}",
            "interval": _interval(auc.interval),
            "slides": f"{counted(auc.tumor, 'slide')} labelled tumor, {auc.normal:,} normal",
        }
        for auc in found.aucs
    ]
    notes = (*found.notes, *(() if aucs or found.froc else (NO_AUC,)))
    return {"aucs": aucs, "froc": None if found.froc is None else _froc(found.froc), "notes": notes}


def _froc(froc: CohortFroc) -> dict[str, Any]:
    """Return the FROC's figures, and its curve as points of a picture, logarithmic from 1/8 to 16 false positives."""
    import numpy as np

    width, height = CURVE_PX
    places = np.geomspace(1 / 8, 16, 90)
    found = np.interp(places, froc.curve.false_positives[::-1], froc.curve.sensitivity[::-1])
    return {
        "value": f"{froc.curve.score:.3f}",
        "interval": _interval(froc.interval),
        "lesions": f"{counted(froc.lesions, 'lesion')} on {counted(froc.slides, 'slide')}",
        "isolated": froc.isolated,
        "at": [(f"{alarms:g}" if alarms >= 1 else f"1/{1 / alarms:g}", f"{value:.3f}") for alarms, value in froc.at.items()],
        "width": width,
        "height": height,
        "points": " ".join(
            f"{x:.1f},{y:.1f}" for x, y in zip(np.linspace(0, width, len(places)), (height * (1 - found)).tolist(), strict=True)
        ),
        "dots": [
            (round(float(np.log2(alarms * 8) / 7 * width), 1), round(height * (1 - value), 1))
            for alarms, value in froc.at.items()
        ],
    }


def _interval(interval: tuple[float, float] | None) -> str:
    return "no interval" if interval is None else f"95 %: {interval[0]:.3f} to {interval[1]:.3f}"


def _colours() -> dict[str, str]:
    """Return the colours of the overlay as CSS: the map's, from 0 to 1, and those of cells without a value."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    stops = [to_hex(colormaps[COLOUR_MAP](place / 8)) for place in range(9)]
    grey, red = (to_hex(VEIL[state][0][:3]) for state in (Status.BACKGROUND, Status.UNREADABLE))
    return {"map": ", ".join(stops), "background": grey, "unreadable": red}
