"""Small whole-slide images in DICOM, written element by element, so that each can be changed where it lies."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray

__all__ = ["Element", "Writer", "write_dicom"]

WHOLE_SLIDE_IMAGE = "1.2.840.10008.5.1.4.1.1.77.1.6"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
LONG = ("OB", "SQ", "UN", "OW")
"""Value representations whose length takes four bytes after two that are reserved."""
UNDEFINED = 0xFFFFFFFF
Tag = tuple[int, int]


@dataclass(frozen=True)
class Element:
    """Where an element lies in the file."""

    start: int
    value: int
    """Place of its first byte."""
    length: int


@dataclass
class Writer:
    """A file that is being written, and its elements so far."""

    content: bytearray = field(default_factory=bytearray)
    elements: list[Element] = field(default_factory=list)

    def add(self, tag: Tag, kind: str, value: bytes | str | int) -> None:
        stored = struct.pack("<H" if kind == "US" else "<I", value) if isinstance(value, int) else value
        stored = stored.encode() if isinstance(stored, str) else stored
        stored += (b"\0" if kind in ("UI", "OB") else b" ") * (len(stored) % 2)
        start = len(self.content)
        self._head(tag, kind, len(stored))
        self.elements.append(Element(start, len(self.content), len(stored)))
        self.content += stored

    def begin(self, tag: Tag) -> None:
        """Begin a sequence and its first item."""
        self._head(tag, "SQ", UNDEFINED)
        self.content += struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED)

    def next(self) -> None:
        """End an item of a sequence and begin the next one."""
        self.content += struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE000, UNDEFINED)

    def end(self) -> None:
        """End a sequence and its last item."""
        self.content += struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)

    def frames(self, frames: list[bytes], *, listed: bool) -> None:
        """Write the pixels: a table of offsets, which may be empty, then an item for each frame."""
        self._head((0x7FE0, 0x0010), "OB", UNDEFINED)
        ends = np.cumsum([8 + len(frame) + len(frame) % 2 for frame in frames])
        for frame in (np.array([0, *ends[:-1]], "<u4").tobytes() if listed else b"", *frames):
            start = len(self.content)
            stored = frame + b"\0" * (len(frame) % 2)
            self.content += struct.pack("<HHI", 0xFFFE, 0xE000, len(stored))
            self.elements.append(Element(start, len(self.content), len(stored)))
            self.content += stored
        self.content += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)

    def _head(self, tag: Tag, kind: str, length: int) -> None:
        self.content += struct.pack("<HH", *tag) + kind.encode()
        self.content += struct.pack("<HI", 0, length) if kind in LONG else struct.pack("<H", length)


def write_dicom(
    path: Path,
    image: NDArray[np.uint8],
    *,
    mpp: float,
    tile_px: int = 64,
    listed: bool = False,
    left_out: Collection[tuple[int, int]] = (),
    kind: str = "VOLUME",
    organization: str | None = None,
    before: Callable[[Writer], None] | None = None,
) -> list[Element]:
    """Write a level of JPEG tiles as one file; return its elements, the tiles' among them.

    It may list the places of its tiles, and leave some out (row and column): then it says of each where on the slide it lies.
    `organization` is what it says of that itself, empty for nothing; `before` may write other elements before the pixels.
    """
    writer = Writer(bytearray(b"\0" * 128 + b"DICM"))
    meta = Writer()
    meta.add((2, 1), "OB", b"\0\1")
    meta.add((2, 2), "UI", WHOLE_SLIDE_IMAGE)
    meta.add((2, 3), "UI", "1.2.3.4")
    meta.add((2, 0x10), "UI", JPEG_BASELINE)
    meta.add((2, 0x12), "UI", "1.2.3")
    writer.add((2, 0), "UL", len(meta.content))
    moved = len(writer.content)
    writer.content += meta.content
    writer.elements += [Element(part.start + moved, part.value + moved, part.length) for part in meta.elements]
    frames = {place: frame for place, frame in _frames(image, tile_px).items() if place not in left_out}
    told = organization if organization is not None else "TILED_SPARSE" if left_out else "TILED_FULL"
    _describe(writer, (kind, told), image.shape[:2], tile_px, len(frames))
    if before is not None:
        before(writer)
    _place(writer, mpp, list(frames) if left_out else [], tile_px)
    writer.frames(list(frames.values()), listed=listed)
    path.write_bytes(writer.content)
    return writer.elements


def _describe(writer: Writer, kinds: tuple[str, str], shape: tuple[int, ...], tile_px: int, frames: int) -> None:
    (kind, organization), (height, width) = kinds, shape
    writer.add((0x8, 0x8), "CS", f"ORIGINAL\\PRIMARY\\{kind}\\NONE")
    writer.add((0x8, 0x16), "UI", WHOLE_SLIDE_IMAGE)
    writer.add((0x8, 0x18), "UI", "1.2.3.4")
    writer.add((0x8, 0x60), "CS", "SM")
    writer.add((0x20, 0xD), "UI", "1.2.3.5")
    writer.add((0x20, 0xE), "UI", "1.2.3.6")
    if organization:
        writer.add((0x20, 0x9311), "CS", organization)
    writer.add((0x28, 2), "US", 3)
    writer.add((0x28, 4), "CS", "YBR_FULL_422")
    writer.add((0x28, 6), "US", 0)
    writer.add((0x28, 8), "IS", str(frames))
    for code, value in ((0x10, tile_px), (0x11, tile_px), (0x100, 8), (0x101, 8), (0x102, 7), (0x103, 0)):
        writer.add((0x28, code), "US", value)
    writer.add((0x48, 6), "UL", width)
    writer.add((0x48, 7), "UL", height)


def _place(writer: Writer, mpp: float, tiles: list[tuple[int, int]], tile_px: int) -> None:
    """Say how large a pixel is and, of tiles by row and column, where on the slide each lies."""
    spacing = f"{mpp / 1000:.9f}\\{mpp / 1000:.9f}"
    writer.begin((0x5200, 0x9229))
    writer.begin((0x28, 0x9110))
    writer.add((0x18, 0x50), "DS", "0.001")
    writer.add((0x28, 0x30), "DS", spacing)
    writer.end()
    writer.end()
    for number, (row, col) in enumerate(tiles):
        if number:
            writer.next()
        else:
            writer.begin((0x5200, 0x9230))
        writer.begin((0x48, 0x21A))
        writer.add((0x48, 0x21E), "SL", col * tile_px + 1)
        writer.add((0x48, 0x21F), "SL", row * tile_px + 1)
        writer.end()
    if tiles:
        writer.end()


def _frames(image: NDArray[np.uint8], tile_px: int) -> dict[tuple[int, int], bytes]:
    """Return the JPEG of each tile, by row and column."""
    height, width = (-(-side // tile_px) * tile_px for side in image.shape[:2])
    whole = np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), mode="edge")
    found = {}
    for row, col in product(range(height // tile_px), range(width // tile_px)):
        tile = whole[row * tile_px :, col * tile_px :][:tile_px, :tile_px]
        found[row, col] = bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(tile), level=90))
    return found
