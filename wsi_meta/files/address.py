"""Paths and addresses of slides as texts: which ones are read, how they are shown, and how files keep them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias, TypeVar
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from wsi_meta.errors import SlideReadError, goes_through
from wsi_meta.outputs.paths import ADDRESS, as_path, real_path, without_secrets
from wsi_meta.words import printable

__all__ = [
    "Address",
    "SlidePath",
    "from_file_uri",
    "is_address",
    "local_path",
    "name_in",
    "portable",
    "real_slide_path",
    "several",
    "slide_name",
    "slide_path",
]

SCHEMES = ("http", "https", "s3")
"""Kinds of addresses that are read."""
FILE_URI = re.compile(r"file://([^/]*)(/.*)?", re.IGNORECASE | re.DOTALL)
MANGLED = re.compile(r"(?:^|/)((?:https?|s3|gs|ftp|sftp|abfss?|az|gcs)):/+")
"""An address that became a path, which keeps only one of its two slashes."""
T = TypeVar("T", str, "str | Path", "str | Path | Address")


@dataclass(frozen=True, repr=False)
class Address:
    """The address of a slide. What is shown or written anywhere of it holds no user, password or query.

    Raises
    ------
    SlideReadError
        when it is of no kind that is read, or names no file.
    """

    url: str
    """All of it, with what may be a secret."""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
        except ValueError:  # what is wrong cannot be told without showing all of it
            raise SlideReadError(f"{self.url.partition(':')[0]}://...: no address; check its host and brackets") from None
        if parts.scheme.lower() not in SCHEMES:
            kinds = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise SlideReadError(f"{self}: an address of another kind; expected {kinds} or a file; download it first")
        if not parts.netloc or self.name in ("", ".", "..") or "\0" in self.name:
            raise SlideReadError(f"{self}: an address that names no file; expected one such as https://host/slide.svs")

    @property
    def scheme(self) -> str:
        """``http``, ``https`` or ``s3``."""
        return urlsplit(self.url).scheme.lower()

    @property
    def name(self) -> str:
        """The last part of its path, as a file would be called; a query is no part of it."""
        return PurePosixPath(unquote(urlsplit(self.url).path)).name

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The name's ending with its dot."""
        return PurePosixPath(self.name).suffix

    def absolute(self) -> Address:
        """Return the address: it is the same from every folder."""
        return self

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def __repr__(self) -> str:
        return f"Address('{self}')"


SlidePath: TypeAlias = Path | Address
"""Where a slide lies."""


def is_address(text: object) -> bool:
    """Tell whether a text is an address, of whatever kind, and no path, as a file URI is."""
    return isinstance(text, Address) or (isinstance(text, str) and bool(ADDRESS.match(text)) and not FILE_URI.match(text))


def slide_path(given: str | Path | Address) -> SlidePath:
    """Return the address or the path that a text stands for; of a file URI the path that it names.

    Raises
    ------
    SlideReadError
        for an address that is not read.
    OptionsError
        for what is neither, such as an empty text.
    """
    if isinstance(given, Address):
        return given
    if isinstance(given, str) and is_address(given):
        return Address(given)
    path = as_path(
        "slide", from_file_uri(given) if isinstance(given, str) else given, expected="the path or address of a slide"
    )
    _refuse_mangled(path)
    return path


def portable(path: SlidePath) -> str:
    """Return a path or an address as a text that any file holds, and that :func:`slide_path` reads back from any folder.

    A path that is no printable text, such as a name in Latin-1, becomes a file URI (RFC 8089): ``caf%E9.tif``.
    """
    text = str(path.absolute())
    return text if isinstance(path, Address) or printable(text) == text else path.absolute().as_uri()


def from_file_uri(text: str) -> str:
    """Return the path that a file URI names; any other text as it is.

    Raises
    ------
    SlideReadError
        when it names no file of this machine.
    """
    if (found := FILE_URI.fullmatch(text)) is None:
        return text
    path = _unescaped(found[2] or "")
    if not path or "\0" in path or found[1].lower() not in ("", "localhost"):
        raise SlideReadError(f"{text}: no file of this machine; expected an address such as file:///slides/a.svs, or a path")
    return path


def name_in(text: str) -> str:
    """Return the name of the file that a path, a file URI or an address names, as the disk has it; of none it is empty."""
    if ADDRESS.match(text):  # in which bytes of a name are escaped, and what follows the scheme is no file's name
        text = _unescaped(text if FILE_URI.match(text) else urlsplit(text).path)
    return Path(text).name


def _unescaped(text: str) -> str:
    return os.fsdecode(unquote_to_bytes(os.fsencode(text)))


def several(given: T | Sequence[T]) -> Sequence[T]:
    """Return all that was given, such as by a generator, which gives it once; one path or text is one of them, not letters."""
    return [given] if isinstance(given, str | os.PathLike) or not goes_through(given) else list(given)  # type: ignore[list-item]


def slide_name(path: SlidePath) -> str:
    """Return the name of a slide: its file's without ending; of an OME-Zarr image also without ``.ome``."""
    return path.stem.removesuffix(".ome") if path.suffix.lower() == ".zarr" else path.stem


def real_slide_path(path: SlidePath) -> SlidePath:
    """Return a slide's path without links, see :func:`.real_path`; an address as it is."""
    return path if isinstance(path, Address) else real_path(path)


def local_path(given: str | Path | Address) -> Path | None:
    """Return the path that a text stands for; None for an address."""
    path = slide_path(given)
    return path if isinstance(path, Path) else None


def _refuse_mangled(path: Path) -> None:
    """Refuse a path that was an address; SlideReadError."""
    if (found := MANGLED.search(str(path))) and not path.exists():
        address = without_secrets(f"{found[1]}://{str(path)[found.end() :]}")
        raise SlideReadError(f"{address}: an address that was made a path; expected it as text")
