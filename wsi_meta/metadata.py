"""What is known of a slide, a model or a heatmap."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from wsi_meta.heatmaps.record import ScanRecord
from wsi_meta.heatmaps.regions import SIZE_CLASSES
from wsi_meta.heatmaps.soundness import open_sound
from wsi_meta.models.card import read_card
from wsi_meta.models.model import DEFAULT_MODEL
from wsi_meta.slides.slide import open_slide

__all__ = ["info"]


def info(path: str | Path, *, reader: str = "auto") -> dict[str, Any]:
    """Return what a file is and what it says of itself.

    Parameters
    ----------
    path : slide, model file, heatmap store, or the word ``default`` for the embedded model
    reader : who decodes a slide; see :func:`wsi_meta.open_slide`

    Returns
    -------
    dict of plain JSON values; ``kind`` is ``slide``, ``model`` or ``heatmap``.

    Raises
    ------
    SlideReadError, ModelFileError, HeatmapError
    """
    if str(path) == "default":
        return _model_facts(DEFAULT_MODEL)
    path = Path(path)
    if path.suffix in (".safetensors", ".pth", ".pt", ".ckpt"):
        return _model_facts(path)
    if path.suffix == ".zarr" or (path / "zarr.json").exists():
        return _heatmap_facts(path)
    return _slide_facts(path, reader)


def _model_facts(path: Path) -> dict[str, Any]:
    return {"kind": "model", "path": str(path), **read_card(path).to_dict()}


def _heatmap_facts(path: Path) -> dict[str, Any]:
    record = open_sound(path).record
    rows, cols = record.grid.shape
    return {
        "kind": "heatmap",
        "path": str(path),
        "rows": rows,
        "cols": cols,
        "cell_um": record.grid.cell_um,
        "tta": record.identity.test_time_averaging,
        "uncertainty": record.identity.uncertainty,
        **record.to_dict(),
        "lesions": _count_lesions(record),
    }


def _count_lesions(record: ScanRecord) -> dict[str, Any] | None:
    """Return the thresholds of the kept lesions and how many each size class has; ``wsi-meta lesions`` lists them."""
    if record.lesions is None:
        return None
    classes = [lesion["size_class"] for lesion in record.lesions["found"]]
    return {**record.lesions, "found": {name: classes.count(name) for name, _ in SIZE_CLASSES}}


def _slide_facts(path: Path, reader: str) -> dict[str, Any]:
    with open_slide(path, reader=reader) as slide:
        return {
            "kind": "slide",
            "path": str(path),
            "vendor": slide.vendor,
            "reader": slide.reader,
            "reader_reason": slide.reader_reason,
            "width": slide.width,
            "height": slide.height,
            "bounds": asdict(slide.bounds),
            "mpp": slide.known_mpp,
            "mpp_problem": slide.mpp_problem,
            "levels": [
                {"width": width, "height": height, "downsample": factor, "left_out": slide.levels_left_out.get(level)}
                for level, ((width, height), factor) in enumerate(
                    zip(slide.level_dimensions, slide.level_downsamples, strict=True)
                )
            ],
            "fingerprint": slide.fingerprint(),
        }
