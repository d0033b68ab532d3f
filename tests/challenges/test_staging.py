from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from json_output import result_of
from sklearn.metrics import cohen_kappa_score

from wsi_meta.challenges.staging import NODE_LABELS, STAGES, read_stage_table, stage, stage_patient, weighted_kappa
from wsi_meta.cli import main
from wsi_meta.errors import DataError, OutputExistsError, OutputPathError


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("negative negative negative negative negative", "pN0"),
        ("itc negative negative itc negative", "pN0(i+)"),
        ("micro negative negative negative itc", "pN1mi"),
        ("micro micro micro micro micro", "pN1mi"),
        ("macro negative itc itc itc", "pN1"),
        ("macro micro micro itc negative", "pN1"),
        ("macro micro micro micro negative", "pN2"),
        ("macro macro macro macro macro", "pN2"),
    ],
)
def test_rules(labels: str, expected: str) -> None:
    assert stage_patient(labels.split()) == expected


@given(st.lists(st.sampled_from(NODE_LABELS), min_size=5, max_size=5), st.randoms())
def test_order_of_nodes_does_not_matter_and_worse_nodes_never_make_it_better(labels: list[str], random: object) -> None:
    before = STAGES.index(stage_patient(labels))
    assert STAGES.index(stage_patient(sorted(labels))) == before
    worse = [NODE_LABELS[min(3, NODE_LABELS.index(label) + 1)] for label in labels]
    assert STAGES.index(stage_patient(worse)) >= before


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=30))
def test_kappa_by_its_formula(pairs: list[tuple[int, int]]) -> None:
    """1 - sum(w * observed) / sum(w * expected), w = (i - j)^2 / 16."""
    observed = np.zeros((5, 5))
    for row, col in pairs:
        observed[row, col] += 1 / len(pairs)
    expected = np.outer(observed.sum(1), observed.sum(0))
    weights = (np.subtract.outer(np.arange(5), np.arange(5)) ** 2) / 16
    kappa = weighted_kappa([STAGES[row] for row, _ in pairs], [STAGES[col] for _, col in pairs])
    if (weights * expected).sum() == 0:
        assert kappa is None
    else:
        assert kappa == pytest.approx(1 - (weights * observed).sum() / (weights * expected).sum())


def _write(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("\n".join(",".join(row) for row in [("patient", "stage"), *rows]) + "\n")
    return path


def _patient(number: int, labels: str) -> list[tuple[str, str]]:
    return [(f"patient_{number:03}_node_{node}.tif", label) for node, label in enumerate(labels.split())]


def test_from_table_to_table(tmp_path: Path) -> None:
    rows = _patient(0, "macro micro itc itc itc") + _patient(1, "negative negative negative negative itc")
    nodes = _write(tmp_path / "nodes.csv", rows)
    reference = _write(tmp_path / "truth.csv", [("patient_000.zip", "pN1"), ("patient_001.zip", "pN0")])
    found = stage(nodes, reference=reference, out=tmp_path / "out.csv")
    assert found.stages == {"patient_000": "pN1", "patient_001": "pN0(i+)"}
    assert found.agreeing == 1
    assert found.kappa == pytest.approx(cohen_kappa_score([3, 1], [3, 0], weights="quadratic", labels=range(5)))
    again = read_stage_table(tmp_path / "out.csv")
    assert again.stages == found.stages
    assert again.nodes == read_stage_table(nodes).nodes
    with pytest.raises(OutputExistsError):
        stage(nodes, out=tmp_path / "out.csv")
    with pytest.raises(OutputPathError, match=r"out\.xlsx: ending '\.xlsx'; expected \.csv"):
        stage(nodes, out=tmp_path / "out.xlsx")


def test_command(tmp_path: Path) -> None:
    nodes = _write(tmp_path / "nodes.csv", _patient(7, "macro macro macro macro itc"))
    result = CliRunner().invoke(main, ["stage", str(nodes), "--json"])
    unknown = dict.fromkeys(("kappa", "agreeing", "compared", "in_reference"))
    assert result_of(result.stdout) == {"stages": {"patient_007": "pN2"}} | unknown


def test_a_table_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    nodes = _write(tmp_path / "nodes.csv", [("pätient_0" + name[10:], label) for name, label in _patient(0, "itc " * 5)])
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "wsi_meta", "stage", str(nodes), "--out", str(tmp_path / "out.csv")]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | ascii_alone)
    assert list(read_stage_table(tmp_path / "out.csv").stages) == list(read_stage_table(nodes).nodes) == ["pätient_00"]


def test_patients_that_kappa_leaves_out_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = _write(tmp_path / "nodes.csv", _patient(0, "macro micro itc itc itc") + _patient(1, " ".join(["negative"] * 5)))
    stages = [("patient_000.zip", "pN1"), ("patient_001.zip", "pN0"), *((f"patient_{n:03}.zip", "pN2") for n in range(2, 20))]

    result = CliRunner().invoke(main, ["stage", str(nodes), "--reference", str(_write(tmp_path / "truth.csv", stages))])

    assert "kappa: 1.0\nagreeing: 2\ncompared: 2\nin_reference: 20" in result.stdout
    assert "18 of its 20 patients have no nodes in the table; kappa is of the other 2" in caplog.text


