"""The map as an OME-Zarr 0.4 image (zarr format 2), for programs that do not read the store's own 0.5 (zarr format 3)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import OutputExistsError, truth
from wsi_meta.heatmaps.layout import LABELS, image_label, multiscale, omero
from wsi_meta.heatmaps.pyramid import LEVEL_CHUNK, coarser_levels, label_arrays
from wsi_meta.outputs.checks import check_folder
from wsi_meta.outputs.paths import UNIQUE, unique_name
from wsi_meta.outputs.writing import written_folder
from wsi_meta.words import printable

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

    from wsi_meta.heatmaps.store import Heatmap

__all__ = ["replaced_folder", "write_ome_zarr"]

MARK = "wsi_meta_export"
"""Attribute of an image that this module wrote."""
OURS = re.compile(
    rf"(?:(?:\d+|labels(?:/(?:{'|'.join(LABELS)})(?:/\d+)?)?)/)?\.z(?:group|attrs|array)|(?:labels/\w+/)?\d+(?:/\d+)+"
)
"""Files of such an image, by their path in it."""
VERSION = "0.4"


def write_ome_zarr(heatmap: Heatmap, lesions: dict[str, Any], folder: Path) -> None:
    """Write the map as float32 (c, y, x), a channel each for probability and, where kept, uncertainty; NaN = not scanned.

    Coarser levels take the maximum, as the store's do. Beside them stand the label images ``lesions`` and ``status``. All lies
    where the store's metadata say: micrometres from the slide's level-0 corner.

    Parameters
    ----------
    lesions : as :func:`wsi_meta.heatmaps.lesions.lesion_facts` returns them
    folder : to make
    """
    import zarr

    record, grid, name = heatmap.record, heatmap.grid, heatmap.record.slide.name
    probability = heatmap.probability
    kept = {"tumor probability": probability, "uncertainty": heatmap.uncertainty}
    channels = {channel: values for channel, values in kept.items() if values is not None}
    levels = [np.stack(level) for level in zip(*([v, *coarser_levels(v)] for v in channels.values()), strict=True)]
    paths = [str(number) for number in range(len(levels))]
    told = {"slide": printable(record.slide.file), "model": record.identity.model, "finished": heatmap.finished}
    described = multiscale(name, grid.cell_um, paths, channels=True) | {"version": VERSION, "type": "maximum"}
    attributes = {"multiscales": [described], "omero": omero(name, channels) | {"version": VERSION}, MARK: told}
    group = zarr.create_group(folder, zarr_format=2, attributes=attributes)
    for path, level in zip(paths, levels, strict=True):
        _write(group, path, level, ("c", "y", "x"))
    images = label_arrays(grid, probability, heatmap.status, lesions)
    names = sorted({path.split("/")[1] for path in images})
    group.create_group("labels", attributes={"labels": names})
    for label in names:
        told = image_label(label, lesions) | {"version": VERSION}
        described = multiscale(label, grid.cell_um, paths) | {"version": VERSION, "type": "maximum"}
        group.create_group(f"labels/{label}", attributes={"multiscales": [described], "image-label": told})
    for path, values in images.items():
        _write(group, path, values, ("y", "x"))


@contextmanager
def replaced_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary name beside a folder to make; then it takes the folder's place, and an older image of ours goes.

    What an export that was killed left beside the folder is put in order first.

    Raises
    ------
    OutputExistsError
        when something stands there that is no empty folder; with `overwrite`, when that is not all ours.
    OutputPathError
        when it cannot be written, or would lie in a heatmap store.
    """
    check_folder(folder)
    _tidy(folder)
    _refuse_to_replace(folder, overwrite=overwrite)
    old = folder.with_name(f".{folder.name}.{unique_name()}.old")
    try:
        with written_folder(folder) as made:
            yield made
            if folder.exists() and any(folder.iterdir()):
                folder.rename(old)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    if old.exists() and _foreign_part(old) is None:
        shutil.rmtree(old, ignore_errors=True)


def _tidy(folder: Path) -> None:
    """Put back an image that a killed export moved aside, if nothing stands in its place; where an image does, it goes."""
    aside = re.compile(rf"\.{re.escape(folder.name)}\.{UNIQUE}\.old")
    for entry in [entry for entry in folder.absolute().parent.iterdir() if aside.fullmatch(entry.name) and _is_image(entry)]:
        if _is_free(folder):
            entry.rename(folder)
        elif _is_image(folder) and _foreign_part(entry) is None:
            shutil.rmtree(entry, ignore_errors=True)


def _refuse_to_replace(folder: Path, *, overwrite: bool) -> None:
    overwrite = truth("overwrite", overwrite)
    if _is_free(folder):
        return
    if not overwrite:
        raise OutputExistsError(f"{folder}: exists; choose another --out, or pass --overwrite to replace it")
    if (part := _foreign_part(folder)) is not None:
        raise OutputExistsError(
            f"{folder}: holds {part!r}, which 'wsi-meta export' did not write, so it is not replaced; choose another --out"
        )


def _is_free(folder: Path) -> bool:
    """Tell whether nothing stands there, or an empty folder."""
    return not folder.is_symlink() and (not folder.exists() or (folder.is_dir() and not any(folder.iterdir())))


def _is_image(folder: Path) -> bool:
    """Tell whether a folder is an image that this module wrote, whatever else it holds."""
    attributes = folder / ".zattrs"
    return not folder.is_symlink() and attributes.is_file() and f'"{MARK}"'.encode() in attributes.read_bytes()


def _foreign_part(folder: Path) -> str | None:
    """Return the path, inside an image, of something that this module did not write; None where there is none."""
    if not _is_image(folder):
        return "no image of a heatmap"
    files = sorted(entry for entry in folder.rglob("*") if entry.is_symlink() or not entry.is_dir())
    inside = (entry.relative_to(folder).as_posix() for entry in files)
    return next((name for name in inside if not OURS.fullmatch(name)), None)


def _write(group: zarr.Group, path: str, values: NDArray[Any], axes: tuple[str, ...]) -> None:
    zlib: Any = {"id": "zlib", "level": 6}  # the one codec that every reader of zarr 2 knows
    array = group.create_array(
        path,
        shape=values.shape,
        chunks=tuple(1 if axis == "c" else min(LEVEL_CHUNK, side) for axis, side in zip(axes, values.shape, strict=True)),
        dtype=values.dtype,
        fill_value=np.nan if values.dtype == np.float32 else 0,
        compressors=zlib,
        chunk_key_encoding={"name": "v2", "separator": "/"},
        attributes={"_ARRAY_DIMENSIONS": list(axes)},  # xarray's
    )
    array[...] = values
