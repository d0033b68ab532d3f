"""What mkdocs does beyond its plugins: pages made of the notebooks, and links to files that are not part of the site."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]


def on_files(files: Files, config: MkDocsConfig, **_others: Any) -> Files:
    """Add a page, and the file itself, of each notebook in ``examples/``."""
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=to_markdown(path)))
        files.append(File.generated(config, f"notebooks/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_others: Any) -> str:
    """Lead links to a notebook's file, which code hosts show, to its page."""
    here = posixpath.dirname(page.file.src_uri) or "."
    notebooks = posixpath.relpath("notebooks", here)
    return re.sub(r"\]\([./]*examples/(\w+)\.ipynb\)", rf"]({notebooks}/\1.md)", markdown)


def to_markdown(notebook: Path) -> str:
    """Return a notebook's cells as one page: text as it is, code in blocks."""
    cells = json.loads(notebook.read_text())["cells"]
    parts = [_shown(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    title, *others = parts
    note = f"The notebook itself: [{notebook.name}]({notebook.name}). The tests run it."
    return "\n\n".join([title, note, *others]) + "\n"


def _shown(kind: str, source: str) -> str:
    return f"```python\n{source}\n```" if kind == "code" else re.sub(r"\]\(\.\./docs/", "](../", source)
