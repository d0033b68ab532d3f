"""What a command finds to scan, what it passes over, and the settings that a manifest gives each slide."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import DarknessPredictor, shifted
from fuzzing.dicom import write_dicom
from openslide import OpenSlide
from PIL import Image
from slide_files import texture, write_slide
from stores import write_store

from wsi_meta.cohorts.batch import scan_batch, scan_slides
from wsi_meta.cohorts.inputs import SlideInput, find_slides, read_scan_manifest
from wsi_meta.cohorts.jobs import SlideSettings
from wsi_meta.cohorts.request import Request
from wsi_meta.dicom.series import WHOLE_SLIDE_IMAGE, dicom_series
from wsi_meta.errors import DataError, OptionsError, OutputPathError, SlideReadError
from wsi_meta.files.address import Address
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.models.model import Model
from wsi_meta.scanning.scanner import Scanner
from wsi_meta.slides.slide import open_slide
from wsi_meta.worklist.summary import add_row, summarise

UNDEFINED = 0xFFFFFFFF


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """An empty folder in which the test runs."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield Path()
    os.chdir(before)


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")


def test_one_path_is_one_input_and_one_ending_one(here: Path) -> None:
    touch("a.svs", "b.tif")
    assert find_slides("a.svs") == find_slides(here / "a.svs") == find_slides(["a.svs"])
    assert [slide.name for slide in find_slides(str(here), extensions=".tif")] == ["b"]


def element(number: int, kind: bytes, value: bytes, length: int | None = None, *, implicit: bool = False) -> bytes:
    """An element of a DICOM file; without a kind it is an item, or a mark, of a sequence."""
    length = len(value) if length is None else length
    head = struct.pack("<HH", number >> 16, number & 0xFFFF)
    if implicit or not kind:
        return head + struct.pack("<I", length) + value
    return head + kind + (struct.pack("<HI", 0, length) if kind in (b"SQ", b"OB") else struct.pack("<H", length)) + value


def write_part(path: str, series: str, *, more: int = 0, implicit: bool = False, kind: bytes = WHOLE_SLIDE_IMAGE) -> Path:
    """The head of a DICOM file, before whose series' number stand sequences with another series' number."""
    syntax = b"1.2.840.10008.1.2" if implicit else b"1.2.840.10008.1.2.1"
    other = element(0x0020000E, b"UI", b"9.9.9\0", implicit=implicit)
    open_item = element(0xFFFEE000, b"", other, UNDEFINED) + element(0xFFFEE00D, b"", b"")
    closed_item = element(0xFFFEE000, b"", other)
    sequences = b"".join(
        element(0x00081115, b"SQ", content, length, implicit=implicit)
        for content, length in (
            (open_item + closed_item + element(0xFFFEE0DD, b"", b""), UNDEFINED),
            (closed_item, None),
            (element(0xFFFEE0DD, b"", b""), UNDEFINED),
        )
    )
    content = (
        bytes(128)
        + b"DICM"
        + element(0x00020001, b"OB", b"\0\1")
        + element(0x00020002, b"UI", kind)
        + element(0x00020010, b"UI", syntax)
        + sequences
        + element(0x0020000E, b"UI", series.encode() + b"\0", implicit=implicit)
        + element(0x00280010, b"US", bytes(2), implicit=implicit)
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content + bytes(more))
    return Path(path)


def names(found: list[SlideInput]) -> list[str]:
    return [slide.name for slide in found]


