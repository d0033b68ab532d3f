"""OME-Zarr images as slides: chunk by chunk, and what is missing is never normal."""

from __future__ import annotations

import errno
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from fakes import scan_darkness
from numpy.typing import NDArray
from range_server import served
from slide_files import texture, write_slide
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from wsi_meta import info, open_slide
from wsi_meta.cli import main
from wsi_meta.cohorts.inputs import find_slides
from wsi_meta.errors import SlideReadError
from wsi_meta.heatmaps.store import Status
from wsi_meta.slides.slide import Slide

MPP = 0.486
FACTORS = (1, 2, 4)


def write_zarr(
    folder: Path,
    image: NDArray[np.uint8],
    *,
    version: int = 3,
    axes: str = "cyx",
    chunk: int = 64,
    colours: int = 3,
    unit: str | None = "micrometer",
    factors: tuple[int, ...] = FACTORS,
    inside: str = "",
    **options: Any,
) -> Path:
    """Write an OME-Zarr image: NGFF 0.5 on zarr 3, or 0.4 on zarr 2."""
    root = zarr.create_group(folder, zarr_format=version)  # type: ignore[arg-type]
    group = root.create_group(inside) if inside else root
    kinds = {"c": "channel", "t": "time"}
    told = [
        {"name": axis, "type": kinds.get(axis, "space")} | ({"unit": unit} if axis in "yx" and unit else {}) for axis in axes
    ]
    steps: list[dict[str, Any]] = []
    for number, factor in enumerate(factors):
        level = image[::factor, ::factor]
        ordered = level.transpose(["yxc".index(axis) for axis in axes if axis in "yxc"])
        ordered = ordered.reshape([1 if axis not in "yxc" else level.shape["yxc".index(axis)] for axis in axes])
        chunks = tuple({"y": chunk, "x": chunk, "c": colours}.get(axis, 1) for axis in axes)
        array = group.create_array(str(number), shape=ordered.shape, chunks=chunks, dtype=image.dtype, **options)
        array[:] = ordered
        scale = [MPP * factor if axis in "yx" else 1.0 for axis in axes]
        steps.append({"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    multiscales: list[Any] = [{"axes": told, "datasets": steps, "version": "0.4"}]
    group.attrs.update(
        {"ome": {"version": "0.5", "multiscales": multiscales}} if version == 3 else {"multiscales": multiscales}
    )
    if inside:
        layout: dict[str, Any] = {"bioformats2raw.layout": 3}
        root.attrs.update({"ome": {"version": "0.5", **layout}} if version == 3 else layout)
    return folder


def chunks_of(folder: Path, level: int = 0) -> list[Path]:
    files = sorted(path for path in (folder / str(level)).rglob("*") if path.is_file())
    return [path for path in files if not path.name.startswith((".z", "zarr"))]


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return texture(300, 420, seed=21)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"version": 2},
        {"colours": 1},
        {"axes": "yxc"},
        {"axes": "tczyx", "version": 2, "colours": 1},
        {"shards": (3, 128, 128)},
        pytest.param({"compressors": BloscCodec()}, id="blosc"),
        {"compressors": None},
        {"inside": "0"},
        {"inside": "0", "version": 2},
        {"chunk": 1000},
    ],
    ids=str,
)
def test_every_layout_is_read_as_it_was_written(tmp_path: Path, image: NDArray[np.uint8], options: dict[str, Any]) -> None:
    image = image[:150, :220]
    with open_slide(write_zarr(tmp_path / "s.ome.zarr", image, **options)) as slide:
        assert (slide.name, slide.reader, slide.vendor, slide.mpp) == ("s", "zarr", "ome-zarr", MPP)
        assert slide.reader_reason == "an OME-Zarr image of 3 levels"
        assert list(slide.level_downsamples) == [*FACTORS]
        for level, (width, height) in enumerate(slide.level_dimensions):
            factor = FACTORS[level]
            np.testing.assert_array_equal(slide.read_region(0, 0, width, height, level=level), image[::factor, ::factor])
        np.testing.assert_array_equal(slide.read_at(2 * MPP, 25, 10, 80, 60), image[20:140:2, 50:210:2])


@pytest.mark.parametrize(("unit", "mpp"), [("micrometer", MPP), ("millimeter", MPP * 1000), (None, None), ("pixel", None)])
def test_the_unit_counts(tmp_path: Path, image: NDArray[np.uint8], unit: str | None, mpp: float | None) -> None:
    path = write_zarr(tmp_path / "s.zarr", image, unit=unit)
    with open_slide(path) as slide:
        if mpp is None or mpp > 50:
            assert "pass --mpp" in str(slide.mpp_problem)
            assert ("has the unit 'pixel', which is none of length; pass" in str(slide.mpp_problem)) == (unit == "pixel")
        else:
            assert slide.mpp == mpp
    with open_slide(path, mpp=0.5) as slide:
        assert slide.mpp == 0.5


