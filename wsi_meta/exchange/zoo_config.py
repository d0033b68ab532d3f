"""The ``config.json`` beside a TorchScript of WSInfer's model zoo (its schema is ``model-config.schema.json``, version 1.0)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsi_meta.errors import ModelFileError
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.words import first_line, from_json

__all__ = ["ZooConfig", "read_zoo_config"]

NEUTRAL_MEAN, NEUTRAL_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
"""Of a configuration without ``Normalize``: pixels of 0..1 as they are."""


@dataclass(frozen=True)
class ZooConfig:
    """What a zoo's configuration says of a model."""

    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    """A patch that is resized counts with the pixels that the network sees, and their size."""

    def to_dict(self) -> dict[str, Any]:
        """Return the file's content."""
        preprocessing = self.preprocessing
        return {
            "spec_version": "1.0",
            "architecture": "resnet50",
            "num_classes": len(self.class_names),
            "class_names": list(self.class_names),
            "patch_size_pixels": preprocessing.patch_px,
            "spacing_um_px": preprocessing.mpp,
            "transform": [
                {"name": "Resize", "arguments": {"size": preprocessing.patch_px}},
                {"name": "ToTensor"},
                {"name": "Normalize", "arguments": {"mean": list(preprocessing.mean), "std": list(preprocessing.std)}},
            ],
        }


def read_zoo_config(path: Path) -> ZooConfig:
    """Read a ``config.json``.

    Raises
    ------
    ModelFileError
        when it is missing, no JSON, or lacks what a model's input is known by.
    """
    try:
        content = from_json(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelFileError(
            f"{path}: no such file; expected the zoo's config.json beside the TorchScript, or --config FILE"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: no JSON ({first_line(error)}); expected the zoo's config.json") from error
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        told = f"{first_line(error)} is missing" if isinstance(error, KeyError) else first_line(error)
        raise ModelFileError(f"{path}: {told}; expected a config.json as WSInfer's zoo has them") from error


def _parse(content: Any) -> ZooConfig:
    if not isinstance(content, dict):
        raise TypeError(f"holds a {type(content).__name__}")
    names = content["class_names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError("class_names are no list of names")
    if content["num_classes"] != len(names) or len(names) not in (1, 2):
        raise ValueError(f"num_classes {content['num_classes']} and class_names {names}; expected one or two, normal and tumor")
    patch_px, mpp = content["patch_size_pixels"], content["spacing_um_px"]
    if type(patch_px) is not int or type(mpp) not in (int, float) or patch_px < 1:
        raise TypeError(f"patch_size_pixels {patch_px!r}, spacing_um_px {mpp!r}; expected a whole number and a number")
    unscaled = Preprocessing(patch_px=patch_px, mpp=float(mpp), mean=NEUTRAL_MEAN, std=NEUTRAL_STD)
    preprocessing = unscaled
    for step in content["transform"]:
        if (name := step["name"]) not in STEPS:
            raise ValueError(f"transform '{name}' is none of {', '.join(STEPS)}, which are known here")
        preprocessing = STEPS[name](preprocessing, step.get("arguments") or {})
    preprocessing = replace(preprocessing, mpp=preprocessing.mpp * patch_px / preprocessing.patch_px)
    preprocessing.refuse_senseless()
    return ZooConfig(tuple(names), preprocessing)


def _resize(preprocessing: Preprocessing, arguments: dict[str, Any]) -> Preprocessing:
    side = arguments["size"]
    if isinstance(side, list) and len(set(side)) == 1:
        side = side[0]
    if type(side) is not int or side < 1:
        raise TypeError(f"Resize to {side!r}; expected one whole number")
    return replace(preprocessing, patch_px=side)


def _normalise(preprocessing: Preprocessing, arguments: dict[str, Any]) -> Preprocessing:
    (red, green, blue), (red_std, green_std, blue_std) = (map(float, arguments[name]) for name in ("mean", "std"))
    return replace(preprocessing, mean=(red, green, blue), std=(red_std, green_std, blue_std))


STEPS: dict[str, Callable[[Preprocessing, dict[str, Any]], Preprocessing]] = {
    "Resize": _resize,
    "ToTensor": lambda preprocessing, _arguments: preprocessing,
    "Normalize": _normalise,
}
"""What each transform of the schema does to a model's input."""
