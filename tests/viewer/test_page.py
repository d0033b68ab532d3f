"""The page in a browser: nothing but the server is asked, and map and slide lie where they should on the screen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from browsers import Browser, Tab
from numpy.typing import NDArray
from served import Client, ask
from slide_files import damage_tile, texture, write_jpeg_slide, write_slide
from stores import make_record, write_block, write_store

from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiling.grid import PatchGrid
from wsi_meta.viewer.corrections import Correction, Corrections, read_corrections, write_corrections
from wsi_meta.worklist.summary import add_row, failed

pytestmark = pytest.mark.browser

MPP, CELL = 0.486, 64
ROWS, COLS = 61, 83
"""Odd numbers of cells, so that no level is even."""
CORNERS = ((1, 1), (1, COLS - 4), (ROWS - 4, 1), (ROWS - 4, COLS - 4))
"""Row and column of the first of the 2 x 2 cells of each mark."""
MARK = (0, 0, 200)
LOOK = "void document.dispatchEvent(new Event('visibilitychange'))"
"""Lets a page ask at once what is new, as it does by itself every few seconds."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A white slide with a blue square of two cells in each corner, and a map that is hot just there and in the middle."""
    folder = tmp_path_factory.mktemp("page")
    image = np.full((ROWS * CELL - 13, COLS * CELL - 7, 3), 255, np.uint8)
    probability = np.full((ROWS, COLS), 0.02, np.float32)
    for row, col in CORNERS:
        image[row * CELL : (row + 2) * CELL, col * CELL : (col + 2) * CELL] = MARK
        probability[row : row + 2, col : col + 2] = 0.9
    probability[25:40, 30:50] = 0.7
    slide = write_slide(folder / "heat.tif", image, MPP, levels=3)
    with open_slide(slide) as opened:
        write_store(folder / "heat.zarr", probability, mpp=MPP, cut=0, slide=opened.fingerprint())
    return folder / "heat.zarr"


def show(browser: Browser, store: Path, what: Callable[[Tab, Client], Awaitable[None]]) -> None:
    """Open a store's page, and run a coroutine; nothing else than the server is asked, and the console stays empty."""

    async def run(client: Client) -> None:
        async with browser.tab() as tab:
            await tab.open(f"{client.gate.link}s/{client.key}")
            await what(tab, client)
            assert tab.complaints == []
            assert [link for link in tab.asked if not link.startswith((client.gate.link, "data:"))] == []

    ask(store, run, run=browser.run)


async def look_at(tab: Tab, x: float, y: float, zoom: float) -> None:
    """Put a place of the slide into the middle, so many screen pixels a level-0 pixel."""
    await tab.ask(
        "(() => { const { viewport } = WsiMeta.page.viewer; const { width } = WsiMeta.page.facts().grid;"
        f" viewport.zoomTo({zoom} * width / viewport.getContainerSize().x, null, true);"
        f" viewport.panTo(new OpenSeadragon.Point({x} / width, {y} / width), true); }})()"
    )
    await tab.settle()


async def on_screen(tab: Tab, x: float, y: float) -> tuple[float, float]:
    """Where a level-0 position is on the screen, by OpenSeadragon itself."""
    found = await tab.ask(
        "(() => { const { viewer, facts } = WsiMeta.page; const w = facts().grid.width; const at ="
        f" viewer.viewport.pixelFromPoint(new OpenSeadragon.Point({x} / w, {y} / w), true); return [at.x, at.y]; }})()"
    )
    return float(found[0]), float(found[1])


