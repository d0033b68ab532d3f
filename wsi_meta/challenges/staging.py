"""CAMELYON17: a patient's pN stage from the labels of five lymph nodes, and its agreement with a reference.

Rules and file format by the challenge (Bandi et al. 2019, "From detection of individual metastases to classification of
lymph node status at the patient level: the CAMELYON17 challenge", IEEE TMI 38(2)):

    patient,stage
    patient_000.zip,pN1
    patient_000_node_0.tif,macro
    ...
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi_meta.annotations.camelyon_slides import patient_of
from wsi_meta.annotations.tables import last_part, read_table, refuse_twice, without_ending
from wsi_meta.errors import DataError, OutputPathError
from wsi_meta.outputs.checks import check_output, refuse_input
from wsi_meta.outputs.paths import as_path
from wsi_meta.outputs.writing import written_whole

__all__ = ["NODE_LABELS", "STAGES", "StageTable", "Staging", "read_stage_table", "stage", "stage_patient", "weighted_kappa"]

logger = logging.getLogger(__name__)

NODE_LABELS = ("negative", "itc", "micro", "macro")
"""Labels of a node: none, isolated tumor cells only, micrometastasis, macrometastasis."""
STAGES = ("pN0", "pN0(i+)", "pN1mi", "pN1", "pN2")
"""Stages of a patient, in order of severity."""
NODES = 5
"""Nodes per patient in the challenge."""


@dataclass(frozen=True)
class StageTable:
    """A CSV file in the challenge's format."""

    nodes: dict[str, dict[str, str]]
    """Label of each node by patient and node, both named as in the file, without an ending of slides; names may hold dots."""
    stages: dict[str, str]
    """Stage by patient, for the patients that have a row."""


@dataclass(frozen=True)
class Staging:
    """What :func:`stage` found."""

    stages: dict[str, str]
    """Stage by patient."""
    kappa: float | None
    """Quadratic weighted kappa against the reference; None without a reference, or where it is not defined."""
    agreeing: int | None
    """Number of patients with the same stage as in the reference; None without a reference."""
    in_reference: int | None = None
    """Number of patients in the reference: kappa is of those staged alone; None without a reference."""


def stage(
    nodes: str | Path, *, reference: str | Path | None = None, out: str | Path | None = None, overwrite: bool = False
) -> Staging:
    """Stage patients from a table of node labels.

    Parameters
    ----------
    nodes : CSV in the challenge's format with a row per node; stages of patients in it are ignored
    reference : CSV in the same format with a row per patient; it may be the same file
    out : CSV to write, nodes and stages in the challenge's format; neither of the others
    overwrite : replace `out` if it exists

    Returns
    -------
    The stage of each patient; with `reference` also the kappa and how many agree.

    Raises
    ------
    DataError
        when a file is missing or not in the format, a patient has not five nodes, or the reference lacks one.
    OutputExistsError, OutputPathError
    """
    target = None if out is None else _check_out(as_path("out", out), nodes, reference, overwrite=overwrite)
    table = read_stage_table(nodes)
    if not table.nodes:
        raise DataError(f"{nodes}: no row of a node; expected rows like 'patient_000_node_0.tif,macro'")
    stages = {patient: _stage_of(nodes, patient, labels.values()) for patient, labels in table.nodes.items()}
    found = Staging(stages, None, None) if reference is None else _compare(stages, reference)
    if target is not None:
        _write_stage_table(target, table.nodes, stages, overwrite=overwrite)
    return found


def stage_patient(labels: Iterable[str]) -> str:
    """Return a patient's pN stage from the labels of the nodes.

    Isolated tumor cells do not make a node positive. pN2: four nodes or more with metastases, at least one macro; pN1: one
    to three, at least one macro; pN1mi: only micrometastases; pN0(i+): only isolated tumor cells; pN0: nothing.

    Raises
    ------
    ValueError
        for a label that is none of :data:`NODE_LABELS`.
    """
    counts = dict.fromkeys(NODE_LABELS, 0)
    for label in labels:
        if label not in counts:
            raise ValueError(f"label '{label}'; expected one of {', '.join(NODE_LABELS)}")
        counts[label] += 1
    positive = counts["micro"] + counts["macro"]
    if counts["macro"]:
        return "pN1" if positive <= 3 else "pN2"
    if counts["micro"]:
        return "pN1mi"
    return "pN0(i+)" if counts["itc"] else "pN0"


