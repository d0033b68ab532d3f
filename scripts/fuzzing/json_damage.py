"""Ways to damage JSON: any value becomes another one, of its own type or of none that was expected."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["ODD_VALUES", "damage_json"]

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 0.5, 2**31, 2**63, 10**30, -(10**30), 1e-320, 1e308, float("nan"), float("inf"),
    "", "x", "nan", "\0", "\ud800", "0", [], [[]], {}, {"x": 1}, [0, 1], "é" * 50,
)  # fmt: skip
"""Values that may stand where others should."""

Place = tuple[Any, Any]
"""A dict or list, and a key or index of it."""


def damage_json(content: Any, rng: np.random.Generator) -> str:
    """Change, remove, add or rename something in decoded JSON, in place; return one line on what was done."""
    places = _places(content)
    if not places:
        return "nothing to change"
    parent, key = places[int(rng.integers(len(places)))]
    before, way = parent[key], rng.random()
    if way < 0.12:
        del parent[key]
        return f"{key!r} removed"
    if way < 0.2 and isinstance(parent, dict):
        parent[str(key) + "_"] = parent.pop(key)
        return f"{key!r} renamed"
    parent[key] = after = _near(before, rng) if way < 0.6 else ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]
    return f"{key!r}: {str(before)[:40]!r} became {str(after)[:40]!r}"


def _places(content: Any) -> list[Place]:
    """Return every place of a value, however deep."""
    keys: list[Any] = list(content) if isinstance(content, dict) else []
    if isinstance(content, list):
        keys = list(range(len(content)))
    return [(content, key) for key in keys] + [place for key in keys for place in _places(content[key])]


def _near(value: Any, rng: np.random.Generator) -> Any:
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return int(rng.choice([value + 1, value - 1, value * 2, -value, 0]))
    if isinstance(value, float):
        return float(rng.choice([value * 1.01, -value, 0.0, value + 1, value * 1e-3]))
    if isinstance(value, str) and value:
        at = int(rng.integers(len(value)))
        return value[:at] + "abc0"[int(rng.integers(4))] + value[at + 1 :]
    if isinstance(value, list) and value:
        return value[:-1] if rng.random() < 0.5 else [*value, value[-1]]
    return None
