"""The site builds without a warning, and its pages load nothing from the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, PUBLIC, ROOT

LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"(https?:[^\"]+)|<link\b[^>]*\brel=\"stylesheet\"[^>]*\bhref=\"(https?:[^\"]+)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, built once."""
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(ROOT / ".mkdocs.yml"),
        "--site-dir",
        str(folder),
    ]
    done = subprocess.run(
        command,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.site
def test_each_page_and_each_notebook_is_there(site: Path) -> None:
    pages = {path.relative_to(DOCS).with_suffix(".html").as_posix().replace("README", "index") for path in DOCS.rglob("*.md")}
    notebooks = {f"notebooks/{path.stem}.html" for path in (ROOT / "examples").glob("*.ipynb")}
    assert pages | notebooks <= {path.relative_to(site).as_posix() for path in site.rglob("*.html")}


@pytest.mark.site
def test_pages_load_nothing_from_the_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert LOADED.findall(page.read_text()) == [], page


@pytest.mark.site
def test_each_public_name_is_shown_with_its_docstring(site: Path) -> None:
    page = (site / "api.html").read_text()
    assert [name for name in PUBLIC if f'id="wsi_meta.{name}"' not in page] == []
    assert ":func:" not in page
    assert "----" not in re.sub(r"<[^>]+>", "", page)
