"""Which compressions can be read here, and by which library: a tiny picture is written in each and read back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.checkup.findings import Part

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TRIED", "decode", "decoders", "openslide_facts"]

TILE_PX, MPP = 256, 0.972
TOLERANCE = 12
"""Grey levels by which a picture may differ when it is read back; JPEG's differ by 3."""


@dataclass(frozen=True)
class Compression:
    """A compression, and who must be able to read it for scans of the usual slides."""

    name: str
    tifffile: str
    """Its name in tifffile."""
    needed: tuple[str, ...] = ()
    description: str | None = None
    """What the file says of itself, where OpenSlide goes by that."""


APERIO = f"Aperio Image Library\nwritten by a test|MPP = {MPP}"
TRIED = (
    Compression("JPEG", "jpeg", ("openslide", "direct")),
    Compression("JPEG 2000 (Aperio)", "aperio_jp2000_rgb", ("openslide",), APERIO),
    Compression("deflate", "adobe_deflate", ("openslide",)),
    Compression("LZW", "lzw"),
    Compression("Zstandard", "zstd"),
    Compression("WebP", "webp"),
    Compression("JPEG 2000", "jpeg2000"),
    Compression("JPEG XL", "jpegxl"),
)
READERS = {"openslide": "OpenSlide", "direct": "the direct reader", "tifffile": "tifffile (masks)"}
Read = Callable[[Path, str], "NDArray[np.uint8]"]


def openslide_facts() -> Part:
    """Tell OpenSlide's version, where its library comes from, and what that is made of."""
    import openslide

    library = openslide.__library_version__
    facts: dict[str, Any] = {"library": library, "python": openslide.__version__, "bundle": None, "parts": []}
    try:
        facts["bundle"] = version("openslide-bin")
        texts = [str(path).partition("/licenses/licenses/")[2] for path in files("openslide-bin") or []]
        facts["parts"] = sorted({text.partition("/")[0] for text in texts if text} - {"OpenSlide"}, key=str.lower)
    except PackageNotFoundError:
        pass  # the system's own
    source = f"openslide-bin {facts['bundle']}: {', '.join(facts['parts'])}" if facts["bundle"] else "the system's library"
    return Part("openslide", facts, (f"{library} ({source})",))


def decoders(folder: Path, read: Read | None = None) -> Part:
    """Write a tile in each compression and read it back, by every reader.

    Parameters
    ----------
    folder : for the files
    read : as :func:`decode`, which None stands for
    """
    picture, found = _gradient(), {}
    for compression in TRIED:
        path = folder / f"{compression.tifffile}.tif"
        written = _write(path, picture, compression)
        found[compression.name] = (
            {reader: _verdict(path, reader, picture, read or decode) for reader in READERS} if written is None else written
        )
    lines = [f"{title}: {', '.join(_readable(found, reader)) or 'none'}" for reader, title in READERS.items()]
    problems = [
        f"decoders: {READERS[reader]} does not read {wanted.name} ({result[reader]}); "
        "install openslide-bin, imagecodecs and simplejpeg again"
        for wanted in TRIED
        for reader in wanted.needed
        if isinstance(result := found[wanted.name], dict) and result[reader] != "reads"
    ]
    return Part("decoders", found, tuple(lines), tuple(problems))


def decode(path: Path, reader: str) -> NDArray[np.uint8]:
    """Return all of a file's pixels as a reader gives them: uint8 (height, width, 3).

    Parameters
    ----------
    reader : ``openslide``, ``direct`` or ``tifffile``

    Raises
    ------
    Exception
        whatever its library raises.
    """
    if reader == "tifffile":
        import tifffile

        return np.asarray(tifffile.imread(path))
    from wsi_meta.slides.slide import open_slide

    with open_slide(path, mpp=MPP, reader=reader) as slide:
        return slide.read_region(0, 0, TILE_PX, TILE_PX, level=0)


def _verdict(path: Path, reader: str, picture: NDArray[np.uint8], read: Read) -> str:
    """Return ``reads``, ``does not read`` or ``wrong pixels``."""
    try:
        pixels = read(path, reader)
    except Exception:  # that is the answer
        return "does not read"
    same = pixels.shape == picture.shape and np.abs(pixels.astype(int) - picture).max() <= TOLERANCE
    return "reads" if same else "wrong pixels"


def _write(path: Path, picture: NDArray[np.uint8], compression: Compression) -> str | None:
    """Write a picture; return why it could not be written, else None."""
    import tifffile

    options: dict[str, Any] = {"photometric": "rgb", "tile": (TILE_PX, TILE_PX), "metadata": None}
    options |= {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
    try:
        tifffile.imwrite(path, picture, compression=compression.tifffile, description=compression.description, **options)
    except (ValueError, KeyError, ImportError, RuntimeError) as error:
        return f"not tried: imagecodecs does not write it ({type(error).__name__})"
    return None


def _readable(found: dict[str, Any], reader: str) -> list[str]:
    """Return the names of the compressions that a reader reads; those with wrong pixels are named as such."""
    words = {"reads": "", "wrong pixels": " (WRONG PIXELS)"}
    results = {name: result[reader] for name, result in found.items() if isinstance(result, dict)}
    return [f"{name}{words[result]}" for name, result in results.items() if result in words]


def _gradient() -> NDArray[np.uint8]:
    """Return a picture without edges, so that JPEG changes little: uint8 (TILE_PX, TILE_PX, 3)."""
    y, x = np.mgrid[:TILE_PX, :TILE_PX]
    return np.stack([120 + x // 4, 60 + y // 4, np.full_like(x, 150)], -1).astype(np.uint8)
