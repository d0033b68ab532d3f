"""The table of a folder of heatmaps is derived from them, whoever writes it."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from children import start_child
from click.testing import CliRunner
from slide_files import texture, write_slide
from stores import write_store

from wsi_meta.cli import main
from wsi_meta.errors import HeatmapError, OutputExistsError
from wsi_meta.files.address import Address
from wsi_meta.files.locks import locked
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.slides.slide import open_slide
from wsi_meta.words import printable
from wsi_meta.worklist.renewal import summarise_folder
from wsi_meta.worklist.summary import add_row, check_summary, failed, summarise
from wsi_meta.worklist.table import COLUMNS, Table, open_table

MAP = np.full((3, 4), 0.75, np.float32)


def _read(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_it_is_made_anew_from_the_stores(tmp_path: Path) -> None:
    for name in "ab":
        add_row(
            tmp_path, summarise(f"slides/{name}.tif", write_store(tmp_path / f"{name}.zarr", MAP)), tmp_path / f"{name}.zarr"
        )
    add_row(tmp_path, failed("slides/gone.tif", "no such file"), tmp_path / "gone.zarr")
    before = _read(tmp_path)
    assert summarise_folder(tmp_path)[0]["score"] == pytest.approx(0.75)
    assert _read(tmp_path) == before
    for name in ("summary.csv", "summary.json"):
        (tmp_path / name).unlink()
    write_store(tmp_path / "c.zarr", MAP).reopen()
    (tmp_path / "notes.zarr").mkdir()
    write_store(tmp_path / ".d.zarr", MAP)
    rows = summarise_folder(tmp_path)
    assert [row["slide"] for row in rows] == ["a.tif", "b.tif", "c.tif"]
    assert [row["complete"] for row in rows] == [True, True, False]
    assert "not scanned to the end" in rows[2]["error"]
    assert [row["error_kind"] for row in rows] == [None, None, "unfinished"]
    assert rows[2]["score"] is None
    assert [tuple(row) for row in rows] == [COLUMNS] * 3


def test_paths_are_absolute_and_a_table_of_before_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("out")
    out.mkdir()
    for name in "ab":  # as tables of before have them
        add_row(out, failed(f"slides/{name}.tif", "bad"), out / f"{name}.zarr")
    add_row(out, summarise(Path("slides/a.tif"), write_store(out / "a.zarr", MAP)), out / "a.zarr", Path("slides/a.tif"))
    add_row(out, failed(Path("slides/c.tif"), "bad"), out / "c.zarr", Path("slides/c.tif"))
    told = [(str(tmp_path / "slides" / "a.tif"), str(tmp_path / "out" / "a.zarr"))]
    told += [("slides/b.tif", ""), (str(tmp_path / "slides" / "c.tif"), "")]
    assert [(row["slide"], row["heatmap"]) for row in _read(out)] == told
    assert [row["heatmap"] for row in summarise_folder("out")] == [told[0][1], None, None]
    out.rename("moved")
    (row, *_) = summarise_folder("moved")
    assert (row["slide"], row["heatmap"]) == (told[0][0], str(tmp_path / "moved" / "a.zarr"))
    add_row(Path("moved"), failed(Path("slides/b.tif"), "worse"), Path("moved/b.zarr"))
    assert [row["slide"] for row in _read(Path("moved"))][1:] == [str(tmp_path / "slides" / "b.tif"), told[2][0]]


def test_an_address_stays_as_it_is(tmp_path: Path) -> None:
    for told in ("bad", "worse"):
        add_row(tmp_path, failed(Address("https://me:secret@host/a.tif"), told), tmp_path / "a.zarr")
    assert [(row["slide"], row["error"]) for row in _read(tmp_path)] == [("https://host/a.tif", "worse")]


def test_a_damaged_store_has_a_row_that_says_so(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr", MAP)
    text = (tmp_path / "a.zarr" / "zarr.json").read_text()
    (tmp_path / "a.zarr" / "zarr.json").write_text(text.replace('"reader"', '"rider"'))
    (row,) = summarise_folder(tmp_path)
    assert "the record of its scan is damaged" in row["error"]
    assert row["error_kind"] == "HeatmapError"
    assert row["score"] is None


@pytest.mark.parametrize("damage", ["an edited score", "a lost block"])
def test_a_store_that_no_command_reads_gives_no_score(tmp_path: Path, damage: str) -> None:
    store = write_store(tmp_path / "a.zarr", MAP).path
    add_row(tmp_path, failed("x/a.tif", "killed") | {"patient": "p1"}, store)
    if damage == "a lost block":
        shutil.rmtree(store / "0" / "c")
    else:
        record = (store / "zarr.json").read_text()
        (store / "zarr.json").write_text(re.sub(r'"score": 0\.75\d*', '"score": 0.01', record))
    add_row(tmp_path, failed("x/a.tif", "killed again"), store)
    assert [(row["score"], row["error"]) for row in open_table(tmp_path).rows] == [(None, "killed again")]
    row = summarise_folder(tmp_path)[0]
    assert (row["score"], row["error_kind"]) == (None, "HeatmapError")
    assert f"{store}: damaged: " in row["error"]
    result = CliRunner().invoke(main, ["summary", str(tmp_path)])
    assert (result.exit_code, "Error: of 2 slides 2 failed" in result.stderr) == (1, True), result.output


@pytest.mark.parametrize(
    ("slide", "told"),
    [
        (os.fsdecode(b"l/bad\xe9.tif"), r"l/bad\xe9.tif: not a slide"),
        ("l/bad 1.tif", "l/bad 1.tif: not a slide"),
        ("l/a.tif", "/s/a.zarr: no such store"),
    ],
)
def test_the_command_names_a_failed_slide_once(tmp_path: Path, slide: str, told: str) -> None:
    """The error has the path as it was given, the table the absolute one, or its file URI."""
    path = tmp_path / slide
    add_row(tmp_path, failed(path, told), tmp_path / "a.zarr")
    result = CliRunner().invoke(main, ["summary", str(tmp_path)])
    assert result.stderr.endswith(f"Error: {told if slide != 'l/a.tif' else f'{path}: {told}'}\n")


def _slide(path: Path, seed: int = 0) -> tuple[str, str]:
    """A small slide: its path, and its fingerprint."""
    path.parent.mkdir(exist_ok=True)
    with open_slide(write_slide(path, texture(96, 96, seed))) as opened:
        return str(path), opened.fingerprint()


def test_a_failed_scan_leaves_the_row_of_a_finished_store(tmp_path: Path) -> None:
    (x, mark), y = _slide(tmp_path / "x" / "a.tif"), str(tmp_path / "y" / "a.tif")
    store = write_store(tmp_path / "a.zarr", MAP, slide=mark).path
    add_row(tmp_path, failed(x, "no space left on device"), store)
    (row,) = _read(tmp_path)
    assert (row["slide"], row["error"]) == (x, "")
    assert float(row["score"]) == pytest.approx(0.75)
    add_row(tmp_path, failed(x, "holds another scan"), store)
    assert _read(tmp_path) == [row]
    add_row(tmp_path, failed(y, "holds another scan"), store)
    assert [(row["slide"], row["error"]) for row in _read(tmp_path)] == [(x, ""), (y, "holds another scan")]
    add_row(tmp_path, summarise(y, Heatmap.open(store)), store)
    assert [(row["slide"], row["error"]) for row in _read(tmp_path)] == [(y, "")], "one row for one heatmap"


def test_a_slide_that_is_away_keeps_the_result_that_the_table_says_is_its(tmp_path: Path) -> None:
    (x, mark), y = _slide(tmp_path / "x" / "a.tif"), str(tmp_path / "y" / "a.tif")
    store = write_store(tmp_path / "a.zarr", MAP, slide=mark)
    add_row(tmp_path, summarise(x, store), store.path)
    (row,) = _read(tmp_path)
    Path(x).unlink()  # as when a network disk is away
    for slide in (x, y):
        add_row(tmp_path, failed(slide, "no such file"), store.path)
    assert _read(tmp_path)[0] == row
    assert [(other["slide"], other["score"], other["error"]) for other in _read(tmp_path)[1:]] == [(y, "", "no such file")]


def test_another_slide_of_the_same_name_does_not_get_the_stores_result(tmp_path: Path) -> None:
    (_, mark), (y, _) = _slide(tmp_path / "x" / "a.tif"), _slide(tmp_path / "y" / "a.tif", seed=1)
    store = write_store(tmp_path / "a.zarr", MAP, slide=mark).path
    add_row(tmp_path, failed(y, "holds another scan"), store)
    assert [(row["slide"], row["score"], row["error"]) for row in _read(tmp_path)] == [(y, "", "holds another scan")]
    rows = summarise_folder(tmp_path)
    assert [(row["slide"], row["error"]) for row in rows] == [("a.tif", None), (y, "holds another scan")]
    assert rows[1]["score"] is None


def test_a_slide_that_was_replaced_does_not_keep_the_old_ones_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, mark = _slide(Path("a.tif"))
    store = write_store(tmp_path / "a.zarr", MAP, slide=mark)
    add_row(tmp_path, summarise("a.tif", store), store.path)
    _slide(Path("a.tif"), seed=1)
    add_row(tmp_path, failed("a.tif", "holds another scan"), store.path)
    assert [(row["score"], row["error"]) for row in _read(tmp_path)] == [("", "holds another scan")]
    assert [row["error"] for row in summarise_folder(tmp_path)] == ["holds another scan"], "whoever writes the table"


def test_exchanged_stores_give_no_slide_anothers_score(tmp_path: Path) -> None:
    kept, slides = tmp_path / "out", [_slide(tmp_path / f"p{number}" / "a.tif", seed=number) for number in (1, 2)]
    kept.mkdir()
    for number, (slide, mark) in enumerate(slides, 1):
        store = write_store(tmp_path / "a.zarr", MAP * np.float32(1 / number), slide=mark).path.rename(kept / f"a{number}.zarr")
        add_row(kept, summarise(slide, Heatmap.open(store)) | {"patient": f"p{number}", "label": "tumor"}, store)
    first, second, aside = kept / "a1.zarr", kept / "a2.zarr", tmp_path / "aside"
    for source, target in ((first, aside), (second, first), (aside, second)):
        source.rename(target)
    names = ("slide", "score", "patient", "heatmap", "error")
    assert [[row[name] for name in names] for row in summarise_folder(kept)] == [
        [slides[1][0], pytest.approx(0.375), "p2", str(first), None],
        [slides[0][0], pytest.approx(0.75), "p1", str(second), None],
    ]
    shutil.rmtree(first)
    second.rename(first)
    told = f"{first}: made from a.tif (fingerprint {slides[0][1][:16]}), not from {slides[1][0]}; put the right store back, "
    for _ in range(2):
        assert [[row[name] for name in names] for row in summarise_folder(kept)] == [
            [slides[0][0], pytest.approx(0.75), "p1", str(first), None],
            [slides[1][0], None, "p2", None, f"{told}or scan again"],
        ]


def test_a_store_of_another_name_is_not_taken_for_a_slide_that_is_away(tmp_path: Path) -> None:
    store = write_store(tmp_path / "a.zarr", MAP)
    add_row(tmp_path, summarise("/away/a.tif", store), store.path)
    assert [row["slide"] for row in summarise_folder(tmp_path)] == ["/away/a.tif"]
    shutil.rmtree(store.path)
    write_store(tmp_path / "b.zarr", MAP).path.rename(store.path)
    rows = summarise_folder(tmp_path)
    assert [(row["slide"], row["score"]) for row in rows] == [("b.tif", pytest.approx(0.75)), ("/away/a.tif", None)]


def test_a_failed_scan_does_not_take_anothers_store_for_its_own(tmp_path: Path) -> None:
    store = write_store(tmp_path / "a.zarr", MAP).path
    add_row(tmp_path, failed("a.svs", "holds another scan"), store)
    assert [row["error"] for row in _read(tmp_path)] == ["holds another scan"]


def _add_ten_rows(folder: Path, name: str) -> None:
    for number in range(10):
        add_row(folder, failed(f"{name}{number}.tif", "bad"), folder / "none.zarr")


def test_many_processes_write_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    children = [start_child(partial(_add_ten_rows, folder, name), tmp_path / f"{name}.log") for name in "abc"]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert {row["slide"] for row in _read(folder)} == {f"{name}{number}.tif" for name in "abc" for number in range(10)}
    assert sorted(entry.name for entry in folder.iterdir()) == ["summary.csv", "summary.json"]


def test_it_waits_for_another_writer(tmp_path: Path) -> None:
    with locked(tmp_path / "summary.csv"):
        waiting = threading.Thread(target=add_row, args=(tmp_path, failed("a.tif", "bad"), tmp_path / "a.zarr"))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
        assert not (tmp_path / "summary.csv").exists()
    waiting.join()
    assert len(_read(tmp_path)) == 1


def test_a_slide_that_another_process_finishes_meanwhile_keeps_its_row(tmp_path: Path) -> None:
    slide, mark = _slide(tmp_path / "x" / "a.tif")
    told = failed(slide, "is being written by process 1")
    with locked(tmp_path / "summary.csv"):
        waiting = threading.Thread(target=add_row, args=(tmp_path, told, tmp_path / "a.zarr"))
        waiting.start()
        waiting.join(0.1)
        write_store(tmp_path / "a.zarr", MAP, slide=mark)
        Table(tmp_path, [summarise(slide, Heatmap.open(tmp_path / "a.zarr"))]).write()
    waiting.join()
    assert [(row["score"], row["error"]) for row in open_table(tmp_path).rows] == [(pytest.approx(0.75), None)]


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n\x1b[31m.tif")
    for _ in range(2):
        add_row(tmp_path, failed(name, f"{name}: bad"), tmp_path / "a.zarr")
    (row,) = _read(tmp_path)
    assert (row["slide"], row["error"]) == (r"caf\xe9\n\x1b[31m.tif", r"caf\xe9\n\x1b[31m.tif: bad")


def test_a_path_that_is_no_text_is_kept_whole_also_in_a_table_of_before(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9\n.tif")
    add_row(tmp_path, failed(printable(str(path)), "bad") | {"label": "macro"}, tmp_path / "a.zarr")  # as it was written before
    for _ in range(2):
        add_row(tmp_path, failed(path, "bad") | {"annotations": str(path)}, tmp_path / "a.zarr")
        (row,) = open_table(tmp_path).rows
        assert (row["slide"], row["annotations"], row["label"]) == (path.as_uri(), path.as_uri(), "macro")


def test_what_is_no_folder_of_heatmaps(tmp_path: Path) -> None:
    store = write_store(tmp_path / "a.zarr", MAP).path
    with pytest.raises(HeatmapError, match=r"a\.zarr: a heatmap store; expected a folder of heatmaps"):
        summarise_folder(store)
    with pytest.raises(HeatmapError, match="no such folder"):
        summarise_folder(tmp_path / "gone")
    (tmp_path / "slides").mkdir()
    with pytest.raises(HeatmapError, match=r"slides: no heatmap in this folder; expected stores that end in \.zarr"):
        summarise_folder(tmp_path / "slides")
    assert not list((tmp_path / "slides").iterdir())


FIRST_COLUMNS = "slide,heatmap,score,fitted_score,complete,tissue_fraction,scanned,background,unreadable,error"
SAVED: dict[str, Callable[[str], str]] = {
    "as it was written": lambda text: text,
    "with other line ends": lambda text: text.replace("\r\n", "\n"),
    "by a spreadsheet": lambda text: "\ufeff" + text.replace("True", "TRUE").replace("False", "FALSE"),
    "without a column": lambda text: text.replace("fitted_score,", "").replace(",,True", ",True").replace(",,False", ",False"),
}


@pytest.mark.parametrize("saved", SAVED)
def test_a_table_of_the_first_version_is_read_and_upgraded(tmp_path: Path, saved: str) -> None:
    store = write_store(tmp_path / "a,1.zarr", MAP).path
    rows = f'"x/a,1.tif","{store}",0.5,,True,0.2,12,0,0,\r\nx/gone.tif,,,,False,,,,,no such file\r\n'
    (tmp_path / "summary.csv").write_text(SAVED[saved](f"{FIRST_COLUMNS}\r\n{rows}"), newline="", encoding="utf-8")
    add_row(tmp_path, failed("x/new.tif", "bad"), tmp_path / "new.zarr")
    table = _read(tmp_path)
    assert tuple(table[0]) == COLUMNS
    assert [(row["slide"], row["error"], row["score"], row["complete"]) for row in table] == [
        ("x/a,1.tif", "", "0.5", "True"),
        ("x/gone.tif", "no such file", "", "False"),
        ("x/new.tif", "bad", "", "False"),
    ]
    assert [row["slide"] for row in summarise_folder(tmp_path)] == ["x/a,1.tif", "x/gone.tif", "x/new.tif"]
    assert not list(tmp_path.glob("summary.changed*"))


EDITED: dict[str, Callable[[str], str]] = {
    "numbers that are none": lambda text: text.replace(",p1,tumor,", ",NA,nan,").replace("0.75", "nan"),
    "another word for true": lambda text: text.replace(",True,", ",WAHR,"),
    "another column": lambda text: text.replace("\r\n", ",notes\r\n", 1),
    "semicolons": lambda text: text.replace(",", ";"),
    "cleared": lambda _: "\ufeff,,,\r\n",
    "no table at all": lambda _: "mine\n",
}
"""What people and spreadsheets make of ``summary.csv``."""


@pytest.mark.parametrize("edited", EDITED)
def test_a_table_that_somebody_changed_is_kept_and_written_anew(
    tmp_path: Path, edited: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = write_store(tmp_path / "a.zarr", MAP)
    add_row(tmp_path, summarise("/x/a.tif", store) | {"patient": "p1", "label": "tumor"}, store.path)
    table, before = tmp_path / "summary.csv", open_table(tmp_path).rows
    contents = [EDITED[edited](table.read_text()).encode("utf-16"), EDITED[edited](table.read_text()).encode()]
    for number, content in enumerate(contents):
        table.write_bytes(content)
        add_row(tmp_path, failed(f"/x/{number}.tif", "bad"), tmp_path / f"{number}.zarr")
    assert open_table(tmp_path).rows[:1] == before
    assert [row["slide"] for row in _read(tmp_path)] == ["/x/a.tif", "/x/0.tif", "/x/1.tif"]
    kept = [tmp_path / "summary.changed.csv", tmp_path / "summary.changed.2.csv"]
    assert [path.read_bytes() for path in kept] == contents
    told = f"{table}: changed since it was written; kept as summary.changed.2.csv, and written anew from summary.json; "
    assert [record.getMessage() for record in caplog.records][1:] == [
        f"{told}patients and labels are given with 'wsi-meta scan --manifest'"
    ]
    kept[0].replace(table)
    summarise_folder(tmp_path)
    assert kept[0].read_bytes() == contents[0], "also when it is put there again"


def test_the_json_says_the_same_with_types(tmp_path: Path) -> None:
    store = write_store(tmp_path / "a.zarr", MAP)
    add_row(tmp_path, summarise('x/"a", é.tif', store) | {"patient": "p1", "label": "tumor"}, store.path)
    add_row(tmp_path, failed("x/b.tif", "bad"), tmp_path / "b.zarr")
    rows = open_table(tmp_path).rows
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["slides"] == rows
    assert (rows[0]["lesions"], rows[0]["largest_lesion"], rows[0]["unreadable_fraction"]) == (1, "isolated tumor cells", 0.0)
    assert (rows[0]["score"], rows[0]["patient"], rows[1]["score"]) == (pytest.approx(0.75), "p1", None)


@pytest.mark.parametrize("left", ["no JSON", "an empty JSON", "no CSV", "the CSV of before"])
def test_what_a_killed_run_or_a_person_took_away_is_made_anew(tmp_path: Path, left: str) -> None:
    add_row(tmp_path, failed("a.tif", "first") | {"score": 0.1}, tmp_path / "a.zarr")
    older = (tmp_path / "summary.csv").read_bytes()
    add_row(tmp_path, failed("a.tif", "second") | {"score": 0.1, "lesions": 3}, tmp_path / "a.zarr")
    if "CSV" in left:
        (tmp_path / "summary.csv").unlink()
    else:
        (tmp_path / "summary.json").unlink()
    if left == "the CSV of before":  # killed between the two files
        (tmp_path / "summary.csv").write_bytes(older)
    elif left == "an empty JSON":  # after a loss of power
        (tmp_path / "summary.json").write_bytes(bytes(9))
    add_row(tmp_path, failed("b.tif", "third"), tmp_path / "b.zarr")
    rows = json.loads((tmp_path / "summary.json").read_text())["slides"]
    assert [(row["slide"], row["error"], row["score"]) for row in rows] == [
        ("a.tif", "second", 0.1),
        ("b.tif", "third", None),
    ]
    assert [row["slide"] for row in _read(tmp_path)] == ["a.tif", "b.tif"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["summary.csv", "summary.json"]


CHANGED = "cut or changed since it was written"
FOREIGN: dict[str, tuple[str, Callable[[str], str], str]] = {
    "a CSV": ("summary.csv", lambda _: "mine\n", "begins with 'mine', expected 'slide,heatmap,score'"),
    "a changed CSV": ("summary.csv", lambda text: text.replace("False", "FALSCH"), f"{CHANGED}, and there is no summary.json"),
    "a CSV cut in its last value": ("summary.csv", lambda text: text.rstrip("\n"), CHANGED),
    "a CSV with other columns": (
        "summary.csv",
        lambda text: text.replace("fitted_score", "learned_score"),
        "columns of another version: learned_score; it is never",
    ),
    "a CSV with NaN": ("summary.csv", lambda text: text.replace("0.5", "nan"), CHANGED),
    "a CSV with one more value": ("summary.csv", lambda text: text.replace("bad", "bad,ly"), CHANGED),
    "a JSON": ("summary.json", lambda _: "{}", "begins with '{}', expected '{\"made_by\": \"wsi-meta '"),
    "a cut JSON": ("summary.json", lambda text: text[:-9], CHANGED),
    "a JSON with NaN": ("summary.json", lambda text: text.replace("0.5", "NaN"), CHANGED),
    "a JSON with a number for a text": ("summary.json", lambda text: text.replace('"bad"', "3"), CHANGED),
    "a JSON with a row that is none": ("summary.json", lambda text: text.replace("\n]", ",[]]"), CHANGED),
}
"""Files that cannot be read: name, how it comes about, what is told. There is no JSON beside the CSVs."""


@pytest.mark.parametrize("found", FOREIGN)
def test_what_is_not_ours_is_never_replaced(tmp_path: Path, found: str) -> None:
    write_store(tmp_path / "a.zarr", MAP)
    add_row(tmp_path, failed("a.tif", "bad") | {"score": 0.5}, tmp_path / "b.zarr")
    name, change, told = FOREIGN[found]
    path, told = tmp_path / name, f"a summary of scans: {told}"
    text = path.read_text()
    if name == "summary.csv":
        (tmp_path / "summary.json").unlink()
    path.write_text(change(text), newline="")
    left = path.read_bytes()
    mend = f"move it away, then the same scan again makes one, or 'wsi-meta summary {tmp_path}' of the heatmaps alone"
    for refused in (check_summary, summarise_folder):
        with pytest.raises(OutputExistsError, match=re.escape(f"{path}: exists and is not {told}")) as error:
            refused(tmp_path)
        assert mend in str(error.value)
    assert path.read_bytes() == left
    path.unlink()
    assert [row["score"] for row in summarise_folder(tmp_path)] == [pytest.approx(0.75)]


def test_what_no_heatmap_knows_is_kept(tmp_path: Path) -> None:
    store = write_store(tmp_path / "a.zarr", MAP)
    known = {"patient": "p1", "label": "macro", "annotations": "a.xml"}
    add_row(tmp_path, failed("x/a.tif", "killed") | known | {"retry": "wsi-meta scan x/a.tif"}, tmp_path / "other.zarr")
    (row,) = summarise_folder(tmp_path)
    assert (row["slide"], row["error"], row["retry"], row["heatmap"]) == ("x/a.tif", None, None, str(store.path))
    add_row(tmp_path, summarise("x/a.tif", store), store.path)
    (row,) = summarise_folder(tmp_path)
    assert {name: row[name] for name in known} == known


GIVEN = {"patient": "p1", "label": "tumor"}


def _rows(folder: Path) -> list[tuple[object, ...]]:
    """What tells the rows apart: name of folder and slide, patient, whether there is a score, and whether an error."""
    rows = open_table(folder).rows
    return [
        ("/".join(Path(row["slide"]).parts[-2:]), row["patient"], row["score"] is not None, bool(row["error"])) for row in rows
    ]


def test_a_slide_by_another_path_is_the_same(tmp_path: Path) -> None:
    slide, mark = _slide(tmp_path / "x" / "a.tif")
    (tmp_path / "link").symlink_to("x")
    store = write_store(tmp_path / "a.zarr", MAP, slide=mark)
    add_row(tmp_path, summarise(slide, store) | GIVEN, store.path)
    for path in (tmp_path / "y" / ".." / "x" / "a.tif", tmp_path / "link" / "a.tif"):
        (tmp_path / "y").mkdir(exist_ok=True)
        add_row(tmp_path, failed(path, "holds another scan"), store.path)
        add_row(tmp_path, summarise(path, store), store.path)
        assert _rows(tmp_path) == [(f"{path.parent.name}/a.tif", "p1", True, False)]


@pytest.mark.parametrize("scanned", ["finished before", "failed", "again"])
def test_a_slide_that_was_moved_keeps_what_a_person_gave(
    tmp_path: Path, scanned: str, caplog: pytest.LogCaptureFixture
) -> None:
    slide, mark = _slide(tmp_path / "x" / "a.tif")
    store = write_store(tmp_path / "a.zarr", MAP, slide=mark)
    add_row(tmp_path, summarise(slide, store) | GIVEN, store.path)
    (tmp_path / "x").rename(tmp_path / "y")
    moved = tmp_path / "y" / "a.tif"
    if scanned == "again":
        store = write_store(tmp_path / "a.zarr", MAP * np.float32(0.5), slide=mark)
    add_row(tmp_path, failed(moved, "holds another scan") if scanned == "failed" else summarise(moved, store), store.path)
    assert _rows(tmp_path) == [("y/a.tif", "p1", True, False)]
    told = f"{store.path}: patient, label and annotations are those of {slide}, which is not there any more; if that was "
    assert [told in record.getMessage() for record in caplog.records] == [True] * (scanned == "again")


def test_a_slide_whose_heatmap_was_replaced_keeps_what_a_person_gave(tmp_path: Path) -> None:
    (x, first), (y, second) = _slide(tmp_path / "x" / "a.tif"), _slide(tmp_path / "y" / "a.tif", seed=1)
    store = write_store(tmp_path / "a.zarr", MAP, slide=first)
    add_row(tmp_path, summarise(x, store) | GIVEN, store.path)
    store = write_store(tmp_path / "a.zarr", MAP * np.float32(0.5), slide=second)
    add_row(tmp_path, summarise(y, store), store.path)
    assert sorted(_rows(tmp_path)) == [("x/a.tif", "p1", False, True), ("y/a.tif", None, True, False)]


def test_a_store_that_was_renamed_or_lost_takes_nothing_with_it(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        slide, mark = _slide(tmp_path / "x" / f"{name}.tif", seed)
        store = write_store(tmp_path / f"{name}.zarr", MAP, slide=mark)
        add_row(tmp_path, summarise(slide, store) | (GIVEN if name != "c" else {}), store.path)
    (tmp_path / "a.zarr").rename(tmp_path / "renamed.zarr")
    for name in "bc":
        (tmp_path / f"{name}.zarr").rename(tmp_path / f"{name}.away")
    for _ in range(2):
        summarise_folder(tmp_path)
        assert _rows(tmp_path) == [("x/a.tif", "p1", True, False), ("x/b.tif", "p1", False, True)]
        assert open_table(tmp_path).rows[1]["error"] == f"{tmp_path}/b.zarr: not there any more; put it back, or scan again"
    (tmp_path / "b.away").rename(tmp_path / "b.zarr")
    summarise_folder(tmp_path)
    assert sorted(_rows(tmp_path)) == [("x/a.tif", "p1", True, False), ("x/b.tif", "p1", True, False)]


def test_a_mended_slide_gets_its_row_where_another_of_its_name_cannot_be_opened(tmp_path: Path) -> None:
    damaged = tmp_path / "y" / "a.tif"
    damaged.parent.mkdir()
    damaged.write_bytes(b"cut")
    slide, mark = _slide(tmp_path / "x" / "a.tif")
    for patient, path in (("p1", Path(slide)), ("p2", damaged)):
        add_row(tmp_path, failed(path, "not a slide") | {"patient": patient}, tmp_path / f"{patient}.zarr")
    write_store(tmp_path / "a.zarr", MAP, slide=mark).path.rename(tmp_path / "p1.zarr")
    summarise_folder(tmp_path)
    assert _rows(tmp_path) == [("x/a.tif", "p1", True, False), ("y/a.tif", "p2", False, True)]
