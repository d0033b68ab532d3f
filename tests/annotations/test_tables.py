from __future__ import annotations

import os
from pathlib import Path

import pytest

from wsi_meta.annotations.camelyon_slides import patient_of
from wsi_meta.annotations.tables import NamedRows, label_of, read_table
from wsi_meta.errors import DataError


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header", [["label", "slide", "note"], ["", "Slide", " LABEL "]])
def test_columns_are_found_by_name_under_any_separator(tmp_path: Path, separator: str, header: list[str]) -> None:
    values = {"slide": "a.b", "label": "tumor"}
    row = [values.get(name.strip().lower(), "x") for name in header]
    (tmp_path / "t.csv").write_text("\n".join(separator.join(part) for part in (header, row, [], row)) + "\n")
    rows = read_table(tmp_path / "t.csv", ("slide", "label"), "labels", optional=("patient",))
    assert rows == [("a.b", "tumor", "")] * 2
    assert [found.line for found in rows] == [2, 4]


@pytest.mark.parametrize("row", ['a,"p1', 'a,"p1"x'])
def test_a_quote_that_is_not_closed_is_refused(tmp_path: Path, row: str) -> None:
    """It would swallow the rows after it."""
    (tmp_path / "t.csv").write_text(f"slide,label\n{row}\nb,0\n")
    with pytest.raises(DataError, match=r"t\.csv: not a table of labels .*; expected CSV"):
        read_table(tmp_path / "t.csv", ("slide", "label"), "labels")


@pytest.mark.parametrize("header", ["slide,label", "slide,label,", "slide,label,patient"])
def test_a_row_longer_than_the_header_is_refused(tmp_path: Path, header: str) -> None:
    """Its values are shifted, or stand in no column; empty ones at its end say nothing."""
    (tmp_path / "t.csv").write_text(f"{header}\na,1,,,\n")
    assert read_table(tmp_path / "t.csv", ("slide", "label"), "labels", optional=("patient",)) == [("a", "1", "")]
    (tmp_path / "t.csv").write_text(f"{header}\na,1\n\nb,0,9{'' if header == 'slide,label' else ',checked'}\n")
    with pytest.raises(DataError, match=r"t\.csv: line 4 has \d values, the header \d; expected no more than there; write"):
        read_table(tmp_path / "t.csv", ("slide", "label"), "labels", optional=("patient",))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le"])
def test_a_character_of_number_0_is_told_with_its_line(tmp_path: Path, encoding: str) -> None:
    """As a loss of power leaves it; UTF-16 without its mark looks like that, too."""
    (tmp_path / "t.csv").write_text("slide,label\na,1\nb\0,0\n", encoding=encoding)
    with pytest.raises(DataError, match=r"t\.csv: line \d holds a character of number 0; expected text in UTF-8"):
        read_table(tmp_path / "t.csv", ("slide", "label"), "labels")


def test_a_missing_table_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.csv: no such file; expected a table of labels, CSV with 'slide'"):
        read_table(tmp_path / "t.csv", ("slide",), "labels")


def test_a_column_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("slide,label,label\na,0,1\n")
    with pytest.raises(DataError, match="column 'label' twice"):
        read_table(tmp_path / "t.csv", ("slide", "label"), "labels")


@pytest.mark.parametrize(
    ("stated", "slide"),
    [
        ("file:///std%E9/node%201.tif", "node 1"),
        ("file:///std/caf%E9.tif", os.fsdecode(b"caf\xe9")),
        ("file:///C:/std/a%23b.tif", "a#b"),
        ("https://host/std/node%201.svs?key=a/b", "node 1"),
        (r"C:\std\node 1.tif", "node 1"),
        ("std/100%25.tif", "100%25"),
    ],
)
def test_a_name_may_be_a_path_a_file_uri_or_an_address(stated: str, slide: str) -> None:
    """summary.csv keeps what is no text as a file URI, in which bytes of all its names are escaped."""
    assert NamedRows(Path("t.csv"), [(stated, 2, 1)], lower=True).get(slide) == 1