@pytest.mark.usefixtures("here")
class TestFolders:
    def test_a_folder_gives_its_slides_by_name_and_tells_what_it_leaves(self, caplog: pytest.LogCaptureFixture) -> None:
        touch("s/b.SVS", "s/a.tif", "s/notes.txt", "s/._a.tif", "s/x.csv", "s/y.csv", "s/sub/c.tif", "s/scans.zarr/zarr.json")
        assert names(find_slides(["s"])) == ["a", "b"]
        files, folders = (record.getMessage() for record in caplog.records)
        assert files.startswith("s: 4 files not read (._a.tif, notes.txt, x.csv, ...); expected .bif, ")
        assert folders == "s: 2 folders not read (scans.zarr, sub); --recursive reads slides in them"
        caplog.clear()
        assert names(find_slides(["s"], recursive=True)) == ["a", "b", "c"]
        assert "1 folder not read (scans.zarr)" in caplog.text
        assert names(find_slides(["s"], extensions=["csv", ".TXT"])) == ["notes", "x", "y"]
        touch("o/a.ome.tif", "o/b.tif", "o/c.OME.TIF")
        assert {slide.path for slide in find_slides(["o"], extensions=[".ome.tif"])} == {
            Path("o/a.ome.tif"),
            Path("o/c.OME.TIF"),
        }

    def test_what_is_clean_is_told_nothing_of(self, caplog: pytest.LogCaptureFixture) -> None:
        touch("s/a.tif", "s/b.ndpi")
        assert names(find_slides(["s"], recursive=True)) == ["a", "b"]
        assert caplog.records == []

    def test_no_slide_at_all(self) -> None:
        touch("s/notes.txt")
        with pytest.raises(DataError, match=r"s: no slides; expected \.bif, "):
            find_slides(["s"])
        with pytest.raises(DataError, match=r"s/\*\.svs: nothing has such a name"):
            find_slides(["s/*.svs"])

    def test_folders_that_lead_back(self) -> None:
        touch("s/a.tif", "s/sub/b.tif")
        for number in range(8):  # each way round would double the folders
            Path(f"s/sub/up{number}").symlink_to(Path("s").absolute())
        Path("mounted").symlink_to(Path("s").absolute())
        for given in ("s", "mounted", "mounted/sub"):
            assert sorted(names(find_slides([given], recursive=True))) == ["a", "b"]
        for pattern in ("mounted/**/*.tif", "mounted/**", "**/?.tif", str(Path("s/**/**/[ab].tif").absolute())):
            assert sorted(names(find_slides([pattern]))) == ["a", "b"]

    def test_patterns(self, caplog: pytest.LogCaptureFixture) -> None:
        touch("s/a.tif", "s/b.qptiff", "t/c.svs", "t/notes.txt", "t/sub/d.svs")
        assert names(find_slides(["*/*.svs", "s/?.qptiff"])) == ["c", "b"]
        assert names(find_slides(["**/*.svs"])) == ["c", "d"]
        assert names(find_slides([Path("t/*").absolute()])) == ["c", "d"]
        assert "1 file not read (notes.txt)" in caplog.text
        touch("s/[1].tif")
        assert names(find_slides(["s/[1].tif"])) == ["[1]"], "a file of that very name"

    def test_a_folder_that_is_there_is_meant_by_its_name(self) -> None:
        touch("b[1]/x1.tif", "b1/x9.tif")
        for folder in (Path("b[1]"), Path("b[1]").absolute()):
            assert names(find_slides([folder / "x*.tif"])) == ["x1"]
            (missing,) = find_slides([folder / "x9.tif"])
            assert missing.path == folder / "x9.tif"
        assert names(find_slides(["b[12]/x*.tif"])) == ["x9"], "no folder has this name"

    def test_a_mrxs_has_its_folder(self, caplog: pytest.LogCaptureFixture) -> None:
        touch("s/m.mrxs", "s/m/Slidat.ini", "s/m/Data0000.dat", "s/lone/Slidat.ini")
        for given in (["s"], ["s/*"], ["s/m"], ["s/m.mrxs", "s/m"], ["s", "s/m.mrxs"]):
            if given != ["s/*"]:
                assert [slide.path for slide in find_slides(given, recursive=True)] == [Path("s/m.mrxs")]
        assert "1 folder not read (lone)" in caplog.text
        with pytest.raises(DataError, match=r"lone: holds the pixels of a \.mrxs slide, which lies not beside it"):
            find_slides(["s/lone"])

    def test_several_ways_to_a_slide_are_one(self) -> None:
        touch("s/a.tif", "s/b.tif")
        assert names(find_slides(["s/b.tif", "s", "s/*.tif"])) == ["b", "a"]

    def test_a_link_to_itself_is_a_slide_to_be_told_of(self) -> None:
        touch("s/a.tif", "s/c.tif")
        Path("s/b.tif").symlink_to("b.tif")
        Path("s/d").symlink_to("d")
        assert names(find_slides(["s"], recursive=True)) == ["a", "b", "c"]
        assert names(find_slides(["s/*.tif", "s/b.tif"])) == ["a", "b", "c"]
        with pytest.raises(SlideReadError, match=r"^s/b\.tif: a link that leads to no file; expected a whole-slide image$"):
            open_slide("s/b.tif")

    def test_one_slide_of_two_names_is_refused(self) -> None:
        """Its rows would be one in the summary, and its copies one with --stage."""
        touch("s/a.tif", "s/b.tif")
        Path("m.csv").write_text("slide,name,tissue_mask\ns/a.tif,a_auto,\ns/a.tif,a_none,none\n")
        with pytest.raises(DataError, match=r"^s/a\.tif: is given twice, as 'a_auto' and 'a_none'; .*several --out"):
            find_slides([], manifest="m.csv")
        for way in ("s/a.tif", Path("s/a.tif").resolve()):
            Path("m.csv").write_text(f"slide,name\n{way},other\n")
            with pytest.raises(DataError, match=r"s/a\.tif: is given twice, as 'a' and 'other'"):
                find_slides(["s"], manifest="m.csv")

    def test_addresses_that_differ_in_their_query_share_no_row(self, tmp_path: Path) -> None:
        """The query may be a secret and is kept nowhere: the second one's row took the first one's place."""
        table, out = tmp_path / "slides.csv", tmp_path / "out"
        table.write_text("slide,name\nhttps://host/get?id=1,a\nhttps://host/get?id=2,b\n")
        with pytest.raises(DataError, match=r"^https://host/get: is given twice, as 'a' and 'b'; .*'\?' of an address; "):
            find_slides([], manifest=table)
        out.mkdir()
        store = write_store(out / "a.zarr", np.zeros((3, 3), np.float32))
        add_row(out, summarise(Address("https://host/get?id=1"), store), store.path)
        for name in "ab":
            table.write_text(f"slide,name\nhttps://host/get?id=2,{name}\n")
            request = Request([], out, SlideSettings(), manifest=table)
            if name == "a":  # it may be the same with another signature
                request.batch()
            else:
                with pytest.raises(
                    DataError, match=r"^https://host/get: has a row in .*summary\.csv .* a\.zarr, not b\.zarr; "
                ):
                    request.batch()

    def test_two_slides_of_one_name_are_refused_by_it(self) -> None:
        touch("s/a.tif", "t/a.svs")
        with pytest.raises(DataError, match=r"^a: the name of several slides \(s/a\.tif, t/a\.svs\)"):
            find_slides(["s", "t"])

    @pytest.mark.parametrize("again", ["s/a.tif", "./s/a.tif", "linked/a.tif"])
    def test_a_slide_that_is_given_twice_is_called_so(self, again: str) -> None:
        touch("s/a.tif")
        Path("linked").symlink_to("s")
        with pytest.raises(DataError, match=r"(s|linked)/a\.tif: is given twice; expected each slide once"):
            find_slides(["s/a.tif", again])

    def test_what_is_not_there_stays_a_slide_to_be_told_of(self) -> None:
        assert names(find_slides(["gone.tif"])) == ["gone"]


