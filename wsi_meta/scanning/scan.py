"""From a slide to its heatmap, in one call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_meta.files.address import Address
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.model import Model
from wsi_meta.progress import Progress
from wsi_meta.scanning.scanner import Scanner
from wsi_meta.slides.slide import Slide
from wsi_meta.tiling.grid import BLOCK_PX
from wsi_meta.tiling.tissue import TissueMask

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["scan"]


def scan(
    slide: str | Path | Address | Slide,
    out: str | Path,
    *,
    model: str | Path | Model | None = None,
    mode: str = "auto",
    stride_px: int = 32,
    mpp: float | None = None,
    reader: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    compiled: str = "auto",
    batch_size: int = 64,
    tta: bool | int = False,
    uncertainty: bool = False,
    workers: int = 2,
    tissue_mask: str | Path | NDArray[np.bool_] | TissueMask | None = None,
    score_model: str | Path | None = None,
    block_px: int = BLOCK_PX,
    scheduler: Any = "threads",
    predictor: Predictor | None = None,
    overwrite: bool = False,
    progress: Progress = False,
) -> Heatmap:
    """Scan a slide into a heatmap store; go on where an interrupted scan of the same identity stopped.

    For one slide. :func:`wsi_meta.scan_slides` scans many; a :class:`wsi_meta.Scanner` keeps the model between calls.

    Parameters
    ----------
    slide : whole-slide image, its address (http, https, s3), or an open :class:`wsi_meta.Slide`, which stays open
    out : store to write (a folder, by custom ``.zarr``)
    model : model file, ``default`` or None for the embedded one, or a loaded :class:`wsi_meta.Model`
    mode : ``patch``, a patch of its own for every cell; ``dense``, one pass of the network over a whole block, for cells of
        32 px and models whose card says ``dense``; ``auto``, dense where that is possible
    stride_px : side of a cell, pixels at the model's mpp; a multiple of 8 up to 96
    mpp, reader : micrometres per level-0 pixel, where the slide does not say; who decodes it: see :func:`wsi_meta.open_slide`
    device, precision, batch_size, tta : see :class:`wsi_meta.Predictor`; with `tta` a cell's probability is the calibrated mean
        logit of its views: 8 for True, or 2, 4 or 8. ``auto`` is resolved on the machine that computes
    compiled : ``yes`` or ``no`` to compile the network first; ``auto`` does so where the slide is long enough to repay it
        (:func:`.worth_compiling`) and there is a C++ compiler, and goes on with a store as it was begun
    uncertainty : keep the standard deviation of the probability over the views as well; needs `tta`
    workers : blocks in work at the same time: one is read while another is predicted
    tissue_mask : outlines (.geojson, .xml) or image file over the slide, not 0 = tissue: see :func:`wsi_meta.read_tissue_mask`;
        ``none`` scans everything; a bool array (rows, cols) over the whole slide, its first element at the level-0 corner
        (0, 0); a :class:`wsi_meta.TissueMask`; None finds tissue by colour
    score_model : file from :func:`wsi_meta.fit_score`; its score is kept beside the default one, as ``fitted_score``
    block_px : side of a block, pixels at the model's mpp; part of the store's layout
    scheduler : ``threads``, ``synchronous``; a dask cluster by a ``distributed.Client``, its scheduler's address
        (``tcp://HOST:PORT``) or the Path of its file; :class:`wsi_meta.GpuProcesses` for a process for each GPU
    predictor : a :class:`wsi_meta.Predictor` to use as it is, instead of `model`, `device`, `precision`, `compiled`,
        `batch_size` and `tta`
    overwrite : replace an older heatmap at `out`
    progress : True shows a bar and notes on stderr; a function is told slide, cells done and cells in all, as they are done

    Returns
    -------
    The finished store. Its ``record.result`` holds ``score`` and counts, ``record.lesions`` the lesions; where regions could
    not be read ``complete`` is False and scanning again retries them.

    Raises
    ------
    SlideReadError, MissingMppError, ModelFileError, DataError, DeviceError, OutputPathError
    OutputExistsError
        when `out` is something else, or the heatmap of another scan; it names the difference.
    OptionsError
        (a ValueError) for options that do not exist, do not go together, or that the model does not allow.
    """
    with Scanner(
        model,
        mode=mode,
        stride_px=stride_px,
        device=device,
        precision=precision,
        compiled=compiled,
        batch_size=batch_size,
        tta=tta,
        uncertainty=uncertainty,
        workers=workers,
        score_model=score_model,
        block_px=block_px,
        scheduler=scheduler,
        predictor=predictor,
        progress=progress,
    ) as scanner:
        return scanner.scan(slide, out, mpp=mpp, reader=reader, tissue_mask=tissue_mask, overwrite=overwrite)
