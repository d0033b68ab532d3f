"""What was corrected on a map in ``wsi-meta view``: missed lesions, and false ones. Read here, written by the viewer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.annotations.class_names import DEFAULT_NAMES
from wsi_meta.annotations.outline_files import Origin, read_drawn
from wsi_meta.annotations.outlines import Annotations, sort_outlines
from wsi_meta.annotations.truth import draw_outlines
from wsi_meta.errors import DataError
from wsi_meta.outputs.kept_files import CORRECTED

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Corrected", "corrections_beside", "read_corrected"]


@dataclass(frozen=True, eq=False)
class Corrected:
    """The corrections of one slide."""

    missed: Annotations
    """Its tumor is what the map does not show."""
    false: Annotations
    """Its tumor is what the map shows and is none."""

    def correct(
        self, tumor: NDArray[np.bool_] | None, downsample: int, extent: tuple[int, int] | None = None
    ) -> NDArray[np.bool_]:
        """Return a mask of tumor without what is false and with what was missed; it is enlarged where that lies beyond it.

        Parameters
        ----------
        tumor : bool (height, width); None for a slide without tumor
        downsample, extent : as for :func:`wsi_meta.annotations.truth.draw_outlines`, which draws what was missed

        Raises
        ------
        DataError
            when no outline of what was missed draws anything on the slide.
        """
        before = np.zeros((0, 0), bool) if tumor is None else tumor
        missed = draw_outlines(self.missed, downsample, extent)
        shape = max(len(before), len(missed)), max(before.shape[1], missed.shape[1])
        mask = np.zeros(shape, bool)
        mask[: before.shape[0], : before.shape[1]] = before
        mask &= ~self.false.mask(shape, downsample)
        mask[: missed.shape[0], : missed.shape[1]] |= missed
        return mask


def corrections_beside(store: Path) -> Path:
    """Return the file of the corrections of a map, whether there is one or not."""
    return store.with_name(store.name.removesuffix(".zarr") + CORRECTED)


def read_corrected(path: Path, is_of: Callable[[str], bool], origin: Origin | None) -> Corrected:
    """Read a file that the viewer wrote, or that QuPath saved again.

    Parameters
    ----------
    is_of : tells whether a fingerprint is of the slide whose corrections are expected
    origin : corner of what QuPath shows of that slide, level-0 pixels: from there count coordinates where the file, as after
        QuPath, does not say it itself; None where it is not known

    Raises
    ------
    DataError
        when it is missing or damaged, says that it is of another slide, or where its coordinates count from is not known.
    """
    drawn = read_drawn(path)
    if drawn.origin is None and origin is None:
        raise DataError(
            f"{path}: does not say where its coordinates count from, as after another program; expected the heatmap that it "
            "belongs to beside it, which says it; one of an early version does not: scan again"
        )
    marked = sort_outlines(drawn, DEFAULT_NAMES, origin or (0, 0))
    if drawn.slide is not None and not is_of(drawn.slide):
        raise DataError(
            f"{path}: corrections of another slide; expected those of the slide that is there now; "
            "was it replaced? move the file away, scan it, and correct it again"
        )
    return Corrected(Annotations(marked.tumor, source=str(path)), Annotations(marked.excluded, source=str(path)))