@pytest.mark.usefixtures("here")
class TestDicom:
    def test_a_series_is_one_slide_whichever_file_stands_for_it(self) -> None:
        for number, more in enumerate((10, 500, 0)):
            write_part(f"s/case/{number}.dcm", "1.2.3", more=more)
        for given in (["s/case"], ["s/case/0.dcm"], ["s/case/2.dcm", "s/case/0.dcm"], ["s/case/*.dcm", "s/case"]):
            (slide,) = find_slides(given)
            assert (slide.name, slide.path) == ("case", Path("s/case/1.dcm")), "the largest file"
            assert slide.told == "3 DICOM files of one series are one slide"
        assert find_slides(["s/case"])[0].given
        assert not find_slides(["s"], recursive=True)[0].given

    def test_several_series_in_a_folder(self, caplog: pytest.LogCaptureFixture) -> None:
        for name, series in (("a0", "1"), ("a1", "1"), ("b0", "2"), ("b1", "2"), ("c", "3")):
            write_part(f"s/{name}.dcm", series, more=ord(name[-1]))
        write_part("s/ct.dcm", "4", kind=b"1.2.840.10008.5.1.4.1.1.2\0")
        touch("s/no.dcm")
        found = find_slides(["s"])
        assert names(found) == ["a1", "b1", "c"]
        assert [slide.told[:1] for slide in found] == ["2", "2", ""]
        assert "2 files not read (ct.dcm, no.dcm)" in caplog.text

    def test_beside_other_slides_a_series_does_not_bear_the_folders_name(self) -> None:
        write_part("s/x0.dcm", "1")
        write_part("s/x1.dcm", "1", more=5)
        touch("s/a.tif")
        assert names(find_slides(["s"])) == ["a", "x1"]

    @pytest.mark.parametrize("implicit", [False, True])
    def test_the_series_is_found_behind_sequences(self, implicit: bool) -> None:
        content = write_part("a.dcm", "1.2.3.4", implicit=implicit)
        assert dicom_series(content) == "1.2.3.4"

    def test_a_cut_head_says_nothing(self) -> None:
        whole = write_part("a.dcm", "1.2.3.4").read_bytes()
        for length in range(0, len(whole) - 20, 7):
            Path("a.dcm").write_bytes(whole[:length])
            assert dicom_series(Path("a.dcm")) in (None, "1.2.3.4"[: max(0, length - len(whole) + 18)])

    def test_the_series_is_what_openslide_says(self) -> None:
        write_dicom(Path("a.dcm"), texture(128, 128), mpp=0.972)
        with OpenSlide("a.dcm") as slide:
            assert dicom_series(Path("a.dcm")) == slide.properties["dicom.SeriesInstanceUID"]


