"""A store looked at on purpose: whether it holds all that it says, what is damaged and where, and how far its scan has come."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_meta.errors import HeatmapError
from wsi_meta.heatmaps.lesions import MEND_UNREAD, lesion_facts
from wsi_meta.heatmaps.ownership import NO_HEATMAP, is_heatmap_path, is_newer, stores_in
from wsi_meta.heatmaps.scoring import sum_up
from wsi_meta.heatmaps.soundness import damaged_blocks, stale_labels, stale_levels
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.outputs.paths import as_path, real_path
from wsi_meta.outputs.zarr_folder import is_zarr_image
from wsi_meta.progress import progress_bar
from wsi_meta.words import one_line

if TYPE_CHECKING:
    from wsi_meta.heatmaps.record import ScanResult
    from wsi_meta.tiling.grid import Block

__all__ = ["StoreCheck", "check_heatmaps", "contradictions", "stores_at"]

PLACES_TOLD = 3
"""Damaged blocks whose place a line names; the others are counted. JSON has all."""
SAME_SCORE = 1e-6
"""Other versions of numpy and scipy may add up a score in another order."""
LESION_MARKS = ("cells", "peak_x", "peak_y", "max_probability")
"""Figures by which a lesion is recognised."""
MEND = "run its scan again with the same options, which mends just that"


@dataclass(frozen=True)
class StoreCheck:
    """What a look at one store has shown."""

    heatmap: str
    """Path of the store."""
    state: str
    """``sound``: scanned to the end, and all is there. ``unfinished``: sound as far as it goes. ``damaged``. ``unreadable``:
    the disk or the network does not give it, or it is of a newer format. ``no heatmap``: something else, such as a slide."""
    found: str
    """What was found, where, and what to do, in one line."""
    blocks: int | None = None
    """Blocks of the map; None where the record cannot be read."""
    blocks_left: int = 0
    """Blocks that the scan still has to do."""
    damaged: tuple[dict[str, int], ...] = ()
    """Damaged blocks: ``row``, ``col`` of the first cell, ``rows``, ``cols``."""
    damaged_cells: int = 0
    """Cells of the damaged blocks."""
    damaged_share: float = 0.0
    """Their share of the map, 0 to 1."""

    @property
    def line(self) -> str:
        """State and findings in one line that begins with the store's path."""
        words = {"unfinished": "not scanned to the end", "sound": "intact, incomplete" if self.found else "sound"}
        told = words.get(self.state, self.state)
        return f"{self.heatmap}: {told}{self.found and f': {self.found}'}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self) | {"damaged": list(self.damaged)}


def check_heatmaps(*stores: str | Path, progress: bool = False) -> list[StoreCheck]:
    """Check heatmap stores on purpose: arrays, values, checksums, coarser levels, result and record.

    Parameters
    ----------
    stores : heatmap stores, or folders of them
    progress : show a bar on stderr

    Returns
    -------
    A :class:`StoreCheck` of each store, once, in order; those of a folder by name. Whatever is wrong with one becomes its line.

    Raises
    ------
    HeatmapError
        when a path does not exist, or a folder holds no store.
    OptionsError
        when something else than paths is given, such as a list of them.
    """
    found = stores_at(*(as_path("heatmap", path, expected="paths, each by itself: check_heatmaps(*paths)") for path in stores))
    with progress_bar(len(found), "heatmaps", "checking", enabled=progress) as bar:
        checks = []
        for store in found:
            checks.append(_check(store))
            bar.update(1)
    return checks


def contradictions(heatmap: Heatmap) -> list[str]:
    """Return in words what a finished store says of its blocks that is not so; an unfinished one says nothing yet.

    Coarser levels, score, counts, lesions and labels are compared with those that the blocks give. The blocks themselves must
    be sound.
    """
    record, result = heatmap.record, heatmap.record.result
    if result is None:
        return []
    probability, told = heatmap.probability, []
    if levels := stale_levels(heatmap, probability):
        told.append(f"coarser levels ({', '.join(levels)}) do not agree with the blocks")
    status = heatmap.status
    if not _same_result(result, sum_up(status, probability)):
        told.append("score or counts are not those of the blocks")
    if record.lesions is not None and not _same_lesions(record.lesions, lesion_facts(record, probability, status)):
        told.append("the lesions are not those of the blocks")
    elif labels := stale_labels(heatmap, probability):
        told.append(f"places or labels ({', '.join(labels)}) do not agree with the blocks")
    return told