def weighted_kappa(first: Iterable[str], second: Iterable[str]) -> float | None:
    """Return Cohen's kappa with quadratic weights over the five stages; None where all patients have the same stage."""
    counts = np.zeros((len(STAGES), len(STAGES)))
    for pair in zip(first, second, strict=True):
        counts[tuple(map(STAGES.index, pair))] += 1
    ranks = np.arange(len(STAGES))
    apart = (ranks[:, None] - ranks) ** 2
    by_chance = (apart * np.outer(counts.sum(1), counts.sum(0))).sum() / max(counts.sum(), 1)
    return float(1 - (apart * counts).sum() / by_chance) if by_chance else None


def read_stage_table(path: str | Path) -> StageTable:
    """Read a CSV in the challenge's format.

    Raises
    ------
    DataError
        when it is missing, not in the format, or holds an unknown label or stage, or two for one name.
    """
    path = as_path("table", path)
    nodes: dict[str, dict[str, str]] = {}
    stages: dict[str, str] = {}
    rows = read_table(path, ("patient", "stage"), "stages")
    names = [without_ending(last_part(row[0])) for row in rows]
    for name, (full_name, value) in zip(names, rows, strict=True):
        patient = patient_of(name)
        known, place = (NODE_LABELS, nodes.setdefault(patient, {})) if patient != name else (STAGES, stages)
        value = next((word for word in known if word.lower() == value.lower()), value)  # in any case
        if value not in known or place.setdefault(name, value) != value:
            raise DataError(f"{path}: {value!r} for {full_name!r}; expected one of {', '.join(known)}, once")
    refuse_twice(path, ((name, row.line) for name, row in zip(names, rows, strict=True)))
    return StageTable(nodes, stages)


def _check_out(out: Path, nodes: str | Path, reference: str | Path | None, *, overwrite: bool) -> Path:
    """Return the name that is written, checked: it is free or may be replaced, and is nothing that is read."""
    refuse_input(out, "the nodes' labels", nodes)
    refuse_input(out, "the reference", reference)
    if out.suffix.lower() not in ("", ".csv"):
        raise OutputPathError(f"{out}: ending '{out.suffix}'; expected .csv for a table of stages")
    return check_output(out, overwrite=overwrite)


def _compare(stages: dict[str, str], reference: str | Path) -> Staging:
    expected = read_stage_table(reference).stages
    if missing := sorted(set(stages) - set(expected)):
        raise DataError(f"{reference}: no stage of {len(missing)} patients, first '{missing[0]}'; expected a row for each")
    if len(expected) > len(stages):
        told = "%s: %d of its %d patients have no nodes in the table; kappa is of the other %d"
        logger.warning(told, reference, len(expected) - len(stages), len(expected), len(stages))
    pairs = [(stages[patient], expected[patient]) for patient in stages]
    agreeing = sum(ours == theirs for ours, theirs in pairs)
    return Staging(stages, weighted_kappa(*zip(*pairs, strict=True)), agreeing, len(expected))


def _stage_of(path: str | Path, patient: str, labels: Iterable[str]) -> str:
    labels = list(labels)
    if len(labels) != NODES:
        raise DataError(f"{path}: '{patient}' has {len(labels)} nodes; expected {NODES}")
    return stage_patient(labels)


def _write_stage_table(
    path: Path, nodes: Mapping[str, Mapping[str, str]], stages: Mapping[str, str], *, overwrite: bool
) -> None:
    with written_whole(path, overwrite=overwrite) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["patient", "stage"])
        for patient, labels in nodes.items():
            writer.writerow([f"{patient}.zip", stages[patient]])
            writer.writerows([f"{node}.tif", label] for node, label in labels.items())
