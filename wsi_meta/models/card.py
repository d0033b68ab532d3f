"""The card of a model: what it is, how its probabilities are calibrated, how good it was. Read without loading torch."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import ModelFileError, is_truth, number
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.models.weights_file import read_metadata
from wsi_meta.words import first_line, from_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CARD_KEY",
    "FITTED_TEMPERATURES",
    "FORMAT_VERSION",
    "INIT_INT8",
    "SMALLEST_THRESHOLD",
    "Calibration",
    "ModelCard",
    "check_card",
    "read_card",
]

CARD_KEY = "wsi_meta"
"""Name of the card among a file's metadata."""
ARCHITECTURE = "resnet50"
"""Of the networks in model files."""
FORMAT_VERSION = 1
"""Version of the card's layout; a file with a newer one is refused."""
SMALLEST_THRESHOLD = 2.0**-149
"""The smallest float32 over 0: a cell of probability 0 is never tumor."""
INT8_BARS = {"auc": 0.0005, "mean_difference": 0.006, "rare_difference": 0.08, "same_decision": 0.995}
"""How near int8 must be to float32 where it may be chosen unasked: difference of AUC, of probability on average and in all but
a thousandth of the patches at most; same side of 0.5 at least (share of patches)."""
RANGES = "int8_ranges"
"""Where `training` keeps how far activations reach."""
INIT_INT8 = "init_int8"
"""Where `training` says False of initial weights for which BatchNorm does not tell how far activations reach, or may not."""
TEMPERATURES, BIASES = (1e-6, 1e6), (-1e30, 1e30)
"""Limits of a calibration: within them every logit stays a number."""
FITTED_TEMPERATURES = (1 / 20, 20.0)
"""Limits of temperatures that are fitted."""
OBJECTS = ("preprocessing", "calibration", "thresholds", "training", "metrics", "versions")
KINDS: tuple[tuple[tuple[str, ...], type | tuple[type, ...], str], ...] = (
    (OBJECTS, dict, "an object"),
    (("classes",), (list, tuple), "a list of one name, the tumor's"),
    (("architecture",), str, "a text"),
    (("format_version",), int, "a whole number, at least 1"),
)
"""What fields of a card are in JSON."""
FROM_0_TO_1 = ("auc", "accuracy", "sensitivity", "specificity")
"""How names of metrics end that are shares."""
MOST_PATCHES = 10**12
DENSE_PATCH_PX = 96
"""Side of the patches that dense mode can give the logits of: three features of the trunk."""


