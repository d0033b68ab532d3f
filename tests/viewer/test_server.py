"""The server: what it sends, who may ask, and that nothing in a link leads elsewhere."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from served import Client, ask
from slide_files import damage_tile, texture, write_jpeg_slide
from stores import make_record, write_block, write_store

from wsi_meta.heatmaps.lesions import find_lesions
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.quality.cell_measures import MEASURES
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiling.grid import PatchGrid
from wsi_meta.viewer.shelf import Shelf
from wsi_meta.viewer.shown_map import NO_VALUE, TOP_STEP
from wsi_meta.worklist.summary import add_row, failed, summarise

MPP = 0.486
CELL_L0 = 64.0


def a_map() -> NDArray[np.float32]:
    """17 x 23 cells: two lesions, a hot cell, a row without tissue."""
    probability = np.full((17, 23), 0.05, np.float32)
    probability[2:6, 3:9], probability[10:12, 14:20], probability[8, 2] = 0.9, 0.7, 0.55
    probability[0] = np.nan
    return probability


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A heatmap beside its slide of 1,472 x 1,088 px."""
    folder = tmp_path_factory.mktemp("stores")
    slide = write_jpeg_slide(folder / "heat.tif", [texture(1088, 1472)], mpp=MPP)
    with open_slide(slide) as opened:
        write_store(folder / "heat.zarr", a_map(), mpp=MPP, slide=opened.fingerprint())
    return folder / "heat.zarr"


