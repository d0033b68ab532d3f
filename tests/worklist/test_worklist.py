"""The worklist page says what the table says, escapes it, and touches nothing that is not its own."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import Browser
from PIL import Image
from slide_files import texture, write_slide
from stores import write_store

from wsi_meta.files.locks import locked
from wsi_meta.heatmaps.regions import SIZE_CLASSES
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.readers.reader import Bounds
from wsi_meta.worklist import thumbnails
from wsi_meta.worklist.page import render_page
from wsi_meta.worklist.patients import find_patients
from wsi_meta.worklist.renewal import summarise_folder
from wsi_meta.worklist.summary import add_row, failed, summarise
from wsi_meta.worklist.table import COLUMNS, Row
from wsi_meta.worklist.thumbnails import make_thumbnail
from wsi_meta.worklist.worklist import Worklist, renew_worklist

MAP = np.full((12, 16), 0.1, np.float32)
MAP[2:6, 3:9] = 0.9
MAP[8:, :4] = np.nan
ROW = {"heatmap": "a.zarr", "score": 0.5, "complete": True, "lesions": 0, "tissue_fraction": 0.2, "unreadable_fraction": 0.0}


def _rows(rows: Iterable[Row]) -> list[Row]:
    return [dict.fromkeys(COLUMNS) | row for row in rows]


class _Page(HTMLParser):
    """Collects a page's tags, and the text of its rows and of its commands."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[str] = []
        self.commands: list[str] = []
        self._into: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("tr", "code"):
            self._into = self.rows if tag == "tr" else self.commands
            self._into.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("tbody", "code"):
            self._into = None

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into[-1] += data + " "

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.tags if name == tag)


def _render(folder: Path, *rows: dict[str, object], lesions: bool = False) -> _Page:
    table = _rows([{"slide": "x.tif"} | row for row in rows])
    return _Page(render_page(folder, table, {}, lesions=lesions, running=None))


def _read(folder: Path) -> _Page:
    return _Page((folder / "report" / "index.html").read_text(encoding="utf-8"))


def test_slides_are_ranked_and_failures_come_first(tmp_path: Path) -> None:
    worst = {
        "slide": "w.tif",
        "heatmap": "w.zarr",
        "score": 0.97,
        "largest_lesion": "macrometastasis",
        "largest_lesion_mm": 4.2,
    }
    bad = {"slide": "/s/it's.tif", "complete": False, "error": "/s/it's.tif: no such file", "retry": "wsi-meta scan '/s/it'"}
    page = _render(tmp_path, ROW, bad, ROW | worst | {"lesions": 3, "verdict": "blurred, inked", "seconds": 75.0})
    _, first, second = page.rows
    assert all(words in first for words in ("w", "0.970", "macrometastasis", "4.20 mm", "3 lesions", "blurred", "1 min 15 s"))
    assert "none found" in second
    assert page.commands[0] == "wsi-meta scan '/s/it' "
    text = render_page(tmp_path, _rows([bad]), {}, lesions=False, running=(3, 9))
    assert text.index("no such file") < text.index("No slide has a score yet")
    assert "3 of its 9 slides" in text
    assert "research use only" in text


def test_verdicts_are_explained_and_told_first(tmp_path: Path) -> None:
    told = "incomplete (1.0% of the tissue unread), unlike training (1.09; usual is up to 0.90)"
    odd = ROW | {"verdict": "incomplete, unlike training", "verdict_figures": told}
    table = _rows([{"slide": "a.tif"} | odd, {"slide": "b.tif"} | ROW | {"verdict": "ok"}])
    text = render_page(tmp_path, table, {}, lesions=False, running=None)
    assert "1 of 2 is unlike the training slides: its score and lesions mean little." in text.split("</header>")[0]
    incomplete, unlike, fine = (chip["title"] for chip in _Page(text).all("span") if "chip" in str(chip.get("class")))
    assert incomplete == "incomplete (1.0% of the tissue unread). The score is of what was read; lesions may be missing."
    assert str(unlike).startswith("unlike training (1.09; usual is up to 0.90). The tissue does not look like")
    assert fine == "ok"