@pytest.mark.usefixtures("here")
class TestManifest:
    def test_each_slide_with_its_own_settings(self) -> None:
        touch("m/s/a.tif", "m/s/b.tif", "m/mask.png", "m/a.xml", "m/net.safetensors")
        Path("m/c.csv").write_text(
            "slide,name,mpp,tissue_mask,annotations,model,stride,patient,label\n"
            "s/a.tif,first,0.25,mask.png,a.xml,net.safetensors,64.0,p1,tumor\n"
            "s/b.tif,,,none,,default,,,\n"
        )
        first, second = read_scan_manifest("m/c.csv")
        assert first == SlideInput(
            Path("m/s/a.tif"),
            "first",
            "line 2 of c.csv",
            mpp=0.25,
            tissue_mask="m/mask.png",
            model="m/net.safetensors",
            stride_px=64,
            annotations=Path("m/a.xml"),
            patient="p1",
            label="tumor",
        )
        assert first.scanner_settings == {"model": "m/net.safetensors", "stride_px": 64}
        assert (second.name, second.slide_settings) == ("b", {"tissue_mask": "none"})
        assert second.scanner_settings == {"model": "default"}
        with pytest.raises(DataError, match=r"s/b\.tif: is given twice; expected each slide once"):
            find_slides(["m/s/b.tif"], manifest="m/c.csv")
        slide, drawn = (Path(name).absolute() for name in ("m/s/a.tif", "m/a.xml"))
        Path("u.csv").write_text(f"slide,annotations\n{slide.as_uri()},{drawn.as_uri()}\n")
        assert [(row.path, row.annotations) for row in read_scan_manifest("u.csv")] == [(slide, drawn)]

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("slide,colour\na.tif,red\n", "line 1: unknown column 'colour'; expected some of slide, name, mpp, "),
            ("slide,mpp,mpp\na.tif,1,1\n", "column 'mpp' twice"),
            ("name\na\n", "columns ['name']; expected 'slide'"),
            ("slide\na.tif\na.tif\n", "'a' in line 2 and again in line 3"),
            ("slide,name\na.tif,\nb.tif,a\n", "'a' in line 2 and again in line 3"),
            ("slide,mpp\na.tif,\n\n,0.25\n", "line 4: names no slide"),
            ("slide,mpp\na, b.tif,0.25\n", "line 2 has 3 values, the header 2"),
            ("slide,mpp,\na, b.tif,0.25\n", "line 2: '0.25' stands in no column"),
            ("slide,mpp\na.tif,fine\n", "line 2: mpp 'fine'; expected micrometres"),
            ("slide,mpp\na.tif,500\n", "line 2: mpp '500'; expected micrometres"),
            ("slide,stride\na.tif,20\n", "line 2: stride '20'; expected a multiple of 8"),
            ("slide,name\na.tif,../x\n", "line 2: name '../x'; expected a name"),
            (f"slide,name\na.tif,{'x' * 201}\n", f"line 2: name '{'x' * 201}'; expected a name"),
            ("slide,model\na.tif,no.safetensors\n", "line 2: model: there is no file m/no.safetensors"),
            ("slide,tissue_mask\na.tif,no.png\n", "line 2: tissue_mask: there is no file"),
            ("slide,annotations\na.tif,no.xml\n", "line 2: annotations: there is no file"),
            ("slide\nfolder\n", "line 2: 'folder' is a folder or a pattern; expected one slide"),
            ("slide\n*.tif\n", "line 2: '*.tif' is a folder or a pattern; expected one slide"),
            ("slide\n", "no slides in it"),
            ("", "columns none; expected 'slide'"),
            ("[" * 100_000, f"columns ['{'[' * 59}...]; expected 'slide'"),
            ("a,b,c,d,e,f,g\n", "columns ['a', 'b', 'c', 'd', 'e' and 2 more]; expected 'slide'"),
        ],
    )
    def test_what_is_wrong_is_one_line_with_its_number(self, text: str, told: str) -> None:
        touch("m/a.tif", "m/b.tif", "m/folder/c.tif")
        Path("m/c.csv").write_text(text)
        with pytest.raises(DataError) as error:
            find_slides([], manifest="m/c.csv")
        assert told in str(error.value)
        assert str(error.value).startswith("m/c.csv: ")
        assert "\n" not in str(error.value)