class TestWhatIsSent:
    def test_tiles_are_the_slides_pixels(self, store: Path) -> None:
        async def check(client: Client) -> None:
            slide = (await client.json("facts"))["slide"]
            last = len(slide["levels"]) - 1
            assert slide["levels"][last] == {
                "downsample": 1,
                "width": 1472,
                "height": 1088,
                "tile_width": 256,
                "tile_height": 256,
            }
            answer = await client.get(f"/s/{client.key}/tile/{slide['mark']}/{last}/2/1")
            assert answer.headers["Content-Type"] == "image/jpeg"
            with open_slide(store.with_suffix(".tif")) as opened:
                expected = opened.read_region(512, 256, 256, 256)
            shown = np.asarray(Image.open(BytesIO(answer.body)))
            assert np.abs(shown.astype(int) - expected).mean() < 6

        ask(store, check)

    def test_map_and_slide_lie_in_one_frame(self, store: Path) -> None:
        async def check(client: Client) -> None:
            facts = await client.json("facts")
            grid = facts["grid"]
            assert (grid["width"], grid["height"]) == (1472, 1088)
            assert (grid["rows"], grid["cols"], grid["cell_l0"], grid["mpp"]) == (17, 23, CELL_L0, MPP)
            assert (grid["cols"] * CELL_L0, grid["rows"] * CELL_L0) == (1472, 1088)
            for level in facts["slide"]["levels"]:
                assert level["width"] == -(-1472 // level["downsample"])

        ask(store, check)

    def test_the_map_has_the_stores_values(self, store: Path) -> None:
        async def check(client: Client) -> None:
            facts = await client.json("facts")
            answer = await client.get(f"/s/{client.key}/map/{facts['version']}", decompress_response=False)
            assert answer.headers["Content-Encoding"] == "gzip"
            packed = gzip.decompress(answer.body)
            steps = np.frombuffer(packed, "<u2", 17 * 23).reshape(17, 23)
            status = np.frombuffer(packed, np.uint8, 17 * 23, 2 * 17 * 23).reshape(17, 23)
            expected = a_map()
            assert len(packed) == 3 * 17 * 23
            assert np.array_equal(steps == NO_VALUE, np.isnan(expected))
            assert np.nanmax(np.abs(np.where(steps == NO_VALUE, np.nan, steps / TOP_STEP) - expected)) < 1e-5
            assert np.array_equal(status, Heatmap.open(store).status)

        ask(store, check)

    def test_uncertainty_and_what_cells_are_like_are_further_layers(self, tmp_path: Path) -> None:
        grid = PatchGrid(1472, 1088, MPP, 0.972, 96, 32)
        record = replace(make_record(grid, uncertainty=True), measures=MEASURES)
        heatmap = Heatmap.create(tmp_path / "heat.zarr", record, np.ones(grid.shape, bool), overwrite=False)
        (block,) = grid.blocks()
        probability = np.nan_to_num(a_map())
        measured = {"focus": probability + np.float32(0.6), "darkness": np.float32(200) * probability}
        status = np.full(grid.shape, Status.SCANNED, np.uint8)
        write_block(heatmap, block, probability, status, uncertainty=probability / np.float32(2), **measured)

        async def check(client: Client) -> None:
            facts = await client.json("facts")
            packed = (await client.get(f"/s/{client.key}/map/{facts['version']}")).body
            expected = {"probability": probability, "uncertainty": probability / 2} | measured
            assert [layer["name"] for layer in facts["layers"]] == list(expected)
            for number, layer in enumerate(facts["layers"]):
                steps = np.frombuffer(packed, "<u2", 17 * 23, 2 * 17 * 23 * number).reshape(17, 23)
                values = steps / TOP_STEP * layer["highest"]
                assert np.abs(values - expected[layer["name"]]).max() <= layer["highest"] / TOP_STEP

        ask(tmp_path / "heat.zarr", check)

    def test_colours_are_those_of_overlay(self, store: Path) -> None:
        from matplotlib import colormaps

        async def check(client: Client) -> None:
            (layer,) = (await client.json("facts"))["layers"]
            table = np.frombuffer(bytes.fromhex(layer["table"]), np.uint8).reshape(256, 3)
            for value in (0.0, 0.25, 0.5, 0.999, 1.0):
                expected = colormaps["viridis"](value, bytes=True)[:3]
                assert tuple(table[min(255, int(value * 256))]) == tuple(expected)

        ask(store, check)

    @pytest.mark.parametrize("threshold", [0.5, 0.6, 0.8])
    def test_lesions_follow_the_threshold(self, store: Path, threshold: float) -> None:
        async def check(client: Client) -> None:
            version = (await client.json("facts"))["version"]
            found = await client.json(f"lesions/{version}/{threshold}")
            expected = find_lesions(store, threshold=threshold)
            assert found["count"] == len(expected)
            for one, other in zip(found["lesions"], expected, strict=True):
                assert {name: one[name] for name in other.to_dict()} == other.to_dict()
                assert one["polygons"][0][0] == other.outlines[0].vertices.ravel().tolist()

        ask(store, check)

    def test_a_heatmap_whose_name_is_no_text_is_not_taken_for_gone(self, tmp_path: Path) -> None:
        """The table keeps its place as a file URI."""
        store = tmp_path / "caf\udce9.zarr"
        heatmap = write_store(store, np.full((4, 5), 0.2, np.float32))
        add_row(tmp_path, summarise("caf.tif", heatmap) | {"heatmap": str(store)}, store)
        assert Shelf([store], folders=[tmp_path]).left_out() == []

    def test_the_list_of_a_folder_tells_slides_without_a_heatmap(self, tmp_path: Path) -> None:
        """Also where it has a single heatmap; not where that was given by itself."""
        heatmap = write_store(tmp_path / "good.zarr", np.full((4, 5), 0.2, np.float32))
        add_row(tmp_path, failed(tmp_path / "torn.tif", f"{tmp_path / 'torn.tif'}: cut short"), tmp_path / "torn.zarr")
        add_row(tmp_path, summarise("lost.tif", heatmap) | {"heatmap": str(tmp_path / "lost.zarr")}, tmp_path / "lost.zarr")
        expected = [
            {"name": "torn", "problem": "cut short", "score": None},
            {"name": "lost", "problem": "the heatmap is gone", "score": None},
        ]

        async def check(client: Client, several: bool) -> None:
            listed = json.loads((await client.get("/list")).body)
            assert listed["left_out"] == (expected if several else [])
            assert (await client.get("/")).code == (200 if several else 302)
            assert (await client.json("facts"))["several"] is several

        ask(tmp_path, lambda client: check(client, several=True))
        ask(heatmap.path, lambda client: check(client, several=False))

    def test_the_list_follows_its_folder(self, tmp_path: Path) -> None:
        """Each slide of the folder's table is in one of the two parts, also one that is scanned, or gone, since the start."""
        (tmp_path / "maps").mkdir()
        write_store(tmp_path / "maps" / "one.zarr", a_map())
        add_row(tmp_path / "maps", failed("two.tif", "two.tif: cut short"), tmp_path / "maps" / "two.zarr")

        async def check(client: Client) -> None:
            async def listed() -> dict[str, list[str]]:
                found = json.loads((await client.get("/list")).body)
                return {part: [one["name"] for one in found[part]] for part in ("stores", "left_out")}

            assert await listed() == {"stores": ["one"], "left_out": ["two"]}
            two = write_store(tmp_path / "maps" / "two.zarr", a_map())
            add_row(tmp_path / "maps", summarise("two.tif", two) | {"heatmap": str(two.path)}, two.path)
            assert await listed() == {"stores": ["one", "two"], "left_out": []}
            (tmp_path / "maps" / "one.zarr").rename(tmp_path / "one")
            assert await listed() == {"stores": ["two"], "left_out": []}
            assert (await client.get("/")).headers["Location"] != f"/s/{client.key}"
            answer = await client.get(f"/s/{client.key}/facts")
            assert (answer.code, b"one.zarr: no such store" in answer.body) == (409, True), "its page tells"
            two.path.rename(tmp_path / "two")
            assert await listed() == {"stores": [], "left_out": ["two"]}
            assert (await client.get("/")).code == 200

        ask(tmp_path / "maps", check)

    def test_maps_of_one_name_are_told_apart(self, tmp_path: Path) -> None:
        """Those of one slide by two models: the list and the pages say which is which."""
        for model in ("old", "new"):
            (tmp_path / model).mkdir()
        stores = [write_store(tmp_path / model / "s.zarr", a_map()).path for model in ("old", "new")]
        stores.append(write_store(tmp_path / "other.zarr", a_map()).path)

        async def check(client: Client) -> None:
            listed = {one["key"]: one["name"] for one in json.loads((await client.get("/list")).body)["stores"]}
            assert list(listed.values()) == [str(stores[0]), str(stores[1]), "other"]
            told = [json.loads((await client.get(f"/s/{key}/facts")).body)["store"] for key in listed]
            assert told == [str(stores[0]), str(stores[1]), "other.zarr"]

        ask(stores, check)

    def test_the_models_own_thresholds_are_taken_as_they_are(self, tmp_path: Path) -> None:
        """Rounded, both would find other lesions; what a slider says is rounded."""
        values = np.full((8, 8), 0.0001, np.float32)
        values[0, 0], values[0, 2], values[4, 4], values[7, 7] = 0.51705, 0.0042, 0.0036, 0.9
        store = write_store(tmp_path / "heat.zarr", values, default=0.51713, sensitivity_99=0.0041, specificity_99=0.0041).path

        async def check(client: Client) -> None:
            facts = await client.json("facts")
            assert facts["points"][1:] == [["99 % sensitivity:", 0.0041], ["99 % specificity:", 0.0041]]
            for threshold, count in ((facts["threshold"], 1), (facts["thresholds"]["sensitivity_99"], 3)):
                found = await client.json(f"lesions/{facts['version']}/{threshold}")
                assert (found["threshold"], found["count"]) == (threshold, count)
                assert count == len(find_lesions(store, threshold=threshold))
            for asked, rounded in (("0.51712", 0.517), ("1e-7", 0.001), ("1", 1.0)):
                assert (await client.json(f"lesions/{facts['version']}/{asked}"))["threshold"] == rounded

        ask(store, check)

    def test_a_browser_that_has_a_tile_is_told_so(self, store: Path) -> None:
        async def check(client: Client) -> None:
            mark = (await client.json("facts"))["slide"]["mark"]
            first = await client.get(f"/s/{client.key}/tile/{mark}/0/0/0")
            assert "immutable" in first.headers["Cache-Control"]
            again = await client.get(f"/s/{client.key}/tile/{mark}/0/0/0", headers={"If-None-Match": first.headers["Etag"]})
            assert (again.code, again.body) == (304, b"")
            assert (await client.get(f"/s/{client.key}/tile/{'0' * 16}/0/0/0")).code == 404

        ask(store, check)

    def test_a_tile_that_could_not_be_read_is_asked_for_again(self, tmp_path: Path) -> None:
        slide = write_jpeg_slide(tmp_path / "heat.tif", [texture(1088, 1472)], mpp=MPP)
        damage_tile(slide, 0)
        with open_slide(slide) as opened:
            write_store(tmp_path / "heat.zarr", a_map(), mpp=MPP, slide=opened.fingerprint())

        async def check(client: Client) -> None:
            shown = (await client.json("facts"))["slide"]
            assert not shown["unread"]
            last = len(shown["levels"]) - 1
            for place in (f"{last}/0/0", "0/0/0"):
                answer = await client.get(f"/s/{client.key}/tile/{shown['mark']}/{place}")
                assert (answer.code, answer.headers["Cache-Control"], "Etag" in answer.headers) == (200, "no-store", False)
            answer = await client.get(f"/s/{client.key}/tile/{shown['mark']}/{last}/1/1")
            assert "immutable" in answer.headers["Cache-Control"]
            assert (await client.json("version"))["unread"], "for the legend"

        ask(tmp_path / "heat.zarr", check)

    def test_200_requests_at_a_time_are_all_answered(self, store: Path) -> None:
        async def check(client: Client) -> None:
            slide = (await client.json("facts"))["slide"]
            last = len(slide["levels"]) - 1
            links = [f"/s/{client.key}/tile/{slide['mark']}/{last}/{number % 6}/{number // 6 % 5}" for number in range(200)]
            answers = await asyncio.gather(*map(client.get, links))
            assert [answer.code for answer in answers] == [200] * 200
            assert len({answer.body for answer in answers}) == 30

        ask(store, check)

    def test_pages_load_nothing_from_elsewhere(self, store: Path) -> None:
        async def check(client: Client) -> None:
            page = await client.get(f"/s/{client.key}")
            policy = page.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert b"://" not in page.body
            for name in ("map.js", "layers.js", "sources.js", "correct.js", "list.js", "viewer.css", "openseadragon.min.js"):
                assert (await client.get(f"/assets/{name}")).code == 200
            assert b"Redistribution" in (await client.get("/assets/openseadragon-license.txt")).body

        ask(store, check)


class TestWhoMayAsk:
    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "a@127.0.0.1:{port}", ""]
    )
    def test_another_host_is_refused(self, store: Path, host: str) -> None:
        async def check(client: Client) -> None:
            for path in ("/", f"/s/{client.key}/facts", "/assets/map.js", "/nothing"):
                answer = await client.get(path, headers={"Host": host.format(port=client.gate.port)})
                assert answer.code in (400, 421)
                assert b"heat" not in answer.body

        ask(store, check)

    @pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://localhost:{port}"])
    def test_another_origin_is_refused(self, store: Path, origin: str) -> None:
        async def check(client: Client) -> None:
            headers = {"Origin": origin.format(port=client.gate.port)}
            assert (await client.get(f"/s/{client.key}/facts", headers=headers)).code == 403
            assert (await client.put({"corrections": [], "revision": ""}, **headers)).code == 403
            assert "Access-Control-Allow-Origin" not in (await client.get("/", headers=headers)).headers

        ask(store, check)

    def test_another_site_may_only_lead_here(self, store: Path) -> None:
        async def check(client: Client) -> None:
            elsewhere = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
            assert (await client.get(f"/s/{client.key}/facts", headers=elsewhere)).code == 403
            assert (await client.get(f"/s/{client.key}", headers=elsewhere | {"Sec-Fetch-Mode": "navigate"})).code == 200

        ask(store, check)

    def test_with_a_host_the_link_holds_a_token(self, store: Path) -> None:
        async def check(client: Client) -> None:
            assert client.gate.token is not None
            assert len(client.gate.token) >= 32
            for path in ("/", f"/s/{client.key}/facts", "/assets/map.js", "/nothing", f"/?token={'x' * 32}"):
                assert (await client.get(path)).code == 403
            link = urlsplit(client.gate.link)
            entered = await client.get(f"{link.path}?{link.query}")
            assert (entered.code, entered.headers["Location"]) == (302, "/")
            cookie = entered.headers["Set-Cookie"].partition(";")
            assert "httponly" in cookie[2].lower()
            assert (await client.get(f"/s/{client.key}/facts", headers={"Cookie": cookie[0]})).code == 200
            assert (await client.get(f"/s/{client.key}/facts", headers={"Cookie": cookie[0] + "x"})).code == 403

        ask(store, check, host="127.0.0.1")

    def test_without_a_host_only_this_machine_is_listened_to(self, store: Path) -> None:
        async def check(client: Client) -> None:
            assert client.gate.token is None
            with socket.socket() as other, pytest.raises(ConnectionError):
                other.connect((socket.gethostbyname(socket.gethostname()), client.gate.port))

        if not socket.gethostbyname(socket.gethostname()).startswith("127."):
            ask(store, check)