def test_unknown_lesions_are_not_counted_as_none(tmp_path: Path) -> None:
    """Rows of the first version's table do not say how many lesions there are."""
    old, macro = ROW | {"score": 0.99, "lesions": None}, ROW | {"largest_lesion": "macrometastasis", "lesions": None}

    def lead_and_kinds(*rows: dict[str, object]) -> tuple[str, list[str | None]]:
        table = _rows([row | {"slide": f"{number}.tif"} for number, row in enumerate(rows)])
        text = render_page(tmp_path, table, {}, lesions=False, running=None)
        kinds = [cell.get("class") for cell in list(_Page(text).all("td"))[4::9]]
        lesion = text[text.index('<select id="lesion">') : text.index("</select></label>\n<span")]
        assert ('value="unknown"' in lesion) == ("unknown" in kinds)
        return text.split('<p class="lead">')[1].split("</p>")[0].partition(" slides have a score. ")[2], kinds

    assert lead_and_kinds(old, old) == ("Whether there are lesions on 2 is not known.", ["unknown"] * 2)
    assert lead_and_kinds(old, ROW) == (
        "No lesion was found on 1. Whether there are lesions on 1 is not known.",
        ["unknown", "nothing"],
    )
    assert lead_and_kinds(ROW) == ("No lesion was found.", ["nothing"])
    told = "The largest lesion is: macrometastasis on 1; nothing was found on 1. Whether there are lesions on 1 is not known."
    assert lead_and_kinds(old, ROW, macro) == (told, ["unknown", "nothing", "macro"])
    part = ROW | {"complete": False, "unreadable_fraction": 0.8, "verdict": "incomplete"}
    assert lead_and_kinds(part) == ("Whether there are lesions on 1 is not known.", ["unknown"])
    assert "0.500 incomplete none in what was read" in _render(tmp_path, part).rows[1]
    cut = {"lesions": 1, "largest_lesion": "isolated tumor cells", "largest_lesion_mm": 0.16, "largest_lesion_cut": True}
    assert "at least isolated tumor cells ≥ 0.16 mm" in _render(tmp_path, part | cut).rows[1]


def test_a_reason_does_not_name_its_slide_again(tmp_path: Path) -> None:
    rows = [
        {"slide": f"/s/{number}/a.tif", "complete": False, "error": f"{slide}: no such file"}
        for number, slide in enumerate(("/s/0/a.tif", "1/a.tif", "b.tif"))
    ]
    text = render_page(tmp_path, _rows(rows), {}, lesions=False, running=None)
    assert re.findall('class="why">(.*?)</span>', text) == ["no such file", "no such file", "b.tif: no such file"]


@pytest.mark.parametrize(
    ("kind", "error", "first"),
    [
        ("SlideReadError", "not a slide", True),
        ("SlideReadError", "lost; try again", False),
        ("OSError", "no space left", False),
    ],
)
def test_a_file_that_is_no_slide_is_replaced_before_it_is_tried_again(
    tmp_path: Path, kind: str, error: str, first: bool
) -> None:
    row = {"slide": "/s/a.tif", "complete": False, "error": error, "error_kind": kind}
    for retry, told in (("wsi-meta scan /s/a.tif", "replaced the file:"), (None, "replaced the file, run the same scan again")):
        text = render_page(tmp_path, _rows([row | {"retry": retry}]), {}, lesions=False, running=None)
        assert (f"After you have {told}" in text) == first
        assert first or "After you have" not in text


def test_only_commands_that_are_known_are_promised(tmp_path: Path) -> None:
    lost = {"slide": "/s/a.tif", "complete": False, "error": "not scanned to the end; scan again to continue"}
    texts = [
        render_page(tmp_path, _rows(rows), {}, lesions=False, running=None)
        for rows in ([lost], [lost, lost | {"slide": "/s/b.tif", "retry": "wsi-meta scan b.tif"}])
    ]
    assert ["command" in text.split("Needs attention")[1].split("</h2>")[0] for text in texts] == [False, True]
    assert "continue</span><div><small>Run the same scan again" in texts[0].replace("\n", "")
    other = lost | {"error": "holds another scan; choose another --out, or pass --overwrite to replace it"}
    text = render_page(tmp_path, _rows([other]), {}, lesions=False, running=None)
    assert "Run the same scan again" not in text, "it would fail again"


