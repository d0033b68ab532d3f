"""Tissue that is never silently lost: what was left out and why, masks that people change, pieces."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fakes import scan_darkness
from json_output import result_of
from matplotlib.figure import Figure
from numpy.typing import NDArray
from slide_files import MODEL_MPP, damage_tile, write_scn, write_slide

from wsi_meta.cli import main
from wsi_meta.errors import DataError, OptionsError, OutputExistsError, OutputPathError
from wsi_meta.models.model import Model
from wsi_meta.pictures import survey_picture
from wsi_meta.pictures.survey import survey_tissue
from wsi_meta.pictures.survey_picture import MAX_SIDE, draw_survey, mark_pieces, shown_kinds
from wsi_meta.slides.slide import Slide, open_slide
from wsi_meta.tiling.grid import PatchGrid
from wsi_meta.tiling.pieces import SPECK, label_pieces, measure_pieces
from wsi_meta.tiling.tissue import as_tissue_mask, find_tissue, read_tissue_mask
from wsi_meta.tiling.tissue_colours import MASK_MPP
from wsi_meta.tiling.tissue_survey import Kind, survey_kinds

GLASS, TISSUE, GREEN_INK, BLACK = (243, 242, 244), (150, 90, 160), (40, 140, 60), (4, 4, 6)
FORMATS = ("geojson", "png", "tif")


def _blots(height: int, width: int, px: int, seed: int = 0) -> NDArray[np.uint8]:
    """Tissue in squares of `px` at random, also at all edges, with holes, and squares that touch at corners."""
    stained = np.random.default_rng(seed).random((height // px + 1, width // px + 1)) < 0.5
    return np.where(np.kron(stained, np.ones((px, px), bool))[:height, :width, None], TISSUE, GLASS).astype(np.uint8)


def _grid(slide: Slide) -> PatchGrid:
    return PatchGrid(slide.width, slide.height, slide.mpp, 0.972, 96, 32)


def _slide(tmp_path: Path, side: int = 320) -> Slide:
    """A slide of glass, 2.5 mm wide, whose level 0 is as coarse as a mask."""
    return open_slide(write_slide(tmp_path / "glass.tif", np.full((side, side, 3), GLASS, np.uint8), MASK_MPP))


def _geojson(path: Path, *features: tuple[str | None, list[list[tuple[float, float]]]]) -> Path:
    """Polygons as QuPath writes them: a class, and rings that are closed."""
    made: list[dict[str, Any]] = []
    for name, rings in features:
        properties = {"objectType": "annotation"} | ({} if name is None else {"classification": {"name": name}})
        geometry = {"type": "Polygon", "coordinates": [[*ring, *ring[:1]] for ring in rings]}
        made.append({"type": "Feature", "geometry": geometry, "properties": properties})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": made}))
    return path


def _box(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


class TestRoundTrip:
    @pytest.mark.parametrize("ending", FORMATS)
    @pytest.mark.parametrize(
        ("mpp", "shape"), [(7.776, (150, 203)), (1.003, (1217, 955)), (0.972, (1001, 1207)), (28.97, (90, 70))]
    )
    def test_a_written_mask_is_the_found_one_bit_for_bit(
        self, tmp_path: Path, ending: str, mpp: float, shape: tuple[int, int]
    ) -> None:
        slide = open_slide(write_slide(tmp_path / "s.tif", _blots(*shape, round(250 / mpp)), mpp))
        out = tmp_path / f"mask.{ending}"
        found = survey_tissue(slide, out=out).tissue
        assert 0.2 < found.fraction < 0.9
        assert found.mask[-1].any()
        assert found.mask[:, -1].any()
        read = read_tissue_mask(out, slide)
        assert read.fingerprint() == found.fingerprint() == find_tissue(slide).fingerprint()
        np.testing.assert_array_equal(read.cells(_grid(slide)), found.cells(_grid(slide)))

    def test_an_array_of_the_found_mask_is_the_found_mask(self, tmp_path: Path) -> None:
        slide = open_slide(write_slide(tmp_path / "s.tif", _blots(1217, 955, 250), 1.003))
        found = find_tissue(slide)
        assert as_tissue_mask(found.mask, slide).fingerprint() == found.fingerprint()

    def test_outlines_count_from_the_corner_that_qupath_shows(self, tmp_path: Path) -> None:
        slide = open_slide(write_scn(tmp_path / "s.scn", _blots(700, 900, 300), (400, 300), (1600, 1300)))
        assert (slide.bounds.x, slide.bounds.y) == (400, 300)
        found = survey_tissue(slide, out=tmp_path / "mask.geojson").tissue
        content = json.loads((tmp_path / "mask.geojson").read_text())
        corners = np.concatenate([ring for part in content["features"] for ring in part["geometry"]["coordinates"]])
        assert corners.min() > -9, "a pixel of the mask may begin outside"
        assert (corners.max(0) < (910, 710)).all()
        assert read_tissue_mask(tmp_path / "mask.geojson", slide).fingerprint() == found.fingerprint()
        del content["wsi_meta"]  # as QuPath writes it again
        (tmp_path / "edited.geojson").write_text(json.dumps(content))
        assert read_tissue_mask(tmp_path / "edited.geojson", slide).fingerprint() == found.fingerprint()

    def test_outlines_of_another_slide_are_refused(self, tmp_path: Path) -> None:
        image = _blots(700, 900, 300)
        survey_tissue(write_slide(tmp_path / "s.tif", image), out=tmp_path / "mask.geojson")
        shutil.copy(tmp_path / "s.tif", tmp_path / "copy.tif")
        other = write_slide(tmp_path / "other.tif", image[::-1])
        assert read_tissue_mask(tmp_path / "mask.geojson", open_slide(tmp_path / "copy.tif")).fraction > 0
        with pytest.raises(DataError, match=r"mask\.geojson: outlines of another slide than .*other\.tif; expected those of"):
            read_tissue_mask(tmp_path / "mask.geojson", open_slide(other))

    def test_a_scan_goes_on_with_the_written_mask(self, tmp_path: Path, thin_model: Model) -> None:
        slide = write_slide(tmp_path / "s.tif", _blots(301, 403, 100))
        survey_tissue(slide, out=tmp_path / "mask.geojson")
        first = scan_darkness(slide, tmp_path / "h.zarr", model=thin_model)
        again = scan_darkness(slide, tmp_path / "h.zarr", model=thin_model, tissue_mask=tmp_path / "mask.geojson")
        assert again.record.identity == first.record.identity

    def test_a_slide_without_tissue_has_no_outlines(self, tmp_path: Path) -> None:
        slide = _slide(tmp_path)
        survey_tissue(slide, out=tmp_path / "mask.geojson")
        assert json.loads((tmp_path / "mask.geojson").read_text())["features"] == []
        assert read_tissue_mask(tmp_path / "mask.geojson", slide).fraction == 0


class TestDrawnMasks:
    def test_every_class_is_tissue_but_those_that_say_they_are_not(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        slide = _slide(tmp_path)
        names: list[str | None] = [None, "Normal", "Tumor", "Stroma: left", "Region*", "Ignore*", "Exclusion"]
        parts = [(name, [_box(10, 40 * place, 90, 40 * place + 20)]) for place, name in enumerate(names)]
        parts += [("Tissue", [_box(200, 0, 300, 300)]), ("Artifact", [_box(220, 100, 320, 140)])]
        with caplog.at_level(logging.WARNING):
            mask = read_tissue_mask(_geojson(tmp_path / "m.geojson", *parts), slide).mask
        expected = np.zeros((320, 320), bool)
        for place in range(5):
            expected[40 * place : 40 * place + 20, 10:90] = True
        expected[:300, 200:300] = True
        expected[100:140, 220:] = False
        np.testing.assert_array_equal(mask, expected)
        assert "3 of 9 outlines taken out of the tissue (Artifact, Exclusion, Ignore*)" in caplog.text

    def test_holes_are_left_out(self, tmp_path: Path) -> None:
        rings = [_box(10, 10, 300, 700), _box(50, 20, 100, 60), _box(200, 500, 290, 530)]
        mask = read_tissue_mask(_geojson(tmp_path / "m.geojson", ("Tissue", rings)), _slide(tmp_path, 720)).mask
        expected = np.zeros((720, 720), bool)
        expected[10:700, 10:300] = True
        expected[20:60, 50:100] = expected[500:530, 200:290] = False
        np.testing.assert_array_equal(mask, expected)

    def test_asap_counts_from_the_slides_own_corner(self, tmp_path: Path) -> None:
        slide = open_slide(write_scn(tmp_path / "s.scn", _blots(700, 900, 300), (400, 300), (1600, 1300)))
        points = "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>' for n, (x, y) in enumerate(_box(480, 320, 800, 640)))
        drawn = f'<Annotation Name="a" Type="Polygon" PartOfGroup="nodes"><Coordinates>{points}</Coordinates></Annotation>'
        (tmp_path / "m.xml").write_text(f"<ASAP_Annotations><Annotations>{drawn}</Annotations></ASAP_Annotations>")
        cells = read_tissue_mask(tmp_path / "m.xml", slide).cells(_grid(slide))
        assert np.argwhere(cells).min(0).tolist() == [10, 15]
        assert np.argwhere(cells).max(0).tolist() == [19, 24]
        assert cells.sum() == 100
        shifted = _geojson(tmp_path / "m.geojson", ("Tissue", [_box(80, 20, 400, 340)]))
        np.testing.assert_array_equal(read_tissue_mask(shifted, slide).cells(_grid(slide)), cells)

    def test_what_is_thinner_than_a_pixel_of_the_mask_is_scanned(self, tmp_path: Path) -> None:
        slide = open_slide(write_slide(tmp_path / "s.tif", _blots(640, 960, 100)))  # 8 px of it to one of the mask
        for x in np.arange(100, 101, 0.1):
            thin = _geojson(tmp_path / "m.geojson", ("Tissue", [_box(x, 40, x + 4.1, 600)]))
            assert read_tissue_mask(thin, slide).cells(_grid(slide))[2:18].any(1).all()

    def test_holes_that_enclose_nothing_are_left_out(self, tmp_path: Path) -> None:
        slide, hole = _slide(tmp_path), _box(40, 40, 100, 100)
        plain = _geojson(tmp_path / "p.geojson", ("Tissue", [_box(10, 10, 200, 400), hole]))
        odd = _geojson(tmp_path / "o.geojson", ("Tissue", [_box(10, 10, 200, 400), [], hole, [(300, 300)]]))
        np.testing.assert_array_equal(read_tissue_mask(odd, slide).mask, read_tissue_mask(plain, slide).mask)

    def test_outlines_that_enclose_nothing_are_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        parts = [("Tissue", [_box(10, 10, 100, 400)]), ("Tissue", [_box(200, 10, 300, 400) * 2])]
        assert not read_tissue_mask(_geojson(tmp_path / "m.geojson", *parts), _slide(tmp_path)).mask[:, 150:].any()
        assert "m.geojson: 1 of 2 outlines of tissue without an inside, which counts nowhere" in caplog.text

    def test_outlines_off_the_slide_are_refused(self, tmp_path: Path) -> None:
        slide = _slide(tmp_path)
        on = ("Tissue", [_box(10, 10, 100, 400)])  # QuPath lets one draw over the edge
        assert read_tissue_mask(_geojson(tmp_path / "on.geojson", on), slide).fraction > 0
        off = _geojson(tmp_path / "off.geojson", on, ("Tissue", [_box(310, 10, 400, 100)]))
        with pytest.raises(DataError, match=r"off\.geojson: an outline round x 355, y 55 lies off the slide, .*another one"):
            read_tissue_mask(off, slide)


def _painted() -> NDArray[np.uint8]:
    """Of everything that a survey tells apart something; pixels of 7.776 um."""
    image = np.full((500, 600, 3), GLASS, np.uint8)
    image[:, :20] = BLACK
    image[40:360, 50:350] = TISSUE
    image[60:90, 60:90] = GLASS  # 0.05 mm2
    image[120:340, 80:320] = GLASS  # 3.2 mm2
    image[40:360, 380:440] = GREEN_INK
    image[420:430, 100:110] = TISSUE
    image[40:120, 500:560] = TISSUE
    return image


class TestKinds:
    def test_every_part_has_its_reason(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.tif", _painted(), MASK_MPP)
        damage_tile(path, 5)  # rows from 256, columns from 512
        with open_slide(path) as slide:
            survey, found = survey_kinds(slide), find_tissue(slide)
        assert survey.tissue.fingerprint() == found.fingerprint()
        assert survey.tissue.inked == found.inked
        assert survey.tissue.inked, "a scan with a survey's mask warns of ink, as one without"
        places = {
            Kind.COLOURED: (50, 200),
            Kind.FILLED: (75, 75),
            Kind.SPECK: (425, 105),
            Kind.UNREADABLE: (400, 580),
            Kind.GLASS: (400, 300),
            Kind.HOLE: (200, 200),
            Kind.INK: (200, 420),
            Kind.BLACK: (200, 10),
        }
        assert {Kind(survey.kinds[place]): place for place in places.values()} == places
        np.testing.assert_array_equal(survey.tissue.mask, survey.kinds < Kind.GLASS)
        areas = survey.areas_mm2(left_out=False) | survey.areas_mm2(left_out=True)
        assert sum(areas.values()) == pytest.approx(500 * 600 * 0.007776**2)
        assert areas["hole"] == pytest.approx(220 * 240 * 0.007776**2, rel=0.05)
        assert survey.tissue_mm2 == pytest.approx(survey.tissue.fraction * 500 * 600 * 0.007776**2)
        assert survey.specks == 1
        assert [(piece.x // 20, piece.y // 20) for piece in survey.pieces] == [(2, 1), (24, 1), (25, 12)]

    def test_a_mask_of_ones_own_is_compared_with_what_is_found(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.tif", _painted(), MASK_MPP)
        mask = _geojson(tmp_path / "m.geojson", ("Tissue", [_box(40, 30, 220, 400)]), ("Tissue", [_box(450, 400, 590, 490)]))
        survey = survey_tissue(path, tissue_mask=mask)
        kinds = survey.kinds
        assert (kinds[50, 100], kinds[50, 300], kinds[80, 520]) == (Kind.COLOURED, Kind.MASKED, Kind.MASKED)
        assert (kinds[450, 500], kinds[200, 150], kinds[200, 300]) == (Kind.ADDED, Kind.ADDED, Kind.HOLE)
        assert survey.tissue.source == "m.geojson"
        assert survey.tissue.fingerprint() == read_tissue_mask(mask, open_slide(path)).fingerprint()

    def test_unreadable_has_the_last_word(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.tif", np.full((1024, 1024, 3), GLASS, np.uint8), MODEL_MPP)
        damage_tile(path, 5)  # from row and column 256 on; 0.06 mm2
        mask = _geojson(tmp_path / "m.geojson", ("Tissue", [_box(100, 100, 384, 700)]))
        with open_slide(path) as slide:
            found, given = survey_kinds(slide), survey_kinds(slide, mask)
        side = 256 * 0.972 / 1000
        assert found.areas_mm2(left_out=False) == {"unreadable": pytest.approx(side**2)}
        assert (found.specks, (found.labels != 0).any()) == (0, False)
        assert given.areas_mm2(left_out=False)["unreadable"] == pytest.approx(side**2 / 2)
        assert given.areas_mm2(left_out=True).keys() == {"glass", "unseen"}
        np.testing.assert_array_equal(given.tissue.fraction, (given.kinds < Kind.GLASS).mean())
        large = np.full((2 * MAX_SIDE, 3), Kind.GLASS, np.uint8)
        large[501] = Kind.UNREADABLE
        assert (shown_kinds(large)[0][250] == Kind.UNREADABLE).all()

    def test_large_pieces_are_numbered_from_the_left(self) -> None:
        cells = np.zeros((60, 90), bool)
        cells[40:55, 30:50] = cells[2:22, 30:45] = cells[30:45, 2:17] = True
        cells[22:30, 44] = True  # a tail, which touches nothing
        cells[45:47, 17:19] = True  # touches the first at a corner
        cells[5:8, 80:83] = True
        labels = label_pieces(cells, 31.104)
        assert (labels[35, 5], labels[46, 18], labels[10, 40], labels[29, 44], labels[50, 40]) == (1, 1, 2, 2, 3)
        assert labels[6, 81] == SPECK
        np.testing.assert_array_equal(labels != 0, cells)
        first, second, third = measure_pieces(labels, 31.104, 128.0, (90 * 128, 55 * 128 - 100))
        assert (first.x, first.y, first.width, first.height) == (256, 3840, 17 * 128, 17 * 128)
        assert first.area_mm2 == pytest.approx((15 * 15 + 4) * 0.031104**2)
        assert (second.y, third.y) == (256, 5120)
        assert third.y + third.height == 55 * 128 - 100, "the slide ends there"
        assert not label_pieces(np.zeros((3, 4), bool), 31.104).any()

    def test_the_number_of_a_piece_stands_on_its_tissue(self, tmp_path: Path) -> None:
        rows, cols = np.ogrid[:80, :80]
        cells = np.hypot(rows - 30, cols - 30) < 25
        cells &= np.hypot(rows - 30, cols - 30) > 15  # a ring: neither its corner nor its middle is tissue
        cells |= rows + cols > 130
        with _slide(tmp_path) as slide:
            survey = survey_kinds(slide)
        axes = Figure().add_subplot()
        mark_pieces(axes, replace(survey, labels=label_pieces(cells, 31.104)))
        side = survey.cell_px * survey.mpp / 1000
        places = {text.get_text(): [int(part / side) for part in text.get_position()] for text in axes.texts}
        assert places.keys() == {"1", "2"}
        assert all(cells[row, col] for col, row in places.values())


@pytest.mark.parametrize("kind", [Kind.UNREADABLE, Kind.COLOURED])
def test_what_cannot_be_read_is_striped_whatever_the_mask_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    path = write_slide(tmp_path / "s.tif", np.full((512, 512, 3), TISSUE, np.uint8), MASK_MPP)
    damage_tile(path, 3)
    figures: list[Figure] = []
    monkeypatch.setattr(survey_picture, "MAX_SIDE", 400)
    monkeypatch.setattr(survey_picture, "write_figure", lambda figure, _, **__: figures.append(figure))
    with open_slide(path) as slide:
        survey = survey_kinds(slide)
        survey.kinds[240:, 240:] = kind
        draw_survey(survey, slide, tmp_path / "p.png", overwrite=False)
    picture = np.asarray(figures[0].axes[0].images[0].get_array())
    assert picture.shape == (400, 400, 3)
    red = [[(230, 25, 48), (108, 15, 26)], [(255, 255, 255), (205, 150, 155)]][kind == Kind.COLOURED]
    found = {tuple(colour) for colour in picture[204:, 204:].reshape(-1, 3).astype(int).tolist()}
    assert np.abs(np.array(sorted(found)) - sorted(red)).max() <= 12
    words = " ".join(text.get_text() for text in figures[0].texts)
    assert "(research use only)" in words
    assert ("slide's pixels cannot be read" in words) == (kind == Kind.COLOURED), "stripes of the kind hide the others"


class TestCommand:
    def test_it_writes_mask_and_picture_and_tells_the_figures(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.tif", _painted(), MASK_MPP)
        words = ["tissue", path, "--out", tmp_path / "m.geojson", "--picture", tmp_path / "p.png"]
        result = CliRunner().invoke(main, [*map(str, words), "--json"])
        assert result.exit_code == 0, result.output
        figures = result_of(result.stdout)
        assert set(figures["left_out"]) == {"glass", "hole", "ink", "black"}
        assert figures["tissue_mm2"] == pytest.approx(sum(figures["tissue"].values()))
        assert len(figures["pieces"]) == 2
        assert (tmp_path / "p.png").stat().st_size > 10_000
        again = CliRunner().invoke(main, [str(word) for word in words])
        assert again.exit_code == 1
        assert "m.geojson: exists" in again.stderr
        told = CliRunner().invoke(main, ["tissue", str(path)])
        assert "\n- 2: " in told.stdout
        assert "left_out:\n  glass_mm2: " in told.stdout
        assert "\ntissue_fraction: " in told.stdout

    def test_an_ending_may_be_in_capitals(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.tif", _blots(300, 300, 100))
        survey_tissue(path, out=tmp_path / "MASK.GEOJSON")
        assert json.loads((tmp_path / "MASK.GEOJSON").read_text())["features"]

    def test_what_cannot_be_written_is_refused_first(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.tif", _blots(300, 300, 100))
        with pytest.raises(OutputPathError, match=r"ending '\.npy'; expected one of \.geojson"):
            survey_tissue(path, out=tmp_path / "m.npy")
        with pytest.raises(OutputPathError, match="the slide, never replaced"):
            survey_tissue(path, out=path, overwrite=True)
        with pytest.raises(OutputPathError, match="never replaced"):
            survey_tissue(path, picture=path, overwrite=True)
        (tmp_path / "link").symlink_to(tmp_path)
        for picture in (tmp_path / "m.png", tmp_path / "link" / "m.png", tmp_path / "m"):
            with pytest.raises(OutputPathError, match="is to be written twice, as --out and --picture"):
                survey_tissue(path, out=tmp_path / "m.png", picture=picture)
        (tmp_path / "link").unlink()
        (tmp_path / "m.png").write_bytes(b"x")
        with pytest.raises(OutputPathError, match="the tissue mask, never replaced"):
            survey_tissue(path, tissue_mask=tmp_path / "m.png", picture=tmp_path / "m.png", overwrite=True)
        with pytest.raises(OutputExistsError):
            survey_tissue(path, out=tmp_path / "m.png")
        with pytest.raises(OptionsError, match="only --picture"):
            survey_tissue(path, tissue_mask="none", out=tmp_path / "new.png")
        assert sorted(file.name for file in tmp_path.iterdir()) == ["m.png", "s.tif"]
