"""The house is in order, and each check of that fails when something forbidden is planted."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import house_rules as rules
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "wsi_meta"
TESTS = ROOT / "tests"
DESIGN = ROOT / "docs" / "design.md"


REACHING = {
    "cli/test_overlay_command.py: wsi_meta.pictures.overlay._draw",
    "cli/test_running.py: wsi_meta.cohorts.batch.add_row",
    "conftest.py: wsi_meta.inference.allocator._glibc",
    "evaluation/test_calibrate.py: wsi_meta.evaluation.calibrate.look_at",
    "evaluation/test_report.py: wsi_meta.evaluation.figures._finish",
    "models/test_model.py: wsi_meta.models.model.read_features",
    "pictures/test_survey.py: wsi_meta.pictures.survey_picture.MAX_SIDE",
    "pictures/test_survey.py: wsi_meta.pictures.survey_picture.write_figure",
    "scanning/test_compiled.py: wsi_meta.inference.fast_network.compile_network",
    "scanning/test_compiled.py: wsi_meta.scanning.networks.worth_compiling",
    "scanning/test_scan.py: wsi_meta.scanning.networks.load_model",
    "slides/test_checked_tiles.py: wsi_meta.stored_tiles.tile_check.TileCheck.samples",
    "slides/test_checked_tiles.py: wsi_meta.stored_tiles.tile_form.TileForm.check",
    "slides/test_checked_tiles.py: wsi_meta.stored_tiles.tile_check.read_part",
    "slides/test_slide.py: wsi_meta.readers.openslide_reader._find_bounds",
    "test_locks.py: wsi_meta.files.locks.MACHINE",
    "test_locks.py: wsi_meta.files.locks._start_of",
    "tiny.py: wsi_meta.training.train.RESNET50_PARTS",
    "worklist/test_worklist.py: wsi_meta.worklist.thumbnails.SIDE_PX",
    "worklist/test_worklist.py: wsi_meta.worklist.thumbnails._outline",
    "worklist/test_worklist.py: wsi_meta.worklist.worklist.render_page",
}
"""What tests still replace or take behind the names of our modules. It only gets shorter: a seam is an argument instead."""


@pytest.fixture(scope="module")
def house() -> rules.Package:
    """The package as it stands in this checkout."""
    return rules.read_package(SOURCES)


def planted_in(house: rules.Package, module: str, line: str, *, alone: bool = True) -> rules.Package:
    """The package with a line more in one of its modules, of which only that one is looked at, or all."""
    source = f"{house.sources[module]}\n{line}\n"
    tree = {module: ast.parse(source)}
    return replace(house, sources=house.sources | {module: source}, trees=tree if alone else house.trees | tree)


@pytest.fixture
def small_house(tmp_path: Path) -> Path:
    """A package of two rooms that keeps every rule."""
    folder = tmp_path / "small"
    for room in ("slides", "cli"):
        (folder / room).mkdir(parents=True)
        (folder / room / "__init__.py").write_text('"""What it is for."""\n')
    (folder / "__init__.py").write_text('"""A small house."""\n')
    (folder / "__init__.pyi").write_text("from .slides.slide import open_slide as open_slide\n")
    (folder / "errors.py").write_text("class DataError(ValueError): ...\n")
    (folder / "slides" / "slide.py").write_text("from small.errors import DataError\n\ndef open_slide(path): ...\n")
    (folder / "cli" / "scan.py").write_text("import click\n\nfrom small import open_slide\n")
    return folder


class TestTheHouse:
    def test_every_import_follows_the_order_of_packages(self, house: rules.Package) -> None:
        assert rules.wrong_order(house) == []

    def test_no_module_imports_itself_by_way_of_others(self, house: rules.Package) -> None:
        assert rules.circles(house) == []

    def test_only_cli_imports_click_and_only_scanning_imports_dask(self, house: rules.Package) -> None:
        assert rules.foreign_imports(house) == []

    def test_few_root_modules_small_packages_short_modules(self, house: rules.Package) -> None:
        assert rules.crowded(house) == []

    def test_functions_are_short(self, house: rules.Package) -> None:
        assert rules.long_functions(house) == []
        lengths = list(rules.function_lengths(house).values())
        assert len(lengths) > 500
        assert np.median(lengths) <= 8
        assert np.percentile(lengths, 95) <= 31

    def test_functions_take_few_parameters(self, house: rules.Package) -> None:
        assert rules.many_parameters(house) == []

    def test_no_room_bears_the_name_of_a_public_function(self, house: rules.Package) -> None:
        assert {"scan", "train", "info"} <= set(house.public)
        assert rules.shadowed_names(house) == []

    def test_links_are_followed_in_one_way(self, house: rules.Package) -> None:
        """``Path.resolve`` raises a RuntimeError for a link that leads to itself; ``real_path`` does not."""
        assert [module for module, text in house.sources.items() if ".resolve()" in text] == []

    def test_no_more_tests_reach_into_our_modules(self) -> None:
        tests = {path.relative_to(TESTS).as_posix(): path.read_text() for path in TESTS.rglob("*.py")}
        assert set(rules.patched_or_private("wsi_meta", tests)) == REACHING

    def test_every_package_says_what_it_is_for(self, house: rules.Package) -> None:
        assert rules.silent_packages(house) == []

    def test_the_design_names_every_module_in_order(self, house: rules.Package) -> None:
        assert rules.design_gaps(house, DESIGN.read_text()) == []

    def test_the_order_names_only_what_there_is(self, house: rules.Package) -> None:
        assert set(rules.ORDER) == {house.room(module) for module in house.sources} - {""}


class TestPlantedInTheHouse:
    """A line added to a module of the real package, and the violations that it adds."""

    @pytest.mark.parametrize(
        "line",
        [
            "from wsi_meta.heatmaps.store import Heatmap",
            "from wsi_meta.heatmaps import store",
            "import wsi_meta.heatmaps.store",
            "from wsi_meta import Heatmap",
            "import wsi_meta\n\nHeatmap = wsi_meta.Heatmap",
            "from ..heatmaps.store import Heatmap",
            "def later():\n    from wsi_meta.heatmaps.store import Heatmap\n",
            "class Later:\n    def late(self):\n        if self:\n            from wsi_meta.heatmaps.store import Heatmap\n",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from wsi_meta.heatmaps.store import Heatmap",
        ],
        ids=["from", "module", "import", "public name", "attribute", "relative", "in a function", "in a method", "for types"],
    )
    def test_an_upward_import_is_found(self, house: rules.Package, line: str) -> None:
        (found,) = rules.wrong_order(planted_in(house, "wsi_meta.slides.overview", line))
        assert "slides.overview" in found
        assert "imports wsi_meta.heatmaps.store, which" in found

    def test_a_circle_inside_a_package_is_found(self, house: rules.Package) -> None:
        assert "wsi_meta.slides.overview" in {found.target for found in house.imports}
        line = "def later():\n    from wsi_meta.slides.slide import Slide\n"
        planted = rules.circles(planted_in(house, "wsi_meta.slides.overview", line, alone=False))
        assert "wsi_meta.slides.overview -> wsi_meta.slides.slide -> wsi_meta.slides.overview" in planted

    @pytest.mark.parametrize(
        ("module", "line"),
        [
            ("cohorts.batch", "import click"),
            ("cohorts.batch", "def later():\n    from click import echo\n"),
            ("datasets.sampling", "from dask.delayed import delayed"),
            ("datasets.sampling", "if TYPE_CHECKING:\n    from distributed import Client\n"),
            ("cli.scan", "import distributed.utils"),
        ],
    )
    def test_a_library_in_the_wrong_package_is_found(self, house: rules.Package, module: str, line: str) -> None:
        (found,) = rules.foreign_imports(planted_in(house, f"wsi_meta.{module}", line))
        assert module in found

    def test_a_module_that_the_design_does_not_name_is_found(self, house: rules.Package) -> None:
        more = replace(house, sources=house.sources | {"wsi_meta.slides.mystery": ""})
        planted = rules.design_gaps(more, DESIGN.read_text())
        assert "wsi_meta.slides.mystery: not in the table of rooms" in planted


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from small.slides.slide import _open", "small.slides.slide._open"),
        ("from small.slides import slide\n\nslide._open()", "small.slides.slide._open"),
        ("import small.slides.slide as s\n\nmonkeypatch.setattr(s, 'open', 1)", "small.slides.slide.open"),
        ("import small\n\nmonkeypatch.setattr(small.slides.slide, 'open', 1)", "small.slides.slide.open"),
        ("from small.slides.slide import Slide\n\npatch.setattr(Slide, 'read', 1)", "small.slides.slide.Slide.read"),
        ("monkeypatch.setattr('small.slides.slide.open', 1)", "small.slides.slide.open"),
        ("setattr(import_module('small.slides'), 'open', 1)", "small.slides.open"),
        ("from small.slides.slide import Slide\n\nSlide('a').open(_a)", None),
        ("import os\n\nmonkeypatch.setattr(os, 'kill', 1)\nos._exit(0)", None),
        ("setattr(slide, 'name', 'small')", None),
    ],
)
def test_a_test_that_reaches_into_a_module_is_found(text: str, found: str | None) -> None:
    assert rules.patched_or_private("small", {"test_a.py": text}) == ([f"test_a.py: {found}"] if found else [])


class TestPlantedInASmallHouse:
    def test_the_small_house_keeps_every_rule(self, small_house: Path) -> None:
        package = rules.read_package(small_house)
        checks = (rules.wrong_order, rules.circles, rules.foreign_imports, rules.crowded, rules.long_functions)
        assert [check(package) for check in (*checks, rules.many_parameters, rules.shadowed_names)] == [[]] * 7
        assert {(found.importer, found.target) for found in package.imports} == {
            ("small.slides.slide", "small.errors"),
            ("small.cli.scan", "click"),
            ("small.cli.scan", "small.slides.slide"),
        }

    def test_a_room_that_the_order_does_not_know(self, small_house: Path) -> None:
        (small_house / "utils.py").write_text("")
        assert rules.wrong_order(rules.read_package(small_house)) == ["utils: not in the order of packages"]

    def test_a_circle_of_three_rooms_away(self, small_house: Path) -> None:
        for number, following in ((1, 2), (2, 3), (3, 1)):
            (small_house / "slides" / f"part{number}.py").write_text(f"def f():\n    import small.slides.part{following}\n")
        way = [f"small.slides.part{number}" for number in (1, 2, 3, 1)]
        assert rules.circles(rules.read_package(small_house))[0] == " -> ".join(way)

    def test_too_many_root_modules(self, small_house: Path) -> None:
        for number in range(5):
            (small_house / f"more{number}.py").write_text("")
        assert rules.crowded(rules.read_package(small_house)) == []
        (small_house / "one_too_many.py").write_text("")
        assert "7 root modules; at most 6" in rules.crowded(rules.read_package(small_house))[0]

    def test_too_many_files_in_a_package(self, small_house: Path) -> None:
        for number in range(12):
            (small_house / "slides" / f"more{number}.py").write_text("")
        assert rules.crowded(rules.read_package(small_house)) == []
        (small_house / "slides" / "one_too_many.py").write_text("")
        assert rules.crowded(rules.read_package(small_house)) == ["small.slides: 15 files; at most 14"]

    def test_a_module_too_long(self, small_house: Path) -> None:
        (small_house / "errors.py").write_text("\n" * 301)
        assert rules.crowded(rules.read_package(small_house)) == ["small.errors: 301 lines; at most 300"]

    def test_a_function_too_long(self, small_house: Path) -> None:
        text = '        """Return nothing.\n\n        In three lines.\n        """\n'
        _plant(small_house / "errors.py", "class Long:\n    def long(self):\n" + text + "        pass\n" * 39)
        _plant(small_house / "slides" / "slide.py", "def open_slide(\n    path,\n):\n" + "    pass\n" * 40)
        assert rules.long_functions(rules.read_package(small_house)) == []
        _plant(small_house / "errors.py", "async def longer():\n" + "    pass\n" * 40)
        _plant(small_house / "slides" / "slide.py", "def open_slide(path):\n" + "    pass\n" * 41)
        found = [line.partition(" ")[2] for line in rules.long_functions(rules.read_package(small_house))]
        assert found == ["longer: 41 lines; at most 40", "open_slide: 41 lines; at most 40"]

    def test_too_many_parameters(self, small_house: Path) -> None:
        _plant(small_house / "errors.py", "class Few:\n    def few(self, a, b, c, d, *, e, f, g): ...\n")
        _plant(small_house / "slides" / "slide.py", "def open_slide(path, *, a, b, c, d, e, f, g): ...\n")
        _plant(small_house / "cli" / "scan.py", "@click.command(cls=None)\ndef scan(a, b, c, d, e, f, g, h): ...\n")
        _plant(small_house / "errors.py", "class Made:\n    def __init__(self, *, a, b, c, d, e, f, g, h): ...\n")
        _plant(small_house / "__init__.pyi", "from .errors import Made as Made")
        assert rules.many_parameters(rules.read_package(small_house)) == []
        _plant(small_house / "errors.py", "class Hidden:\n    def __init__(self, *, a, b, c, d, e, f, g, h): ...\n")
        _plant(small_house / "cli" / "scan.py", "def many(a, b, c, d, *e, f, g, **h): ...\n")
        _plant(small_house / "slides" / "slide.py", "class Other:\n    def many(self, a, b, c, d, e, f, g, h): ...\n")
        found = [text.split()[1:3] for text in rules.many_parameters(rules.read_package(small_house))]
        assert sorted(found) == [["__init__:", "8"], ["many:", "8"], ["many:", "8"]]

    def test_a_room_named_like_a_public_function(self, small_house: Path) -> None:
        (small_house / "open_slide.py").write_text("")
        assert rules.shadowed_names(rules.read_package(small_house)) == [
            "open_slide: bears the name of small.slides.slide.open_slide"
        ]

    def test_a_package_that_does_not_say_what_it_is_for(self, small_house: Path) -> None:
        assert rules.silent_packages(rules.read_package(small_house)) == []
        (small_house / "slides" / "__init__.py").write_text("NUMBER = 1\n")
        assert rules.silent_packages(rules.read_package(small_house)) == ["small.slides: no docstring"]

    @pytest.mark.parametrize(
        ("rows", "gap"),
        [
            ("| `errors` | | |\n| `slides/` | `slide` | |\n| `cli/` | `scan` | |\n", None),
            ("| `errors` | | |\n| `slides/` | | `slide` |\n| `cli/` | `scan` | |\n", "small.slides.slide: not in the table"),
            ("| `errors` | | |\n| `slides/` | `slide`, `scan` | |\n| `cli/` | | |\n", "small.cli.scan: not in the table"),
            ("| `slides/` | `slide` | |\n| `cli/` | `scan` | |\n", "small.errors: not in the table"),
            ("| `errors` | | |\n| `slides/` | `slide`, `gone` | |\n| `cli/` | `scan` | |\n", "small.slides.gone: in the table"),
            ("| `slides/` | `slide` | |\n| `errors` | | |\n| `cli/` | `scan` | |\n", "the rooms of the table stand in another"),
        ],
    )
    def test_a_table_of_rooms_with_a_gap(self, small_house: Path, rows: str, gap: str | None) -> None:
        design = f"# Design\n\n`slide` `scan` `errors`\n\n{rules.TABLE}|---|---|---|\n{rows}\n`slide`\n"
        found = rules.design_gaps(rules.read_package(small_house), design)
        assert found == [] if gap is None else found and found[0].startswith(gap)


def _plant(path: Path, text: str) -> None:
    path.write_text(f"{path.read_text()}\n\n{text}\n")