@pytest.mark.browser
def test_a_narrow_window_shows_cards_and_leaves_names_and_other_words_their_room(browser: Browser, tmp_path: Path) -> None:
    cut = {"score": 0.9999, "complete": False, "lesions": 12, "largest_lesion_mm": 0.123, "largest_lesion_cut": True}
    named = ROW | {"slide": "x.tif", "heatmap": f"{'long_name_' * 9}.zarr"}
    cells = [ROW | cut | {"slide": f"{name}.tif", "largest_lesion": name} for name, _ in SIZE_CLASSES]
    table = _rows([named | {"score": 1.0}, *cells])
    page = tmp_path / "index.html"
    page.write_text(render_page(tmp_path, table, {}, lesions=False, running=None), encoding="utf-8")

    async def run() -> None:
        for width in (600, 700, 1000, 1280):
            async with browser.tab(width) as tab:
                await tab.page.goto(page.as_uri())
                row = "document.querySelector('#list tbody tr').cells"
                assert await tab.ask(f"{row}[2].offsetWidth") >= 160
                assert await tab.ask(f"{row}[8].offsetWidth") >= 80
                assert await tab.ask("document.documentElement.scrollWidth") == width
                boxes = f"[...{row}].map((cell) => cell.getBoundingClientRect())"
                assert await tab.ask(f"{boxes}.every((box) => box.left >= 0 && box.right <= {width})") == (width != 1000)
                texts = "[...document.querySelectorAll('#list tbody td')]"
                assert await tab.ask(f"{texts}.filter((cell) => cell.scrollWidth > cell.clientWidth).length") == 0, width

    browser.run(run())


def test_a_slide_without_tissue_is_a_row_of_its_own(tmp_path: Path) -> None:
    heatmap = write_store(tmp_path / "blank.zarr", np.full((4, 5), np.nan, np.float32))
    row = summarise("blank.tif", heatmap)
    assert (row["score"], row["lesions"], row["complete"]) == (None, None, True)
    table = _rows([row | {"verdict": "ok"}, ROW | {"slide": "a.tif", "score": 0.0}])  # ok: said by 0.1.0
    text = render_page(tmp_path, table, {}, lesions=False, running=None)
    assert "1 of 2 slides have a score. No lesion was found." in text
    assert "On 1 nothing was scanned: no tissue was found, or the mask has none.</p>" in text
    page = _Page(text)
    assert "nothing scanned" in page.rows[2], "the last one"
    assert "no tissue" in page.rows[2], "the verdict"
    assert "no tissue" not in page.rows[2].split("nothing scanned")[0], "a mask may have said so"
    assert "ok" not in page.rows[2]
    assert [option.get("value") for option in page.all("option")][-1] == "empty"


@pytest.mark.parametrize(("share", "told"), [(0.0004, "< 0.1 %"), (0.996, "99.6 %"), (0.9999, "> 99.9 %"), (1, "100 %")])
def test_a_share_is_all_or_nothing_only_where_it_is(tmp_path: Path, share: float, told: str) -> None:
    assert f" {told} " in _render(tmp_path, ROW | {"tissue_fraction": share}).rows[1]