class TestLinksLeadNowhere:
    @pytest.mark.parametrize(
        "path",
        [
            "/assets/../view.py",
            "/assets/..%2fview.py",
            "/assets/%2e%2e/%2e%2e/view.py",
            "/assets/....//map.js",
            "/assets//etc/passwd",
            "/assets/map.html",
            "/s/../../etc/passwd",
            "/s/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
            "/s/000000000000",
            "/s/{key}/../../../etc/passwd",
            "/s/{key}/zarr.json",
            "/s/{key}/map/../facts",
            "/report/",
            "/report/thumbnails/..%2f..%2fheat.tif",
            "/report/thumbnails/%2fetc%2fpasswd",
            "/s/{key}/tile/{mark}/0/0/99999999999999999999",
            "/s/{key}/tile/{mark}/0/0/-1",
            "/s/{key}/tile/{mark}/0/999999/999999",
            "/s/{key}/tile/{mark}/999/0/0",
            "/s/{key}/tile/{mark}/0/0/0.jpg",
            "/s/{key}/lesions/{version}/1e3",
            "/s/{key}/lesions/{version}/0",
            "/s/{key}/lesions/{version}/999999",
            "/s/{key}/lesions/{version}/-5",
            "/" + "a" * 9000,
        ],
    )
    def test_whatever_is_in_a_link(self, store: Path, path: str) -> None:
        async def check(client: Client) -> None:
            facts = await client.json("facts")
            names = {"key": client.key, "mark": facts["slide"]["mark"], "version": facts["version"]}
            answer = await client.get(path.format(**names) if "{" in path else path)
            assert answer.code in (400, 404)
            assert len(answer.body) < 100
            assert b"root:" not in answer.body

        ask(store, check)

    def test_a_body_too_long_or_a_header_too_long_is_refused(self, store: Path) -> None:
        async def check(client: Client) -> None:
            for send in (client.put(b" " * (9 << 20)), client.get("/", headers={"X-Long": "a" * 70_000})):
                answer = await asyncio.gather(send, return_exceptions=True)
                assert isinstance(answer[0], BaseException) or answer[0].code in (400, 413, 431, 599)
            assert (await client.json("version"))["version"]

        ask(store, check)