@dataclass(frozen=True)
class Calibration:
    """Maps a logit to the probability that is shown: ``sigmoid(logit / temperature + bias)``.

    Platt scaling (Platt 1999) in the form of Guo et al. 2017 with a bias; the neutral values leave the sigmoid as it is.
    """

    temperature: float = 1.0
    bias: float = 0.0

    @property
    def at_limit(self) -> bool:
        """Whether the temperature is one of :data:`FITTED_TEMPERATURES`, to a thousandth."""
        return any(math.isclose(self.temperature, limit, rel_tol=1e-3) for limit in FITTED_TEMPERATURES)

    @np.errstate(under="ignore")  # a program may have told numpy to raise
    def to_probability(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return calibrated probabilities (float32) of logits of any shape; NaN stays NaN.

        An element's value does not depend on its neighbours: a vectorised sigmoid rounds its last few elements
        differently, which would show as a difference between block sizes.
        """
        from scipy.special import expit

        return np.asarray(expit(self.to_log_odds(logits)), np.float32)

    def to_log_odds(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the calibrated log odds (float64) of logits: probabilities before the sigmoid, which rounds many to 1."""
        return logits.astype(np.float64) / self.temperature + self.bias

    def moved(self, threshold: float, logits: NDArray[np.float32], other: Calibration) -> float:
        """Return a threshold for a calibration with another bias: the same logits are tumor by it.

        They are as far as their float32 probabilities differ; else those that were tumor still are.
        """
        from scipy.special import expit, logit

        tumor, shown = self.to_probability(logits) >= threshold, other.to_probability(logits)
        least, most = np.nextafter(shown[~tumor].max(initial=0), np.float32(2)), shown[tumor].min(initial=1)
        place = np.float32(expit(logit(threshold) + other.bias - self.bias))
        return max(float(min(max(place, least), most)), SMALLEST_THRESHOLD)


@dataclass(frozen=True)
class ModelCard:
    """What a model is, what it was trained on and how good it was; travels inside the model file."""

    architecture: str = ARCHITECTURE
    """Of a module of one's own the full name of its class."""
    classes: tuple[str, ...] = ("tumor",)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    dense: bool = False
    """Trained so that one pass over a whole block may replace a pass per patch."""
    calibration: Calibration = field(default_factory=Calibration)
    thresholds: dict[str, float] = field(default_factory=lambda: {"default": 0.5})
    """Named operating points: calibrated probability at or over which a cell counts as tumor."""
    training: dict[str, Any] = field(default_factory=dict)
    """Data fingerprint and recipe."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Figures measured on the validation split with the weights as stored."""
    versions: dict[str, str] = field(default_factory=dict)
    """Library versions at the time of training."""
    format_version: int = FORMAT_VERSION

    @property
    def foreign(self) -> bool:
        """Whether the network is no ResNet50 but a module of one's own: it has no dense mode, and computes in fp32."""
        return self.architecture != ARCHITECTURE

    @property
    def allows_int8(self) -> bool:
        """Whether the network may be computed in 8-bit integers.

        Where it was imported, or trained from weights that were made for int8 and got no ranges of its own, only where they
        were seen to agree: ranges from BatchNorm are then wrong, or may be.
        """
        imported = self.training.get("imported")
        told = imported.get("int8") is True if isinstance(imported, dict) else self.training.get(INIT_INT8) is not False
        return told or self.int8_ranges is not None or self.prefers_int8

    @property
    def int8_ranges(self) -> dict[str, float] | None:
        """How far the network's activations reach, where its weights were made for int8 (:mod:`wsi_meta.models.equalise`)."""
        ranges: dict[str, float] | None = self.training.get(RANGES)
        return ranges

    @property
    def prefers_int8(self) -> bool:
        """Whether int8 may be chosen unasked: it was measured, in dense mode too where that is allowed, and is near float32."""
        modes = ("int8", "int8_dense") if self.dense else ("int8",)
        return all(_holds(self.metrics, mode) for mode in modes)

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain JSON values, also of numpy's numbers; OptionsError for what is no number, such as a set."""
        fields: dict[str, Any] = from_json(json.dumps(asdict(self), default=_plain))
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelCard:
        """Make a card from :meth:`to_dict`'s fields, all of them; KeyError, TypeError or ValueError when they do not fit."""
        if missing := {field.name for field in dataclass_fields(cls)} - set(fields):
            raise KeyError(f"missing: {', '.join(sorted(missing))}")
        for names, kind, expected in KINDS:
            for name in names:
                if not isinstance(value := fields[name], kind) or isinstance(value, bool):
                    raise TypeError(f"{name} is {json.dumps(value, default=str)[:40]}; expected {expected}")
        fields = dict(fields)
        fields["classes"] = tuple(fields["classes"])
        fields["preprocessing"] = Preprocessing.from_dict(fields["preprocessing"])
        fields["calibration"] = Calibration(
            temperature=fields["calibration"]["temperature"], bias=fields["calibration"]["bias"]
        )
        card = cls(**fields)
        _refuse_senseless(card)
        return card


def _plain(value: Any) -> Any:
    """Return what numpy made as JSON has it."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return bool(value) if is_truth(value) else number("in a card,", value)


def _holds(metrics: dict[str, float], mode: str) -> bool:
    """Tell whether a mode's figures are there and within :data:`INT8_BARS`."""
    try:
        apart = abs(metrics[f"{mode}_auc"] - metrics[f"{mode}_fp32_auc"])
        differences = [metrics[f"{mode}_{name}"] <= INT8_BARS[name] for name in ("mean_difference", "rare_difference")]
        return apart <= INT8_BARS["auc"] and all(differences) and metrics[f"{mode}_same_decision"] >= INT8_BARS["same_decision"]
    except KeyError:
        return False


def read_card(path: str | Path) -> ModelCard:
    """Read a model file's card without its weights and without importing torch.

    Raises
    ------
    ModelFileError
        as :func:`load_model`.
    """
    path = Path(path)
    stored = read_metadata(path).get(CARD_KEY)
    if stored is None:
        raise ModelFileError(
            f"{path}: safetensors without a wsi-meta card; expected a file from 'wsi-meta train' "
            "(bare weights can go to 'train --init')"
        )
    try:
        fields = from_json(stored)
        version = int(fields["format_version"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ModelFileError(f"{path}: its card cannot be read ({first_line(error)}); train or download it again") from error
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: card format {version} is newer than {FORMAT_VERSION}, the newest known here; update wsi-meta"
        )
    return check_card(fields, path, "mend it, or train or download it again")


def check_card(fields: dict[str, Any], path: Path, mend: str) -> ModelCard:
    """Return the card of a model file's fields; ModelFileError that says to `mend` it where it is none that can be used."""
    try:
        card = ModelCard.from_dict(fields)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ModelFileError(f"{path}: its card is incomplete or wrong ({first_line(error)}); {mend}") from error
    if card.foreign:
        raise ModelFileError(f"{path}: architecture '{card.architecture}' is not known here; expected '{ARCHITECTURE}'")
    return card


def _refuse_senseless(card: ModelCard) -> None:
    """Raise a ValueError or TypeError for values that no model can have: they would be found out after a whole scan."""
    for name, value in card.thresholds.items():
        _refuse_beyond(f"threshold '{name}'", value, SMALLEST_THRESHOLD, 1, "more than 0, at most 1")
    if "default" not in card.thresholds:
        raise ValueError("thresholds must name a default")
    _refuse_impossible(card.metrics)
    _refuse_beyond("temperature", card.calibration.temperature, *TEMPERATURES)
    _refuse_beyond("bias", card.calibration.bias, *BIASES)
    for name in ("patch_px", "label_px"):
        if (side := getattr(card.preprocessing, name)) % 2:
            raise ValueError(f"{name} is {side}; expected an even number: a cell is the middle of its patch, to the pixel")
    if card.preprocessing.label_px > card.preprocessing.patch_px:
        raise ValueError(f"label_px is {card.preprocessing.label_px}; expected at most patch_px, {card.preprocessing.patch_px}")
    if not isinstance(card.dense, bool) or (card.dense and card.preprocessing.patch_px != DENSE_PATCH_PX):
        raise ValueError(f"dense {str(card.dense)[:40]}; expected true or false, false where patch_px is not {DENSE_PATCH_PX}")
    _refuse_other_kinds(card)
    for name, value in (card.int8_ranges or {}).items():
        _refuse_beyond(f"range of '{name}'", value, 0, 1e30, "a number of at least 0")


def _refuse_impossible(metrics: dict[str, float]) -> None:
    """Raise a ValueError for figures that cannot be."""
    for name, value in metrics.items():
        if name == "n":
            _refuse_beyond(f"metric '{name}'", value, 1, MOST_PATCHES)
        elif name.endswith(FROM_0_TO_1):
            _refuse_beyond(f"metric '{name}'", value, 0, 1)
        else:
            _refuse_beyond(f"metric '{name}'", value, -1e300, 1e300, "a number")


def _refuse_other_kinds(card: ModelCard) -> None:
    """Raise a ValueError for what is no card of a model with one logit, or of other types."""
    if len(card.classes) != 1 or not isinstance(name := card.classes[0], str) or len(name) < 2 or name.lower() == "normal":
        told = ", ".join(map(str, card.classes))[:40] or "none"
        raise ValueError(f"classes are {told}; expected a list of one name, the tumor's: a model has one logit")
    if card.format_version not in range(1, FORMAT_VERSION + 1):
        raise ValueError(f"format_version is {str(card.format_version)[:40]}; expected a whole number, at least 1")
    if not all(isinstance(value, str) for value in card.versions.values()):
        raise ValueError("versions must be texts")


def _refuse_beyond(name: str, value: object, least: float, most: float, expected: str = "") -> None:
    expected = expected or f"a number from {least:g} to {most:g}"
    if type(value) not in (int, float) or not least <= value <= most:  # type: ignore[operator]
        raise ValueError(f"{name} is {str(value)[:40]}; expected {expected}")
