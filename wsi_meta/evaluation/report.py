"""The report of an evaluation: one HTML file that holds everything, and its figures as PNG.

:func:`write_report` draws the figures, fills the template ``report.html`` beside this file, and moves the finished folder into
place. The sentences of the report come from :mod:`wsi_meta.evaluation.wording`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import wsi_meta
from wsi_meta.datasets.patches import Patches
from wsi_meta.datasets.shifts import SHIFTS
from wsi_meta.errors import OutputExistsError, OutputPathError, truth
from wsi_meta.evaluation import figures, wording
from wsi_meta.evaluation.cautions import cautions_of
from wsi_meta.evaluation.gradcam import grad_cam
from wsi_meta.evaluation.metrics import losses_of
from wsi_meta.evaluation.results import Evaluation, Subject, history_path
from wsi_meta.evaluation.robustness import CALIBRATED, Robustness
from wsi_meta.files.locks import locked
from wsi_meta.models.card import ModelCard
from wsi_meta.outputs.checks import check_folder
from wsi_meta.outputs.paths import as_path
from wsi_meta.outputs.writing import filled_folder, finish_replacing, replace_files
from wsi_meta.words import format_probability, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Pictures", "check_report", "of_another_share", "write_report"]

PAGE = "report.html"
GALLERY = "top_losses.png"
FILES = {PAGE, GALLERY, *(f"{name}.png" for name in figures.PLOTS)}
NAMES = (*sorted(FILES - {PAGE}), PAGE)
"""The page is the mark of a whole report."""
GENERATOR = "wsi-meta evaluate"
"""The page's head contains this. A folder whose page does not is never replaced."""


Plots = Iterator[tuple[str, Callable[[figures.Theme], bytes]]]
"""Names of plots, and what draws each in the colours of a theme."""


def draw_plots(subject: Subject, evaluation: Evaluation) -> Plots:
    """Return the plots of an evaluation; that of the losses only where they are known."""
    labels = subject.patches.labels
    yield "confusion", lambda theme: figures.draw_confusion(labels, evaluation, theme)
    yield "roc", lambda theme: figures.draw_roc(labels, evaluation, theme)
    yield "precision_recall", lambda theme: figures.draw_precision_recall(labels, evaluation, theme)
    yield "reliability", lambda theme: figures.draw_reliability(labels, evaluation, theme)
    yield "probabilities", lambda theme: figures.draw_probabilities(labels, evaluation, theme)
    if (losses := subject.losses) is not None:
        yield "losses", lambda theme: figures.draw_losses(losses, theme)


@dataclass(frozen=True)
class Pictures:
    """How the pictures of a report are made."""

    top_losses: int = 24
    """Number of patches in the gallery: those of the highest loss."""
    plots: Callable[[Subject, Evaluation], Plots] = draw_plots
    gallery: Callable[[Sequence[figures.Case], int], bytes] = figures.draw_gallery
    evidence: Callable[..., NDArray[np.float32]] = grad_cam
    """Makes the heatmap over each patch of the gallery."""


def check_report(out: str | Path, *, overwrite: bool) -> Path:
    """Make sure that a report can be written to the folder `out`.

    Raises
    ------
    OutputExistsError
        when it exists and `overwrite` is False, or when it contains anything but a report.
    OutputPathError
        when the folder around it is missing or cannot be written to.
    """
    out, overwrite = as_path("out", out), truth("overwrite", overwrite)
    check_folder(out)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputPathError(f"{out}: a file or a link; expected the name of a folder to make")
    with locked(out):
        finish_replacing(out, NAMES)
    _refuse_other(out, overwrite=overwrite)
    return out