class TestSeveral:
    def test_a_folder_is_a_list_of_its_heatmaps(self, store: Path, tmp_path: Path) -> None:
        write_store(tmp_path / "one.zarr", a_map())
        (write_store(tmp_path / "torn.zarr", a_map()).path / "zarr.json").write_text("{")

        async def check(client: Client) -> None:
            stores = {one["name"]: one for one in json.loads((await client.get("/list")).body)["stores"]}
            assert set(stores) == {"one", "torn", "heat"}
            assert stores["one"]["problem"] is None
            assert stores["torn"]["problem"]
            assert (await client.get(f"/s/{stores['torn']['key']}/facts")).code == 409
            alone = json.loads((await client.get(f"/s/{stores['one']['key']}/facts")).body)
            assert alone["slide"]["mark"] is None
            assert "not at hand" in alone["slide"]["told"]

        ask([tmp_path, store], check)

    def test_the_slide_beside_it_may_be_another_one(self, tmp_path: Path) -> None:
        write_store(tmp_path / "heat.zarr", a_map(), mpp=MPP)
        write_jpeg_slide(tmp_path / "heat.tif", [texture(300, 400)], mpp=MPP)

        async def check(client: Client) -> None:
            slide = (await client.json("facts"))["slide"]
            assert slide["mark"] is None
            assert "another slide" in slide["told"]
            assert "400 x 300 px; expected 1,472 x 1,088" in slide["told"]

        ask(tmp_path / "heat.zarr", check)

    @pytest.mark.parametrize(("generator", "code"), [("wsi-meta worklist", 200), ("wsi-meta evaluate", 404)])
    def test_the_worklist_is_shown_with_its_pictures_alone(self, tmp_path: Path, generator: str, code: int) -> None:
        """And no other page in a folder of that name, as that of an evaluation."""
        write_store(tmp_path / "one.zarr", a_map())
        pictures = tmp_path / "report" / "thumbnails"
        pictures.mkdir(parents=True)
        (pictures / "one.jpg").write_bytes(b"jpeg")
        (pictures / "caf\udce9 2.jpg").write_bytes(b"other")
        (tmp_path / "report" / "index.html").write_text(f'<meta name="generator" content="{generator}">')

        async def check(client: Client) -> None:
            assert json.loads((await client.get("/list")).body)["report"] == (code == 200)
            page, picture = await client.get("/report/"), await client.get("/report/thumbnails/one.jpg")
            assert (page.code, picture.code) == (code, code)
            if code == 200:
                assert "connect-src 'none'" in page.headers["Content-Security-Policy"]
                assert picture.body == b"jpeg"
                assert (await client.get("/report/thumbnails/caf%E9%202.jpg")).body == b"other", "a name that is no UTF-8"
            assert (await client.get("/report/thumbnails/two.jpg")).code == 404

        ask(tmp_path, check)


