"""What was corrected on a map in ``wsi-meta view``: missed lesions, and false ones. Read here, written by the viewer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.annotations.class_names import DEFAULT_NAMES
from wsi_meta.annotations.outline_files import read_drawn
from wsi_meta.annotations.outlines import Annotations, sort_outlines
from wsi_meta.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ENDING", "Corrected", "corrections_beside", "read_corrected"]

ENDING = ".corrections.geojson"
"""Of the file beside ``NAME.zarr``, in the place of its ending."""


@dataclass(frozen=True, eq=False)
class Corrected:
    """The corrections of one slide."""

    missed: Annotations
    """Its tumor is what the map does not show."""
    false: Annotations
    """Its tumor is what the map shows and is none."""

    def correct(self, tumor: NDArray[np.bool_] | None, downsample: int, margin_px: int) -> NDArray[np.bool_]:
        """Return a mask of tumor without what is false and with what was missed; it is enlarged where that lies beyond it.

        Parameters
        ----------
        tumor : bool (height, width); None for a slide without tumor
        downsample : level-0 pixels per pixel of the mask
        margin_px : pixels of the mask that a missed lesion has round it at least
        """
        corners = [outline.vertices.max(0) for outline in self.missed.tumor] or [np.zeros(2)]
        width, height = np.ceil(np.max(corners, 0) / downsample).astype(int) + margin_px
        before = np.zeros((0, 0), bool) if tumor is None else tumor
        shape = max(int(height), before.shape[0]), max(int(width), before.shape[1])
        mask = np.zeros(shape, bool)
        mask[: before.shape[0], : before.shape[1]] = before
        return mask & ~self.false.mask(shape, downsample) | self.missed.mask(shape, downsample)


def corrections_beside(store: Path) -> Path:
    """Return the file of the corrections of a map, whether there is one or not."""
    return store.with_name(store.stem + ENDING)


def read_corrected(path: Path, is_of: Callable[[str], bool]) -> Corrected:
    """Read a file that the viewer wrote; it says itself where its coordinates count from.

    Parameters
    ----------
    is_of : tells whether a fingerprint is of the slide whose corrections are expected

    Raises
    ------
    DataError
        when it is missing or damaged, or says that it is of another slide.
    """
    drawn = read_drawn(path)
    marked = sort_outlines(drawn, DEFAULT_NAMES, (0, 0))
    if drawn.slide is not None and not is_of(drawn.slide):
        raise DataError(
            f"{path}: corrections of another slide; expected those of the slide that is there now; "
            "was it replaced? move the file away, scan it, and correct it again"
        )
    return Corrected(Annotations(marked.tumor, source=str(path)), Annotations(marked.excluded, source=str(path)))
