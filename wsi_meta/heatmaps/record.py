"""What a heatmap store says of the scan that made it: frozen values, to and from plain JSON."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from enum import IntEnum
from typing import Any, TypeVar, get_type_hints

from wsi_meta.heatmaps.effort import ScanEffort
from wsi_meta.models.card import ModelCard
from wsi_meta.models.dihedral import count_views
from wsi_meta.quality.cell_measures import MEASURES
from wsi_meta.quality.verdict import Verdict
from wsi_meta.readers.reader import Bounds
from wsi_meta.tiling.grid import PatchGrid
from wsi_meta.words import counted

__all__ = [
    "FORMAT_VERSION",
    "UNKNOWN",
    "ScanIdentity",
    "ScanRecord",
    "ScanResult",
    "ScannedSlide",
    "ScannedTissue",
    "Status",
    "open_seal",
    "seal_of",
]

FORMAT_VERSION = 1
"""Version of the record's layout; a store with a newer one is refused."""
PLAIN: dict[Any, tuple[type, ...]] = {
    str: (str,),
    bool: (bool,),
    int: (int,),
    bool | int: (bool, int),
    float: (float, int),
    float | None: (float, int, type(None)),
}
"""What JSON must hold where a field of a record has one of these types."""

LATER_PARTS = ("effort", "verdict", "measures")
"""Parts of a record that stores of 0.1.0 lack."""

Kind = TypeVar("Kind")


class Status(IntEnum):
    """What became of a cell."""

    PENDING = 0
    """Tissue that is not scanned yet."""
    BACKGROUND = 1
    """No tissue; its probability is NaN."""
    SCANNED = 2
    """Its probability is a number."""
    UNREADABLE = 3
    """Tissue whose pixels could not be read; its probability is NaN."""


UNKNOWN = (Status.PENDING, Status.UNREADABLE)
"""Tissue without a value: it may be anything."""


@dataclass(frozen=True)
class ScanIdentity:
    """All that makes two scans the same: equal identities give equal maps."""

    slide: str
    """Fingerprint of the slide, hexadecimal."""
    reader: str
    """Who decoded the pixels: ``openslide``, ``direct`` (OME-TIFF too), ``picture`` or ``zarr``."""
    model: str
    """SHA-256 of the model file, hexadecimal."""
    mode: str
    """``patch`` or ``dense``."""
    halo_px: int
    """Pixels that dense mode sees beyond a block's patches; 0 in patch mode."""
    grid: PatchGrid
    tissue: str
    """Fingerprint of the tissue mask, hexadecimal."""
    device: str
    """``cpu`` or ``cuda``: they round sums differently."""
    precision: str
    """``fp32``, ``bf16`` or ``int8``."""
    compiled: bool
    test_time_averaging: bool | int
    """How many views of each patch were averaged, as :func:`.averaging_of` says it."""
    uncertainty: bool
    """Whether the spread over the views is kept."""

    def __post_init__(self) -> None:
        count_views(self.test_time_averaging)  # a ValueError: the record of a damaged store

    @property
    def views(self) -> int:
        """How many views of each patch were averaged: 1, 2, 4 or 8."""
        return count_views(self.test_time_averaging)

    def differences(self, other: ScanIdentity) -> tuple[str, ...]:
        """Return the names of the fields in which another identity differs, in their order here."""
        names = (field.name for field in fields(self))
        return tuple(name for name in names if getattr(self, name) != getattr(other, name))


@dataclass(frozen=True)
class ScannedSlide:
    """The slide that was scanned."""

    file: str
    """Name of the file, without its folder."""
    name: str
    """Name without ending."""
    width: int
    """Level-0 pixels."""
    height: int
    """Level-0 pixels."""
    mpp: float
    """Micrometres per level-0 pixel."""
    stated_mpp: float | None = None
    """What the file says of that, where the user said something else; None where they agree."""
    reader_reason: str = ""
    """Why the reader in the identity was chosen."""
    bounds: Bounds | None = None
    """The part of it that QuPath shows, see :class:`wsi_meta.Slide`; None in a store that was made before bounds were kept."""

    @property
    def corner(self) -> tuple[int, int] | None:
        """The level-0 pixel that QuPath counts from; None where that is not known."""
        return None if self.bounds is None else self.bounds.corner


