"""The files that pages are made of. They are read once, before the first request: no link leads to a file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from wsi_meta import __version__

__all__ = ["Asset", "Assets", "read_assets"]

KINDS = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".txt": "text/plain; charset=utf-8"}
NAMES = (
    "openseadragon.min.js",
    "openseadragon-license.txt",
    "map.js",
    "sources.js",
    "layers.js",
    "correct.js",
    "list.js",
    "viewer.css",
)
PAGES = ("map.html", "list.html")


@dataclass(frozen=True)
class Asset:
    """A file as it is sent."""

    content: bytes
    kind: str
    mark: str
    """Short text that names the content."""


@dataclass(frozen=True)
class Assets:
    """All files."""

    files: dict[str, Asset]
    map_page: bytes
    list_page: bytes


def read_assets() -> Assets:
    """Return the package's files."""
    folder = files("wsi_meta.viewer") / "static"
    found = {name: _asset(name, (folder / name).read_bytes()) for name in NAMES}
    pages = [fill_page((folder / name).read_text(encoding="utf-8"), "/assets/").encode() for name in PAGES]
    return Assets(found, *pages)


def fill_page(page: str, assets: str, data: str = "") -> str:
    """Return a page with the version, where its assets lie, and a script of data in their places."""
    return page.replace("{version}", __version__).replace("{assets}", assets).replace("{data}", data)


def _asset(name: str, content: bytes) -> Asset:
    return Asset(content, KINDS[name[name.rindex(".") :]], hashlib.sha256(content).hexdigest()[:16])
