"""Names as pictures can draw them: fonts for every script, and what no font has written as an escape."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from wsi_meta.words import printable

__all__ = ["Lettering", "break_lines", "letter", "text_width"]

logger = logging.getLogger(__name__)

FAMILY = "DejaVu Sans"
"""Comes with matplotlib: Latin, Greek, Cyrillic, Arabic and many signs."""
NO_FONTS = ("Last Resort", "cm", "STIXNonUnicode", "STIXSize")
"""Beginnings of families that have boxes, or other signs than Unicode's, in the places of letters."""


@dataclass(frozen=True)
class Lettering:
    """A text that the fonts of this machine can draw, whole."""

    text: str
    families: tuple[str, ...] = (FAMILY,)
    """Fonts that have its characters; each is looked up in the first one that has it."""


def letter(name: str, what: str = "name") -> Lettering:
    r"""Return a name as one line that can be drawn, in fonts that have its characters.

    A character that no installed font has is written as Python writes it, such as ``\u4e2d``, and a warning says so: a box in
    its place would make two names alike.

    Parameters
    ----------
    name : any text; line ends and the like are escaped
    what : what it is the name of, for the warning
    """
    text = printable(name)
    missing = _not_in(FAMILY, set(text))
    families = [FAMILY]
    for family in _other_families() if missing else ():
        if (left := _not_in(family, missing)) != missing:
            families.append(family)
            if not (missing := left):
                break
    if missing:
        escapes = {char: char.encode("unicode_escape").decode() for char in missing}
        text = "".join(escapes.get(char, char) for char in text)
        told = (
            "%s: no installed font has %d of its characters, drawn as %s; install a font that has them, such as Noto Sans CJK"
        )
        logger.warning(told, printable(what), len(missing), ", ".join(sorted(escapes.values())[:5]))
    return Lettering(text, tuple(families))


def break_lines(lettering: Lettering, points: float, width_in: float) -> list[str]:
    """Return a text in lines of at most a width; broken after a space or a hyphen where one is near, else anywhere."""
    lines, rest = [], lettering.text
    while rest:
        fits = _fitting(rest, lettering.families, points, width_in)
        near = max((rest.rfind(sign, fits * 2 // 3, fits) for sign in " -_"), default=-1)
        end = near + 1 if fits < len(rest) and near >= 0 else fits
        lines.append(rest[:end].rstrip(" "))
        rest = rest[end:].lstrip(" ")
    return lines


def text_width(text: str, points: float, families: tuple[str, ...] = (FAMILY,)) -> float:
    """Return the width of a line of text, inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    properties = FontProperties(family=list(families), size=points)
    width, _, _ = TextToPath().get_text_width_height_descent(text, properties, ismath=False)
    return float(width) / 72


def _fitting(text: str, families: tuple[str, ...], points: float, width_in: float) -> int:
    """Return how many characters fit into a width; one at least."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text_width(text[:middle], points, families) <= width_in else (low, middle - 1)
    return low


def _other_families() -> list[str]:
    """Return the other families that have a font of usual weight, width and slant; those without serifs first."""
    from matplotlib.font_manager import fontManager

    usual = (font for font in fontManager.ttflist if (font.style, font.weight, font.stretch) == ("normal", 400, "normal"))
    names = {font.name for font in usual if not font.name.startswith(NO_FONTS)} - {FAMILY}
    return sorted(names, key=lambda name: ("Emoji" in name, "Sans" not in name, "Mono" in name, name))


def _not_in(family: str, characters: set[str]) -> set[str]:
    """Return the characters that a family has not; all of them where its file cannot be read, or holds no outlines."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    try:  # of several files of a family, the one that is drawn with
        font: Any = get_font(findfont(FontProperties(family=[family]), fallback_to_default=False))
    except (OSError, RuntimeError, ValueError):
        return characters
    return {char for char in characters if not font.get_char_index(ord(char))} if font.scalable else characters