def stores_at(*paths: str | Path) -> list[Path]:
    """Return the heatmaps at some paths, in order, each once; those of a folder by name.

    A path of its own may be anything that is there: opening it tells. What is no heatmap in a folder is passed over; slides
    may lie beside their heatmaps, and a warning names the others.

    Raises
    ------
    HeatmapError
        when a path does not exist, or a folder holds no heatmap.
    """
    stores = (store for path in paths for store in _stores_at(as_path("heatmap", path)))
    found: dict[Path, Path] = {}
    for store in stores:
        found.setdefault(real_path(store), store)
    return list(found.values())


def _stores_at(path: Path) -> list[Path]:
    if not path.exists():
        raise HeatmapError(f"{path}: no such store; expected a heatmap from 'wsi-meta scan', or a folder of them")
    if not path.is_dir() or is_heatmap_path(path) or is_zarr_image(path):
        return [path]
    if not (stores := stores_in(path, warn=True)):
        raise HeatmapError(f"{path}: {NO_HEATMAP}")
    return stores


def _check(store: Path) -> StoreCheck:
    """Return what is found of a store, whatever that is."""
    try:
        heatmap = Heatmap.open(store)
        return _judge(heatmap, damaged_blocks(heatmap))
    except HeatmapError as error:
        state = "unreadable" if is_newer(store) else "damaged" if is_heatmap_path(store) else "no heatmap"
        return StoreCheck(str(store), state, one_line(error).removeprefix(f"{store}: ").removeprefix("damaged: "))
    except OSError as error:
        return StoreCheck(str(store), "unreadable", f"{error.strerror or one_line(error)}; try again when it can be read")


def _judge(heatmap: Heatmap, damaged: list[Block]) -> StoreCheck:
    blocks, path = heatmap.grid.blocks(), str(heatmap.path)
    if damaged:
        return _told_of(damaged, len(blocks), heatmap)
    heatmap = heatmap.as_of_now()
    told = contradictions(heatmap) or ([] if heatmap.intact else ["the record of its scan is not as it was written"])
    if told:
        return StoreCheck(path, "damaged", f"{'; '.join(told)}; {MEND}", len(blocks))
    left = len(heatmap.open_blocks(heatmap.status))
    if heatmap.result is None:
        done = f"{left} of {len(blocks)} blocks are left" if left else "all blocks are scanned, but not summed up"
        return StoreCheck(path, "unfinished", f"{done}; run its scan again, which goes on", len(blocks), left)
    found = "" if heatmap.finished else f"{heatmap.record.why_incomplete}; {MEND_UNREAD}"
    return StoreCheck(path, "sound", found, len(blocks), left)


def _told_of(damaged: list[Block], blocks: int, heatmap: Heatmap) -> StoreCheck:
    rows, cols = heatmap.grid.shape
    cells = sum(block.rows * block.cols for block in damaged)
    places = [
        f"rows {block.row}-{block.row + block.rows - 1} cols {block.col}-{block.col + block.cols - 1}"
        for block in damaged[:PLACES_TOLD]
    ]
    places += [f"{len(damaged) - PLACES_TOLD} more"] if len(damaged) > PLACES_TOLD else []
    share = cells / (rows * cols)
    found = (
        f"values are missing or torn in {len(damaged)} of {blocks} blocks, {cells:,} cells, {share:.1%} of the map "
        f"({'; '.join(places)}); copy it again, or {MEND}"
    )
    listed = tuple(asdict(block) for block in damaged)
    return StoreCheck(str(heatmap.path), "damaged", found, blocks, 0, listed, cells, share)


def _same_result(said: ScanResult, true: ScanResult) -> bool:
    """Tell whether two results are the same but for rounding; a fitted score is another file's word."""
    if said.score is None or true.score is None:
        same_score = said.score is true.score
    else:
        same_score = isclose(said.score, true.score, abs_tol=SAME_SCORE)
    return same_score and replace(said, score=None, fitted_score=None) == replace(true, score=None)


def _same_lesions(said: dict[str, Any], true: dict[str, Any]) -> bool:
    try:
        mine, others = (
            sorted(tuple(lesion[mark] for mark in LESION_MARKS) for lesion in lesions["found"]) for lesions in (said, true)
        )
    except (KeyError, TypeError):
        return False
    return mine == others and said.get("threshold") == true["threshold"]