def test_what_a_name_holds_is_only_text(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>&amp;'
    page = _render(
        tmp_path,
        ROW | {"slide": evil, "heatmap": f"{evil}.zarr", "patient": evil, "label": evil, "verdict": evil, "hosts": evil},
        {"slide": f"{evil}2", "complete": False, "error": evil, "retry": evil},
    )
    assert len(list(page.all("script"))) == 1, "the page's own"
    assert page.commands[0].strip() == evil
    assert evil in page.rows[1]


def test_nothing_of_it_is_fetched_from_elsewhere(tmp_path: Path) -> None:
    page = _render(tmp_path, ROW)
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert [link for link in links if not (link or "").startswith("thumbnails/")] == ["data:,"], (
        "or a server is asked for an icon"
    )


def test_patients_are_staged_as_far_as_their_nodes_are_known(tmp_path: Path) -> None:
    macro = {"largest_lesion": "macrometastasis", "largest_lesion_mm": 3.0, "lesions": 1}
    five = [ROW | {"slide": f"p1_{n}", "heatmap": f"p1_{n}.zarr", "patient": "p1"} for n in range(5)]
    three = [ROW | {"slide": f"p2_{n}", "heatmap": f"p2_{n}.zarr", "patient": "p2"} | macro for n in range(3)]
    lost = {"slide": "p2_3.tif", "patient": "p2", "complete": False, "error": "bad"}
    third = [ROW | {"slide": "p3_0", "heatmap": "p3_0.zarr", "patient": "p3"} | macro | {"lesions": None}]
    rows = _render(tmp_path, *five, *three, lost, *third).rows
    assert [("pN1" in row, "pN0" in row) for row in rows if row.strip().startswith("p3 ")] == [(True, False)]
    (first,) = [row for row in rows if row.strip().startswith("p1 ")]
    (second,) = [row for row in rows if row.strip().startswith("p2 ")]
    assert "pN0" in first
    assert "\N{GREATER-THAN OR EQUAL TO}" not in first
    assert "\N{GREATER-THAN OR EQUAL TO}" in second
    assert "pN1" in second
    assert "3 of the 5 nodes" in second
    assert "1 without a result" in second


def test_no_node_is_lost_where_shorter_names_are_the_same() -> None:
    macro = {"largest_lesion": "macrometastasis", "lesions": 1}
    rows = [ROW | {"patient": "P"} | macro, ROW | {"patient": "P"}]
    (patient,) = find_patients([dict.fromkeys(COLUMNS) | row for row in rows], ["P_1", "1"])
    assert list(patient.nodes) == ["P_1", "1"]
    assert patient.stage == "pN1"


def test_labels_of_one_kind_give_no_auc_and_say_so(tmp_path: Path) -> None:
    rows = [ROW | {"slide": "a.tif", "label": "tumor"}, ROW | {"slide": "b.tif", "heatmap": "b.zarr"}]
    text = render_page(tmp_path, _rows(rows), {"a.zarr": "a.jpg", "a": "a.jpg"}, lesions=False, running=None)
    assert "There is no AUC: it takes slides with a score" in text.split("Against labels and annotations")[1]
    assert 'alt="map of a"' in text


@pytest.mark.parametrize(
    ("models", "ranked", "told"),
    [
        (("m", "m"), ["b", "a"], "ranked by the fitted score;"),
        (("m", "n"), ["a", "b"], "ranked by score, not by the fitted ones: they are of 2 score models;"),
        (("m", None), ["a", "b"], "ranked by score, not by the fitted ones: of some, the table does not say by which"),
        (("m", ""), ["a", "b"], "ranked by score, not by the fitted ones: 1 of 2 have one;"),
    ],
)
def test_slides_are_ranked_and_judged_by_one_score_alone(
    tmp_path: Path, models: tuple[str, str | None], ranked: list[str], told: str
) -> None:
    other = ("unfitted", "") if models == ("m", "m") else ("", "fitted")
    fitted = {"fitted_score": 0.1234, "score": 0.61, "label": "tumor", "score_model": models[0]}
    rows = [ROW | fitted, ROW | {"heatmap": "b.zarr", "score": 0.32, "label": "normal"}]
    if models[1] != "":
        rows[1] |= {"fitted_score": 0.4567, "score_model": models[1]}
    text = render_page(tmp_path, _rows(rows), {}, lesions=False, running=None)
    assert told in text
    assert re.findall("<td role=cell>([ab])<small>", text) == ranked
    assert re.findall("<small>(unfitted|fitted) 0.61|<small>(unfitted|fitted) 0.12", text) == [other]
    no_auc = "There is no AUC of the fitted score: " in text
    assert ("AUC of the fitted score</span>" in text, no_auc) == (models == ("m", "m"), models[1] in ("n", None))


def test_labels_and_annotations_give_auc_and_froc(tmp_path: Path) -> None:
    store = write_store(tmp_path / "a.zarr", MAP, mpp=0.972)
    side = store.grid.cell_l0
    ring = [[3 * side, 2 * side], [9 * side, 2 * side], [9 * side, 6 * side], [3 * side, 6 * side]]
    (tmp_path / "a.json").write_text(f'{{"positive": [{{"name": "t", "vertices": {ring}}}], "negative": []}}')
    normal = write_store(tmp_path / "b.zarr", np.full((4, 4), 0.1, np.float32), mpp=0.972)
    told = {"label": "1.0", "annotations": str(tmp_path / "a.json")}
    add_row(tmp_path, summarise("a.tif", store) | told, store.path)
    add_row(tmp_path, summarise("b.tif", normal) | {"label": "normal"}, normal.path)
    add_row(tmp_path, failed("c.tif", "bad") | {"label": "odd"}, tmp_path / "c.zarr")
    part = write_store(tmp_path / "d.zarr", np.full((4, 4), 0.1, np.float32), mpp=0.972, complete=False)
    add_row(tmp_path, summarise("d.tif", part) | {"label": "normal"}, part.path)
    other = write_store(tmp_path / "e.zarr", np.full((4, 4), 0.1, np.float32), mpp=0.972, complete=False)
    add_row(tmp_path, summarise("e.tif", other) | {"label": "odd"}, other.path)
    summarise_folder(tmp_path)
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "1 slide labelled tumor, 2 normal" in text
    assert "Slides that were not wholly read, whose score is of what was read: 1." in text
    assert text.count('<b class="big">1.000</b>') == 1
    assert "Labels that are not counted: &#39;odd&#39;" in text
    assert "FROC" in text


def test_a_lesion_and_a_slide_are_counted_as_one(tmp_path: Path) -> None:
    store = write_store(tmp_path / "a.zarr", np.full((40, 40), 0.9, np.float32), mpp=0.972)
    ring = [[0, 0], [1280, 0], [1280, 1280], [0, 1280]]
    (tmp_path / "a.json").write_text(f'{{"positive": [{{"name": "t", "vertices": {ring}}}], "negative": []}}')
    add_row(tmp_path, summarise("a.tif", store) | {"annotations": str(tmp_path / "a.json")}, store.path)
    summarise_folder(tmp_path)
    assert "<br>1 lesion on 1 slide<" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


def test_outlines_of_qupath_need_to_know_where_it_counts_from(tmp_path: Path) -> None:
    """A heatmap of an early version does not say it: by level-0 pixels, those of an MRXS slide would lie elsewhere."""
    outline = {"type": "Polygon", "coordinates": [[[0, 0], [900, 0], [900, 900], [0, 900], [0, 0]]]}
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "Feature", "geometry": outline, "properties": {}}))
    for bounds, told in [(None, True), (Bounds(0, 0, 5000, 5000), False)]:
        store = write_store(tmp_path / "a.zarr", np.full((40, 40), 0.9, np.float32), bounds=bounds)
        add_row(tmp_path, summarise("a.tif", store) | {"annotations": str(tmp_path / "a.geojson")}, store.path)
        summarise_folder(tmp_path)
        text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
        assert ("a.zarr: of an early version, which does not say from where QuPath counts; scan again" in text) == told


