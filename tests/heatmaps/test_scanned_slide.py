"""A map knows its slide again, whichever reader made it: OpenSlide sees one level of a file where another reader sees all."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from fakes import scan_darkness
from slide_files import texture, write_slide
from stores import write_store

from wsi_meta.datasets.candidates import find_candidates
from wsi_meta.datasets.manifest import read_manifest
from wsi_meta.errors import DataError, HeatmapError
from wsi_meta.exports.export import export
from wsi_meta.heatmaps.scanned_slide import is_scan_of, is_scanned_slide, open_scanned_slide
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.slides.slide import open_slide
from wsi_meta.viewer.corrections import Corrections, write_corrections
from wsi_meta.viewer.shelf import Shelf
from wsi_meta.worklist.summary import add_row, failed
from wsi_meta.worklist.table import open_table
from wsi_meta.worklist.thumbnails import draw_thumbnail

MPP = 0.972
SETTINGS: dict[str, Any] = {"tissue_mask": "none", "stride_px": 96}
MISSED = {"kind": "missed", "polygons": [[[96.0, 96.0, 200.0, 96.0, 200.0, 200.0, 96.0, 200.0]]]}


def _write_ome(path: Path, seed: int = 0) -> Path:
    """A slide with its coarser level in a SubIFD."""
    image = texture(320, 320, seed)
    metadata = {"axes": "YXS", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(image, subifds=1, photometric="rgb", tile=(64, 64), metadata=metadata)
        file.write(image[::2, ::2], subfiletype=1, photometric="rgb", tile=(64, 64), metadata=None)
    return path


@pytest.fixture(params=["openslide", "direct"])
def made_by(request: pytest.FixtureRequest) -> str:
    """The reader that made the map."""
    return str(request.param)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return _write_ome(tmp_path / "s.ome.tif")


@pytest.fixture
def heatmap(tmp_path: Path, slide: Path, made_by: str) -> Heatmap:
    with open_slide(slide, reader=made_by) as opened:
        mark = opened.fingerprint()
    return write_store(tmp_path / "s.zarr", np.full((10, 10), 0.75, np.float32), mpp=MPP, slide=mark, reader=made_by)


def test_it_is_opened_by_the_reader_that_made_the_map(slide: Path, heatmap: Heatmap, made_by: str, tmp_path: Path) -> None:
    with open_scanned_slide(heatmap, slide) as opened:
        assert opened.reader == made_by
    assert is_scanned_slide(heatmap, slide) is True
    assert export(heatmap, tmp_path / "s.groovy", slide=slide).exists()
    assert not draw_thumbnail(heatmap, slide)[1], "it lies beneath"
    shelf = Shelf([heatmap.path], slide)
    shown = shelf.show(next(iter(shelf.stores)))
    shelf.close()
    assert shown.tiles is not None


def test_another_slide_is_still_another(heatmap: Heatmap, tmp_path: Path) -> None:
    other = _write_ome(tmp_path / "other.ome.tif", seed=1)
    assert is_scanned_slide(heatmap, other) is False
    assert draw_thumbnail(heatmap, other)[1]
    with pytest.raises(HeatmapError, match=r"made from s\.tif, not from .*other\.ome\.tif"):
        open_scanned_slide(heatmap, other)
    with open_slide(other) as opened:
        assert not is_scan_of(heatmap, opened)


def test_no_option_is_blamed_that_was_not_given(heatmap: Heatmap, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of another slide with other pixels, "--mpp says" was said first, by a command without that option."""
    other = write_slide(tmp_path / "other.tif", texture(320, 320), 2 * MPP)
    with pytest.raises(HeatmapError, match=r"made from s\.tif, not from .*other\.tif"):
        open_scanned_slide(heatmap, other)
    assert "--mpp" not in caplog.text
    with open_slide(other, mpp=MPP):
        assert f"says {2 * MPP:g} um per pixel; {MPP:g} is used instead, as --mpp or the manifest says" in caplog.text


@pytest.mark.parametrize("reader", ["picture", "zarr", "of a later version"])
def test_where_its_reader_cannot_open_it_the_one_that_fits_does(tmp_path: Path, reader: str) -> None:
    path = write_slide(tmp_path / "s.tif", texture(320, 320), MPP)
    with open_slide(path) as opened:
        mark = opened.fingerprint()
    heatmap = write_store(tmp_path / "s.zarr", np.zeros((10, 10), np.float32), mpp=MPP, slide=mark, reader=reader)
    with open_scanned_slide(heatmap, path) as opened:
        assert opened.reader == "openslide"


def test_a_failed_scan_keeps_its_slides_score(slide: Path, heatmap: Heatmap) -> None:
    add_row(slide.parent, failed(str(slide), "no space left on device"), heatmap.path)
    assert [row["score"] for row in open_table(slide.parent).rows] == [pytest.approx(0.75)]


def test_its_corrections_and_mistakes_are_learned_from(slide: Path, heatmap: Heatmap, tmp_path: Path) -> None:
    write_corrections(heatmap, Corrections.from_dict({"corrections": [MISSED], "revision": ""}, heatmap.grid))
    (tmp_path / "m.csv").write_text("slide,annotations\ns.ome.tif,\n")
    (source,) = read_manifest(tmp_path / "m.csv")
    scans = heatmap.path.rename(tmp_path / f"{source.name}.zarr").parent
    (tmp_path / "s.corrections.geojson").rename(tmp_path / f"{source.name}.corrections.geojson")
    with open_slide(slide) as opened:
        found = find_candidates(source, opened, Preprocessing(), seed=[0], scans=scans)
    assert {kind: len(there.cells) for kind, there in found.items()} == {"tumor": 16, "hard": 28, "normal": 20}
    _write_ome(slide, seed=1)
    with open_slide(slide) as opened, pytest.raises(DataError, match="corrections of another slide"):
        find_candidates(source, opened, Preprocessing(), seed=[0], scans=scans)


def test_slides_that_differ_in_one_region_are_two_and_older_fingerprints_are_known(tmp_path: Path) -> None:
    """Both are uncompressed and have one level, so that OpenSlide has no quickhash for them."""
    image = texture(1600, 1600)
    path, other = write_slide(tmp_path / "a.tif", image), tmp_path / "b.tif"
    stored = path.read_bytes()
    with open_slide(path) as slide:
        head = f"{len(stored)} {slide.level_dimensions} ".encode()
    place = len(stored) // 30  # between the first two of the 16 parts
    other.write_bytes(stored[:place] + bytes(1000) + stored[place + 1000 :])
    heatmap = scan_darkness(path, tmp_path / "h.zarr", **SETTINGS)
    assert is_scanned_slide(heatmap, other) is False

    spread = b"".join(stored[at : at + 16384] for number in range(16) for at in [(len(stored) - 16384) * number // 15])
    for parts in (spread, stored[:65536] + stored[-65536:]):
        identity = replace(heatmap.record.identity, slide=hashlib.sha256(head + parts).hexdigest())
        old = heatmap.write_record(replace(heatmap.record, identity=identity, result=None, lesions=None))
        assert is_scanned_slide(old, path)
        again = scan_darkness(path, tmp_path / "h.zarr", **SETTINGS)
        assert (again.finished, again.record.identity) == (True, identity)
