"""Patients of a cohort: the pN stage that the lesions on their slides come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wsi_meta.challenges.staging import NODE_LABELS, NODES, STAGES, stage_patient
from wsi_meta.heatmaps.regions import NODE_OF_CLASS
from wsi_meta.worklist.table import Row

__all__ = ["Patient", "find_patients"]


@dataclass(frozen=True)
class Patient:
    """A patient, each of whose slides counts as one lymph node."""

    name: str
    nodes: dict[str, str | None]
    """Label of each slide, one of :data:`wsi_meta.challenges.staging.NODE_LABELS`; None where it has no result."""
    incomplete: int
    """Slides with a result of which not all was read: what was not read may hold more."""
    labelled: str | None
    """The stage by the slides' own labels; None unless each has one."""

    @property
    def known(self) -> list[str]:
        """Labels of the slides that have a result."""
        return [label for label in self.nodes.values() if label is not None]

    @property
    def stage(self) -> str | None:
        """The stage of the nodes that are known; None where there are none."""
        return stage_patient(self.known) if self.known else None

    @property
    def certain(self) -> bool:
        """Whether five nodes or more are known and read, or no stage is worse; else the stage is the lowest possible."""
        return self.stage == STAGES[-1] or (len(self.known) == len(self.nodes) >= NODES and not self.incomplete)

    @property
    def summary(self) -> str:
        """What the stage rests on, in words."""
        words = [f"{len(self.known)} node{'s' if len(self.known) != 1 else ''}"]
        if len(self.nodes) < NODES:
            words = [f"{len(self.known)} of the {NODES} nodes that the rules are made for"]
        if without := len(self.nodes) - len(self.known):
            words.append(f"{without} without a result")
        if self.incomplete:
            words.append(f"{self.incomplete} not read wholly")
        return ", ".join(words)


def find_patients(rows: Sequence[Row], names: Sequence[str]) -> list[Patient]:
    """Return the patients that rows name, the most severe stage first.

    Parameters
    ----------
    rows : of the summary
    names : the slide's name of each row
    """
    of_patient: dict[str, list[tuple[str, Row]]] = {}
    for name, row in zip(names, rows, strict=True):
        if row["patient"]:
            of_patient.setdefault(row["patient"], []).append((name, row))
    patients = [_patient(patient, slides) for patient, slides in of_patient.items()]
    return sorted(patients, key=lambda patient: (_severity(patient.stage), patient.name))


def _patient(name: str, slides: Sequence[tuple[str, Row]]) -> Patient:
    labels = [str(row["label"]).strip().lower() for _, row in slides]
    whole = [slide for slide, _ in slides]
    short = [slide.removeprefix(f"{name}_") for slide in whole]
    nodes = short if len(set(short)) == len(short) else whole
    return Patient(
        name=name,
        nodes={node: _node(row) for node, (_, row) in zip(nodes, slides, strict=True)},
        incomplete=sum(_node(row) is not None and not row["complete"] for _, row in slides),
        labelled=stage_patient(labels) if set(labels) <= set(NODE_LABELS) else None,
    )


def _node(row: Row) -> str | None:
    """Return a node's label; None where its slide has no result."""
    if row["score"] is None:
        return None
    if row["largest_lesion"] in NODE_OF_CLASS:
        return NODE_OF_CLASS[row["largest_lesion"]]
    return None if row["lesions"] is None else NODE_LABELS[0]


def _severity(stage: str | None) -> int:
    return len(STAGES) if stage is None else len(STAGES) - 1 - STAGES.index(stage)