def test_annotations_without_an_inside_make_no_slide_normal(tmp_path: Path) -> None:
    """As ``froc`` refuses them: points show where tumor is, not how far."""
    store = write_store(tmp_path / "a.zarr", MAP, mpp=0.972)
    dot = '<Annotation Name="d" Type="Dot" PartOfGroup="Tumor"><Coordinates><Coordinate Order="0" X="9" Y="9"/></Coordinates>'
    (tmp_path / "a.xml").write_text(f"<ASAP_Annotations><Annotations>{dot}</Annotation></Annotations></ASAP_Annotations>")
    add_row(tmp_path, summarise("a.tif", store) | {"label": "tumor", "annotations": str(tmp_path / "a.xml")}, store.path)
    summarise_folder(tmp_path)
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "1 slide could not be compared with annotations, the first: " in text
    assert "a.xml: 1 annotation without an inside, and no outline of tumor; expected outlines" in text


def test_a_page_is_rewritten_at_most_every_few_seconds_and_at_the_end(tmp_path: Path) -> None:
    with Worklist(tmp_path, 2) as worklist:
        page = tmp_path / "report" / "index.html"
        before = page.stat().st_mtime_ns
        add_row(tmp_path, failed("a.tif", "bad"), tmp_path / "a.zarr")
        worklist.tell()
        assert page.stat().st_mtime_ns == before
    assert "bad" in page.read_text(encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["index.html", "thumbnails"]


def test_whatever_goes_wrong_with_the_page_ends_no_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> str:
        raise TypeError("expected str\nnot NoneType")

    monkeypatch.setattr("wsi_meta.worklist.worklist.render_page", broken)
    with Worklist(tmp_path, 2) as worklist:
        worklist.tell()
    told = f"{tmp_path / 'report' / 'index.html'}: cannot be written (expected str not NoneType)"
    assert [record.getMessage() for record in caplog.records] == [told], "told once"


def test_another_batch_that_writes_the_page_is_not_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Worklist(tmp_path, 1):
        pass
    page = tmp_path / "report" / "index.html"
    with locked(page):
        worklist = Worklist(tmp_path, 1)
        worklist.__enter__()
        assert not caplog.records, "one that waits says in the end whom it waited for"
    worklist.__exit__(None, None, None)
    assert not caplog.records


@pytest.mark.parametrize("kind", ["folder", "page", "link", "file"])
def test_a_report_that_is_not_ours_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    report, mine = tmp_path / "report", tmp_path / "mine"
    mine.mkdir()
    (mine / ("index.html" if kind == "page" else "notes.txt")).write_text("<p>mine</p>")
    if kind == "link":
        report.symlink_to(mine)
    elif kind == "file":
        report.write_text("mine")
    else:
        mine.rename(report)
    with Worklist(tmp_path, 1) as worklist:
        worklist.tell()
    assert "left alone" in caplog.text or "no page can be written" in caplog.text
    assert report.is_file() or [path.read_text() for path in report.iterdir()] == ["<p>mine</p>"]


def test_thumbnails_lie_over_the_slide_where_it_is_at_hand(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "a.tif", texture(32 * 12, 32 * 16))
    store = write_store(tmp_path / "a.zarr", MAP, mpp=0.972)
    add_row(tmp_path, summarise(slide, store), store.path)
    summarise_folder(tmp_path)
    picture = tmp_path / "report" / "thumbnails" / "a.jpg"
    with Image.open(picture) as drawn:
        assert drawn.size == (400, 300)
        assert b"alone" in drawn.info["comment"], "it is another slide than the store's"
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    tumor, normal, glass = pixels[100, 160], pixels[100, 330], pixels[275, 20]
    assert tumor[1] > tumor[2] + 60, "viridis at 0.9 is green to yellow"
    assert normal[2] > normal[1] + 20, "at 0.1 it is violet"
    assert np.ptp(glass) < 20, "grey where nothing was scanned"
    assert [attributes["src"] for attributes in _read(tmp_path).all("img")] == ["thumbnails/a.jpg"]


def test_a_thumbnail_is_made_once_and_again_when_the_store_changes(tmp_path: Path) -> None:
    store, out = write_store(tmp_path / "a.zarr", MAP), tmp_path / "a.jpg"
    make_thumbnail(store, None, out)
    first = out.stat().st_mtime_ns
    make_thumbnail(store.path, None, out)
    assert out.stat().st_mtime_ns == first
    write_store(tmp_path / "a.zarr", np.sqrt(MAP))
    make_thumbnail(store.path, None, out)
    assert out.stat().st_mtime_ns > first


def test_a_thumbnail_is_of_the_store_that_lies_there_however_old_that_is(tmp_path: Path) -> None:
    """As where a store that was replaced is put back."""
    store, out = write_store(tmp_path / "a.zarr", MAP), tmp_path / "a.jpg"
    make_thumbnail(store, None, out)
    own = out.read_bytes()
    before = store.path.rename(tmp_path / "kept.zarr")
    make_thumbnail(write_store(store.path, np.sqrt(MAP)), None, out)
    assert out.read_bytes() != own
    shutil.rmtree(store.path)
    before.rename(store.path)
    make_thumbnail(store.path, None, out)
    assert out.read_bytes() == own


def test_a_thumbnail_of_more_cells_than_pixels_hides_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnails, "SIDE_PX", 11)  # of 16 cells
    monkeypatch.setattr(thumbnails, "_outline", lambda *_: None)
    for row in range(12):
        values = np.zeros((12, 16), np.float32)
        values[row] = 0.99
        picture, _ = thumbnails.draw_thumbnail(write_store(tmp_path / "a.zarr", values), None)
        pixels = np.asarray(picture).astype(int)
        assert (pixels[..., 1] > pixels[..., 2] + 60).any(), f"row {row} is nowhere green to yellow"


def test_a_thumbnail_stripes_what_could_not_be_read(tmp_path: Path) -> None:
    store = write_store(tmp_path / "a.zarr", MAP)
    status: Any = store.group["status"]
    status[8:, :4] = Status.UNREADABLE
    picture, _ = thumbnails.draw_thumbnail(Heatmap.open(store.path), None)
    reds = np.unique(np.asarray(picture)[210:290, :90, 0]).astype(int)
    assert len(reds) == 2
    assert np.ptp(reds) > 80


def test_a_picture_that_cannot_be_drawn_is_told_and_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = write_store(tmp_path / "a.zarr", MAP)
    row = summarise("a.tif", store)
    add_row(tmp_path, row, store.path)
    (tmp_path / "a.zarr" / "0" / "zarr.json").write_text("{}")
    renew_worklist(tmp_path, [row])
    assert "no thumbnail of it could be drawn" in caplog.text
    assert any("no picture" in row for row in _read(tmp_path).rows)