def test_it_is_scanned_as_its_pixels_are(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    path = write_zarr(tmp_path / "s.ome.zarr", image)
    plain = Slide.from_array(image[::2, ::2], mpp=2 * MPP)
    settings: dict[str, Any] = {"tissue_mask": "none"}
    heatmap = scan_darkness(path, tmp_path / "h.zarr", **settings)
    np.testing.assert_array_equal(heatmap.probability, scan_darkness(plain, tmp_path / "p.zarr", **settings).probability)
    assert (heatmap.record.identity.reader, heatmap.record.slide.file) == ("zarr", "s.ome.zarr")
    assert info(path)["kind"] == "slide"
    assert info(tmp_path / "h.zarr")["kind"] == "heatmap"
    shutil.copytree(path, tmp_path / "copy.ome.zarr")
    with open_slide(path) as one, open_slide(tmp_path / "copy.ome.zarr") as other:
        assert one.fingerprint() == other.fingerprint()
    with open_slide(write_zarr(tmp_path / "other.zarr", 255 - image)) as other:
        assert other.fingerprint() != heatmap.record.identity.slide


@pytest.mark.parametrize("stated", [2.0, 0.0, -1.0, float("nan")])
def test_the_sizes_of_levels_count_and_not_what_is_said_of_them(
    tmp_path: Path, image: NDArray[np.uint8], stated: float
) -> None:
    """At a wrong scale tissue would be sought at wrong places, and glass be seen beyond the level's edge."""
    path = write_zarr(tmp_path / "s.zarr", image, factors=(1, 3))
    group = zarr.open_group(path)
    attributes: Any = dict(group.attrs)
    steps = attributes["ome"]["multiscales"][0]["datasets"][1]["coordinateTransformations"]
    steps[0]["scale"] = [1.0, stated * MPP, stated * MPP]
    group.attrs.update(attributes)
    with open_slide(path) as slide:
        assert slide.level_downsamples == (1.0, 3.0)
        np.testing.assert_array_equal(slide.read_at(3 * MPP, 0, 0, 140, 100), image[::3, ::3])


def test_two_images_that_differ_below_their_upper_edge_are_two(tmp_path: Path) -> None:
    pixels = texture(320, 320, seed=3)
    other = pixels.copy()
    other[224:] = 255 - other[224:]
    paths = [write_zarr(tmp_path / f"{n}.zarr", image, factors=(1,), chunk=32) for n, image in enumerate((pixels, other))]
    with open_slide(paths[0]) as one, open_slide(paths[1]) as two:
        assert one.fingerprint() != two.fingerprint()


def test_an_image_at_an_address_may_be_closed_while_another_thread_reads(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    write_zarr(tmp_path / "s.zarr", image, factors=(1,), chunk=96)
    begun = threading.Event()

    def slowly(_number: int, _start: int, _stop: int) -> None:
        begun.set()
        time.sleep(0.05)

    with served(tmp_path) as far, open_slide(f"{far.url}/s.zarr") as there, ThreadPoolExecutor(1) as pool:
        far.spoil = slowly
        begun.clear()
        read = pool.submit(there.read_region, 0, 0, 420, 300)
        assert begun.wait(20)
        there.close()
        np.testing.assert_array_equal(read.result(), image)


@pytest.mark.parametrize(
    ("options", "fill"),
    [
        *(({}, fill) for fill in (0, 255, 1, 2)),
        *(({"version": 2}, fill) for fill in (0, 255)),
        *(({"shards": (3, 64, 64)}, fill) for fill in (0, 255)),
        ({"colours": 1}, 0),
    ],
    ids=str,
)
def test_a_missing_chunk_is_unreadable_whatever_the_fill_value(
    tmp_path: Path, image: NDArray[np.uint8], options: dict[str, Any], fill: int
) -> None:
    path = write_zarr(tmp_path / "s.zarr", image, fill_value=fill, factors=(1,), **options)
    chunks_of(path)[8 if "colours" not in options else 43].unlink()
    with open_slide(path) as slide:
        with pytest.raises(
            SlideReadError, match=r"s\.zarr: cannot be decoded at x=0 y=0 level 0 \(chunk at row 1, column 1 is not"
        ):
            slide.read_region(0, 0, 420, 300)
        np.testing.assert_array_equal(slide.read_region(128, 0, 200, 300), image[:, 128:328])


def test_blank_chunks_are_read_where_they_are_stored(tmp_path: Path) -> None:
    for value in (0, 1, 2, 255):
        image = np.full((130, 130, 3), value, np.uint8)
        path = write_zarr(tmp_path / f"{value}.zarr", image, config={"write_empty_chunks": True}, fill_value=value)
        with open_slide(path) as slide:
            np.testing.assert_array_equal(slide.read_region(0, 0, 130, 130), image)


@pytest.mark.parametrize("codec", [BloscCodec(), GzipCodec(), ZstdCodec(), None], ids=lambda codec: type(codec).__name__)
@pytest.mark.parametrize("noise", [False, True], ids=["tissue", "noise"])
def test_a_chunk_that_was_cut_is_unreadable(tmp_path: Path, image: NDArray[np.uint8], codec: Any, noise: bool) -> None:
    """Blosc stores noise as it is, and its decoder reads on beyond the end of what was cut."""
    image = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8) if noise else image[:150, :200]
    path = write_zarr(tmp_path / "s.zarr", image, compressors=codec, factors=(1,))
    chunk = chunks_of(path)[5]
    whole = chunk.read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 1):
        chunk.write_bytes(whole[:kept])
        with open_slide(path) as slide:
            with pytest.raises(SlideReadError, match="cannot be decoded at x=64 y=64"):
                slide.read_region(64, 64, 64, 64)
            np.testing.assert_array_equal(slide.read_region(128, 0, 72, 150), image[:, 128:])


