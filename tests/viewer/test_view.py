"""The public function and its command: what is refused at once, the page without a server, and an end by Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from browsers import Browser
from click.testing import CliRunner
from slide_files import damage_tile, texture, write_jpeg_slide, write_ome_zarr
from stores import write_store

import wsi_meta
from wsi_meta.cli import main
from wsi_meta.errors import HeatmapError, OptionsError, OutputExistsError
from wsi_meta.heatmaps.inspection import check_heatmaps, stores_at
from wsi_meta.slides.slide import open_slide

MPP = 0.486


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A heatmap with a lesion, and its slide under another name."""
    folder = tmp_path_factory.mktemp("stores")
    slide = write_jpeg_slide(folder / "slide.tif", [texture(1088, 1472)], mpp=MPP)
    probability = np.full((17, 23), 0.05, np.float32)
    probability[2:6, 3:9] = 0.9
    with open_slide(slide) as opened:
        write_store(folder / "heat.zarr", probability, mpp=MPP, slide=opened.fingerprint())
    return folder / "heat.zarr"


def test_what_cannot_be_shown_is_refused_before_anything_listens(store: Path, tmp_path: Path) -> None:
    other = write_jpeg_slide(tmp_path / "other.tif", [texture(300, 400)], mpp=MPP)
    second = write_store(tmp_path / "second.zarr", np.full((4, 4), 0.2, np.float32)).path
    with pytest.raises(HeatmapError, match="another slide than the one that was scanned"):
        wsi_meta.view(store, slide=other)
    with pytest.raises(HeatmapError, match="no such"):
        wsi_meta.view(store, slide=tmp_path / "missing.tif")
    with pytest.raises(HeatmapError, match="no such store"):
        wsi_meta.view(tmp_path / "missing.zarr")
    with pytest.raises(OptionsError, match="expected a folder of their slides"):
        wsi_meta.view(store, second, slide=other)
    with pytest.raises(OptionsError, match="expected one"):
        wsi_meta.view(store, second, static=tmp_path / "page")
    with pytest.raises(OptionsError, match="has no server"):
        wsi_meta.view(store, port=8000, static=tmp_path / "page")
    with pytest.raises(OptionsError, match="cannot listen there"):
        wsi_meta.view(store, host="192.0.2.1", browser=False)
    assert not (tmp_path / "page").exists()


