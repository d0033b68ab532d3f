"""Names of groups and classifications: which outlines are tumor, which are removed from it, and which are neither."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from wsi_meta.errors import OptionsError, all_of

__all__ = ["DEFAULT_NAMES", "EXCLUDED_GROUPS", "NOT_TISSUE_GROUPS", "TUMOR_GROUPS", "ClassNames", "class_of", "is_tissue"]

TUMOR_GROUPS = ("tumor", "tumour", "_0", "_1", "metastases", "metastasis")
"""Names, in lower case, under which tumor is outlined: Camelyon16's (Tumor, _0, _1) and CAMELYON17's (metastases)."""
EXCLUDED_GROUPS = ("exclusion", "_2", "normal")
"""Names, in lower case, of what is removed from the tumor."""
NOT_TISSUE_GROUPS = ("exclusion", "_2", "ignore*", "artifact", "artefact", "background", "glass", "ink")
"""Names, in lower case, of what is removed from outlines of tissue. Any other class is tissue, ``Normal`` as well."""
CLASS_PROPERTIES = ("class", "class_name", "className", "label", "category", "type")
"""Properties of other programs' GeoJSON that may hold the class, beside QuPath's ``classification``."""
UNCLASSIFIED = ("", "unclassified")
"""What stands there, in lower case, where nothing is classified."""
DRAWN = frozenset(
    [
        "annotation",
        "detection",
        "feature",
        "polygon",
        "multipolygon",
        "rectangle",
        "ellipse",
        "roi",
        "polyline",
        "freehand",
        "path",
        "brush",
        "area",
        "region",
        "contour",
        "circle",
        "point",
        "line",
        "segmentation",
        "shape",
    ]
)
"""What other programs write there, in lower case, that says only what was drawn."""


@dataclass(frozen=True)
class ClassNames:
    """Which classes are tumor and which are excluded; in any case, and with their subclasses (``Tumor: Positive``)."""

    tumor: tuple[str, ...] = ()
    """Names that were told; none: :data:`TUMOR_GROUPS`. Where some were told, other classes are passed over."""
    excluded: tuple[str, ...] = ()
    """Names that were told; none: :data:`EXCLUDED_GROUPS`."""

    @classmethod
    def parse(cls, tumor: str | Iterable[str], excluded: str | Iterable[str]) -> ClassNames:
        """Make one of the names that a user gave; OptionsError for an empty name, or one that is to be both."""
        told = ([given] if isinstance(given, str) else given for given in (tumor, excluded))
        names = [all_of("classes", given, str, "names as in the annotations") for given in told]
        plain = [[_plain(name) for name in given] for given in names]
        if not all(map(all, plain)):
            raise OptionsError("an empty name of a class; expected names as in the annotations")
        if both := sorted(set(plain[0]) & set(plain[1])):
            raise OptionsError(f"class '{both[0]}' is to be tumor and to be excluded; expected one of them")
        return cls(*names)

    @property
    def all_told(self) -> tuple[str, ...]:
        """The names that were told."""
        return self.tumor + self.excluded

    def kind(self, groups: Iterable[str]) -> bool | None:
        """Tell whether an outline is tumor (True), excluded (False) or neither (None).

        Parameters
        ----------
        groups : its class or group, then the group that this one is part of, and so on. A name counts whole before it counts
            without its last part: ``Tumor: Negative`` may be excluded although ``Tumor`` is not
        """
        kinds = dict[str, bool]()
        for told, known, kind in ((self.excluded, EXCLUDED_GROUPS, False), (self.tumor, TUMOR_GROUPS, True)):
            kinds |= {} if told else dict.fromkeys(known, kind)
        for told, kind in ((self.excluded, False), (self.tumor, True)):
            kinds |= dict.fromkeys(map(_plain, told), kind)
        return next((kinds[name] for name in _names_of(groups) if name in kinds), None)

    def passes_over(self, groups: Iterable[str]) -> bool:
        """Tell whether outlines that are neither may be left out: others were told, or QuPath ignores them (``Region*``)."""
        return bool(self.tumor) or next(iter(groups)).endswith("*")

    def absent(self, classes: Iterable[Iterable[str]]) -> list[str]:
        """Return the told names that none of some outlines has; `classes` are their groups, as for :meth:`kind`."""
        seen = {name for groups in classes for name in _names_of(groups)}
        return [name for name in self.all_told if _plain(name) not in seen]

    def expected(self) -> str:
        """Return the names of tumor and of what is excluded, for errors."""
        return ", ".join((self.tumor or TUMOR_GROUPS) + (self.excluded or EXCLUDED_GROUPS))


DEFAULT_NAMES = ClassNames()
"""Where nothing was told."""


def is_tissue(groups: Iterable[str]) -> bool:
    """Tell whether an outline in a tissue mask is tissue; `groups` as for :meth:`ClassNames.kind`."""
    return not set(NOT_TISSUE_GROUPS) & set(_names_of(groups))


def class_of(properties: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return the class that a feature's properties in GeoJSON give it, and words that are one only where they are known.

    QuPath writes a derived class with colons or as a list of names; other programs write the mere name, or a number.

    Returns
    -------
    The class, "" for none; and, unless QuPath classified the feature, its name and what else stands where the class may
    """
    if (told := _word(properties.get("classification"))).lower() not in UNCLASSIFIED:
        return told, ()
    words = {key: word for key in CLASS_PROPERTIES if (word := _word(properties.get(key))).lower() not in UNCLASSIFIED}
    words = {key: word for key, word in words.items() if word.lower() not in DRAWN}
    group = next((word for key, word in words.items() if _is_class(key, word)), "")
    named = str(properties.get("name") or "")
    return group, tuple(word for word in (named, *words.values()) if word not in ("", group))


def _word(told: Any) -> str:
    """Return what a property says, itself or as its ``names``, ``name`` or ``value``; "" for nothing."""
    if isinstance(told, Mapping):
        told = told["names"] if "names" in told else told.get("name") or told.get("value")
    parts = told if isinstance(told, list) else [told]
    return ": ".join(str(part).strip() for part in parts if part is not None)


def _is_class(key: str, word: str) -> bool:
    """Tell whether a word is a class: no number, as of connected components, and as a ``type`` one that is known."""
    if key == "type":
        return not {*TUMOR_GROUPS, *EXCLUDED_GROUPS, *NOT_TISSUE_GROUPS}.isdisjoint(_names_of([word]))
    return re.fullmatch(r"[-+]?\d+(\.\d*)?", word) is None


def _plain(name: str) -> str:
    return ": ".join(part.strip() for part in name.lower().split(":"))


def _names_of(groups: Iterable[str]) -> Iterator[str]:
    """Return all names that an outline has, the most particular first."""
    for group in groups:
        parts = _plain(group).split(": ")
        yield from (": ".join(parts[:count]) for count in range(len(parts), 0, -1))
