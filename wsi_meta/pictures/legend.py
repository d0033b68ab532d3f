"""What the colours and signs of a picture of a heatmap mean: its title, colour bar and legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.heatmaps.lesions import lesion_thresholds
from wsi_meta.heatmaps.record import ScanRecord
from wsi_meta.heatmaps.regions import SIZE_CLASSES, Lesion
from wsi_meta.heatmaps.scoring import none_found
from wsi_meta.heatmaps.store import Status
from wsi_meta.pictures.colours import HATCHED, layer_style, shown_colours, veil_of
from wsi_meta.pictures.marks import NUMBERED, class_colour
from wsi_meta.pictures.page import Bar, Entry
from wsi_meta.pictures.window import DARKER, UNSEEN, UNSEEN_WORDS, Map, Window
from wsi_meta.quality.verdict import LIMITS, NO_TISSUE, OK
from wsi_meta.words import format_probability, format_threshold, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["class_entries", "make_bar", "tissue_colour", "title_of", "unknown_entries", "unseen_entries", "veil_entry"]

SHORT_NAMES = {"isolated tumor cells": "isolated tumor cells (ITC)"}


def title_of(record: ScanRecord) -> str:
    """Return the slide's name and score, what is not known, and what may be wrong with the slide."""
    name, result = printable(record.slide.name), record.result
    if result is None:
        return f"{name}: {record.why_incomplete}"
    score = "no score, nothing scanned"
    if result.score is not None:
        score = f"score {format_probability(result.score)}"
    incomplete = "" if result.complete else f" (incomplete: {record.why_incomplete})"
    words = () if record.verdict is None else record.verdict.words
    wrong = [word for word in words if word not in (OK, NO_TISSUE, LIMITS["unread"].word)]  # those two are told already
    return "; ".join([f"{name}: {score}{incomplete}", *wrong])


def make_bar(drawn: Map, tissue: NDArray[np.uint8], *, peak: bool) -> Bar:
    """Return the colour bar of a layer as its colours look in the picture.

    Parameters
    ----------
    tissue : colour of the slide's tissue, uint8 RGB (3,)
    peak : whether to mark the probability that a lesion's highest cell needs, too
    """
    style = layer_style(drawn.record, drawn.layer)
    colours = shown_colours(tissue, drawn.layer, drawn.alpha, drawn.threshold)
    marks = []
    if drawn.layer == "probability":
        threshold, highest = lesion_thresholds(drawn.record)
        marks = [(threshold, f"model's threshold {format_threshold(threshold)}")]
        if peak and highest > threshold:
            marks.append((highest, f"a lesion's peak has at least {format_threshold(highest)}"))
    note = "" if drawn.alpha is None else "in the colours that it has on this tissue"
    return Bar(colours, style.top, style.label, note, marks)


def tissue_colour(ground: NDArray[np.uint8], seen: NDArray[np.bool_], drawn: Map, window: Window) -> NDArray[np.uint8]:
    """Return the median colour of what was scanned, in a picture of the tissue of a window; white without any."""
    rows, cols = drawn.cells(window, (ground.shape[0], ground.shape[1]))
    every = max(1, max(ground.shape) // 500)
    rows, cols, ground, seen = rows[::every], cols[::every], ground[::every, ::every], seen[::every, ::every]
    scanned = (drawn.status[rows[:, None], cols[None]] == Status.SCANNED) & (rows >= 0)[:, None] & (cols >= 0)[None] & seen
    colour = np.median(ground[scanned], axis=0) if scanned.any() else np.full(3, 255)
    return colour.astype(np.uint8)


def unknown_entries(drawn: Map, window: Window, seen: NDArray[np.bool_], *, bare: bool = False) -> list[Entry]:
    """Return the lines for what is not known in a window: cells without a value, and pixels that could not be read.

    Parameters
    ----------
    seen : pixels of the picture that could be read
    bare : whether the tissue is shown without the map, too; else pixels under the map's own stripes need no line
    """
    sides = drawn.sides(window, (seen.shape[0], seen.shape[1]))
    present = set[int]() if sides is None else set(np.unique(drawn.status[sides[0].cells, sides[1].cells]).tolist())
    veil = veil_of(drawn.record).items()
    entries = [veil_entry(words, colour, hatched=state in HATCHED) for state, (colour, words) in veil if state in present]
    hidden = not bare and not seen.all() and (seen | drawn.striped(window, (seen.shape[0], seen.shape[1]))).all()
    return entries if hidden else entries + unseen_entries(seen)


def unseen_entries(seen: NDArray[np.bool_]) -> list[Entry]:
    """Return the line for a picture's pixels of the slide that could not be read; none where all could be."""
    if seen.all():
        return []
    pale, dark = (tuple(part / 255 for part in colour) for colour in UNSEEN)
    return [Entry(UNSEEN_WORDS, pale, hatch=dark)]


def veil_entry(words: str, colour: Sequence[float], *, hatched: bool) -> Entry:
    """Return the line for a colour (RGBA, 0 to 1) that lies over tissue, with the dark stripes that it has there."""
    dark = [part * DARKER for part in colour[:3]]
    return Entry(words, _on_white(colour), hatch=_on_white([*dark, colour[3]]) if hatched else None)


def _on_white(colour: Sequence[float]) -> tuple[float, ...]:
    """Return a colour (RGBA) as it looks on white: PostScript knows no transparency."""
    return tuple(part * colour[3] + 1 - colour[3] for part in colour[:3])


def class_entries(
    record: ScanRecord, lesions: Sequence[Lesion], *, numbered: bool = True, elsewhere: bool = False
) -> list[Entry]:
    """Return a line for each size class with the number of its lesions; what has no number is told.

    Parameters
    ----------
    lesions : those that are drawn
    elsewhere : whether the slide has lesions in other parts
    """
    classes = {name: [lesion.cut for lesion in lesions if lesion.size_class == name] for name, _ in SIZE_CLASSES}
    entries = [
        Entry(f"{SHORT_NAMES.get(name, name)}: {len(cuts)}{_told_cut(name, sum(cuts))}", class_colour(name), round=True)
        for name, cuts in classes.items()
        if cuts
    ]
    if entries and not numbered:
        entries.append(Entry("too narrow for numbers"))
    elif len(lesions) > NUMBERED:
        entries.append(Entry(f"the {NUMBERED} largest lesions have numbers"))
    return entries or [Entry(_none_here(record) if elsewhere else none_found(record))]


def _none_here(record: ScanRecord) -> str:
    """Return what a part without a lesion says of a slide that has some."""
    return f"no lesion in {'' if record.complete else 'what was read of '}this part"


def _told_cut(size_class: str, cut: int) -> str:
    """Return how many of a class's lesions may be of a larger one, where some may."""
    return f", {cut} of them cut: at least that" if cut and size_class != SIZE_CLASSES[0][0] else ""