def box(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Left, top, right and lower side of what is true."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1], float)


def is_blue(shot: NDArray[np.uint8]) -> NDArray[np.bool_]:
    red, green, blue = (shot[..., channel].astype(int) for channel in range(3))
    return (blue > 150) & (red < 110) & (green < 110)


def is_coloured(shot: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Yellow or green: hot cells, opaque."""
    red, green, blue = (shot[..., channel].astype(int) for channel in range(3))
    return (green > blue + 60) & (green > 150) & (red > 100)


@pytest.mark.timeout(240)
def test_the_map_lies_on_the_slide_at_three_zooms_in_four_corners(browser: Browser, store: Path) -> None:
    async def check(tab: Tab, _client: Client) -> None:
        await tab.ask("void (WsiMeta.page.set('outlined', false), WsiMeta.page.set('opacity', 1))")
        for zoom, (row, col) in product((0.1, 0.4, 1.0), CORNERS):
            middle = ((col + 1) * CELL, (row + 1) * CELL)
            await look_at(tab, *middle, zoom)
            place = await on_screen(tab, *middle)
            down, across = (slice(int(at - 100 * zoom - 4), int(at + 100 * zoom + 4)) for at in reversed(place))
            boxes = []
            for shown, looks in (("false", is_blue), ("true", is_coloured)):
                await tab.ask(f"void WsiMeta.page.set('shown', {shown})")
                await tab.settle()
                boxes.append(box(looks((await tab.photograph())[down, across])))
            slide, cells = boxes
            side = CELL * zoom
            assert np.abs(slide - cells).max() <= 1.5  # pixels of the screen: far less than a cell
            assert np.abs((slide[2:] - slide[:2]) - 2 * side).max() <= 2
            centre = (slide[:2] + slide[2:]) / 2 + (across.start, down.start)
            assert np.abs(centre - place).max() <= 1.5

    show(browser, store, check)


def test_no_cell_is_hidden_where_many_share_a_pixel(browser: Browser, tmp_path: Path) -> None:
    """Looked at from so far that a cell is a fifth of a pixel, one row is hot."""
    values = np.full((ROWS, COLS), 0.02, np.float32)
    values[33] = 0.99
    write_store(tmp_path / "heat.zarr", values, mpp=MPP)

    async def check(tab: Tab, _client: Client) -> None:
        await tab.ask("void (WsiMeta.page.set('outlined', false), WsiMeta.page.set('opacity', 1))")
        await tab.ask("void Object.assign(WsiMeta.page.viewer.viewport, { minZoomLevel: 1e-4, minZoomImageRatio: 1e-4 })")
        for zoom in (0.2 / CELL, 0.23 / CELL, 0.27 / CELL):
            await look_at(tab, COLS * CELL / 2, ROWS * CELL / 2, zoom)
            (left, top), (right, bottom) = await on_screen(tab, 0, 0), await on_screen(tab, COLS * CELL, ROWS * CELL)
            assert right - left < 30
            map_alone = (await tab.photograph())[int(top) : int(bottom) + 1, int(left) : int(right) + 1]
            assert is_coloured(map_alone).any()

    show(browser, tmp_path / "heat.zarr", check)


def test_sliders_keys_and_link(browser: Browser, store: Path) -> None:
    async def check(tab: Tab, client: Client) -> None:
        assert await tab.ask("WsiMeta.page.found().count") == 5
        await tab.ask("void WsiMeta.page.setThreshold(0.8)")
        await tab.until("WsiMeta.page.found().count === 4")
        await tab.page.keyboard.press("n")
        await tab.settle()
        lesion = await tab.ask("WsiMeta.page.view.selected.lesion")
        peak = await tab.ask("[WsiMeta.page.view.selected.peak_x, WsiMeta.page.view.selected.peak_y]")
        x, y = await on_screen(tab, *peak)
        assert lesion == 1
        assert 100 < x < 530
        assert 100 < y < 540
        await tab.page.keyboard.press("m")
        assert await tab.ask("WsiMeta.page.view.shown") is False
        link = await tab.ask("location.href")
        await tab.open(link)
        await tab.settle()
        assert await tab.ask("WsiMeta.page.view.shown") is False
        assert await tab.ask("WsiMeta.page.found().count") == 4
        assert np.abs(np.array(await on_screen(tab, *peak)) - (x, y)).max() < 2

    show(browser, store, check)


def test_thresholds_of_a_model_that_expects_little_tumor(browser: Browser, tmp_path: Path) -> None:
    """Its default is under a hundredth, where a slider cannot reach it: page, button and link take it as it is."""
    values = np.full((17, 23), 0.001, np.float32)
    values[2:4, 2:4], values[8, 8] = 0.9, 0.0052
    store = write_store(
        tmp_path / "heat.zarr", values, mpp=MPP, default=0.00512, sensitivity_99=0.0541, specificity_99=0.00512
    ).path

    async def check(tab: Tab, client: Client) -> None:
        assert await tab.ask("[WsiMeta.page.found().count, WsiMeta.page.found().threshold]") == [2, 0.00512]
        assert await tab.ask("document.querySelector('#threshold + output').textContent") == "0.0051"
        await tab.ask("void document.querySelectorAll('#points button')[1].click()")
        await tab.until("WsiMeta.page.found().threshold === 0.0541")
        await tab.ask("void document.querySelector('#points button').click()")
        await tab.until("WsiMeta.page.found().threshold === 0.00512")
        await tab.until("location.hash.includes('t=0.00512')")
        await tab.ask("void WsiMeta.page.setThreshold(0.00513)")
        await tab.until("WsiMeta.page.found().threshold === 0.005")

    show(browser, store, check)


def test_the_position_under_the_cursor(browser: Browser, store: Path) -> None:
    async def check(tab: Tab, _client: Client) -> None:
        await look_at(tab, 40.5 * CELL, 30.5 * CELL, 1.0)
        place = await on_screen(tab, 40.5 * CELL, 30.5 * CELL)
        await tab.page.mouse.move(*place)
        told = await tab.ask("document.getElementById('cursor').textContent")
        assert "probability 0.700" in told
        assert "scanned" in told
        assert f"{40.5 * CELL * MPP / 1000:.2f}, {30.5 * CELL * MPP / 1000:.2f} mm" in told

    show(browser, store, check)


def test_lesions_are_corrected_and_missed_ones_drawn(browser: Browser, store: Path) -> None:
    async def check(tab: Tab, client: Client) -> None:
        await tab.page.keyboard.press("n")
        await tab.settle()
        await tab.page.keyboard.press("f")
        await tab.until("document.getElementById('saved').textContent === 'saved'")
        await look_at(tab, 2000, 2000, 0.5)
        await tab.page.keyboard.press("d")
        notice = "document.getElementById('notice').textContent"
        for x, y in ((200, 200), (400, 200), (300, 350)):
            await tab.page.mouse.click(x, y)
            await asyncio.sleep(0.35)  # two clicks within OpenSeadragon's time are a double click
            if x == 400:
                await tab.page.keyboard.press("Enter")
                assert "needs three corners" in await tab.ask(notice)
        await tab.page.keyboard.press("Enter")
        await tab.until(f"!{notice}.includes('three corners')")
        await tab.until("WsiMeta.page.corrections.all.length === 2 && document.getElementById('saved').textContent === 'saved'")
        read = read_corrections(Heatmap.open(store))
        assert [one.kind for one in read.found] == ["false", "missed"]
        corner = np.array(read.found[1].polygons[0][0][:2])
        assert np.abs(np.array(await on_screen(tab, *corner)) - (200, 200)).max() < 1.5
        await tab.open(f"{client.gate.link}s/{client.key}")
        assert await tab.ask("document.querySelectorAll('#corrections li').length") == 2
        assert await tab.ask("document.querySelectorAll('#lesions tr.false').length") == 1

    show(browser, store, check)


def test_corrections_are_saved_one_after_the_other(browser: Browser, tmp_path: Path) -> None:
    """Two at a time: the second names the revision that the first makes. What fails leaves what was saved last."""
    values = np.full((17, 23), 0.02, np.float32)
    values[2:4, 2:4] = values[8:10, 8:10] = values[13:15, 13:15] = 0.9
    store = write_store(tmp_path / "heat.zarr", values, mpp=MPP).path

    def mark(*lesions: int) -> str:
        """Say of some lesions at once that they are none, and wait; the number of corrections then shown."""
        calls = ", ".join(f"page.corrections.toggle(page.found().lesions[{number}])" for number in lesions)
        return f"(({{ page }}) => Promise.all([{calls}]).then(() => page.corrections.all.length))(WsiMeta)"

    told = "document.getElementById('notice').textContent"

    async def check(tab: Tab, _client: Client) -> None:
        assert await tab.ask(mark(0, 1)) == 2
        assert "saved" not in await tab.ask(told)
        assert len(read_corrections(Heatmap.open(store)).found) == 2
        await tab.ask("void (WsiMeta.page.corrections.source.save = async () => { throw new Error('no room'); })")
        assert await tab.ask(mark(2, 0)) == 2
        assert await tab.ask(told) == "Not saved: no room"
        assert await tab.ask("document.querySelectorAll('#lesions tr.false').length") == 2

    show(browser, store, check)


def test_what_someone_else_corrects_meanwhile_loses_nothing(browser: Browser, tmp_path: Path) -> None:
    """A change is made again of a list that was changed elsewhere; an outline that cannot be saved stays, to be tried again."""
    values = np.full((17, 23), 0.02, np.float32)
    values[2:4, 2:4] = values[8:10, 8:10] = 0.9
    heatmap = write_store(tmp_path / "heat.zarr", values, mpp=MPP)
    page, told = "WsiMeta.page.corrections", "document.getElementById('notice').textContent"

    def elsewhere(*kinds: str) -> None:
        """Save so many corrections as another page does."""
        found = tuple(Correction(kind, (((10.0 * at, 5.0, 90.0, 5.0, 90.0, 80.5),),)) for at, kind in enumerate(kinds))
        write_corrections(heatmap, Corrections(found, read_corrections(heatmap).revision))

    def kinds() -> list[str]:
        return [one.kind for one in read_corrections(heatmap).found]

    async def draw(tab: Tab) -> None:
        await tab.ask(f"{page}.begin()")
        await tab.ask(f"[[500, 500], [700, 500], [700, 650]].forEach((at) => {page}.add(...at))")

    async def check(tab: Tab, _client: Client) -> None:
        await draw(tab)
        elsewhere("missed")
        await tab.page.keyboard.press("Enter")
        await tab.until("document.getElementById('saved').textContent === 'saved'")
        assert (kinds(), await tab.ask(f"{page}.all.length")) == (["missed", "missed"], 2)
        elsewhere("false", "missed")
        await tab.ask(f"{page}.refresh()")
        assert await tab.ask(f"{page}.all.map((one) => one.kind)") == ["false", "missed"]
        elsewhere("false", "missed", "false")
        await tab.ask(f"{page}.remove({page}.all[1])")
        assert kinds() == ["false", "false"]
        assert "Not saved" not in await tab.ask(told)
        elsewhere()
        await draw(tab)
        await tab.ask(f"void ({page}.put = async () => {{ throw Object.assign(new Error('no room'), {{ status: 409 }}); }})")
        await tab.ask(f"{page}.close()")
        assert [await tab.ask(told), await tab.ask(f"{page}.draft.length"), kinds()] == ["Not saved: no room", 6, []]
        await tab.ask(f"void (delete {page}.put)")
        await tab.page.keyboard.press("Enter")
        await tab.until("document.getElementById('saved').textContent === 'saved'")
        assert kinds() == ["missed"]
        assert "Not saved" not in await tab.ask(told)
        elsewhere()
        await tab.ask(f"{page}.refresh()")
        await draw(tab)  # it is saved, but the answer is lost
        await tab.ask(
            f"void ((source, save) => {{ source.save = async (...list) => {{"
            f" source.save = save; await save(...list); throw Error('lost'); }}; }})({page}.source, {page}.source.save)"
        )
        await tab.ask(f"{page}.close()")
        assert [await tab.ask(told), await tab.ask(f"{page}.draft.length")] == ["Not saved: lost", 6]
        await tab.ask(f"{page}.close()")
        assert kinds() == ["missed"]
        tab.complaints[:] = [line for line in tab.complaints if "409" not in line]

    show(browser, tmp_path / "heat.zarr", check)


def test_what_was_not_scanned_is_veiled_as_the_legend_says(browser: Browser, tmp_path: Path) -> None:
    """Also where many cells share a pixel: there only squares without any other cell."""
    values = np.full((80, 100), np.nan, np.float32)
    values[40:, 50:] = values[10] = 0.9
    store = write_store(tmp_path / "heat.zarr", values, mpp=MPP).path

    async def shown(tab: Tab) -> tuple[bool, bool, bool]:
        """Whether background and a scanned cell are as grey as the veil on white, and whether the one hot row is seen."""
        shot = await tab.photograph()
        places = [await on_screen(tab, x * CELL, y * CELL) for x, y in ((30.5, 60.5), (75.5, 60.5), (0, 4), (100, 16))]
        grey, hot, (left, top), (right, bottom) = [(round(x), round(y)) for x, y in places]
        first, second = (bool(np.abs(shot[y, x].astype(int) - (182, 182, 190)).max() < 4) for x, y in (grey, hot))
        return first, second, bool(is_coloured(shot[max(0, top) : bottom, max(0, left) : right]).any())

    async def check(tab: Tab, _client: Client) -> None:
        await tab.ask("void (WsiMeta.page.set('outlined', false), WsiMeta.page.set('opacity', 1))")
        await tab.ask("void Object.assign(WsiMeta.page.viewer.viewport, { minZoomLevel: 1e-4, minZoomImageRatio: 1e-4 })")
        for zoom in (0.08, 0.2 / CELL):
            await look_at(tab, 50 * CELL, 40 * CELL, zoom)
            assert await shown(tab) == (True, False, True), zoom
        legend = "document.getElementById('veil')"
        assert await tab.ask(f"{legend}.textContent") == "not scanned: no tissue found"
        await tab.page.keyboard.press("m")
        assert await tab.ask(f"{legend}.hidden")
        await tab.settle()
        assert await shown(tab) == (False, False, False)

    show(browser, store, check)


def test_cells_without_a_value_of_a_layer_are_hatched_as_the_legend_says(browser: Browser, tmp_path: Path) -> None:
    """Not as white glass, which is the colour of a value. The layer has no threshold to leave cells out by."""
    grid = PatchGrid(COLS * CELL, ROWS * CELL, MPP, 0.972, 96, 32, block_px=8192)
    record = replace(make_record(grid), measures=("focus",))
    heatmap = Heatmap.create(tmp_path / "heat.zarr", record, np.ones(grid.shape, bool), overwrite=False)
    focus = np.full(grid.shape, 0.01, np.float32)
    focus[:, :20] = np.nan
    (block,) = grid.blocks()
    write_block(
        heatmap, block, np.full(grid.shape, 0.02, np.float32), np.full(grid.shape, Status.SCANNED, np.uint8), focus=focus
    )
    unmeasured = "focus not measured: too little contrast"

    async def check(tab: Tab, _client: Client) -> None:
        for layer, legend, darkest in (("probability", "", 200), ("focus", unmeasured, 150)):
            await tab.ask(f"void (WsiMeta.page.set('opacity', 0.01), WsiMeta.page.set('layer', '{layer}'))")
            await look_at(tab, 10 * CELL, 30 * CELL, 0.3)
            assert await tab.ask("document.getElementById('veil').textContent") == legend
            assert await tab.ask("document.getElementById('hidden').disabled") == bool(legend)
            x, y = map(round, await on_screen(tab, 10 * CELL, 30 * CELL))
            assert ((await tab.photograph())[y - 20 : y + 20, x - 20 : x + 20].min() < darkest) == bool(legend)
        await tab.page.mouse.move(x, y)
        assert (await tab.ask("document.getElementById('cursor').textContent")).split("  ·  ")[3] == unmeasured

    show(browser, tmp_path / "heat.zarr", check)


def test_numbers_of_lesions_hide_neither_one_another_nor_the_map(browser: Browser, tmp_path: Path) -> None:
    """Those that find room are written: on a strip of a few pixels none, closer all that are in view."""
    values = np.full((17, 400), 0.02, np.float32)
    values[4::8, 2::4] = 0.9
    store = write_store(tmp_path / "heat.zarr", values, mpp=MPP).path

    async def check(tab: Tab, _client: Client) -> None:
        await tab.ask(
            "void (window.written = [], CanvasRenderingContext2D.prototype.fillText = (text, x, y) => written.push([x, y]))"
        )
        shown = []
        for zoom in (0.02, 0.06, 0.3):
            await look_at(tab, 200 * CELL, 8 * CELL, zoom)
            shown.append(await tab.ask("(written.length = 0, WsiMeta.page.set('outlined', true), written.slice())"))
        counts = [len(places) for places in shown]
        assert (counts[0], counts[2]) == (0, 60)
        assert 3 < counts[1] < 60
        places = np.array(shown[1])
        apart = np.abs(places[:, None] - places[None])
        assert ((apart[..., 0] > 8) | (apart[..., 1] > 8) | np.eye(len(places), dtype=bool)).all()

    show(browser, store, check)


def test_the_legend_says_that_pixels_of_the_slide_cannot_be_read(browser: Browser, tmp_path: Path) -> None:
    """Also where the map is not shown; not before such a tile was seen."""
    slide = write_jpeg_slide(tmp_path / "heat.tif", [texture(1024, 1024), texture(512, 512)], mpp=MPP)
    damage_tile(slide, 5)
    with open_slide(slide) as opened:
        write_store(tmp_path / "heat.zarr", np.full((16, 16), 0.02, np.float32), mpp=MPP, slide=opened.fingerprint())
    legend = "document.getElementById('veil').textContent"

    async def check(tab: Tab, _client: Client) -> None:
        assert await tab.ask(legend) == ""
        await look_at(tab, 384, 384, 1.5)
        await tab.until(f'{legend} === "slide\'s pixels cannot be read"')
        await tab.page.keyboard.press("m")
        assert await tab.ask("!document.getElementById('veil').hidden")

    show(browser, tmp_path / "heat.zarr", check)


def test_keys_belong_to_what_has_the_focus(browser: Browser, tmp_path: Path) -> None:
    """Enter on a button of a row is no Enter on the row, and the focus stays where it was when the rows are made anew.

    All buttons are in view, also beside a lesion that is cut.
    """
    values = np.full((17, 23), 0.02, np.float32)
    values[2:4, 2:12], values[2:4, 12:], values[8:10, 8:10] = 0.9999, np.nan, 0.9
    store = write_store(tmp_path / "heat.zarr", values, mpp=MPP, unreadable=np.isnan(values)).path

    async def check(tab: Tab, _client: Client) -> None:
        first, room = "document.querySelector('#lesions tbody tr')", "document.querySelector('.scroll')"
        told = await tab.ask(f"[...{first}.cells].map((cell) => cell.textContent.replace('\u00ad', ''))")
        assert told == ["1", "at least micrometastasis", "≥0.31", "≥0.019", ">0.999", "reject"]
        await tab.ask("void (document.querySelector('aside').style.width = '342px')")  # as with two scroll bars
        assert await tab.ask(f"{room}.scrollWidth <= {room}.clientWidth")
        await tab.page.focus("#lesions tbody tr:nth-child(2) button")
        await tab.page.keyboard.press("Enter")
        await tab.until("document.getElementById('saved').textContent === 'saved'")
        assert await tab.ask("[WsiMeta.page.view.selected, document.activeElement.textContent]") == [None, "undo"]
        await tab.page.focus("#lesions tbody tr:nth-child(2)")
        await tab.page.keyboard.press("Enter")
        assert await tab.ask("[WsiMeta.page.view.selected.lesion, document.activeElement.rowIndex]") == [2, 2]
        await tab.ask("WsiMeta.page.corrections.toggle(WsiMeta.page.found().lesions[0])")
        await tab.page.focus("#corrections li:nth-child(2) button:last-child")
        await tab.page.keyboard.press("Enter")
        await tab.until("document.querySelectorAll('#corrections li').length === 1")
        assert await tab.ask("document.activeElement.ariaLabel") == "remove correction 1"

    show(browser, store, check)


def test_the_page_is_of_the_slide_and_its_overview_hides_no_tissue(browser: Browser, tmp_path: Path) -> None:
    """A store of another name than its slide; the overview is there while a part of the slide is seen.

    Nothing is drawn while nothing changes, though there are no pixels to show.
    """
    store = write_store(tmp_path / "node.zarr", np.full((17, 23), 0.6, np.float32), mpp=MPP).path

    async def check(tab: Tab, _client: Client) -> None:
        assert await tab.ask("document.title") == "node: wsi-meta"
        assert await tab.ask("[...document.getElementById('name').childNodes].map((one) => one.textContent)") == [
            "node",
            "other.zarr",
        ]
        seen = "WsiMeta.page.viewer.navigator.element.checkVisibility({ visibilityProperty: true })"
        assert await tab.ask(seen) is False
        await look_at(tab, 300, 300, 4)
        assert await tab.ask(seen) is True
        drawn = await tab.ask(
            "new Promise((done) => { let drawn = 0; WsiMeta.page.viewer.addHandler('update-viewport', () => { drawn += 1; });"
            " setTimeout(() => done(drawn), 200); })"
        )
        assert drawn <= 1

    show(browser, store.rename(tmp_path / "other.zarr"), check)


def test_the_list_of_heatmaps_fits_a_phone(browser: Browser, tmp_path: Path) -> None:
    values = np.full((17, 23), 0.9999, np.float32)
    for number in range(2):
        write_store(tmp_path / f"{'a_long_name_' * 5}{number}.zarr", values, mpp=MPP)
    add_row(
        tmp_path, failed(tmp_path / "torn.tif", f"{tmp_path / 'torn.tif'}: no slide ({'cut ' * 20})"), tmp_path / "torn.zarr"
    )

    async def run(client: Client) -> None:
        async with browser.tab(390) as tab:
            await tab.page.goto(client.gate.link)
            await tab.until("document.querySelectorAll('#stores tbody tr').length === 3")
            assert await tab.ask("document.documentElement.scrollWidth") == 390
            assert await tab.ask("document.querySelector('#stores .number').textContent") == "over 0.999"
            assert await tab.ask("document.getElementById('count').textContent") == "2"
            assert (await tab.ask("document.getElementById('left_out').textContent")).startswith("1 more slide has no finished")
            last = await tab.ask("document.querySelector('#stores tbody tr:last-child').textContent")
            assert last.startswith("tornno slide (cut")
            await tab.page.focus("#stores a")
            await tab.page.fill("#find", "torn")
            write_store(tmp_path / "torn.zarr", values, mpp=MPP)
            await tab.ask("void document.dispatchEvent(new Event('visibilitychange'))")
            await tab.until("document.getElementById('count').textContent === '3'")
            seen = "[...document.querySelectorAll('#stores tbody tr:not([hidden])')].map((row) => row.cells[0].textContent)"
            assert (await tab.ask(seen))[0] == "torn"
            assert tab.complaints == []

    ask(tmp_path, run, run=browser.run)


def test_arrows_move_the_map_but_where_a_control_has_the_focus(browser: Browser, store: Path) -> None:
    async def check(tab: Tab, _client: Client) -> None:
        await look_at(tab, 2000, 2000, 1.0)

        async def moved() -> float:
            """Pixels to the right by one press of a key."""
            before = await tab.ask("WsiMeta.page.frame()")
            await tab.page.keyboard.press("ArrowRight")
            await tab.settle()
            after = await tab.ask("WsiMeta.page.frame()")
            return round(float((after["left"] - before["left"]) * after["scale"]), 2)

        by = [await moved()]
        for place in ("#slide .openseadragon-canvas", "#threshold"):
            await tab.page.focus(place)
            by.append(await moved())
        assert by == [60, 60, 0]

    show(browser, store, check)


def test_the_map_grows_on_the_page(browser: Browser, tmp_path: Path) -> None:
    grid = PatchGrid(1472, 1088, MPP, 0.972, 96, 32, block_px=320)
    heatmap = Heatmap.create(tmp_path / "heat.zarr", make_record(grid), np.ones(grid.shape, bool), overwrite=False)

    async def check(tab: Tab, _client: Client) -> None:
        assert "not at hand" in await tab.ask("document.getElementById('notice').textContent")
        assert await tab.ask("document.querySelectorAll('#veil .pending').length") == 1
        before = await tab.photograph()
        first, *others = grid.blocks()
        nothing = np.full((first.rows, first.cols), np.nan, np.float32)
        write_block(heatmap, first, nothing, np.full(nothing.shape, Status.UNREADABLE, np.uint8))
        await tab.until("document.querySelectorAll('#veil .unreadable').length === 1")
        for block in others:
            shape = (block.rows, block.cols)
            write_block(heatmap, block, np.full(shape, 0.8, np.float32), np.full(shape, Status.SCANNED, np.uint8))
        await tab.ask(LOOK)
        await tab.until("document.querySelectorAll('#veil .pending').length === 0 && WsiMeta.page.found().count === 1")
        await tab.settle()
        after = await tab.photograph()
        assert is_coloured(after[:, :620]).mean() > is_coloured(before[:, :620]).mean() + 0.2
        tab.complaints[:] = [line for line in tab.complaints if "has grown" not in line]  # of parts asked for in between

    show(browser, tmp_path / "heat.zarr", check)


def test_the_page_of_a_store_that_was_replaced_is_loaded_anew(browser: Browser, tmp_path: Path) -> None:
    grid, values = PatchGrid(512, 512, MPP, 0.972, 96, 32), np.full((8, 8), 0.02, np.float32)
    Heatmap.create(tmp_path / "heat.zarr", make_record(grid), np.ones(grid.shape, bool), overwrite=False)
    with open_slide(write_slide(tmp_path / "new.tif", np.full((512, 512, 3), MARK, np.uint8), MPP)) as opened:
        mark = opened.fingerprint()
    (tmp_path / "new").mkdir()
    finished = write_store(tmp_path / "new" / "heat.zarr", values, mpp=MPP, slide=mark).path

    async def check(tab: Tab, _client: Client) -> None:
        assert await tab.ask("WsiMeta.page.facts().slide.mark") is None
        async with tab.page.expect_event("load"):  # neither slide is at hand
            write_store(tmp_path / "heat.zarr", values, mpp=MPP, slide="another")
        await tab.until("document.body && document.body.dataset.ready === 'yes'")
        async with tab.page.expect_event("load"):
            (tmp_path / "new.tif").rename(tmp_path / "heat.tif")
            (tmp_path / "heat.zarr").rename(tmp_path / "old")
            finished.rename(tmp_path / "heat.zarr")
            await tab.ask(LOOK)
        await tab.until("document.body && document.body.dataset.ready === 'yes'")
        assert await tab.ask("WsiMeta.page.facts().slide.mark") == mark[:16]

    show(browser, tmp_path / "heat.zarr", check)


def test_the_page_tells_that_its_store_is_damaged_and_stays_of_one_time(browser: Browser, tmp_path: Path) -> None:
    """Map, outlines and list follow the threshold together; where lesions cannot be had, all go back to those shown."""
    values = np.full((17, 23), 0.02, np.float32)
    values[2:4, 2:4], values[8:10, 8:10] = 0.9, 0.7
    store = write_store(tmp_path / "heat.zarr", values, mpp=MPP).path
    (value,) = (store / "0" / "c").glob("*/*")
    notice = "document.getElementById('notice').textContent"

    async def check(tab: Tab, client: Client) -> None:
        value.rename(tmp_path / "value")
        await tab.ask(LOOK)
        await tab.until(f"{notice}.includes('damaged: values of scanned cells are missing')")
        await tab.ask("void WsiMeta.page.setThreshold(0.8)")
        await tab.until("WsiMeta.page.found().threshold === 0.8 && WsiMeta.page.found().count === 1")
        (tmp_path / "value").rename(value)
        await tab.ask(LOOK)
        await tab.until(f"!{notice}.includes('damaged')")
        store.rename(tmp_path / "away")
        client.shelf.close()  # as where other stores were looked at meanwhile: nothing of it is in memory
        await tab.ask("void WsiMeta.page.setThreshold(0.5)")
        await tab.until(f"{notice}.includes('No lesions at threshold 0.500, shown are those of 0.800: ')")
        assert await tab.ask("[WsiMeta.page.view.threshold, WsiMeta.page.found().threshold]") == [0.8, 0.8]
        tab.complaints.clear()  # of the answers that were refused

    show(browser, store, check)