def test_a_store_that_is_replaced_is_never_shown_over_the_slide_before(tmp_path: Path) -> None:
    def put(seed: int, name: str) -> str:
        with open_slide(write_jpeg_slide(tmp_path / name, [texture(1088, 1472, seed)], mpp=MPP)) as opened:
            return opened.fingerprint()

    first = put(0, "heat.tif")
    write_store(tmp_path / "heat.zarr", a_map(), mpp=MPP, slide=first)

    async def check(client: Client) -> None:
        async def mark() -> str | None:
            slide = (await client.json("facts"))["slide"]
            assert slide["mark"] or "another slide" in slide["told"] or "not at hand" in slide["told"]
            return str(slide["mark"]) if slide["mark"] else None

        assert await mark() == first[:16]
        second = put(1, "other.tif")
        write_store(tmp_path / "heat.zarr", a_map(), mpp=MPP, slide=second)
        assert await mark() is None
        assert (await client.get(f"/s/{client.key}/tile/{first[:16]}/0/0/0")).code == 404
        (tmp_path / "heat.tif").unlink()
        assert await mark() is None
        (tmp_path / "other.tif").rename(tmp_path / "heat.tif")
        assert await mark() == second[:16], "a slide that arrives later"
        assert (await client.get(f"/s/{client.key}/tile/{second[:16]}/0/0/0")).code == 200

    ask(tmp_path / "heat.zarr", check)


