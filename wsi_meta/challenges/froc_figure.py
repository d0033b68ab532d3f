"""The FROC curve as a picture, with the ROC curve of the slides beside it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from wsi_meta.challenges.froc import FALSE_POSITIVES
from wsi_meta.challenges.results import FrocResult, SlideAuc
from wsi_meta.words import counted

__all__ = ["draw_froc"]

LINE, DOTS = "#2b6f99", "#a8386b"


def draw_froc(result: FrocResult) -> bytes:
    """Draw the FROC curve and, where there is one, the ROC curve of the slides beside it; return a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10 if result.slide_auc else 6, 4.2), layout="constrained", dpi=150)
    left, *right = figure.subplots(1, 2, squeeze=False, width_ratios=(3, 2))[0] if result.slide_auc else [figure.add_subplot()]
    _draw_lesions(left, result)
    if result.slide_auc:
        _draw_slides(right[0], result.slide_auc)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw_lesions(axes: Any, result: FrocResult) -> None:
    """Draw the FROC curve, logarithmic from 1/8 to 16, with the six points of the score."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    places = np.geomspace(1 / 8, 16, 500)  # the straight lines between points of the curve are not straight on this scale
    curve = np.interp(places, result.curve.false_positives[::-1], result.curve.sensitivity[::-1])
    axes.plot(places, curve, color=LINE, lw=2)
    axes.plot(FALSE_POSITIVES, result.curve.at, "o", color=DOTS, ms=7, mec="white", clip_on=False, label="make the score")
    axes.set(xscale="log", xlim=(1 / 8, 16), ylim=(0, 1.02), xlabel="false positives per slide", ylabel="lesions found")
    axes.xaxis.set_major_locator(FixedLocator([1 / 8, *FALSE_POSITIVES, 16]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}" if value >= 1 else f"1/{1 / value:g}"))
    axes.grid(color="#e3e5ea")
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", frameon=False)
    axes.set_title(_title(result), loc="left", fontsize=11)


def _draw_slides(axes: Any, slides: SlideAuc) -> None:
    """Draw the ROC curve of the slides and the line of chance."""
    interval = f" (95 %: {slides.delong[0]:.3f} to {slides.delong[1]:.3f})" if slides.delong else ""
    axes.plot((0, 1), (0, 1), color="#9aa0aa", lw=1, ls="--")
    axes.plot(*np.transpose(slides.roc), color=LINE, lw=2)
    axes.set(
        xlim=(-0.01, 1.01), ylim=(0, 1.02), aspect="equal", xlabel="normal slides called tumor", ylabel="tumor slides found"
    )
    axes.grid(color="#e3e5ea")
    axes.set_axisbelow(True)
    axes.set_title(f"Slides, AUC {slides.auc:.3f}{interval}", loc="left", fontsize=11)


def _title(result: FrocResult) -> str:
    score = "no score: no lesions" if result.score is None else f"score {result.score:.3f}"
    interval = f" (95 %: {result.interval[0]:.3f} to {result.interval[1]:.3f})" if result.interval else ""
    return f"FROC, {score}{interval}, {counted(result.lesions, 'lesion')} on {counted(result.slides, 'slide')}"