def test_one_file_is_no_tissue_mask_of_several_slides(here: Path) -> None:
    touch("a.tif", "b.tif", "mask.png")
    Path("m.csv").write_text("slide,tissue_mask\na.tif,mask.png\nb.tif,\n")
    one = SlideSettings(tissue_mask="mask.png")
    for slides in (["a.tif", "b.tif"], ["."]):
        with pytest.raises(OptionsError, match=r"^tissue mask mask\.png: one file for 2 slides; expected one slide, or 'none'"):
            Request(slides, "out", one).batch()
        assert len(Request(slides, "out", SlideSettings(tissue_mask="none")).batch().jobs) == 2
    assert [job.of_slide.tissue_mask for job in Request(["a.tif"], "out", one).batch().jobs] == ["mask.png"]
    own = Request([], "out", one, manifest="m.csv").batch().jobs
    assert [job.of_slide.tissue_mask for job in own] == [str(here / "mask.png"), "mask.png"]


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="no folder here that is writable within another that is not")
def test_a_folder_in_one_that_cannot_be_written_to(here: Path) -> None:
    touch("a.tif")
    assert Request(["a.tif"], "/proc/self/cwd", SlideSettings()).batch().jobs[0].store == Path("/proc/self/cwd/a.zarr")
    with pytest.raises(OutputPathError, match="the folder /proc/self cannot be written to"):
        Request(["a.tif"], "/proc/self/new", SlideSettings()).batch()
    with pytest.raises(OutputPathError, match="the folder /proc/self cannot be written to"):
        Request(["a.tif"], "/proc/self", SlideSettings()).batch()


def test_a_network_is_opened_once_for_the_slides_that_share_it(tmp_path: Path, thin_model: Model) -> None:
    rows = "slide,model,stride,tissue_mask a.tif b.tif,net.safetensors c.tif,,64,none d.tif,net.safetensors e.tif,,,mask.png"
    for seed, name in enumerate("abcde"):
        write_slide(tmp_path / f"{name}.tif", texture(130, 130, seed))
    half = np.zeros((30, 30), np.uint8)
    half[:15] = 255
    Image.fromarray(half).save(tmp_path / "mask.png")
    touch(str(tmp_path / "net.safetensors"))
    (tmp_path / "m.csv").write_text("\n".join(rows.split()))
    opened: list[dict[str, Any]] = []

    def open_scanner(own: dict[str, Any]) -> AbstractContextManager[Scanner]:
        opened.append(own)
        model = shifted(thin_model, 1) if "model" in own else thin_model
        return Scanner(predictor=DarknessPredictor(model), **{name: own[name] for name in own if name != "model"})

    request = Request([], tmp_path / "out", SlideSettings(), manifest=tmp_path / "m.csv")
    found = scan_batch(request.batch(), open_scanner)
    net = {"model": str(tmp_path / "net.safetensors")}
    assert opened == [{}, net, {"stride_px": 64}] * 2, "all are tried before the first slide, then each is opened once"
    assert [Path(row["slide"]).stem for row in found] == list("abcde")
    assert [row["complete"] for row in found] == [True] * 5
    stores = {Path(row["heatmap"]).stem: Heatmap.open(row["heatmap"]) for row in found}
    assert [stores[name].grid.stride_px for name in "abcde"] == [32, 32, 64, 32, 32]
    assert stores["b"].record.identity.model == stores["d"].record.identity.model != stores["a"].record.identity.model
    assert stores["c"].record.tissue.source == "none"
    assert stores["e"].record.tissue.source == "mask.png"
    assert stores["e"].record.result is not None
    assert 0 < stores["e"].record.result.cells["background"] <= stores["e"].record.result.cells["scanned"]


def test_a_scanner_that_is_given_has_no_other_model(tmp_path: Path, thin_model: Model) -> None:
    write_slide(tmp_path / "a.tif", texture(300, 300))
    (tmp_path / "m.csv").write_text("slide,stride\na.tif,64\n")
    with Scanner(predictor=DarknessPredictor(thin_model)) as scanner, pytest.raises(OptionsError, match="its own stride_px"):
        scan_slides([], tmp_path / "out", manifest=tmp_path / "m.csv", scanner=scanner)
    rows = scan_slides([], tmp_path / "out", manifest=tmp_path / "m.csv", predictor=DarknessPredictor(thin_model))
    assert Heatmap.open(rows[0]["heatmap"]).grid.stride_px == 64
