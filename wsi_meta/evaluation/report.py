"""The report of an evaluation: one HTML file that holds everything, and its figures as PNG.

:func:`write_report` draws, fills the template ``report.html`` beside this file, and puts the folder in place whole. What the
report says in words stands in :mod:`wsi_meta.evaluation.wording`.
"""

from __future__ import annotations

import tempfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import wsi_meta
from wsi_meta.errors import OutputExistsError, OutputPathError
from wsi_meta.evaluation import figures, wording
from wsi_meta.evaluation.gradcam import grad_cam
from wsi_meta.evaluation.metrics import losses_of
from wsi_meta.evaluation.results import Evaluation, Subject, history_path
from wsi_meta.outputs import check_folder

__all__ = ["TOP_LOSSES", "check_report", "write_report"]

TOP_LOSSES = 24
PAGE = "report.html"
GALLERY = "top_losses.png"
FILES = {PAGE, GALLERY, *(f"{name}.png" for name in wording.PLOTS)}
GENERATOR = "wsi-meta evaluate"
"""Stands in the page's head: a folder without it is not ours to replace."""


def check_report(out: str | Path, *, overwrite: bool) -> Path:
    """Make sure that a report can be written to the folder `out`.

    Raises
    ------
    OutputExistsError
        when it exists and not `overwrite`; with `overwrite`, when it holds anything but a report.
    OutputPathError
        when the folder around it is missing or cannot be written to.
    """
    out = Path(out)
    check_folder(out)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputPathError(f"{out}: a file or a link; expected the name of a folder to make")
    if not out.exists():
        return out
    if not overwrite:
        raise OutputExistsError(f"{out}: exists; choose another --out, or pass --overwrite to replace the report in it")
    names = {path.name for path in out.iterdir()}
    if foreign := sorted(names - FILES):
        raise OutputExistsError(f"{out}: holds '{foreign[0]}', which is no part of a report; choose another --out")
    if names and not (PAGE in names and GENERATOR in (out / PAGE).read_text("utf-8", errors="replace")[:1000]):
        raise OutputExistsError(f"{out}: holds no report of wsi-meta; choose another --out")
    return out


def write_report(out: str | Path, subject: Subject, evaluation: Evaluation, *, overwrite: bool = False) -> Path:
    """Write the report of an evaluation, whole or not at all.

    Parameters
    ----------
    out : folder to make; inside come ``report.html``, which needs nothing else, and its figures as PNG
    subject : what was evaluated
    evaluation : what came out, with intervals or without
    overwrite : replace a report at `out`; anything else there is refused

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
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as work:
        made = Path(work, "new")
        made.mkdir()
        _fill(made, subject, evaluation)
        _put_in_place(made, out, Path(work, "old"), overwrite=overwrite)
    return out / PAGE


def _put_in_place(made: Path, out: Path, aside: Path, *, overwrite: bool) -> None:
    if check_report(out, overwrite=overwrite).exists():
        out.rename(aside)
    try:
        made.rename(out)
    except OSError:
        if aside.exists():
            aside.rename(out)
        raise


def _fill(folder: Path, subject: Subject, evaluation: Evaluation) -> None:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    cases = _find_cases(subject, evaluation)
    preprocessing = subject.model.card.preprocessing
    (folder / GALLERY).write_bytes(figures.draw_gallery(cases, preprocessing.label_px))
    plots = []
    for name, draw in _plots(subject, evaluation):
        light = draw(figures.LIGHT)
        (folder / f"{name}.png").write_bytes(light)
        title, caption = wording.PLOTS[name]
        if name == "losses" and subject.losses is not None:
            caption = wording.describe_losses(subject.losses)
        plots.append({"title": title, "caption": caption, "light": _uri(light), "dark": _uri(draw(figures.DARK))})
    labels = subject.patches.labels
    slides = subject.patches.slides
    values: dict[str, Any] = {
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
        "frame_inset": round(50 * (1 - preprocessing.label_px / preprocessing.patch_px), 3),
        "summary": wording.summarise(labels, evaluation),
        "intervals_words": wording.explain_intervals(evaluation, None if slides is None else len(np.unique(slides))),
        "notes": wording.warn(subject.model.card, subject.patches.fingerprint()),
        "tiles": wording.tiles(evaluation),
        "rows": wording.rows(evaluation),
        "figures": plots,
        "cases": [_show(case) for case in cases],
        "cards": [("Data", wording.data_facts(subject, slides)), ("Model", wording.model_facts(subject.model))],
    }
    rooms = Environment(
        loader=PackageLoader("wsi_meta", "evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    (folder / PAGE).write_text(rooms.get_template(PAGE).render(values), encoding="utf-8")


def _plots(subject: Subject, evaluation: Evaluation) -> Iterator[tuple[str, Callable[[figures.Theme], bytes]]]:
    labels = subject.patches.labels
    yield "confusion", lambda theme: figures.draw_confusion(labels, evaluation, theme)
    yield "roc", lambda theme: figures.draw_roc(labels, evaluation, theme)
    yield "precision_recall", lambda theme: figures.draw_precision_recall(labels, evaluation, theme)
    yield "reliability", lambda theme: figures.draw_reliability(labels, evaluation, theme)
    yield "probabilities", lambda theme: figures.draw_probabilities(labels, evaluation, theme)
    if (losses := subject.losses) is not None:
        yield "losses", lambda theme: figures.draw_losses(losses, theme)


def _find_cases(subject: Subject, evaluation: Evaluation) -> list[figures.Case]:
    """Return the patches of the highest loss, the worst first, with what spoke for the error."""
    patches = subject.patches
    worst = np.argsort(-losses_of(evaluation.probabilities, patches.labels), kind="stable")[:TOP_LOSSES]
    pixels = np.stack([patches.read(int(index)) for index in worst])
    heats = grad_cam(subject.model, pixels, towards_tumor=patches.labels[worst] == 0)
    return [
        figures.Case(
            name=patches.name(int(index)),
            verdict=wording.verdict(
                int(patches.labels[index]), called=bool(evaluation.probabilities[index] >= evaluation.threshold)
            ),
            label=int(patches.labels[index]),
            probability=wording.probability(float(evaluation.probabilities[index])),
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


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"
