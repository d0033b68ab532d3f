"""The pictures of an evaluation, each as the bytes of a PNG, in light or in dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.evaluation.metrics import ECE_BINS, reliability
from wsi_meta.pictures.colours import COLOUR_MAP
from wsi_meta.words import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from wsi_meta.evaluation.results import Evaluation

__all__ = [
    "DARK",
    "LIGHT",
    "PLOTS",
    "Case",
    "Theme",
    "add_legend",
    "draw_confusion",
    "draw_gallery",
    "draw_losses",
    "draw_precision_recall",
    "draw_probabilities",
    "draw_reliability",
    "draw_roc",
    "encode_png",
    "lay_heat",
    "style_axes",
    "tick_epochs",
]

PLOTS = {
    "confusion": ("Confusion matrix", "Each row is a class as labelled: how many of its patches are called normal and tumor."),
    "roc": ("ROC curve", "The share of tumor that is found, for every share of false alarms."),
    "precision_recall": (
        "Precision-recall curve",
        "Which share of the patches called tumor is tumor, for every share of tumor that is found.",
    ),
    "reliability": (
        "Reliability diagram",
        "Of the patches given 80 %, are 80 % tumor? On the dotted line they are. A larger dot stands for more patches.",
    ),
    "probabilities": (
        "Probabilities by class",
        "The probabilities of tumor patches (up) and normal ones (down). In the middle the model is unsure.",
    ),
    "losses": ("Loss curves", "From the history beside the model file."),
}
"""Title and caption of each plot."""
DPI = 200
SIDE_INCHES = (3.9, 3.7)
HEAT = 0.65
"""Opacity of a heatmap over its patch where it is highest."""
COLUMNS = 4
"""Cases beside each other in the gallery."""


@dataclass(frozen=True)
class Theme:
    """Colours of the pictures and of the report's page."""

    paper: str
    ink: str
    faint: str
    line: str
    tumor: str
    normal: str


LIGHT = Theme(paper="#ffffff", ink="#22262e", faint="#69707d", line="#e3e5ea", tumor="#a8386b", normal="#2b6f99")
DARK = Theme(paper="#191c22", ink="#e7e9ee", faint="#9aa2b0", line="#31363f", tumor="#e88fb4", normal="#7fbbe0")


@dataclass(frozen=True)
class Case:
    """One patch of the gallery."""

    name: str
    verdict: str
    """In words: missed tumor, false alarm and so on."""
    label: int
    probability: str
    """With three decimals; "over 0.999" and "under 0.001" where that would round to 1 or 0."""
    patch: NDArray[np.uint8]
    """uint8 (patch_px, patch_px, 3), RGB."""
    heat: NDArray[np.float32]
    """0 to 1, (patch_px, patch_px): which places led to the error."""


def draw_losses(losses: dict[str, list[Any]], theme: Theme = LIGHT) -> bytes:
    """Draw the loss of training and validation over the epochs, as :func:`.read_losses` returns them."""
    figure, axes = _start("Loss while training", theme)
    for name, colour, words in (("train_loss", theme.normal, "training"), ("valid_loss", theme.tumor, "validation")):
        axes.plot(losses["epoch"], losses[name], "o-", color=colour, lw=2, ms=4, label=words)
    if heads := [epoch for epoch, stage in zip(losses["epoch"], losses["stage"], strict=True) if stage == "head"]:
        axes.axvspan(min(heads) - 0.5, max(heads) + 0.5, color=theme.line, lw=0, zorder=0, label="new layers only")
    axes.set(xlabel="epoch", ylabel="cross-entropy")
    tick_epochs(axes)
    add_legend(axes, theme)
    return _finish(figure)


def draw_confusion(labels: NDArray[np.uint8], evaluation: Evaluation, theme: Theme = LIGHT) -> bytes:
    """Draw the confusion matrix at the card's threshold, shaded by share of the class."""
    from matplotlib.colors import LinearSegmentedColormap
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(labels, evaluation.probabilities >= evaluation.threshold, labels=[0, 1])
    shares = counts / counts.sum(axis=1, keepdims=True)
    figure, axes = _start(f"Confusion matrix at {evaluation.threshold:.3g}", theme)
    colours = LinearSegmentedColormap.from_list("", [theme.line, theme.normal])
    axes.imshow(shares, origin="upper", cmap=colours, vmin=0, vmax=1, aspect="auto")
    for (row, col), count in np.ndenumerate(counts):
        colour = theme.paper if shares[row, col] > 0.5 else theme.ink
        axes.text(col, row - 0.06, f"{count:,}", ha="center", va="center", fontsize=18, color=colour)
        axes.text(col, row + 0.16, f"{100 * shares[row, col]:.1f} %", ha="center", va="center", fontsize=10.5, color=colour)
    axes.set(xticks=[0, 1], yticks=[0, 1], xlabel="called", ylabel="truly")
    axes.set_xticklabels(["normal", "tumor"])
    axes.set_yticklabels(["normal", "tumor"], rotation=90, va="center")
    axes.grid(visible=False)
    axes.axhline(0.5, color=theme.paper, lw=4)
    axes.axvline(0.5, color=theme.paper, lw=4)
    return _finish(figure)


