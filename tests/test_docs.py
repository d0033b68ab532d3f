"""What the docs, the metadata and the package say of each other holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import wsi_meta
from wsi_meta.models.card import read_card
from wsi_meta.models.model import DEFAULT_MODEL

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!https://)([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in _anchors(file), target


def test_readme_is_short_and_reads_the_same_on_an_index_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    assert re.findall(r"\]\((?!https://)", text) == []
    for path in re.findall(r"`((?:docs|examples)/[^`*]+|[A-Z]+\.cff)`", text):
        assert (ROOT / path).exists(), path


def test_readme_has_the_figures_of_the_default_model() -> None:
    figures = read_card(DEFAULT_MODEL).metrics
    readme = (ROOT / "README.md").read_text()
    told = re.search(r"^\| single view \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", readme, re.M)
    assert told is not None
    assert list(told.groups()) == [f"{figures[name]:.3f}" for name in ("auc", "accuracy", "sensitivity", "specificity", "ece")]


def test_pages_tell_the_same_figures_as_the_card_and_each_other() -> None:
    """README said 0.973 of a piece of skin where the limits said 0.982, and the guide 0.954 of an AUC of 0.9546."""
    figures, pages = read_card(DEFAULT_MODEL).metrics, {page.name: " ".join(page.read_text().split()) for page in PAGES}
    assert len({score for text in pages.values() for score in re.findall(r"slide score of (0\.\d+)", text)}) == 1
    assert f"the default model has {figures['auc']:.3f} on the official split" in pages["train.md"]
    mean, rare, other = (figures[f"int8_{name}"] for name in ("mean_difference", "rare_difference", "same_decision"))
    told = f"by {mean:.3f} of probability on average and by {rare:.3f} in one patch of a thousand, and {1 - other:.2%}"
    assert told.replace("%", " %") in pages["limits.md"]


def test_version_is_the_same_everywhere() -> None:
    changes = re.search(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)", (ROOT / "docs" / "changelog.md").read_text(), re.M)
    citation = (ROOT / "CITATION.cff").read_text()
    assert changes is not None
    assert changes[1] == wsi_meta.__version__
    assert f"\nversion: {wsi_meta.__version__}\n" in citation
    assert f'\ndate-released: "{changes[2]}"\n' in citation


def test_every_decision_is_listed_and_has_its_four_parts() -> None:
    folder = ROOT / "docs" / "decisions"
    records = sorted(folder.glob("[0-9]*.md"))
    assert re.findall(r"\]\((\d[^)]+)\)", (folder / "README.md").read_text()) == [record.name for record in records]
    for number, record in enumerate(records, 1):
        text = record.read_text()
        assert text.startswith(f"# {number:04d}. ")
        assert record.name.startswith(f"{number:04d}-")
        assert re.findall(r"^\*\*(\w+)\.\*\* ", text, re.M) == ["Context", "Decision", "Consequence", "Measured"], record.name


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