def test_a_map_grows_while_it_is_scanned(tmp_path: Path) -> None:
    grid = PatchGrid(1472, 1088, MPP, 0.972, 96, 32, block_px=320)
    heatmap = Heatmap.create(tmp_path / "heat.zarr", make_record(grid), np.ones(grid.shape, bool), overwrite=False)
    first, *others = grid.blocks()

    def scan(block: Any) -> None:
        shape = (block.rows, block.cols)
        write_block(heatmap, block, np.full(shape, 0.8, np.float32), np.full(shape, Status.SCANNED, np.uint8))

    async def check(client: Client) -> None:
        async def scanned() -> int:
            facts = await client.json("facts")
            assert not facts["finished"]
            answer = await client.get(f"/s/{client.key}/map/{facts['version']}")
            return int((np.frombuffer(answer.body, np.uint8, 17 * 23, 2 * 17 * 23) == Status.SCANNED).sum())

        before = (await client.json("version"))["version"]
        assert await scanned() == 0
        assert (await client.json("version"))["version"] == before
        scan(first)
        assert (await client.json("version"))["version"] != before
        assert (await client.get(f"/s/{client.key}/map/{before}")).code == 200, "all parts of a page are of one time"
        assert await scanned() == first.rows * first.cols
        assert (await client.get(f"/s/{client.key}/map/{before}")).code == 412
        assert (await client.get(f"/s/{client.key}/lesions/{before}/0.5")).code == 412
        for block in others:
            scan(block)
        assert await scanned() == 17 * 23

    ask(tmp_path / "heat.zarr", check)


def test_damage_is_told_and_what_was_read_before_stays_whole(tmp_path: Path) -> None:
    """Values that are gone, then the store: each shows in the version, and is told; the map before still has its lesions."""
    store = write_store(tmp_path / "heat.zarr", a_map(), mpp=MPP).path

    async def check(client: Client) -> None:
        before = (await client.json("facts"))["version"]
        (value,) = (store / "0" / "c").glob("*/*")
        for part, told in ((value, b"values of scanned cells are missing in 1 of 1"), (store, b"no such store")):
            part.rename(tmp_path / f"{part.name} away")
            assert (await client.json("version"))["version"] != before
            answer = await client.get(f"/s/{client.key}/facts")
            assert (answer.code, told in answer.body) == (409, True)
            assert (await client.json(f"lesions/{before}/0.8"))["count"] == 1
            assert (await client.get(f"/s/{client.key}/map/{before}")).code == 200

    ask(store, check)
