"""Results of each piece of tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from json_output import result_of
from stores import write_store

from wsi_meta.cli import main
from wsi_meta.heatmaps.score_model import score_heatmap
from wsi_meta.heatmaps.scoring import score_pieces, score_slide
from wsi_meta.heatmaps.store import Heatmap

CELL_MM2 = 0.031104**2


@pytest.fixture
def heatmap(tmp_path: Path) -> Heatmap:
    """Three pieces, with two lesions, none and one, and specks of which one is a lesion."""
    probability = np.full((70, 150), np.nan, np.float32)
    probability[5:65, 3:60] = 0.1
    probability[10:20, 10:30] = probability[50:53, 40:43] = 0.9
    probability[2:30, 62:90] = 0.2
    probability[32:60, 62:90] = 0.3
    probability[40, 70] = 0.95
    probability[10:12, 120:122] = 0.8
    probability[40:43, 130:133] = 0.05
    return write_store(tmp_path / "h.zarr", probability)


def test_each_piece_has_its_own_score_and_lesions(heatmap: Heatmap) -> None:
    first, second, third, specks = score_pieces(heatmap)
    assert [piece.piece for piece in (first, second, third, specks)] == [1, 2, 3, 0]
    assert [piece.lesions for piece in (first, second, third, specks)] == [2, 0, 1, 1]
    assert [piece.largest for piece in (first, second, third)] == ["micrometastasis", None, "isolated tumor cells"]
    assert first.score == pytest.approx(0.9)
    assert second.score == pytest.approx(0.2)
    alone = np.full(heatmap.grid.shape, np.nan, np.float32)
    alone[32:60, 62:90] = heatmap.probability[32:60, 62:90]
    assert third.score == score_slide(alone)
    assert first.lesion_mm2 == pytest.approx(209 * CELL_MM2)
    assert first.area_mm2 == pytest.approx(60 * 57 * CELL_MM2)
    assert specks.area_mm2 == pytest.approx(13 * CELL_MM2)
    assert (third.x, third.y, third.width, third.height) == (62 * 128, 32 * 128, 28 * 128, 28 * 128)
    assert first.line.startswith("1: 3.31 mm2 of cells at x 384, y 640, ")
    assert first.line.endswith("score 0.900, 2 lesions of 0.20 mm2, largest: micrometastasis")
    assert specks.line.startswith("specks: 0.01 mm2 together, ")


def test_a_peak_in_a_last_column_of_less_than_a_pixel_is_in_its_piece(tmp_path: Path) -> None:
    probability = np.full((40, 40), np.nan, np.float32)
    probability[5:35, 5:30] = 0.1
    probability[18:22, 39] = 0.95
    heatmap = write_store(tmp_path / "h.zarr", probability, mpp=0.25, cut=124)
    assert heatmap.grid.width - 39 * heatmap.grid.cell_l0 < 1
    assert [(piece.piece, piece.lesions) for piece in score_pieces(heatmap)] == [(1, 0), (0, 1)]


def test_a_piece_ends_where_its_slide_does(tmp_path: Path) -> None:
    probability = np.full((30, 30), 0.1, np.float32)
    probability[:, 29] = 0.9
    whole, cut = (write_store(tmp_path / f"{cut}.zarr", probability, mpp=0.25, cut=cut) for cut in (0, 120))
    (piece,), (before,) = score_pieces(cut), score_pieces(whole)
    assert (piece.x + piece.width, piece.y + piece.height) == (cut.grid.width, cut.grid.height)
    assert (piece.score, piece.lesions, piece.area_mm2) == (before.score, before.lesions, before.area_mm2)
    assert ", 1 lesion of " in piece.line


def test_score_and_info_tell_them(heatmap: Heatmap) -> None:
    pieces = score_pieces(heatmap)
    assert score_heatmap(heatmap).pieces == pieces
    for command in ("score", "info"):
        told = CliRunner().invoke(main, [command, str(heatmap.path), "--json"])
        found = result_of(told.stdout)["pieces"]
        assert found == [vars(piece) for piece in pieces]
        lines = CliRunner().invoke(main, [command, str(heatmap.path)]).stdout.splitlines()
        assert f"- {pieces[0].line}" in lines


def test_a_map_without_tissue_has_no_pieces(tmp_path: Path) -> None:
    assert score_pieces(write_store(tmp_path / "h.zarr", np.full((8, 9), np.nan, np.float32))) == ()
