"""What is known of a slide, a model or a heatmap."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wsi_meta.errors import HeatmapError, SlideReadError
from wsi_meta.files.address import Address, SlidePath, slide_path
from wsi_meta.files.slide_file import refuse_no_file
from wsi_meta.heatmaps.ownership import is_heatmap_path, stores_in
from wsi_meta.heatmaps.regions import SIZE_CLASSES
from wsi_meta.heatmaps.scoring import kept_lesions, score_pieces
from wsi_meta.heatmaps.soundness import open_sound
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.models.card import read_card
from wsi_meta.models.model import DEFAULT_MODEL
from wsi_meta.models.weights_file import check_written, holds_safetensors
from wsi_meta.outputs.zarr_folder import is_zarr_image
from wsi_meta.slides.slide import Slide, open_slide
from wsi_meta.tiffs.structure import pages_of

__all__ = ["describe", "info"]


def info(path: str | Path | Address, *, reader: str = "auto") -> dict[str, Any]:
    """Return what a file is and what it says of itself.

    Parameters
    ----------
    path : slide or its address, model file, heatmap store, or the word ``default`` for the embedded model
    reader : who decodes a slide; see :func:`wsi_meta.open_slide`

    Returns
    -------
    dict of plain JSON values; ``kind`` is ``slide``, ``model`` or ``heatmap``. A slide's ``problem`` says why it cannot be
    scanned; it is None where it can.

    Raises
    ------
    SlideReadError, ModelFileError, HeatmapError
    """
    facts, failure = _describe(path, reader)
    if failure is not None:
        raise failure
    return facts


def describe(path: str | Path | Address, *, reader: str = "auto") -> dict[str, Any]:
    """Return what :func:`info` does, and of a slide that cannot be opened all that its file still tells.

    Raises
    ------
    SlideReadError
        when there is no file, or nothing in it.
    ModelFileError, HeatmapError
    """
    return _describe(path, reader)[0]


def _describe(path: str | Path | Address, reader: str) -> tuple[dict[str, Any], SlideReadError | None]:
    if str(path) == "default":
        return _model_facts(DEFAULT_MODEL), None
    if isinstance(place := slide_path(path), Address):
        return _slide_facts(place, reader)
    path = place
    if path.suffix.lower() in (".safetensors", ".pth", ".pt", ".ckpt") or (path.is_file() and holds_safetensors(path)):
        return _model_facts(path), None
    if is_heatmap_path(path):
        return _heatmap_facts(path), None
    if not is_zarr_image(path):
        if inside := stores_in(path):
            raise HeatmapError(f"{path}: a folder of heatmaps; name one of them, such as {inside[0]}")
        refuse_no_file(path, "a slide, a model file or a heatmap")
    return _slide_facts(path, reader)


def _model_facts(path: Path) -> dict[str, Any]:
    """Return how good the model is first, then what it is."""
    card = read_card(path).to_dict()
    check_written(path.read_bytes(), path)
    return {"kind": "model", "path": str(path), "metrics": card.pop("metrics"), "thresholds": card.pop("thresholds"), **card}


def _heatmap_facts(path: Path) -> dict[str, Any]:
    """Return what came out first, then how."""
    heatmap = open_sound(path)
    record = heatmap.record
    rows, cols = record.grid.shape
    kept = record.to_dict()
    return {
        "kind": "heatmap",
        "path": str(path),
        "result": kept.pop("result"),
        "verdict": kept.pop("verdict", None),
        "lesions": _count_lesions(heatmap),
        "pieces": None if record.result is None else [asdict(piece) for piece in score_pieces(heatmap)],
        "slide": kept.pop("slide"),
        "tissue": kept.pop("tissue"),
        "rows": rows,
        "cols": cols,
        "cell_um": record.grid.cell_um,
        "tta": record.identity.test_time_averaging,
        "views": record.identity.views,
        "uncertainty": record.identity.uncertainty,
        "identity": {name: value for name, value in kept.pop("identity").items() if name != "grid"},
        **{name: kept[name] for name in kept if name != "lesions"},
    }


def _count_lesions(heatmap: Heatmap) -> dict[str, Any] | None:
    """Return the thresholds of the kept lesions and how many each size class has; ``wsi-meta lesions`` lists them.

    None of a slide on which nothing was scanned, too: it has not been looked at.
    """
    kept = kept_lesions(heatmap)
    if kept is None or heatmap.record.nothing_scanned:
        return None
    classes, cut = ([lesion[name] for lesion in kept["found"]] for name in ("size_class", "cut"))
    return {**kept, "found": {name: classes.count(name) for name, _ in SIZE_CLASSES}, "cut": sum(cut)}


def _slide_facts(path: SlidePath, reader: str) -> tuple[dict[str, Any], SlideReadError | None]:
    """Return all that is known of a slide's file, and why it cannot be opened as asked; None where it can."""
    known: dict[str, Any] = {"kind": "slide", "path": str(path)}
    try:
        with open_slide(path, reader=reader) as slide:
            return known | _opened_facts(slide), None
    except SlideReadError as error:
        if not isinstance(path, Path) or not path.is_file() or path.stat().st_size == 0:
            raise
        failure = error
    facts = {"bytes": path.stat().st_size, "pages": pages_of(path)}
    if reader == "direct":  # the file may be a slide for the other reader
        with suppress(SlideReadError), open_slide(path, reader="openslide") as slide:
            facts = _opened_facts(slide) | {"reader": None, "reader_reason": None}
    return known | facts | {"problem": str(failure)}, failure


def _opened_facts(slide: Slide) -> dict[str, Any]:
    sizes = zip(slide.level_dimensions, slide.level_downsamples, strict=True)
    return {
        "vendor": slide.vendor,
        "reader": slide.reader,
        "reader_reason": slide.reader_reason,
        "width": slide.width,
        "height": slide.height,
        "mpp": slide.known_mpp,
        "mpp_problem": slide.mpp_problem,
        "levels": [
            {"width": width, "height": height, "downsample": factor, "left_out": slide.levels_left_out.get(level)}
            for level, ((width, height), factor) in enumerate(sizes)
        ],
        "compression": _compressions(slide.path),
        "bounds": asdict(slide.bounds),
        "fingerprint": slide.fingerprint(),
        "problem": slide.mpp_problem or _too_coarse(slide),
    }


def _compressions(path: SlidePath) -> list[str]:
    """Return how a TIFF's tiles are compressed; an address is not read once more for that."""
    pages = pages_of(path) if isinstance(path, Path) and path.is_file() else []
    return sorted({page["compression"] for page in pages if page["tile"] and page["compression"]})


def _too_coarse(slide: Slide) -> str | None:
    try:
        slide.check_resolution(read_card(DEFAULT_MODEL).preprocessing.mpp)
    except SlideReadError as error:
        return str(error)
    return None
