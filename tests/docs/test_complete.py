"""No command, option, public name or kind of error is without its place in the documentation."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from pages import DOCS, PUBLIC, ROOT, examples_of
from stores import make_record, write_store

import wsi_meta
from wsi_meta import errors
from wsi_meta.cli import main
from wsi_meta.heatmaps.record import ScanRecord
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.models.card import ModelCard
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.quality.cell_measures import MEASURES
from wsi_meta.tiling.grid import PatchGrid

TROUBLE = (DOCS / "troubleshooting.md").read_text()
STORE = (DOCS / "formats" / "store.md").read_text()
MODEL = (DOCS / "formats" / "model.md").read_text()
KINDS = [name for name in errors.__all__ if name.endswith("Error")]
MESSAGE = re.compile(r"^\| `([^`]+)` \|", re.M)


def _rows(page: str, head: str) -> list[list[str]]:
    """Return the rows of the table that begins with this line, each its cells."""
    table = page.partition(head + "\n")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[1:]]


def _templates() -> list[str]:
    """Return every text in the sources, with … for what is filled in."""
    found = []
    for path in (ROOT / "wsi_meta").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


class TestCommands:
    def test_each_command_and_each_option_is_on_the_page_of_the_command_line(self) -> None:
        page = (DOCS / "cli.md").read_text()
        for name, command in main.commands.items():
            section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
            options = [option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)]
            told = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", section))
            missing = [option for option in options if option.startswith("-") and option not in told]
            assert section, f"docs/cli.md lacks {name}"
            assert missing == [], name

    def test_no_help_shows_the_marks_that_keep_lines_apart(self) -> None:
        assert "\\b" not in (DOCS / "cli.md").read_text()

    def test_each_command_stands_in_a_guide(self) -> None:
        pages = [ROOT / "README.md", *DOCS.glob("*.md"), *(DOCS / "guides").glob("*.md")]
        text = "\n".join(page.read_text() for page in pages if page.name not in ("cli.md", "changelog.md"))
        assert [name for name in main.commands if f"wsi-meta {name}" not in text] == []


class TestPublicNames:
    def test_each_stands_once_on_the_page_of_python(self) -> None:
        named = re.findall(r"^::: wsi_meta\.(\w+)$", (DOCS / "api.md").read_text(), re.M)
        assert sorted(named) == sorted(PUBLIC)

    def test_each_function_says_what_it_returns(self) -> None:
        functions = {name: public for name in PUBLIC if inspect.isfunction(public := getattr(wsi_meta, name))}
        assert len(functions) > 30
        told = {name for name, function in functions.items() if re.search(r"\bReturns?\b", inspect.getdoc(function) or "")}
        assert set(functions) - told == {"save_model", "view"}, "they return None"


class TestErrors:
    def test_each_kind_has_a_section_with_its_messages(self) -> None:
        for kind in KINDS:
            section = re.search(rf"^## .*: {kind}$(.*?)(?=^## |\Z)", TROUBLE, re.M | re.S)
            assert section is not None, f"docs/troubleshooting.md lacks {kind}"
            assert kind == "WsiMetaError" or len(MESSAGE.findall(section[1])) >= 3, kind

    def test_each_message_is_one_of_the_sources(self) -> None:
        templates = _templates()
        messages = MESSAGE.findall(TROUBLE)
        assert len(messages) > 80
        gone = [message for message in messages if not any(_says(message, template) for template in templates)]
        assert gone == []

    def test_a_message_that_is_gone_would_be_noticed(self) -> None:
        assert _says("is gone …; start", "the disk … is gone … ago; start again")
        assert not _says("is gone …; stop", "the disk … is gone … ago; start again")


def _says(message: str, template: str) -> bool:
    """Tell whether a text holds a message: its parts between …, one after the other."""
    place = 0
    for part in message.split("…"):
        place = template.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


class TestTheStore:
    def test_arrays_are_as_the_page_says(self, tmp_path: Path) -> None:
        told = {
            name.strip("`"): cells
            for name, *cells, _meaning in _rows(STORE, "| array | type | dimensions | fill value | what it holds |")
        }
        write_store(tmp_path / "s.zarr", np.full((130, 20), 0.9, np.float32))
        grid = PatchGrid(1280, 1280, 0.243, 0.972, 96, 32)
        record = replace(make_record(grid, uncertainty=True), measures=MEASURES)
        Heatmap.create(tmp_path / "all.zarr", record, np.ones(grid.shape, bool), overwrite=False)
        seen = set()
        for store in (tmp_path / "s.zarr", tmp_path / "all.zarr"):
            for path, array in _arrays(zarr.open_group(store, mode="r")):
                name = re.sub(r"(labels/\w+)/\d+", r"\1/M", re.sub(r"^[1-9]\d*/", "N/", path))
                nothing = "NaN" if np.isnan(array.fill_value) else str(array.fill_value).removesuffix(".0")
                assert told[name] == [str(array.dtype), ", ".join(array.metadata.dimension_names), nothing], path
                seen.add(name)
        assert seen == set(told)

    def test_status_codes_are_as_the_page_says(self) -> None:
        rows = _rows(STORE, "| code | name | meaning |")
        assert {(int(code), name) for code, name, _meaning in rows} == {(int(one), one.name.lower()) for one in Status}

    def test_each_part_of_the_record_is_told(self, tmp_path: Path) -> None:
        told = {part.strip("`"): meaning for part, meaning in _rows(STORE, "| part | fields |")}
        assert set(told) == {field.name for field in fields(ScanRecord)} | {"format_version", "grid"}
        heatmap = write_store(tmp_path / "s.zarr", np.full((4, 5), 0.9, np.float32))
        parts: dict[str, Any] = heatmap.record.to_dict()
        for part in ("grid", "identity", "slide", "tissue", "result", "lesions"):
            names = {*parts[part], *(parts[part]["found"][0] if part == "lesions" else ())}
            assert [name for name in names if f"`{name}`" not in told[part]] == [], part


def _arrays(group: Any, before: str = "") -> list[tuple[str, Any]]:
    """Return all arrays under a group, with their paths."""
    found = [(before + name, array) for name, array in group.arrays()]
    for name, inner in group.groups():
        found += _arrays(inner, f"{before}{name}/")
    return found


class TestTheModelFile:
    @pytest.mark.parametrize(
        ("head", "kind"), [("| field | meaning |", ModelCard), ("| preprocessing | meaning |", Preprocessing)]
    )
    def test_each_field_of_the_card_is_told(self, head: str, kind: type) -> None:
        told = " ".join(names for names, _meaning in _rows(MODEL, head))
        assert [field.name for field in fields(kind) if f"`{field.name}`" not in told] == []


def test_blocks_of_code_are_found_in_pages() -> None:
    """What the tests of examples rest on: a page of guides has blocks of both kinds, and one that says why it is not run."""
    found = examples_of(DOCS / "guides" / "first-map.md")
    assert {example.language for example in found} == {"bash", "python"}
    assert {example.left_out for example in found} == {True, False}