def test_ctrl_c_ends_the_command_well(store: Path) -> None:
    command = [sys.executable, "-m", "wsi_meta", "view", str(store), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        link = process.stdout.readline().strip()
        with urlopen(link) as page:
            assert b"wsi-meta" in page.read()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (0, "")


def test_a_page_without_a_server_holds_all_that_it_shows(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    ran = CliRunner().invoke(main, ["view", str(store), "--slide", str(store.with_name("slide.tif")), "--static", str(folder)])
    assert (ran.exit_code, ran.stdout.strip()) == (0, str(folder / "index.html"))
    data = json.loads((folder / "assets" / "data.js").read_text().removeprefix("window.WSI_META_FILES = ").rstrip(";\n"))
    assert str(store.parent) not in json.dumps(data)  # no folder of this machine
    assert data["lesions"]["0.5"]["count"] == 1
    for number, level in enumerate(data["facts"]["slide"]["levels"]):
        tiles = -(-level["width"] // level["tile_width"]) * -(-level["height"] // level["tile_height"])
        assert len(list((folder / "tiles" / str(number)).iterdir())) == tiles
    page = (folder / "index.html").read_text()
    assert "://" not in page
    assert "{" not in page
    with pytest.raises(OutputExistsError, match="new or empty"):
        wsi_meta.view(store, static=folder)
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_a_page_without_a_server_holds_lesions_at_the_models_own_thresholds(tmp_path: Path) -> None:
    values = np.full((4, 4), 0.001, np.float32)
    values[1, 1], values[3, 3] = 0.0042, 0.51705
    wsi_meta.view(write_store(tmp_path / "h.zarr", values, default=0.51713, own=0.0041).path, static=tmp_path / "page")
    data = json.loads(
        (tmp_path / "page" / "assets" / "data.js").read_text().removeprefix("window.WSI_META_FILES = ").rstrip(";\n")
    )
    found = {name: (lesions["threshold"], lesions["count"]) for name, lesions in data["lesions"].items()}
    assert (found["0.51713"], found["0.0041"][0]) == ((0.51713, 0), 0.0041)


def test_a_page_without_a_server_says_what_it_lacks_of_its_slide(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """To who makes it, and in words that are of use to someone who has neither the slide nor wsi-meta."""

    def slide_of(page: Path) -> dict[str, object]:
        data = (page / "assets" / "data.js").read_text().removeprefix("window.WSI_META_FILES = ").rstrip(";\n")
        return dict(json.loads(data)["facts"]["slide"])

    slide = write_jpeg_slide(tmp_path / "torn.tif", [texture(544, 736)], mpp=MPP)
    damage_tile(slide, 0)
    with open_slide(slide) as opened:
        store = write_store(tmp_path / "torn.zarr", np.full((9, 12), 0.2, np.float32), mpp=MPP, slide=opened.fingerprint()).path
    wsi_meta.view(store, static=tmp_path / "striped")
    assert "torn.tif: slide's pixels cannot be read in places" in caplog.text
    assert slide_of(tmp_path / "striped")["unread"] is True
    slide.unlink()
    caplog.clear()
    wsi_meta.view(store, static=tmp_path / "alone")
    assert "torn.tif: not at hand" in caplog.text
    assert "the page shows the map alone" in caplog.text
    assert slide_of(tmp_path / "alone")["told"] == "torn.tif: the slide is not part of this page"


def test_a_slide_that_is_a_folder_is_no_folder_of_slides(store: Path, tmp_path: Path) -> None:
    slide = write_ome_zarr(tmp_path / "slide.ome.zarr", texture(1088, 1472), MPP)
    with open_slide(slide) as opened:
        heatmap = write_store(tmp_path / "heat.zarr", np.full((17, 23), 0.2, np.float32), mpp=MPP, slide=opened.fingerprint())
    wsi_meta.view(heatmap.path, slide=slide, static=tmp_path / "page")
    assert (tmp_path / "page" / "tiles").is_dir()
    with pytest.raises(OptionsError, match="one file for 2 heatmaps; expected a folder of their slides"):
        wsi_meta.view(heatmap.path, store, slide=slide)


def test_slides_that_are_folders_may_lie_among_heatmaps(tmp_path: Path) -> None:
    heatmap = write_store(tmp_path / "slide.zarr", np.full((4, 4), 0.2, np.float32))
    write_ome_zarr(tmp_path / "slide.ome.zarr", texture(128, 128))
    assert stores_at(tmp_path) == [heatmap.path]
    assert [check.heatmap for check in check_heatmaps(tmp_path)] == [str(heatmap.path)]
    heatmap.path.rename(tmp_path / "moved")
    with pytest.raises(HeatmapError, match="no heatmap in this folder"):
        stores_at(tmp_path)


@pytest.mark.browser
def test_a_page_without_a_server_is_the_same_page(browser: Browser, store: Path, tmp_path: Path) -> None:
    wsi_meta.view(store, slide=store.with_name("slide.tif"), static=tmp_path / "page")

    async def run() -> None:
        async with browser.tab() as tab:
            await tab.open((tmp_path / "page" / "index.html").as_uri())
            await tab.settle()
            assert await tab.ask("WsiMeta.page.found().count") == 1
            assert (await tab.photograph())[320, 100:500].std() > 2  # the slide, not the empty grey of the page
            assert await tab.ask("document.getElementById('corrections').hidden")
            assert "keeps lesions" not in await tab.ask("document.getElementById('more').textContent")
            await tab.ask("void WsiMeta.page.setThreshold(0.34)")
            await tab.until("WsiMeta.page.found().threshold === 0.3")
            told = await tab.ask("document.getElementById('more').textContent")
            assert "The outlines are those of 0.300: this page keeps lesions at 0.1, 0.2, 0.3," in told
            assert tab.complaints == []
            assert [link for link in tab.asked if not link.startswith(("file:", "data:", "about:", "blob:"))] == []

    browser.run(run())
