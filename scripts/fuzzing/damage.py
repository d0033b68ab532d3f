"""Ways to damage a file: with an eye on its structure, and blindly. Each returns one line on what it did."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence

import numpy as np

from fuzzing.sound import Field, Parts

__all__ = ["NUMBERS", "damage_blindly", "damage_slide"]

Rng = np.random.Generator
Way = Callable[[bytearray, Parts, Rng], str]

NUMBERS = (0, 1, 2, 3, 7, 8, 16, 255, 256, 4096, 65535, 65536, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
"""Values at which something ends, begins or wraps round."""
WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value of each of TIFF's types."""
DESCRIPTION, X_RESOLUTION, Y_RESOLUTION, UNIT, TILE_OFFSETS, TILE_LENGTHS, TABLES = 270, 282, 283, 296, 324, 325, 347
LAYOUT = (256, 257, 258, 259, 262, 277, 284, 317, 322, 323, 530)
"""Tags of sizes, samples, compression and colours."""
TEXTS = (b"\0", b"\xff\xfe", b"|MPP = ", b"|AppMag = ", b"=", b"\n", b"99999999999", b"nan", b"-1", b"1e309", b"\xe2\x80\xae", b"%n")


def damage_slide(content: bytearray, parts: Parts, rng: Rng) -> str:
    """Damage a slide in one to three ways."""
    ways = [*(TIFF_WAYS if parts.fields else DICOM_WAYS), *TILE_WAYS, *BLIND_WAYS]
    times = int(rng.choice([1, 1, 1, 2, 3]))
    return "; ".join(ways[int(rng.integers(len(ways)))](content, parts, rng) for _ in range(times))


def damage_blindly(content: bytearray, rng: Rng) -> str:
    """Damage any file, in a way that knows nothing of its structure."""
    return BLIND_WAYS[int(rng.integers(len(BLIND_WAYS)))](content, Parts(), rng)


def _put(content: bytearray, at: int, stored: bytes) -> None:
    """Overwrite bytes, as far as the file reaches."""
    content[at : at + len(stored)] = stored[: max(0, len(content) - at)]