@dataclass(frozen=True)
class ScannedTissue:
    """Where the scan looked."""

    source: str
    """``found``, ``none`` (everything counts as tissue), ``array``, or the name of the mask's file."""
    fraction: float
    """Share of the slide that is tissue."""
    inked: float | None = None
    """As :class:`wsi_meta.tiling.tissue.TissueMask` has it; None also in stores that were made before this was kept."""
    unread: bool = False
    """Whether parts of the overview could not be read, which count as tissue; False also in older stores."""


@dataclass(frozen=True)
class ScanResult:
    """What came out once the scan reached its end."""

    score: float | None
    """The default slide score, 0 to 1; None where no cell was scanned."""
    complete: bool
    """Whether every cell is scanned or background."""
    cells: dict[str, int]
    """How many cells have each status, by its name in lower case."""
    fitted_score: dict[str, Any] | None = None
    """Score by a file of :func:`wsi_meta.fit_score`: ``score``, ``file``, ``sha256``; None where none was asked for."""


@dataclass(frozen=True)
class ScanRecord:
    """Everything that a store keeps beside its arrays, under ``wsi_meta`` in its attributes."""

    identity: ScanIdentity
    slide: ScannedSlide
    tissue: ScannedTissue
    model: ModelCard
    """Card of the model, with the calibration and the thresholds that were used."""
    device: str
    """Torch device that computed."""
    versions: dict[str, str]
    """Library versions at the time of the scan."""
    result: ScanResult | None = None
    """None until the scan reaches its end."""
    lesions: dict[str, Any] | None = None
    """As :func:`wsi_meta.heatmaps.lesions.lesion_facts` gives them; None until the scan reaches its end."""
    effort: ScanEffort | None = None
    """What the scan took so far; None until a run of it ends, and in stores that were made before this was kept."""
    verdict: Verdict | None = None
    """What may be wrong with the slide; None until the scan reaches its end, and in older stores."""
    measures: tuple[str, ...] = ()
    """Those of :data:`wsi_meta.quality.cell_measures.MEASURES` that are kept of each cell; none in older stores."""

    def __post_init__(self) -> None:
        if unknown := set(self.measures) - set(MEASURES):
            raise ValueError(f"measures {sorted(unknown)}; expected some of {MEASURES}")

    @property
    def grid(self) -> PatchGrid:
        """Where the cells lie."""
        return self.identity.grid

    @property
    def complete(self) -> bool:
        """Whether the scan has ended and every cell is scanned or background."""
        return self.result is not None and self.result.complete

    @property
    def nothing_scanned(self) -> bool:
        """Whether the scan has ended and no cell has a value: where nothing was looked at, nothing was found to be absent."""
        return self.result is not None and self.result.score is None

    @property
    def why_incomplete(self) -> str | None:
        """Why what was not found may be there, in words; None where all tissue was scanned, and there was some."""
        if self.result is None:
            return "not scanned to the end"
        if self.nothing_scanned:
            return "no cell was scanned"
        return None if self.complete else f"{counted(self.result.cells['unreadable'], 'cell')} could not be read"

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that hold a value, or the status, of each cell."""
        return ("0", "status", *(("uncertainty",) if self.identity.uncertainty else ()), *self.measures)

    def ended_with(self, result: ScanResult, lesions: dict[str, Any] | None, verdict: Verdict | None = None) -> ScanRecord:
        """Return the record of a scan that has reached its end."""
        return replace(self, result=result, lesions=lesions, verdict=verdict)

    def with_run(self, effort: ScanEffort) -> ScanRecord:
        """Return the record after one more run of the scan, which took so much."""
        return replace(self, effort=effort.after(self.effort))

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        parts: dict[str, Any] = {"format_version": FORMAT_VERSION, "grid": self.grid.to_dict()}
        parts |= asdict(replace(self, lesions=None))  # asdict copies every number, and lesions may be megabytes
        for part, name in (("slide", "bounds"), ("tissue", "inked"), ("tissue", "unread")):
            if parts[part][name] is None or parts[part][name] is False:  # as the older store that it was read from
                del parts[part][name]
        parts = {name: part for name, part in parts.items() if part not in (None, ()) or name not in LATER_PARTS}
        return parts | {"model": self.model.to_dict(), "lesions": self.lesions}

    @classmethod
    def from_dict(cls, parts: dict[str, Any]) -> ScanRecord:
        """Make a record from what :meth:`to_dict` returned; parts that this version does not know are ignored.

        Raises
        ------
        AttributeError, KeyError, TypeError, ValueError
            when a part is missing or is not what it should be.
        """
        identity, slide, result = parts["identity"], parts["slide"], parts["result"]
        bounds = slide.get("bounds")
        return cls(
            identity=_make(ScanIdentity, identity | {"grid": _make(PatchGrid, identity["grid"])}),
            slide=_make(ScannedSlide, slide | {"bounds": None if bounds is None else _make(Bounds, bounds)}),
            tissue=_make(ScannedTissue, parts["tissue"]),
            model=ModelCard.from_dict(parts["model"]),
            device=str(parts["device"]),
            versions=dict(parts["versions"]),
            result=None if result is None else _make(ScanResult, result),
            lesions=parts.get("lesions"),
            effort=_make_listed(ScanEffort, parts.get("effort"), "hosts"),
            verdict=_make_listed(Verdict, parts.get("verdict"), "words"),
            measures=tuple(parts.get("measures", ())),
        )


def seal_of(parts: dict[str, Any], blocks: list[int] | None) -> dict[str, Any]:
    """Return what is kept beside a record to tell whether it, and the blocks, are as they were written; plain JSON values.

    Parameters
    ----------
    parts : the record, as :meth:`ScanRecord.to_dict` returns it
    blocks : the checksum of each block, in the grid's order; None where the scan has not reached its end
    """
    return {"sha256": hashlib.sha256(json.dumps([parts, blocks], sort_keys=True).encode()).hexdigest(), "blocks": blocks}


def open_seal(seal: Any, parts: dict[str, Any]) -> tuple[list[int] | None, bool]:
    """Return the blocks' checksums, and whether a record is as it was written; one without a seal, as older ones, counts so.

    Parameters
    ----------
    seal : as :func:`seal_of` returned it, or None; it may be damaged
    parts : the record, as :meth:`ScanRecord.to_dict` returned it
    """
    blocks = seal.get("blocks") if isinstance(seal, dict) else None
    intact = seal in (None, seal_of(parts, blocks))
    return blocks if intact else None, intact


def _make_listed(kind: type[Kind], parts: dict[str, Any] | None, listed: str) -> Kind | None:
    """Return a dataclass of which one field is a tuple, a list in JSON; None of None."""
    return None if parts is None else _make(kind, parts | {listed: tuple(parts[listed])})


def _make(kind: type[Kind], parts: dict[str, Any]) -> Kind:
    """Return a dataclass made of those parts that are its fields; TypeError where one is missing or has another type."""
    known = {name: hint for name, hint in get_type_hints(kind).items() if name in parts}
    for name, hint in known.items():
        if hint in PLAIN and type(parts[name]) not in PLAIN[hint]:
            raise TypeError(f"{name} is {parts[name]!r}; expected {getattr(hint, '__name__', hint)}")
    return kind(**{name: parts[name] for name in known})