def draw_roc(labels: NDArray[np.uint8], evaluation: Evaluation, theme: Theme = LIGHT) -> bytes:
    """Draw the ROC curve with the card's threshold on it."""
    from sklearn.metrics import roc_curve

    false_alarms, found, _ = roc_curve(labels, evaluation.probabilities)
    figure, axes = _start(f"ROC, area {evaluation.auc:.3f}", theme)
    axes.plot([0, 1], [0, 1], ":", color=theme.faint, lw=1.2, label="by chance")
    axes.fill_between(false_alarms, found, color=theme.normal, alpha=0.10, lw=0)
    axes.plot(false_alarms, found, color=theme.normal, lw=2)
    _add_operating_point(
        axes, (1 - evaluation.specificity_at_threshold, evaluation.sensitivity_at_threshold), evaluation, theme
    )
    axes.set(xlabel="false alarms (1 - specificity)", ylabel="tumor found (sensitivity)")
    _set_unit_square(axes)
    add_legend(axes, theme, "lower right")
    return _finish(figure)


def draw_precision_recall(labels: NDArray[np.uint8], evaluation: Evaluation, theme: Theme = LIGHT) -> bytes:
    """Draw precision over recall with the card's threshold on it; the dotted line is the share of tumor."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(labels, evaluation.probabilities)
    figure, axes = _start(f"Precision-recall, average {evaluation.average_precision:.3f}", theme)
    axes.axhline(labels.mean(), ls=":", color=theme.faint, lw=1.2, label="by chance")
    axes.fill_between(recall, precision, step="post", color=theme.normal, alpha=0.10, lw=0)
    axes.step(recall, precision, where="post", color=theme.normal, lw=2)
    called = evaluation.probabilities >= evaluation.threshold
    if called.any():
        point = (evaluation.sensitivity_at_threshold, float(labels[called].mean()))
        _add_operating_point(axes, point, evaluation, theme)
    axes.set(xlabel="recall (sensitivity)", ylabel="precision")
    _set_unit_square(axes)
    add_legend(axes, theme, "lower left")
    return _finish(figure)


def draw_reliability(labels: NDArray[np.uint8], evaluation: Evaluation, theme: Theme = LIGHT) -> bytes:
    """Draw the share of tumor over the mean probability of each bin; larger dots stand for more patches."""
    bins = reliability(evaluation.probabilities, labels)
    filled = bins.weight > 0
    stated, true, held = bins.probability[filled], bins.share[filled], bins.weight[filled] / bins.weight.max()
    figure, axes = _start(f"Calibration error {evaluation.ece:.3f} ({evaluation.ece_noise:.3f} by chance)", theme)
    axes.plot([0, 1], [0, 1], ":", color=theme.faint, lw=1.2, label="perfectly calibrated")
    axes.vlines(stated, stated, true, color=theme.tumor, lw=2, alpha=0.6, label="too high or too low")
    axes.plot(stated, true, color=theme.normal, lw=1.5)
    axes.scatter(stated, true, 14 + 130 * held, color=theme.normal, edgecolor=theme.paper, zorder=3, clip_on=False)
    axes.set(xlabel="probability of tumor, mean of the bin", ylabel="share of tumor")
    _set_unit_square(axes)
    add_legend(axes, theme)
    return _finish(figure)


def draw_probabilities(labels: NDArray[np.uint8], evaluation: Evaluation, theme: Theme = LIGHT) -> bytes:
    """Draw the distribution of the probabilities of each class (normal downwards) and the card's threshold."""
    edges = np.linspace(0, 1, 2 * ECE_BINS + 1)
    figure, axes = _start("Probabilities by class", theme)
    for label, direction, colour, words in ((1, 1, theme.tumor, "tumor"), (0, -1, theme.normal, "normal")):
        shares = np.histogram(evaluation.probabilities[labels == label], edges)[0] / (labels == label).sum()
        axes.bar(edges[:-1], direction * shares, np.diff(edges) * 0.86, align="edge", color=colour, label=words)
    axes.axhline(0, color=theme.faint, lw=0.8)
    axes.axvline(evaluation.threshold, color=theme.ink, lw=1.2, ls="--", label=f"threshold {evaluation.threshold:.3g}")
    axes.set(xlabel="probability of tumor", ylabel="share of the class", xlim=(-0.02, 1.02), xticks=np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(lambda share, _position: f"{abs(share):.0%}")
    add_legend(axes, theme, "upper left")
    return _finish(figure)


def draw_gallery(cases: Sequence[Case], label_px: int) -> bytes:
    """Draw each case as its patch with the heatmap beside it, both with a frame round the labelled centre."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows = -(-len(cases) // COLUMNS)
    figure = Figure(figsize=(3.3 * COLUMNS, 2.15 * rows + 0.2), layout="constrained", facecolor=LIGHT.paper)
    for cell in figure.subplots(rows, COLUMNS, squeeze=False).flat[len(cases) :]:
        cell.set_axis_off()
    for axes, case in zip(figure.axes, cases, strict=False):
        side = case.patch.shape[0]
        gap = np.broadcast_to(np.array(_rgb(LIGHT.paper)), (side, side // 24, 3))
        axes.imshow(np.concatenate([case.patch, gap, lay_heat(case)], axis=1), origin="upper", interpolation="nearest")
        corner = (side - label_px) / 2 - 0.5
        for left in (corner, corner + side + side // 24):
            axes.add_patch(Rectangle((left, corner), label_px, label_px, fill=False, ec="white", lw=1.2))
        axes.set_axis_off()
        colour = LIGHT.tumor if case.label else LIGHT.normal
        axes.set_title(f"{case.verdict}, probability {case.probability}", fontsize=9, color=colour, loc="left", pad=3)
        name = printable(case.name)
        name = name if len(name) <= 38 else f"...{name[-35:]}"
        axes.text(0, -0.03, name, transform=axes.transAxes, va="top", fontsize=6.5, color=LIGHT.faint, parse_math=False)
    return _finish(figure)


def lay_heat(case: Case) -> NDArray[np.uint8]:
    """Return the patch under its heatmap, which is more opaque where it is higher; uint8 (patch_px, patch_px, 3)."""
    from matplotlib import colormaps

    opacity = HEAT * case.heat[..., None]
    colours = np.asarray(colormaps[COLOUR_MAP](case.heat))[..., :3] * 255
    return np.asarray(np.rint(case.patch * (1 - opacity) + colours * opacity), np.uint8)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return an RGB image (height, width, 3) as the bytes of a PNG."""
    from PIL import Image

    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def _start(title: str, theme: Theme) -> tuple[Figure, Axes]:
    """Return a new figure in the colours of the theme."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIDE_INCHES, facecolor=theme.paper)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    figure.suptitle(title, x=0.03, ha="left", fontsize=11, color=theme.ink)
    axes = figure.subplots()
    style_axes(axes, theme)
    return figure, axes


def style_axes(axes: Axes, theme: Theme) -> None:
    """Draw axes in the colours of the theme, without a frame."""
    axes.set_facecolor(theme.paper)
    axes.grid(color=theme.line, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.faint, labelsize=9, length=0)
    axes.xaxis.label.set(color=theme.faint, fontsize=9.5)
    axes.yaxis.label.set(color=theme.faint, fontsize=9.5)
    for spine in axes.spines.values():
        spine.set_visible(False)


def tick_epochs(axes: Axes) -> None:
    """Let whole numbers stand at the ticks below axes, also where there is but one."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _finish(figure: Figure) -> bytes:
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": "wsi-meta"})
    return stream.getvalue()


def _add_operating_point(axes: Axes, point: tuple[float, float], evaluation: Evaluation, theme: Theme) -> None:
    label = f"threshold {evaluation.threshold:.3g}"
    axes.plot(*point, "o", ms=9, color=theme.tumor, mec=theme.paper, mew=1.5, label=label, clip_on=False, zorder=5)


def _set_unit_square(axes: Axes) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=np.linspace(0, 1, 6), yticks=np.linspace(0, 1, 6))


def add_legend(axes: Any, theme: Theme, place: str = "best") -> None:
    """Add a legend without a frame, in the colours of the theme."""
    axes.legend(loc=place, facecolor=theme.paper, framealpha=0.85, edgecolor="none", fontsize=8.5, labelcolor=theme.faint)


def _rgb(colour: str) -> list[int]:
    return [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