def _number(rng: Rng, before: int) -> int:
    near = (before + 1, before - 1, before * 2, before // 2, before * 16, -before, before ^ (1 << int(rng.integers(16))))
    return int(rng.choice(np.array([*NUMBERS, *near], object)))


def _pick(rng: Rng, fields: Sequence[Field], codes: Sequence[int] = ()) -> Field:
    found = [field for field in fields if not codes or field.code in codes] or list(fields)
    return found[int(rng.integers(len(found)))]


def _set_value(content: bytearray, field: Field, rng: Rng) -> str:
    width = WIDTHS.get(field.dtype, 4)
    width = 4 if width == 8 and field.dtype in (5, 10) else width  # half of a fraction
    count = field.count * (2 if field.dtype in (5, 10) else 1)
    at = field.value + width * int(rng.integers(max(1, count)))
    before = int.from_bytes(content[at : at + width], "little")
    value = _number(rng, before) % 256**width
    _put(content, at, value.to_bytes(width, "little"))
    return f"tag {field.code} at {field.entry}: {before} became {value}"


def _any_value(content: bytearray, parts: Parts, rng: Rng) -> str:
    return _set_value(content, _pick(rng, parts.fields), rng)


def _layout_value(content: bytearray, parts: Parts, rng: Rng) -> str:
    return _set_value(content, _pick(rng, parts.fields, LAYOUT), rng)


def _resolution(content: bytearray, parts: Parts, rng: Rng) -> str:
    return _set_value(content, _pick(rng, parts.fields, (X_RESOLUTION, Y_RESOLUTION, UNIT)), rng)


def _tile_place(content: bytearray, parts: Parts, rng: Rng) -> str:
    return _set_value(content, _pick(rng, parts.fields, (TILE_OFFSETS, TILE_LENGTHS)), rng)


def _swap_places(content: bytearray, parts: Parts, rng: Rng) -> str:
    """Let two tiles change places."""
    field = _pick(rng, parts.fields, (TILE_OFFSETS, TILE_LENGTHS))
    width = WIDTHS.get(field.dtype, 4)
    one, other = (field.value + width * int(number) for number in rng.integers(max(1, field.count), size=2))
    content[one : one + width], content[other : other + width] = content[other : other + width], content[one : one + width]
    return f"tag {field.code}: values at {one} and {other} swapped"


def _entry(content: bytearray, parts: Parts, rng: Rng) -> str:
    """Change the number, type, count or place of an entry."""
    field = _pick(rng, parts.fields)
    wide = 8 if parts.big else 4
    at, width = [(0, 2), (2, 2), (4, wide), (4 + wide, wide)][int(rng.integers(4))]
    before = int.from_bytes(content[field.entry + at : field.entry + at + width], "little")
    value = (int(rng.integers(20)) if at == 2 else _number(rng, before)) % 256**width
    _put(content, field.entry + at, value.to_bytes(width, "little"))
    return f"entry of tag {field.code} at {field.entry}, byte {at}: {before} became {value}"


def _chain(content: bytearray, parts: Parts, rng: Rng) -> str:
    """Change where a directory says that the next one is, or how many entries it says that it has."""
    page = parts.pages[int(rng.integers(len(parts.pages)))]
    wide, counted, entry = (8, 8, 20) if parts.big else (4, 2, 12)
    entries = int.from_bytes(content[page : page + counted], "little")
    if rng.random() < 0.5:
        value = int(rng.choice([0, *parts.pages, len(content), len(content) - 1, 2**32 - 1, int(rng.integers(len(content)))]))
        _put(content, page + counted + entries * entry, value.to_bytes(wide, "little"))
        return f"directory at {page}: the next one at {value}"
    value = _number(rng, entries) % 256**counted
    _put(content, page, value.to_bytes(counted, "little"))
    return f"directory at {page}: {entries} entries became {value}"


def _header(content: bytearray, _parts: Parts, rng: Rng) -> str:
    at = int(rng.integers(16))
    value = int(rng.integers(256))
    _put(content, at, bytes([value]))
    return f"byte {at} became {value}"


def _text(content: bytearray, parts: Parts, rng: Rng) -> str:
    """Change the numbers or the words of a description."""
    field = _pick(rng, parts.fields, (DESCRIPTION,))
    length = field.count * WIDTHS.get(field.dtype, 1)
    said = bytes(content[field.value : field.value + length])
    numbers = list(re.finditer(rb"[0-9.]+", said))
    text = TEXTS[int(rng.integers(len(TEXTS)))]
    at = int(rng.integers(max(1, length)))
    if numbers and rng.random() < 0.5:
        number = numbers[int(rng.integers(len(numbers)))]
        at, text = number.start(), (text * len(number[0]))[: len(number[0])]
    _put(content, field.value + at, text[: max(0, length - at)])
    return f"tag {field.code}: {text!r} at {at}"


TIFF_WAYS: list[Way] = [_any_value, _layout_value, _layout_value, _resolution, _tile_place, _swap_places, _entry, _entry]
TIFF_WAYS += [_chain, _header, _text]


def _element(content: bytearray, parts: Parts, rng: Rng) -> str:
    """Change an element's value, or its head: tag, kind and length."""
    element = parts.elements[int(rng.integers(len(parts.elements)))]
    in_head = rng.random() < 0.4 or not element.length
    first, end = (element.start, element.value) if in_head else (element.value, element.value + element.length)
    at = first + int(rng.integers(end - first))
    if not in_head and 2 <= element.length <= 4 and rng.random() < 0.7:
        value = _number(rng, int.from_bytes(content[first:end], "little")) % 256**element.length
        _put(content, first, value.to_bytes(element.length, "little"))
        return f"element at {element.start} became {value}"
    stored = bytes([int(rng.choice([0, 32, 45, 46, 48, 57, 92, 255, int(rng.integers(256))]))])
    _put(content, at, stored)
    return f"element at {element.start}: byte {at} became {stored!r}"


DICOM_WAYS: list[Way] = [_element] * 8


def _tile(parts: Parts, rng: Rng) -> tuple[int, int]:
    return parts.tiles[int(rng.integers(len(parts.tiles)))]


def _tile_head(content: bytearray, parts: Parts, rng: Rng) -> str:
    """Change a byte of a tile's own header, or a JPEG's size in it."""
    start, length = _tile(parts, rng)
    frame = content.find(b"\xff\xc0", start, start + length)
    if frame > 0 and rng.random() < 0.5:
        at, value = frame + int(rng.choice([4, 5, 7, 9])), int(rng.choice([0, 1, 32, 64, 128, 4096, 24000, 65535]))
        _put(content, at, struct.pack(">H", value))
        return f"tile at {start}: its frame's bytes {at - frame} became {value}"
    at = start + int(rng.integers(min(length, 640)))
    _put(content, at, bytes([int(rng.integers(256))]))
    return f"tile at {start}: byte {at - start} became {content[at] if at < len(content) else None}"


def _tile_bytes(content: bytearray, parts: Parts, rng: Rng) -> str:
    """Flip bits within a tile."""
    start, length = _tile(parts, rng)
    places = [start + int(at) for at in rng.integers(max(1, length), size=int(rng.integers(1, 5)))]
    for at in places:
        _put(content, at, bytes([content[at] ^ (1 << int(rng.integers(8)))]) if at < len(content) else b"")
    return f"tile at {start}: bits flipped at {', '.join(str(at - start) for at in places)}"


def _tile_cut(content: bytearray, parts: Parts, rng: Rng) -> str:
    """Overwrite the end of a tile, or all of it."""
    start, length = _tile(parts, rng)
    kept = int(rng.choice([0, 2, length // 2, max(0, length - 2)]))
    fill = bytes([int(rng.choice([0, 255, 32]))])
    _put(content, start + kept, fill * (length - kept))
    return f"tile at {start}: {fill!r} after {kept} of {length} bytes"


def _tile_copied(content: bytearray, parts: Parts, rng: Rng) -> str:
    """Overwrite a tile with the start of another one."""
    (one, length), (other, other_length) = _tile(parts, rng), _tile(parts, rng)
    _put(content, one, bytes(content[other : other + min(length, other_length)]))
    return f"tile at {one}: written over with the one at {other}"


TILE_WAYS: list[Way] = [_tile_head, _tile_bytes, _tile_bytes, _tile_cut, _tile_copied]


def _truncate(content: bytearray, _parts: Parts, rng: Rng) -> str:
    whole = len(content)
    end = int(rng.choice([0, 1, 7, 8, 100, whole // 2, whole - 1, whole - 8, int(rng.integers(whole + 1)), int(rng.integers(whole + 1))]))
    del content[max(0, end) :]
    return f"cut to {end} of {whole} bytes"


def _append(content: bytearray, _parts: Parts, rng: Rng) -> str:
    content += rng.bytes(int(rng.choice([1, 512, 70_000])))
    return f"bytes added, {len(content)} now"


def _flip(content: bytearray, _parts: Parts, rng: Rng) -> str:
    places = [int(at) for at in rng.integers(max(1, len(content)), size=int(rng.integers(1, 9)))]
    for at in places:
        _put(content, at, rng.bytes(1))
    return f"bytes changed at {', '.join(map(str, places))}"


def _sector(content: bytearray, _parts: Parts, rng: Rng) -> str:
    """Lose a sector of a disk."""
    at = int(rng.integers(max(1, len(content)))) // 512 * 512
    fill = bytes([int(rng.choice([0, 255]))])
    _put(content, at, fill * int(rng.choice([512, 4096])))
    return f"{fill!r} from {at}"


BLIND_WAYS: list[Way] = [_truncate, _append, _flip, _flip, _sector]
