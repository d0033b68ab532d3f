"""Which patches a model was made with, by their pixels: its file says it, so that they are told from others afterwards."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from wsi_meta.errors import ModelFileError
from wsi_meta.models.card import CARD_KEY, read_card
from wsi_meta.models.weights_file import holds_pickle, read_metadata
from wsi_meta.words import first_line, from_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CALIBRATED_ON",
    "PATCHES_KEY",
    "KnownPatches",
    "known_to_weights",
    "knows_all",
    "read_known_patches",
    "weights_know_all",
]

PATCHES_KEY = "wsi_meta_patches"
"""Where a model file's metadata holds the marks of patches, as JSON."""
CALIBRATED_ON = "calibrated_on"
"""The part of the patches that a calibration was fitted on, which the weights never saw."""
MOST = 2_000_000
"""Patches of a part of which marks are kept: the header of a model file may not grow without end."""


@dataclass(frozen=True, eq=False)
class KnownPatches:
    """Marks of the patches that a model was made with: the first 8 bytes of the SHA-1 of each one's pixels."""

    marks: Mapping[str, NDArray[np.uint64]]
    """By what they were for (``train``, ``valid``, ``calibrated_on``), sorted, each once."""

    @classmethod
    def of(cls, contents: Mapping[str, NDArray[np.uint8] | None], before: KnownPatches | None = None) -> Self | None:
        """Return the marks of patches, of each part that was read and has no more than 2,000,000; None where there are none.

        Parameters
        ----------
        contents : of each part SHA-1 of every patch's pixels, (n, 20)
        before : marks of the patches that its weights were made with before; a part is of all of them
        """
        older = {} if before is None else before.marks
        kept = {part: marks for part, marks in older.items() if part not in contents}
        for part, one in contents.items():
            if one is not None:
                kept[part] = np.union1d(_marks(one), older.get(part, np.empty(0, np.uint64)))
        kept = {part: marks for part, marks in kept.items() if len(marks) <= MOST}
        return cls(kept) if kept else None

    def of_weights(self) -> Self:
        """Return the marks without those of a calibration: what is fitted anew, or trained on, has left it behind."""
        return type(self)({part: marks for part, marks in self.marks.items() if part != CALIBRATED_ON})

    def count(self, contents: NDArray[np.uint8]) -> dict[str, int]:
        """Return how many of other patches are known, by what they were for.

        Parameters
        ----------
        contents : SHA-1 of every patch's pixels, (n, 20)
        """
        return {part: int(np.isin(_marks(contents), marks).sum()) for part, marks in self.marks.items()}

    def to_json(self) -> str:
        """Return the marks as JSON: of each part its bytes, base64."""
        return json.dumps({part: b64encode(marks.astype(">u8").tobytes()).decode() for part, marks in self.marks.items()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` returned; ValueError, TypeError or AttributeError for anything else."""
        parts = {part: b64decode(marks, validate=True) for part, marks in from_json(text).items()}
        return cls({part: np.frombuffer(marks, ">u8").astype(np.uint64) for part, marks in parts.items()})


def read_known_patches(path: str | Path) -> KnownPatches | None:
    """Read which patches a model file was made with; None where it does not say.

    Raises
    ------
    ModelFileError
        when the file cannot be read, or what it says cannot be.
    """
    stored = read_metadata(Path(path)).get(PATCHES_KEY)
    if stored is None:
        return None
    try:
        return KnownPatches.from_json(stored)
    except (ValueError, TypeError, AttributeError) as error:
        told = f"its list of patches is wrong ({first_line(error)}); train or download it again"
        raise ModelFileError(f"{path}: {told}") from error


def known_to_weights(path: Path) -> KnownPatches | None:
    """Read which patches the weights of any file were made with; None where it does not say, as no file of others does."""
    known = None if holds_pickle(path) else read_known_patches(path)
    return None if known is None else known.of_weights()


def knows_all(training: Mapping[str, Any], known: KnownPatches | None) -> bool:
    """Tell whether a model says all patches that its weights were made with: by its card's `training`, and its marks."""
    return known is not None and {"train", "valid"} <= set(known.marks) and training.get("init_known") is not False


def weights_know_all(path: Path) -> bool:
    """Tell whether a file of weights says all patches that they were made with; only a model file of wsi-meta can."""
    if holds_pickle(path) or CARD_KEY not in read_metadata(path):
        return False
    return knows_all(read_card(path).training, read_known_patches(path))


def _marks(contents: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(contents[:, :8]).view(">u8")[:, 0].astype(np.uint64)