def test_a_cut_chunk_of_zarr_2_with_blosc_is_unreadable(tmp_path: Path) -> None:
    from numcodecs import Blosc

    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    path = write_zarr(tmp_path / "s.zarr", image, version=2, compressors=Blosc(), factors=(1,))
    chunk = chunks_of(path)[5]
    chunk.write_bytes(chunk.read_bytes()[:-500])
    with open_slide(path) as slide, pytest.raises(SlideReadError, match=r"a chunk of 11,\d+ bytes; expected 12,304"):
        slide.read_region(0, 0, 200, 200)


def test_cells_over_missing_chunks_are_told(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    path = write_zarr(tmp_path / "s.zarr", image)
    for level in (0, 1):
        chunks_of(path, level)[4].unlink()
    heatmap = scan_darkness(path, tmp_path / "h.zarr", tissue_mask="none")
    assert heatmap.result is not None
    assert not heatmap.result.complete
    unread = heatmap.status == Status.UNREADABLE
    assert 0 < unread.sum() < unread.size
    assert np.isnan(heatmap.probability[unread]).all()


def test_what_is_no_slide_is_one_line(tmp_path: Path, image: NDArray[np.uint8], model_file: Path) -> None:
    heat = scan_darkness(write_slide(tmp_path / "s.tif", image), tmp_path / "h.zarr", tissue_mask="none").path
    with pytest.raises(
        SlideReadError, match=rf"^{heat}: a heatmap of wsi-meta; expected a slide: the one that it was made from$"
    ):
        open_slide(heat)
    told = CliRunner().invoke(main, ["scan", str(heat), "--out", str(tmp_path / "x.zarr"), "--model", str(model_file)])
    assert (told.exit_code, "a heatmap of wsi-meta; expected a slide" in told.output) == (1, True)
    deep = write_zarr(tmp_path / "deep.zarr", image.astype(np.uint16), factors=(1,))
    four = write_zarr(tmp_path / "four.zarr", np.dstack([image, image[..., :1]]), factors=(1,), colours=4)
    grey = write_zarr(tmp_path / "grey.zarr", image[..., :1], factors=(1,), colours=1)
    for path, words in [(deep, "uint16 with axes c, y, x; expected uint8"), (four, "4 c x"), (grey, "1 c x")]:
        with pytest.raises(SlideReadError, match=rf"^{path}: array 0 is .*{words}"):
            open_slide(path)
    zarr.create_group(tmp_path / "bare.zarr")
    (tmp_path / "torn.zarr").mkdir()
    (tmp_path / "torn.zarr" / "zarr.json").write_text("{")
    (tmp_path / "none.zarr").mkdir()
    for name in ("bare", "torn", "none"):
        with pytest.raises(
            SlideReadError, match=rf"{name}\.zarr: no OME-Zarr image that can be read \(.*\); expected NGFF"
        ) as caught:
            open_slide(tmp_path / f"{name}.zarr")
        assert "\n" not in str(caught.value)
    with pytest.raises(SlideReadError, match="no such file"):
        open_slide(tmp_path / "gone.zarr")
    with pytest.raises(SlideReadError, match="expected another file for the reader 'openslide'"):
        open_slide(deep, reader="openslide")
    with pytest.raises(SlideReadError, match="expected the folder of an OME-Zarr image"):
        open_slide(tmp_path / "s.tif", reader="zarr")


def test_a_folder_of_slides_may_hold_images_and_heatmaps(
    tmp_path: Path, image: NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    write_zarr(tmp_path / "one.ome.zarr", image)
    write_zarr(tmp_path / "two.zarr", image, version=2)
    write_slide(tmp_path / "three.tif", image)
    scan_darkness(tmp_path / "three.tif", tmp_path / "three.zarr", tissue_mask="none")
    names = [slide.name for slide in find_slides([tmp_path])]
    assert names == ["one", "three", "two"]
    assert "1 folder not read (three.zarr)" in caplog.text
    assert [slide.name for slide in find_slides([tmp_path / "*.zarr"])] == ["one", "two"]
    assert [slide.name for slide in find_slides([tmp_path], extensions=[".tif"])] == ["three"]
    assert find_slides([tmp_path / "one.ome.zarr"])[0].given


def test_an_image_at_an_address(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    path = write_zarr(tmp_path / "s.ome.zarr", image)
    with served(tmp_path) as far:
        with open_slide(f"{far.url}/s.ome.zarr") as there, open_slide(path) as here:
            assert (there.name, there.fingerprint()) == ("s", here.fingerprint())
            far.requests.clear()
            np.testing.assert_array_equal(there.read_at(0.972, 0, 0, 210, 150), here.read_at(0.972, 0, 0, 210, 150))
            assert {asked.split("/")[2] for asked, _, _ in far.requests} == {"1"}, "level 1 alone"
            chunks_of(path)[8].unlink()
            with pytest.raises(SlideReadError, match="chunk at row 1, column 1 is not there"):
                there.read_region(0, 0, 420, 300)
            far.spoil = lambda _number, _start, _stop: 500
            with pytest.raises(SlideReadError, match=r"cannot be decoded at x=256 y=256 level 0"):
                there.read_region(256, 256, 64, 40)
            far.spoil = lambda _number, _start, _stop: None
            np.testing.assert_array_equal(there.read_region(256, 256, 64, 40), image[256:296, 256:320])
        with pytest.raises(SlideReadError, match=r"/none\.zarr: no OME-Zarr image that can be read"):
            open_slide(f"{far.url}/none.zarr")
        with pytest.raises(SlideReadError, match=r"/s\.zarr: an OME-Zarr at an address with a query"):
            open_slide(f"{far.url}/s.zarr?token=secret")


@pytest.mark.parametrize("wrong", [503, 429, "cut"])
@pytest.mark.parametrize("options", [{}, {"shards": (3, 64, 64)}], ids=["chunks", "shards"])
def test_a_chunk_that_does_not_come_now_makes_no_other_slide(
    tmp_path: Path, image: NDArray[np.uint8], wrong: int | str, options: dict[str, Any]
) -> None:
    """With its part of the fingerprint left out, a scan that was begun before could not be continued."""
    path = write_zarr(tmp_path / "s.zarr", image, factors=(1,), **options)
    with served(tmp_path) as far:
        far.spoil = lambda _number, _start, _stop: wrong if "/0/c/" in far.requests[-1][0] else None
        with pytest.raises(
            SlideReadError, match=r"/s\.zarr: could not be read now \(chunk at row 0, .*\); try again"
        ) as caught:
            open_slide(f"{far.url}/s.zarr")
        assert "\n" not in str(caught.value)
        far.spoil = lambda _number, _start, _stop: 503
        with pytest.raises(SlideReadError, match=r"/s\.zarr: could not be read now \(.*\); try again"):
            open_slide(f"{far.url}/s.zarr")
        first = chunks_of(path)[0]
        first.rename(tmp_path / "kept")
        with open_slide(path) as here:
            missing = here.fingerprint()
        (tmp_path / "kept").rename(first)
        answers = [403, 404]
        far.spoil = lambda _number, _start, _stop: answers[-1] if far.requests[-1][0].endswith("/0/0/0") else None
        while answers:
            with open_slide(f"{far.url}/s.zarr") as there:
                assert there.fingerprint() == missing, "what is not there stays so"
            answers.pop()


def test_a_disk_that_fails_makes_no_other_slide(
    tmp_path: Path, image: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zarr(tmp_path / "s.zarr", image)
    whole = Path.read_bytes

    def failing(file: Path) -> bytes:
        if file.parent.parent.name == "0" and "c" in file.parts:
            raise OSError(errno.EIO, "Input/output error")
        return whole(file)

    with open_slide(path) as slide:
        told = slide.fingerprint()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", failing)
        with pytest.raises(SlideReadError, match=r"s\.zarr: could not be read now \(chunk .*Input/output error\); try again"):
            open_slide(path)
    with open_slide(path) as slide:
        assert slide.fingerprint() == told


def add_series(path: Path, name: str, image: NDArray[np.uint8], *, version: int, called: str = "") -> None:
    """Write a further picture into an OME-Zarr that is laid out as by bioformats2raw."""
    other = write_zarr(path.parent / f"{name}.part", image, version=version)
    group = zarr.open_group(other)
    attributes: Any = dict(group.attrs)
    attributes.get("ome", attributes)["multiscales"][0]["name"] = called
    group.attrs.update(attributes)
    other.rename(path / name)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("listed", [False, True])
def test_another_series_that_is_as_large_is_refused(
    tmp_path: Path, image: NDArray[np.uint8], version: int, listed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Tissue on it would be missing from a map that is called complete."""
    image = image[:150, :220]
    path = write_zarr(tmp_path / "s.zarr", image, version=version, inside="0")
    names = ["1", "second" if listed else "2"]
    add_series(path, names[0], image[:50], version=version, called="macro image")
    if listed:
        told: dict[str, Any] = {"series": ["0", *names]}
        listing = zarr.open_group(path).create_group("OME")
        listing.attrs.update({"ome": {"version": "0.5", **told}} if version == 3 else told)
    with served(tmp_path) as far:
        for place in (path, f"{far.url}/s.zarr"):
            with open_slide(place) as slide:
                assert (slide.width, slide.height) == (220, 150)
        assert "picture" not in caplog.text
        add_series(path, names[1], image, version=version)
        answers = [503, 403]
        far.spoil = lambda _number, _start, _stop: answers[-1] if f"/s.zarr/{names[1]}/" in far.requests[-1][0] else None
        open_slide(f"{far.url}/s.zarr").close()  # some servers say so of what is not there
        answers.pop()
        with pytest.raises(SlideReadError, match=r"could not be read now"):
            open_slide(f"{far.url}/s.zarr")
        far.spoil = lambda _number, _start, _stop: None
        for place in (path, f"{far.url}/s.zarr"):
            with pytest.raises(SlideReadError, match=rf"^{place}: 3 pictures \(220 x 150 px, 'macro image' 220 x 50 px, 220"):
                open_slide(place)


@pytest.mark.parametrize("damaged", ["1/0/.zarray", "1/.zattrs", "1/.zattrs axes", "OME/.zattrs"])
def test_a_damaged_label_costs_the_slide_nothing(tmp_path: Path, image: NDArray[np.uint8], damaged: str) -> None:
    image = image[:150, :220]
    path = write_zarr(tmp_path / "s.zarr", image, version=2, inside="0")
    add_series(path, "1", image[:50], version=2, called="label image")
    zarr.open_group(path).create_group("OME").attrs.update({"series": ["0", "1"]})
    name, _, part = damaged.partition(" ")
    text = (path / name).read_text()
    (path / name).write_text(text.replace(f'"{part}"', '"lost"') if part else text[:10])
    with served(tmp_path) as far:
        for place in (path, f"{far.url}/s.zarr"):
            with open_slide(place) as slide:
                np.testing.assert_array_equal(slide.read_region(0, 0, 220, 150), image)


def test_another_picture_beside_the_first_counts_and_the_same_in_other_words_does_not(
    tmp_path: Path, image: NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_zarr(tmp_path / "s.zarr", image)
    group = zarr.open_group(path)
    attributes: Any = dict(group.attrs)
    first = attributes["ome"]["multiscales"][0]
    group.create_array("other", data=np.ascontiguousarray(image[:200].transpose(2, 0, 1)))
    other = {**first, "name": "two", "datasets": [{**first["datasets"][0], "path": "other"}]}
    coarser = {**first, "name": "level", "datasets": first["datasets"][1:]}
    assert coarser["datasets"]
    torn = {**first, "name": "torn", "datasets": [{"path": "none"}]}
    for further, told in (
        ({**first, "name": "again"}, []),
        (coarser, []),
        (torn, []),
        (other, ["not 'two' 420 x 200 px"]),
    ):
        attributes["ome"]["multiscales"] = [first, further]
        group.attrs.update(attributes)
        open_slide(path).close()
        assert [line for line in told if line not in caplog.text] == []
        assert len(caplog.messages) == len(told)
