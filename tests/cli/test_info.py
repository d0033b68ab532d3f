"""``wsi-meta info``: the result first and nothing twice; of slides that cannot be scanned all that is known, then why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner
from json_output import result_of
from range_server import served
from slide_files import set_tag, texture, write_jpeg_slide, write_slide
from stores import write_store

from wsi_meta.cli import main
from wsi_meta.errors import SlideReadError, WsiMetaError
from wsi_meta.metadata import describe, info
from wsi_meta.models.card import ModelCard
from wsi_meta.models.model import write_model


def _told(*words: object) -> tuple[dict[str, Any], str, int]:
    result = CliRunner().invoke(main, ["info", *map(str, words), "--json"])
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == (result.exit_code != 0)
    return result_of(result.stdout), "".join(errors), result.exit_code


def test_a_slide_that_can_be_scanned_has_no_problem(tmp_path: Path) -> None:
    facts, _, code = _told(write_jpeg_slide(tmp_path / "s.tif", [texture(300, 300)]))
    assert code == 0
    assert (facts["problem"], facts["compression"]) == (None, ["JPEG"])
    assert facts["bounds"] == {"x": 0, "y": 0, "width": 300, "height": 300}


def test_a_slide_at_an_address(tmp_path: Path) -> None:
    write_jpeg_slide(tmp_path / "s.tif", [texture(300, 300)])
    tifffile.imwrite(tmp_path / "j2k.tif", texture(300, 300), tile=(256, 256), photometric="rgb", compression="jpeg2000")
    with served(tmp_path) as far:
        facts, _, code = _told(f"{far.url}/s.tif")
        refused = CliRunner().invoke(main, ["info", f"{far.url}/j2k.tif"])
    assert (code, facts["problem"], facts["width"], facts["path"]) == (0, None, 300, f"{far.url}/s.tif")
    assert refused.exit_code == 1
    assert f"{far.url}/j2k.tif: stored as JPEG 2000, which OpenSlide does not read" in refused.stderr
    assert "convert the slide" in refused.stderr
    assert "download it" not in refused.stderr, "which would not help"


def test_a_slide_of_unknown_pixel_size(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, texture(300, 300), tile=(256, 256), photometric="rgb", compression="jpeg", metadata=None)
    facts, error, code = _told(path)
    assert code == 1
    assert facts["width"] == 300
    assert error == f"Error: {facts['problem']}"
    assert "does not say how large its pixels are; pass --mpp" in error
    assert info(path)["problem"] == facts["problem"], "the library tells, and does not raise"


def test_a_slide_that_is_too_coarse(tmp_path: Path) -> None:
    facts, error, code = _told(write_slide(tmp_path / "s.tif", texture(300, 300), mpp=4))
    assert (code, facts["mpp"]) == (1, 4)
    assert "4 um per pixel is too coarse" in error


def test_a_slide_that_cannot_be_opened_shows_its_pages(tmp_path: Path) -> None:
    path = write_jpeg_slide(tmp_path / "s.tif", [texture(600, 600)])
    set_tag(path, "TileLength", 2**31 - 1)
    facts, error, code = _told(path)
    assert code == 1
    assert facts["bytes"] == path.stat().st_size
    assert facts["pages"] == [{"width": 600, "height": 600, "tile": [256, 2**31 - 1], "compression": "JPEG"}]
    assert "page 0 says that its tiles are" in error
    with pytest.raises(SlideReadError, match="page 0 says"):
        info(path)


def test_a_slide_that_the_chosen_reader_cannot_read_is_shown_by_the_other(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tif", texture(300, 300))
    facts = describe(path, reader="direct")
    assert "the direct reader expects a plain TIFF of JPEG tiles" in facts["problem"]
    assert (facts["width"], facts["reader"], facts["compression"]) == (300, None, ["deflate"])


def test_lines_end_with_the_reason(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tif", texture(300, 300), mpp=4)
    result = CliRunner().invoke(main, ["info", str(path)])
    assert "width: 300" in result.stdout
    assert "problem" not in result.stdout
    assert result.stderr.startswith(f"Error: {path}: 4 um per pixel")


def test_the_result_of_a_heatmap_comes_first_and_nothing_twice(tmp_path: Path) -> None:
    store = write_store(tmp_path / "h.zarr", np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).path
    lines, whole = (CliRunner().invoke(main, ["info", str(store), *more]).stdout.splitlines() for more in ([], ["--all"]))
    assert [line.split(":")[0] for line in lines[:4]] == ["kind", "path", "score", "complete"]
    assert len(lines) < 50 < len(whole)
    named = [line.strip() for line in lines if not line.endswith(":") and not line.startswith("- ")]
    assert len({line.split(":")[0] for line in named}) == len(named)
    assert not [line for line in whole if line.strip() == "grid:"][1:]


def test_a_model_tells_its_figures_and_with_all_its_training(model_file: Path) -> None:
    lines, whole = (CliRunner().invoke(main, ["info", str(model_file), *more]).stdout for more in ([], ["--all"]))
    assert "threshold" in lines
    assert "\nversions:" not in lines
    assert "\nversions:" in whole


@pytest.mark.parametrize(
    ("training", "told", "noted"),
    [
        ({"calibrated_on": {"n": 40, "tumor": 10, "sha256": "a", "prior": 0.05}}, ["n: 40", "tumor: 10", "prior: 0.05"], True),
        ({"calibrated_on": {"n": 40, "tumor": 10, "prior": None}, "valid": {"n": 9}}, ["n: 40", "tumor: 10"], False),
        ({"valid": {"n": 40, "tumor": 10, "sha256": "a"}}, ["n: 40", "tumor: 10"], False),
        ({"valid": "patches"}, [], False),
    ],
)
def test_a_model_tells_the_patches_and_the_prior_it_was_calibrated_on(
    training: dict[str, Any], told: list[str], noted: bool, tmp_path: Path
) -> None:
    """Its figures are those before the prior."""
    path = tmp_path / "m.safetensors"
    write_model(path, {"a": torch.zeros(1)}, ModelCard(training=training, metrics={"auc": 0.9}))
    lines = CliRunner().invoke(main, ["info", str(path)]).stdout.partition("thresholds:")[0].splitlines()
    below = [line.strip() for line in lines[lines.index("  auc: 0.9") + 1 :]]
    note = "note: metrics are of the patches' own share of tumor; with the prior, those at 0.5, log_loss, brier and ece differ"
    assert below == ["calibrated_on:", *told, *[note] * noted][not told :]


@pytest.mark.parametrize("name", ["m.SAFETENSORS", "plain", "m.bin"])
def test_a_model_is_known_by_its_content(name: str, tmp_path: Path) -> None:
    write_model(tmp_path / name, {"a": torch.zeros(1)}, ModelCard())
    assert info(tmp_path / name)["kind"] == "model"
    (tmp_path / name).write_bytes(b"no slide and no model")
    with pytest.raises(WsiMetaError):
        info(tmp_path / name)


def test_help_tells_every_command_whole_in_the_order_of_the_journey() -> None:
    told = CliRunner().invoke(main, ["--help"]).stdout
    places = [told.index(f"\n  {name} ") for name in main.commands]
    assert places == sorted(places)
    assert list(main.commands)[:4] == ["demo", "doctor", "tissue", "scan"]
    assert "..." not in told.partition("Options:")[2]