def test_names_match_whole_before_they_match_without_ending() -> None:
    names = ["a", "a.b", "TCGA-1.uuid-1", "TCGA-2.uuid-2.svs", "d/e.tif", "f.other"]
    rows = NamedRows(Path("t.csv"), [(name, line, name) for line, name in enumerate(names, 2)])
    for asked, found in [
        ("a", "a"),
        ("a.b", "a.b"),
        ("TCGA-1.uuid-1", "TCGA-1.uuid-1"),
        ("TCGA-2.uuid-2", "TCGA-2.uuid-2.svs"),
        ("e", "d/e.tif"),
        ("f", "f.other"),
        ("g", None),
    ]:
        assert rows.get(asked) == found


def test_a_name_that_a_map_was_given_comes_first() -> None:
    rows = NamedRows(Path("t.csv"), [("1/a.tif", 2, 1), ("2/a.tif", 3, 2), ("3/b.tif", 4, 3)], given=["x", "y", "z"])
    assert [rows.get(name) for name in ("x", "y", "z", "a", "b")] == [1, 2, 3, None, 3]
    rows = NamedRows(Path("t.csv"), [("a.tif", 2, 1), ("b.tif", 3, 2)], given=["Smith", "Smith"])
    assert [rows.get(name) for name in ("a", "b", "Smith")] == [1, 2, None], "names of something else"


def test_a_name_twice_is_refused_with_both_lines() -> None:
    with pytest.raises(DataError, match="'a' in line 2 and again in line 5"):
        NamedRows(Path("t.csv"), [("a", 2, 0), ("b", 3, 0), ("x/a", 5, 1)])
    rows = NamedRows(Path("t.csv"), [("a", 2, 0), ("a.svs", 3, 0), ("b", 4, 0)])
    assert rows.get("b") == 0
    with pytest.raises(DataError, match="'a' in line 2 and again in line 3"):
        rows.get("a")


def test_tables_of_spreadsheets(tmp_path: Path) -> None:
    """UTF-16 with tabs, line ends of Windows, rows without values, `sep=`; the lines are counted as they are."""
    path = tmp_path / "t.csv"
    for text, encoding in [
        ("\r\nslide\tlabel\r\n\r\na\t1\r\n\r\nb\t0\r\n", "utf-16"),
        ("sep=;\r\nslide;label\r\n;;\r\na;1\r\n; ;\r\nb;0\r\n;\r\n", "utf-8-sig"),
        ('\n"Slide" ; LABEL\n\n a;1\n\n"b";0\n\n', "utf-8-sig"),
    ]:
        path.write_bytes(text.encode(encoding))
        rows = read_table(path, ("slide", "label"), "labels")
        assert rows == [("a", "1"), ("b", "0")]
        assert [row.line for row in rows] == [4, 6]
    for content in ("slide,label\ncaf\xe9,1\n".encode("latin-1"), b"PK\x03\x04", "slide,label\na,1\n".encode("utf-16-le")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"t\.csv: .*expected") as caught:
            read_table(path, ("slide", "label"), "labels")
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("True", True),
        ("FALSE", False),
        (" Macro ", True),
        ("Normal", False),
        ("1.0", True),
        ("0", False),
        ("", None),
        ("2", None),
    ],
)
def test_labels_are_words_in_any_case(text: str, label: bool | None) -> None:
    assert label_of(text) is label


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("patient_017_node_2", "patient_017"),
        ("Patient_017_NODE_2", "Patient_017"),
        ("TCGA-A1-A0SB-01Z-00-DX1.B34C267B-CAAA-4AB6-AD5C-276C26F997A1", "TCGA-A1-A0SB"),
        ("TCGA-A1-A0SB-11A-01-TSA", "TCGA-A1-A0SB"),
        ("TCGA-A1-A0SB", "TCGA-A1-A0SB"),
        ("TCGA-A1", "TCGA-A1"),
        ("tumor_001", "tumor_001"),
    ],
)
def test_names_that_tell_the_patient(name: str, patient: str) -> None:
    """Slides of one patient in training and validation flatter."""
    assert patient_of(name) == patient
