"""Slides at addresses: as those on a disk, of which only the tiles needed are fetched, whatever the server does."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fakes import scan_darkness
from numpy.typing import NDArray
from range_server import Served, served
from slide_files import damage_tile, set_tag, stored_tiles, texture, write_jpeg_slide, write_slide

from wsi_meta import draw_overlay, info, open_slide, survey_tissue
from wsi_meta.cli import main
from wsi_meta.cohorts.inputs import find_slides
from wsi_meta.errors import OutputPathError, SlideReadError
from wsi_meta.files.address import Address
from wsi_meta.files.remote_file import RemoteFile
from wsi_meta.files.same_file import SlideReplacedError
from wsi_meta.heatmaps.store import Status

MPP = 0.243
OPTIONS: dict[str, Any] = {"tissue_mask": "none", "block_px": 192}


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    return texture(1152, 1536, seed=3)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, picture: NDArray[np.uint8]) -> Path:
    levels = [picture[::factor, ::factor] for factor in (1, 2, 4, 8)]
    return write_jpeg_slide(tmp_path_factory.mktemp("far") / "s.tif", levels, tile_px=64, tables="shared", mpp=MPP)


@pytest.fixture
def far(written: Path) -> Iterator[Served]:
    with served(written.parent) as server:
        yield server


def test_a_slide_at_an_address_is_the_one_on_the_disk(far: Served, written: Path) -> None:
    with open_slide(f"{far.url}/s.tif?X-Signature=secret") as there, open_slide(written) as here:
        for name in ("name", "reader", "reader_reason", "level_dimensions", "level_downsamples", "mpp", "properties", "bounds"):
            assert getattr(there, name) == getattr(here, name), name
        assert there.fingerprint() == here.fingerprint()
        assert (str(there.path), repr(there.path)) == (f"{far.url}/s.tif", f"Address('{far.url}/s.tif')")
        for mpp, *window in [(0.972, -20, -20, 200, 150), (0.243, 500, 400, 300, 300), (0.5, 0, 0, 400, 300)]:
            np.testing.assert_array_equal(there.read_at(mpp, *window), here.read_at(mpp, *window))


@pytest.mark.parametrize("vendor", ["aperio", "sparse", "odd sizes"])
def test_other_kinds_at_an_address(tmp_path: Path, vendor: str) -> None:
    image = texture(601, 803, seed=7)
    told = "Aperio Image Library v11.2.1 \r\n803x601 (240x240) JPEG/RGB Q=90|AppMag = 20|MPP = 0.9720"
    if vendor == "aperio":
        path = write_jpeg_slide(tmp_path / "a.svs", [image, image[::2, ::2]], photometric="rgb", descriptions=[told] * 2)
    elif vendor == "sparse":
        path = write_jpeg_slide(tmp_path / "a.tif", [image], left_out=[0, 4])
    else:
        path = write_jpeg_slide(tmp_path / "a.tif", [image, image[::4, ::4][:150, :200]], tile_px=128)
    with served(tmp_path) as far, open_slide(f"{far.url}/{path.name}") as there, open_slide(path) as here:
        assert (there.reader, there.vendor) == ("direct", here.vendor)
        assert there.fingerprint() == here.fingerprint()
        np.testing.assert_array_equal(there.read_region(0, 0, 803, 601), here.read_region(0, 0, 803, 601))


def test_a_scan_at_a_coarser_level_fetches_a_few_per_cent(picture: NDArray[np.uint8], tmp_path: Path) -> None:
    large = np.tile(picture, (2, 2, 1))
    levels = [large[::factor, ::factor] for factor in (1, 2, 4, 8)]
    written = write_jpeg_slide(tmp_path / "s.tif", levels, tile_px=128, tables="shared", mpp=MPP)
    options = OPTIONS | {"stride_px": 96}
    with served(tmp_path) as far:
        there = scan_darkness(f"{far.url}/s.tif", tmp_path / "there.zarr", **options)
    here = scan_darkness(written, tmp_path / "here.zarr", **options)
    assert there.result is not None
    assert there.result.complete
    np.testing.assert_array_equal(there.probability, here.probability)
    assert there.record.identity == here.record.identity
    places = [
        sum(min(stop, end) - max(start, at) for _, start, stop in far.requests if start < end and at < stop)
        for level in range(4)
        for tiles in [stored_tiles(written, level)]
        for at, end in [(tiles[0][0], sum(tiles[-1]))]
    ]
    finest, finer, read, _ = (count / written.stat().st_size for count in places)
    assert finest + finer < 0.03, "a tile of each is judged"
    assert read < 0.15, "level 2 is read once to be scanned, and some of it to be judged: this slide is a small one"
    assert (there.record.slide.file, there.record.slide.name) == ("s.tif", "s")


def test_no_tile_is_fetched_twice(far: Served) -> None:
    with open_slide(f"{far.url}/s.tif") as slide:
        before = far.sent
        windows = [(x, y, 150, 150) for y in range(0, 288, 96) for x in range(0, 384, 96)]
        slide.expect(0.972, windows)
        for window in windows:
            slide.read_at(0.972, *window)
        level = sum(length for _, length in stored_tiles(Path(far.folder / "s.tif"), level=2))
        assert far.sent - before <= level + 4096 * len(far.requests)
        assert slide.bytes_fetched == (far.sent, (far.folder / "s.tif").stat().st_size)


def test_neighbours_are_fetched_together(far: Served) -> None:
    with open_slide(f"{far.url}/s.tif") as slide:
        before = len(far.requests)
        slide.read_region(0, 0, 1024, 512)
        assert len(far.requests) - before == 8, "128 tiles in 8 rows"


def test_a_scan_goes_on_and_knows_its_slide_on_the_disk(far: Served, written: Path, tmp_path: Path) -> None:
    address, out = f"{far.url}/s.tif?token=secret", tmp_path / "h.zarr"

    def stop(_slide: object, done: int, whole: int) -> None:
        if done > whole / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_darkness(address, out, progress=stop, **OPTIONS)
    heatmap = scan_darkness(address, out, **OPTIONS)
    assert heatmap.finished
    assert scan_darkness(written, out, **OPTIONS).finished, "it is the same slide"
    draw_overlay(out, tmp_path / "there.png", slide=address, max_side=200)
    draw_overlay(out, tmp_path / "here.png", slide=written, max_side=200)
    assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()


def test_the_other_commands_take_addresses(far: Served, written: Path, tmp_path: Path) -> None:
    address = f"{far.url}/s.tif"
    there, here = info(address), info(written)
    assert {**there, "path": "", "compression": []} == {**here, "path": "", "compression": []}
    survey_tissue(address, out=tmp_path / "there.png")
    survey_tissue(written, out=tmp_path / "here.png")
    assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()
    with pytest.raises(OutputPathError):
        survey_tissue(address, out=tmp_path / "mask.xyz")
    table = tmp_path / "slides.csv"
    table.write_text(f"slide,name\n{address},far\n{written},near\n")
    assert [(str(slide.path), slide.name) for slide in find_slides([], manifest=table)] == [
        (address, "far"),
        (str(written), "near"),
    ]
    assert [slide.name for slide in find_slides([address, f"{far.url}/other%20one.svs?a=b#c"])] == ["s", "other one"]


def _run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_no_secret_is_written_anywhere(far: Served, model_file: Path, tmp_path: Path) -> None:
    address = far.url.replace("://", "://somebody:s3cr3t1@") + "/s.tif?X-Amz-Signature=s3cr3t2#s3cr3t3"
    tissue = tmp_path / "tissue.png"
    survey_tissue(f"{far.url}/s.tif", out=tissue)
    log = tmp_path / "scan.log"
    (tmp_path / "scans").mkdir()
    words = ["--model", model_file, "--device", "cpu", "--precision", "fp32", "--stride", 96, "--log-file", log, "--verbose"]
    for number, spoiled in enumerate((None, 403)):

        def spoil(_number: int, _start: int, _stop: int, spoiled: int | None = spoiled) -> int | None:
            return spoiled

        far.spoil = spoil
        done = _run("scan", address, "--out-dir", tmp_path / "scans" / str(number), *words)
        assert done.exit_code == (0 if spoiled is None else 1), done.output
        assert "s3cr3t" not in done.output
        assert f"{far.url}/s.tif" in done.output
    assert "MB fetched of" in log.read_text()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "run.toml" for path in files)
    assert any(path.name == "index.html" for path in files)
    for path in files:
        assert b"s3cr3t" not in path.read_bytes(), path
        assert b"somebody" not in path.read_bytes(), path


REFUSED: list[tuple[int | str, str]] = [
    (404, r"the server says 404 \(not found\)"),
    (403, r"the server says 403 \(not allowed\)"),
    (500, "the server says 500"),
    ("no ranges", "the server gives whole files only, no ranges of bytes"),
    ("page", "the server gives a web page"),
    ("cut", r"the server cannot be reached, or broke off \(ClientPayloadError\)"),
    ("other range", "the server gives other bytes than those that it was asked for"),
]


@pytest.mark.parametrize(("wrong", "told"), REFUSED, ids=[str(wrong) for wrong, _ in REFUSED])
def test_what_a_server_will_not_give_is_one_line(far: Served, wrong: int | str, told: str) -> None:
    far.spoil = lambda _number, _start, _stop: wrong
    with pytest.raises(SlideReadError, match=rf"^{far.url}/s\.tif: {told}; check the address, or download the slide$"):
        open_slide(f"{far.url}/s.tif?key=1")


def test_what_cannot_be_read_in_parts_is_one_line(tmp_path: Path) -> None:
    write_slide(tmp_path / "deflate.tif", texture(600, 600), levels=2)
    (tmp_path / "s.mrxs").write_bytes(b"\xff\xd8" + bytes(2000))
    (tmp_path / "empty.tif").touch()
    (tmp_path / "torn.tif").write_bytes(b"II*\0" + bytes(3000))
    write_jpeg_slide(tmp_path / "twins.tif", [texture(300, 300)] * 2)
    set_tag(write_jpeg_slide(tmp_path / "large.tif", [texture(300, 300)]), "TileLength", 2**31 - 16)
    cases = {
        "deflate.tif": r"tiles compressed with ADOBE_DEFLATE, not JPEG; OpenSlide reads such a slide from a local file only",
        "s.mrxs": r"no TIFF; OpenSlide reads slides of this kind from local files only; download it first$",
        "empty.tif": "an empty file",
        "large.tif": "page 0 .*; the file is damaged; copy the slide again, or convert it$",
        "torn.tif": r"cannot be read in parts \(not a slide that .*\); expected a TIFF of JPEG tiles; download it$",
    }
    with served(tmp_path) as far:
        for name, told in cases.items():
            with pytest.raises(SlideReadError, match=rf"^{far.url}/{name}: .*{told}") as caught:
                open_slide(f"{far.url}/{name}")
            assert "\n" not in str(caught.value)
        with pytest.raises(SlideReadError, match="OpenSlide reads local files only; leave --reader out"):
            open_slide(f"{far.url}/twins.tif", reader="openslide")


def test_addresses_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/s.tif"
        with pytest.raises(SlideReadError, match=rf"^{address}: the server cannot be reached, or broke off"):
            open_slide(address)
    for wrong, told in [
        ("ftp://h/s.tif", "of another kind; expected http://"),
        ("https://h/", "names no file"),
        ("https://h/..", "names no file"),
        ("s3:///k", "no"),
    ]:
        with pytest.raises(SlideReadError, match=f"{wrong}: an address .*{told}"):
            open_slide(wrong)
    with pytest.raises(SlideReadError, match=r"^http://\.\.\.: no address"):
        open_slide("http://user:secret@[::1/s.tif")
    with pytest.raises(SlideReadError, match=r"^http://a\.\.b/s\.tif: (no address of the web|the server cannot be reached)"):
        open_slide("http://a..b/s.tif")
    for package, address in [("aiohttp", "https://h/s.tif"), ("s3fs", "s3://b/s.tif"), ("fsspec", "http://h/s.tif")]:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(SlideReadError, match=rf"^{address}: .*needs {package}: pip install .wsi-meta.cloud.., or"):
            open_slide(address)
        monkeypatch.undo()


def test_a_part_that_does_not_come_is_asked_for_again(far: Served, written: Path) -> None:
    for wrong in (503, "cut"):
        seen: list[int] = []

        def spoil(_number: int, start: int, _stop: int, wrong: int | str = wrong, seen: list[int] = seen) -> int | str | None:
            seen.append(start)
            return wrong if seen.count(start) == 1 and len(set(seen)) % 5 == 1 else None

        far.spoil = spoil
        with open_slide(f"{far.url}/s.tif") as there, open_slide(written) as here:
            np.testing.assert_array_equal(there.read_region(0, 0, 256, 256), here.read_region(0, 0, 256, 256))


@pytest.mark.parametrize("nested", [True, False])
def test_a_slide_is_opened_whole_or_not_at_all(tmp_path: Path, nested: bool) -> None:
    """A page that did not come ended the list of pages: a level was missing, and the slide counted as another one."""
    image = texture(640, 640)
    write_jpeg_slide(tmp_path / "s.tif", [image, image[::2, ::2], image[::4, ::4]], nested=nested)
    with served(tmp_path) as far:
        with open_slide(f"{far.url}/s.tif") as whole:
            known = whole.level_dimensions, whole.fingerprint()
        for first in range(2, 7):
            far.requests.clear()
            far.spoil = lambda number, *_, first=first: 403 if number == first else None
            with suppress(SlideReadError), open_slide(f"{far.url}/s.tif") as slide:
                assert (slide.level_dimensions, slide.fingerprint()) == known
        if nested:  # without a quickhash
            far.spoil = lambda *_: None
            with open_slide(f"{far.url}/s.tif") as slide:
                far.spoil = lambda *_: 403
                with pytest.raises(SlideReadError, match=rf"^{far.url}/s\.tif: cannot be told from other slides .* 403 "):
                    slide.fingerprint()


def test_a_tile_that_never_comes_is_unreadable(far: Served, written: Path, tmp_path: Path) -> None:
    offset, _ = stored_tiles(written, level=2)[9]
    far.spoil = lambda _number, start, stop: 403 if start <= offset < stop and start > 20_000 else None
    heatmap = scan_darkness(f"{far.url}/s.tif", tmp_path / "h.zarr", **OPTIONS)
    whole = scan_darkness(written, tmp_path / "whole.zarr", **OPTIONS)
    unread = heatmap.status == Status.UNREADABLE
    assert 0 < unread.sum() < unread.size / 2
    assert heatmap.result is not None
    assert not heatmap.result.complete
    np.testing.assert_array_equal(heatmap.probability[~unread], whole.probability[~unread])
    assert np.isnan(heatmap.probability[unread]).all()


@pytest.mark.parametrize("tags", [True, False])
def test_a_slide_that_is_replaced_meanwhile_is_told(tmp_path: Path, picture: NDArray[np.uint8], tags: bool) -> None:
    path = write_jpeg_slide(tmp_path / "s.tif", [picture[:768, :768]], tile_px=128)
    with served(tmp_path) as far:
        far.tags = tags
        with open_slide(f"{far.url}/s.tif") as slide:
            slide.read_region(0, 0, 200, 200)
            write_jpeg_slide(path, [255 - picture[:768, :768]], tile_px=128)
            if not tags:
                path.write_bytes(path.read_bytes() + b"one more")
            with pytest.raises(SlideReplacedError, match=rf"{far.url}/s\.tif: the slide was replaced"):
                slide.read_region(400, 400, 200, 200)
            with pytest.raises(SlideReplacedError):
                slide.read_region(0, 400, 200, 200)


def test_damage_at_an_address_is_damage_on_the_disk(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    path = write_jpeg_slide(tmp_path / "s.tif", [picture[:512, :512]], tile_px=128)
    damage_tile(path, 5)
    with served(tmp_path) as far, open_slide(f"{far.url}/s.tif") as there, open_slide(path) as here:
        for slide in (there, here):
            with pytest.raises(SlideReadError, match=r"s\.tif: cannot be decoded at x=130 y=130 level 0"):
                slide.read_region(130, 130, 20, 20)
        np.testing.assert_array_equal(there.read_region(256, 0, 256, 256), here.read_region(256, 0, 256, 256))


def test_parts_ahead_are_bounded_and_those_that_failed_are_told(far: Served) -> None:
    remote = RemoteFile(Address(f"{far.url}/s.tif"))
    content = (far.folder / "s.tif").read_bytes()
    parts = [(offset, 1000) for offset in range(20_000, 60_000, 2000)]
    remote.prefetch(parts)
    assert [remote.read(*part) for part in parts] == [content[offset : offset + 1000] for offset, _ in parts]
    assert len(far.requests) == 2, "they lie side by side"
    assert remote.read(len(content) - 10, 100) == content[-10:]
    far.spoil = lambda _number, _start, _stop: 404
    remote.prefetch([(70_000, 10)])
    with pytest.raises(OSError, match="404"):
        remote.read(70_000, 10)


def test_a_busy_server_is_asked_again_when_it_says(far: Served) -> None:
    remote = RemoteFile(Address(f"{far.url}/s.tif"), answer_s=0.5)
    refused: list[float] = []

    def spoil(*_: int) -> int | None:
        refused.append(time.monotonic())
        return 429 if refused[-1] - refused[0] < 0.4 else None

    far.spoil, far.refusing = spoil, {"Retry-After": "3600"}
    assert remote.read(20_000, 10) == (far.folder / "s.tif").read_bytes()[20_000:20_010]
    assert len(refused) == 2, "at the latest after as long as an answer may take"


def test_a_silent_server_is_not_waited_for_at_each_part(far: Served) -> None:
    """A scan took days to tell that nothing more came."""
    remote = RemoteFile(Address(f"{far.url}/s.tif"), answer_s=0.2)
    far.spoil = lambda *_: "silent"
    parts = [(offset, 10) for offset in range(20_000, 70_000, 10_000)]
    remote.prefetch(parts)
    for part in parts:
        with pytest.raises(OSError, match=r"no answer in 0\.2 s"):
            remote.read(*part)
    asked = len(far.requests)
    for _ in range(20):
        with pytest.raises(OSError, match="no answer to those before"):
            remote.read(20_000, 10)
    assert len(far.requests) == asked
    far.spoil = lambda *_: None
    time.sleep(0.2)
    assert remote.read(20_000, 10) == (far.folder / "s.tif").read_bytes()[20_000:20_010], "it answers again"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_slide_is_read_in_a_process_that_was_forked_off(far: Served, written: Path) -> None:
    """It waited for ever for the other process."""
    with open_slide(f"{far.url}/s.tif") as there, open_slide(written) as here:
        expected = here.read_region(0, 0, 256, 256)
        there.read_region(512, 512, 64, 64)
        if (child := os.fork()) == 0:
            signal.alarm(20)
            os._exit(0 if np.array_equal(there.read_region(0, 0, 256, 256), expected) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def object_store(far: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """An endpoint of one's own, as stores on premises are."""
    s3fs = pytest.importorskip("s3fs")
    s3fs.S3FileSystem.clear_instance_cache()
    for name, value in [("ENDPOINT_URL", far.url), ("EC2_METADATA_DISABLED", "true"), ("DEFAULT_REGION", "us-east-1")]:
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/none")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
    yield far
    s3fs.S3FileSystem.clear_instance_cache()
    gc.collect()  # s3fs closes a session where it is collected: in another event loop, with an error in a later test


def test_an_object_store(object_store: Served, written: Path) -> None:
    """Path-style requests."""
    bucket = written.parent / "bucket"
    bucket.mkdir(exist_ok=True)
    (bucket / "s.tif").write_bytes(written.read_bytes())
    with open_slide("s3://bucket/s.tif") as there, open_slide(written) as here:
        assert there.fingerprint() == here.fingerprint()
        np.testing.assert_array_equal(there.read_at(0.972, 0, 0, 300, 200), here.read_at(0.972, 0, 0, 300, 200))
        assert object_store.sent < written.stat().st_size / 4
    with pytest.raises(SlideReadError, match=r"^s3://bucket/none\.tif: no such object"):
        open_slide("s3://bucket/none.tif")