def test_labels_and_stages_in_any_case(tmp_path: Path) -> None:
    rows = [(name.replace("_node_4", "_NODE_4"), label) for name, label in _patient(0, "Macro MICRO itc ITC Negative")]
    nodes = _write(tmp_path / "nodes.csv", rows)
    assert stage(nodes, reference=_write(tmp_path / "truth.csv", [("patient_000.zip", "PN1")])).agreeing == 1


def test_bad_tables(tmp_path: Path) -> None:
    good = _patient(0, "macro micro itc itc itc")
    for name, rows, told in [
        ("label.csv", [*good[:4], ("patient_000_node_4.tif", "huge")], "'huge' for 'patient_000_node_4.tif'"),
        ("four.csv", good[:4], "'patient_000' has 4 nodes; expected 5"),
        ("twice.csv", [*good, ("patient_000_node_4.tif", "macro")], "'macro' for 'patient_000_node_4.tif'"),
        ("none.csv", [("patient_000.zip", "pN1")], "no row of a node"),
    ]:
        with pytest.raises(DataError, match=name) as caught:
            stage(_write(tmp_path / name, rows))
        assert told in str(caught.value)
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("columns.csv", "binary.csv", "gone.csv"):
        with pytest.raises(DataError, match=name):
            stage(tmp_path / name)
    with pytest.raises(DataError, match="no stage of 1 patients, first 'patient_000'"):
        stage(_write(tmp_path / "nodes.csv", good), reference=_write(tmp_path / "truth.csv", [("patient_001.zip", "pN1")]))


@pytest.mark.parametrize("name", ["nodes.csv", "truth.csv"])
def test_what_is_read_is_never_replaced(tmp_path: Path, name: str) -> None:
    nodes = _write(tmp_path / "nodes.csv", _patient(0, "macro micro itc itc itc"))
    truth = _write(tmp_path / "truth.csv", [("patient_000.zip", "pN0")])
    (tmp_path / "link.csv").symlink_to(tmp_path / name)
    before = nodes.read_text(), truth.read_text()
    for out in (tmp_path / name, tmp_path / "link.csv"):
        with pytest.raises(OutputPathError, match="never replaced; choose another --out"):
            stage(nodes, reference=truth, out=out, overwrite=True)
    assert (nodes.read_text(), truth.read_text()) == before


def test_nothing_is_written_where_the_reference_is_of_others(tmp_path: Path) -> None:
    nodes = _write(tmp_path / "nodes.csv", _patient(0, "macro micro itc itc itc"))
    truth = _write(tmp_path / "truth.csv", [("patient_001.zip", "pN0")])
    out = _write(tmp_path / "out.csv", [("patient_000.zip", "pN1")])
    before = out.read_text()
    with pytest.raises(DataError, match="no stage of 1 patients"):
        stage(nodes, reference=truth, out=out, overwrite=True)
    assert out.read_text() == before


@pytest.mark.shared_data
def test_the_challenges_own_labels(shared_data: Path) -> None:
    table = shared_data / "annotations" / "camelyon17_stage_labels.csv"
    found = stage(table, reference=table)
    assert len(found.stages) == found.agreeing == 100
    assert found.kappa == 1.0
    truth = read_stage_table(table).stages
    turned = list(found.stages.values())[1:] + list(found.stages.values())[:1]
    expected = cohen_kappa_score(
        [STAGES.index(value) for value in turned],
        [STAGES.index(truth[patient]) for patient in found.stages],
        weights="quadratic",
        labels=range(5),
    )
    assert weighted_kappa(turned, [truth[patient] for patient in found.stages]) == pytest.approx(expected)


def test_names_with_dots(tmp_path: Path) -> None:
    """Only what is surely an ending is cut off: TCGA's names hold dots, and stand in tables with and without ending."""
    labels = ["macro", "micro", "itc", "itc", "itc"]
    names = ["TCGA-1.2a", "TCGA-1.2b", "TCGA-1"]
    rows = [
        (f"{name}_node_{node}{ending}", labels[node])
        for name in names
        for node, ending in enumerate([".tif", ".SVS", "", "", ".zip"])
    ]
    reference = _write(tmp_path / "r.csv", [("TCGA-1.2a", "pN1"), ("TCGA-1.2b.zip", "pN0"), ("x/TCGA-1.zip", "pN1")])
    found = stage(_write(tmp_path / "n.csv", rows), reference=reference)
    assert found.stages == dict.fromkeys(names, "pN1")
    assert found.agreeing == 2
    with pytest.raises(DataError, match="'TCGA-1_node_4' in line 16 and again in line 17"):
        stage(_write(tmp_path / "n.csv", [*rows, ("TCGA-1_node_4.svs", "itc")]))