def _refuse_other(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds anything but a report that may be replaced."""
    if not out.exists():
        return
    if not overwrite:
        raise OutputExistsError(f"{out}: exists; choose another --out, or pass --overwrite to replace the report in it")
    names = {path.name for path in out.iterdir()}
    if foreign := sorted(names - FILES):
        raise OutputExistsError(f"{out}: holds '{foreign[0]}', which is no part of a report; choose another --out")
    if names and not (PAGE in names and GENERATOR in (out / PAGE).read_text("utf-8", errors="replace")[:1000]):
        raise OutputExistsError(f"{out}: holds no report of wsi-meta; choose another --out")


def write_report(
    out: str | Path,
    subject: Subject,
    evaluation: Evaluation,
    *,
    overwrite: bool = False,
    pictures: Pictures | None = None,
) -> Path:
    """Write the report of an evaluation, whole or not at all.

    Parameters
    ----------
    out : folder to make, for ``report.html``, which needs no other file, and its figures as PNG
    subject : what was evaluated
    evaluation : the figures, with intervals or without
    overwrite : replace a report at `out`; anything else there is refused
    pictures : how pictures are made; None: the usual way

    Returns
    -------
    the path of ``report.html``.

    Raises
    ------
    OutputExistsError, OutputPathError
        as :func:`check_report`.
    DataError
        when a patch cannot be read again.
    """
    out = check_report(out, overwrite=overwrite)
    with locked(out), filled_folder(out, alone=True) as made:
        _fill(made, subject, evaluation, pictures or Pictures())
        _refuse_other(out, overwrite=overwrite)  # it may have come meanwhile
        replace_files(made, out, NAMES)
    return out / PAGE


def _fill(folder: Path, subject: Subject, evaluation: Evaluation, pictures: Pictures) -> None:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    cases = _find_cases(subject, evaluation, pictures)
    (folder / GALLERY).write_bytes(pictures.gallery(cases, subject.model.card.preprocessing.label_px))
    values = _words(subject, evaluation) | {
        "figures": _draw(folder, subject, evaluation, pictures),
        "cases": [_show(case) for case in cases],
        "cases_words": wording.describe_cases([case.verdict for case in cases]),
        "shifts": None if evaluation.robustness is None else _show_shifts(subject.patches, evaluation, evaluation.robustness),
    }
    templates = Environment(
        loader=PackageLoader("wsi_meta", "evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=_on_page,
    )
    (folder / PAGE).write_text(templates.get_template(PAGE).render(values), encoding="utf-8")


def _on_page(value: Any) -> Any:
    """Return a value as the page can hold it: the name of a file may hold bytes that are no text."""
    return printable(value) if type(value) is str else value


def _draw(folder: Path, subject: Subject, evaluation: Evaluation, pictures: Pictures) -> list[dict[str, str]]:
    """Write each plot as PNG and return what the page shows of it."""
    plots = []
    for name, draw in pictures.plots(subject, evaluation):
        light = draw(figures.LIGHT)
        (folder / f"{name}.png").write_bytes(light)
        title, caption = figures.PLOTS[name]
        if name == "losses" and subject.losses is not None:
            caption = wording.describe_losses(subject.losses)
        plots.append({"title": title, "caption": caption, "light": _uri(light), "dark": _uri(draw(figures.DARK))})
    return plots


def _words(subject: Subject, evaluation: Evaluation) -> dict[str, Any]:
    """Return the page's values but for its pictures."""
    labels, slides, card = subject.patches.labels, subject.patches.slides, subject.model.card
    shown = card.preprocessing
    return {
        "generator": GENERATOR,
        "version": wsi_meta.__version__,
        "light": asdict(figures.LIGHT),
        "dark": asdict(figures.DARK),
        "model_name": subject.model.path.name,
        "split": subject.split,
        "n": f"{len(labels):,}",
        "history_name": None if subject.losses is not None else history_path(subject.model.path).name,
        "threshold": f"{evaluation.threshold:.3g}",
        "one_threshold": evaluation.threshold == 0.5,
        "frame_inset": round(50 * (1 - shown.label_px / shown.patch_px), 3),
        "summary": wording.summarise(labels, evaluation),
        "intervals_words": wording.explain_intervals(evaluation, subject.patches),
        "notes": [*cautions_of(card, subject.patches, evaluation), *of_another_share(card, labels)],
        "tiles": wording.tiles(evaluation),
        "rows": wording.rows(evaluation),
        "cards": [("Data", wording.data_facts(subject, slides)), ("Model", wording.model_facts(subject.model))],
    }


def of_another_share(card: ModelCard, labels: NDArray[np.uint8]) -> list[str]:
    """Return a warning where the card expects odds of tumor at least twice, or at most half, those of the patches."""
    on, share = card.training.get("calibrated_on"), float(labels.mean())
    prior = on.get("prior") if isinstance(on, dict) else None
    if not isinstance(prior, float) or not 0 < prior < 1 or 0.5 < share * (1 - prior) / max(prior * (1 - share), 1e-9) < 2:
        return []
    told = f"The model was calibrated for {100 * prior:.3g} % of tumor, and {100 * share:.3g} % of these patches are"
    return [f"{told}: figures at 0.5, log loss, Brier score and calibration error are not those that it has in use."]


def _find_cases(subject: Subject, evaluation: Evaluation, pictures: Pictures) -> list[figures.Case]:
    """Return the patches of the highest loss, the worst first, each with a heatmap of what led to the error."""
    patches = subject.patches
    log_odds = subject.model.card.calibration.to_log_odds(evaluation.logits)
    worst = np.argsort(-losses_of(log_odds, patches.labels), kind="stable")[: pictures.top_losses]
    pixels = np.stack([patches.read(int(index)) for index in worst])
    heats = pictures.evidence(subject.model, pixels, towards_tumor=patches.labels[worst] == 0)
    return [
        figures.Case(
            name=patches.name(int(index)),
            verdict=wording.verdict(
                int(patches.labels[index]), called=bool(evaluation.probabilities[index] >= evaluation.threshold)
            ),
            label=int(patches.labels[index]),
            probability=format_probability(float(evaluation.probabilities[index])),
            patch=patch,
            heat=heat,
        )
        for index, patch, heat in zip(worst, pixels, heats, strict=True)
    ]


def _show(case: figures.Case) -> dict[str, Any]:
    return {
        "name": case.name,
        "verdict": case.verdict,
        "label": case.label,
        "probability": case.probability,
        "patch": _uri(figures.encode_png(case.patch)),
        "heat": _uri(figures.encode_png(figures.lay_heat(case))),
    }


def _show_shifts(patches: Patches, evaluation: Evaluation, robustness: Robustness) -> dict[str, Any]:
    """Return what the page says of shifts and clusters, each shift with a tumor and a normal patch under it."""
    pair = np.stack([patches.read(_middle(evaluation.logits, patches.labels == label)) for label in (1, 0)])
    looks = {"": pair} | {shift.name: shift.show(pair) for shift in SHIFTS}
    shift_rows = [
        row | {"look": _side_by_side(looks[row["name"]]) if row["name"] in looks else None}
        for row in wording.shift_rows(robustness)
    ]
    cluster_rows = [
        row | {"look": _side_by_side(patches.read_many(cluster.examples))}
        for row, cluster in zip(wording.cluster_rows(robustness), robustness.clusters, strict=True)
    ]
    costly = [shift for shift in robustness.shifts if shift.costs]
    return {
        "summary": robustness.summary,
        "caution": robustness.caution,
        "chance": f"{100 * evaluation.ece_noise:.1f}",
        "least_calibrated": CALIBRATED,
        "cluster_summary": robustness.cluster_summary,
        "patches": f"{len(patches):,}",
        "fears": [shift.sentence for shift in costly],
        "harmless": ", ".join(shift.words for shift in robustness.shifts if not shift.costs),
        "rows": shift_rows,
        "clusters": cluster_rows,
    }


def _middle(logits: NDArray[np.float32], of_class: NDArray[np.bool_]) -> int:
    """Return the index of the patch of a class whose logit is the class's median, or next to it."""
    members = np.flatnonzero(of_class)
    return int(members[np.argsort(logits[members], kind="stable")[len(members) // 2]])


def _side_by_side(patches: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> str:
    return _uri(figures.encode_png(np.concatenate(list(patches), axis=1)))


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"
