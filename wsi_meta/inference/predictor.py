"""From pixels to logits: device, precision, batches. Knows nothing of slides or stores."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.errors import ModelFileError
from wsi_meta.inference.allocator import prepare_memory
from wsi_meta.inference.device import resolve_device, resolve_precision
from wsi_meta.models.dihedral import VIEWS, dihedral, mean_over_views, turn, turn_back
from wsi_meta.models.model import Model
from wsi_meta.tiling.block_plan import BlockCut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch
    from numpy.typing import NDArray

__all__ = ["Predictor", "runs_in_bands"]

ROWS_ALIKE = 4
"""A row's logit depends on its place in batches of other sizes than multiples of this."""
DENSE_STRIDE_PX = 32
"""Side of a cell in dense mode: the trunk's own stride."""
DENSE_HALO_PX = 128
"""What dense mode sees of a block's surroundings beyond its patches, so that no seam shows (docs/benchmarks.md)."""


def runs_in_bands(device: str, *, dense: bool, compiled: bool) -> bool:
    """Tell whether a predictor works through blocks in bands (:mod:`.bands`): in dense mode on a CPU, not compiled."""
    return device == "cpu" and dense and not compiled


class Predictor:
    """Applies a model to patches and blocks.

    Every pass over patches has the same number of rows (the last one is padded), so a patch's logit depends neither on
    its neighbours in the batch nor on how many there are. Sums of integers are exact: int8 needs less padding.

    Threads may share a predictor, and should: on a CPU one of them computes at a time, on all cores, while others read and
    write. On a GPU each has a stream of its own, so that pixels travel, are computed and come back at the same time
    (:mod:`wsi_meta.inference.sharing`).

    Parameters
    ----------
    model : as :func:`wsi_meta.load_model` gives it; it is not changed
    device : ``auto``, ``cpu``, ``cuda`` or ``cuda:N``
    precision : ``auto``, ``fp32``, ``bf16`` or ``int8``: see :func:`wsi_meta.inference.device.resolve_precision`
    batch_size : rows of one forward pass; a row is one view of one patch
    tta : test-time averaging: show every patch in its eight views (:func:`wsi_meta.models.dihedral.dihedral`), for eight times
        the work
    dense : predict blocks by passes of the trunk over larger parts of them (:func:`wsi_meta.models.model.cell_logits`)
    compiled : compile the network first, which takes seconds, or a minute the first time; needs a C++ compiler

    Raises
    ------
    DeviceError
        when the device is not to be had, or there is no C++ compiler to compile with, or it is asked to compile int8.
    """

    def __init__(
        self,
        model: Model,
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 64,
        tta: bool = False,
        dense: bool = False,
        compiled: bool = False,
    ) -> None:
        from wsi_meta.inference.fast_network import FastNetwork, compile_network
        from wsi_meta.inference.sharing import share_device

        self.model = model
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.batch_size = batch_size
        self.compiled = compiled
        self.views = VIEWS if tta else 1
        self.halo_px = DENSE_HALO_PX if dense else 0
        """Pixels beyond a block's patches that :meth:`predict_block` wants to see on each side."""
        self._rows = -(-batch_size // ROWS_ALIKE) * ROWS_ALIKE
        self._dense = dense
        self._stopped = False
        self._shared = share_device(self.device, exact=self.precision == "fp32", compiled=compiled)
        self._in_bands = runs_in_bands(self.device, dense=dense, compiled=compiled)
        if self.device == "cpu":
            prepare_memory(in_bands=self._in_bands)
        network = FastNetwork(model, precision=self.precision, dense=dense, in_bands=self._in_bands).to(self.device)
        self._see_bands = network.top_to_bottom
        patch_px = model.card.preprocessing.patch_px
        self._cut = BlockCut(patch_px, self.halo_px, dense, from_top=self._in_bands and not tta)
        self._network = compile_network(network, self.device, patch_px=patch_px, rows=self._rows) if compiled else network

    def predict_patches(self, patches: torch.Tensor) -> NDArray[np.float32]:
        """Return the logit of every patch; with `tta` the mean logit over its eight views. Not for a dense predictor.

        Parameters
        ----------
        patches : uint8 tensor (n, patch_px, patch_px, 3), RGB, at the model's mpp

        Returns
        -------
        float32 array (n,): raw logits, before calibration.
        """
        return mean_over_views(self.predict_views(patches))

    def predict_views(self, patches: torch.Tensor) -> NDArray[np.float32]:
        """Return the logit of every view of every patch.

        Parameters
        ----------
        patches : as for :meth:`predict_patches`

        Returns
        -------
        float32 array (n, views): raw logits; one view, or with `tta` eight in the order of :func:`.dihedral`.
        """
        with self._shared.turn():
            return self._fetch(self._by_patch(self._send(patches).split(self._patches_at_once)))

    def pieces(self, wanted: NDArray[np.bool_], stride_px: int) -> list[tuple[slice, slice]]:
        """Return the parts of a block's image that :meth:`predict_block` needs, in the order in which it needs them.

        Parameters
        ----------
        wanted : bool (rows, cols), the block's cells that are to be predicted
        stride_px : side of a cell, pixels at the model's mpp; 32 for a dense predictor

        Returns
        -------
        Rows and columns of each, in pixels of an image that has `halo_px` more on each side than the block's patches: without
        that halo the patch of cell (row, col) has its corner at ``(row * stride_px, col * stride_px)``.
        """
        return [piece for box in self._cut.boxes(wanted, stride_px) for piece in self._cut.pieces(box, stride_px)]

    def predict_block(
        self,
        pieces: Iterable[NDArray[np.uint8]],
        wanted: NDArray[np.bool_],
        stride_px: int,
        report: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Return the logit of every view of every wanted cell of a block.

        Parameters
        ----------
        pieces : uint8 arrays (height, width, 3), RGB at the model's mpp: the image's parts that :meth:`pieces` asks for. They
            are taken one after the other and not kept
        wanted, stride_px : as for :meth:`pieces`
        report : called after each forward pass with the number of cells it finished

        Returns
        -------
        float32 array (rows, cols, views): raw logits as :meth:`predict_views` gives them; NaN where not wanted.
        """
        import torch

        logits = np.full((*wanted.shape, self.views), np.nan, np.float32)
        with self._shared.turn():
            sent = (self._send(torch.from_numpy(piece)) for piece in pieces)
            if self._dense:
                logits[wanted] = self._fetch(self._by_box(sent, wanted, report))[wanted]
            else:
                logits[wanted] = self._fetch(self._by_patch(self._patches(sent, wanted, stride_px), report))
        return logits

    def predict_image(self, image: NDArray[np.uint8], wanted: NDArray[np.bool_], stride_px: int) -> NDArray[np.float32]:
        """Return what :meth:`predict_block` gives for a block whose image is in memory."""
        return self.predict_block((image[piece] for piece in self.pieces(wanted, stride_px)), wanted, stride_px)

    def stop(self) -> None:
        """Let passes that other threads still ask for fail at once, so that an interrupted scan ends soon."""
        self._stopped = True

    @property
    def _patches_at_once(self) -> int:
        return -(-self.batch_size // self.views)

    def _patches(self, strips: Iterable[torch.Tensor], wanted: NDArray[np.bool_], stride_px: int) -> Iterator[torch.Tensor]:
        """Cut strips of a block's image into the patches of its wanted cells, some at a time."""
        import torch

        side = self._cut.patch_px
        for strip, box in zip(strips, self._cut.boxes(wanted, stride_px), strict=False):
            windows = strip.unfold(0, side, stride_px).unfold(1, side, stride_px)
            rows, cols = (torch.from_numpy(places).to(self.device) for places in np.nonzero(wanted[box]))
            for some in torch.arange(len(rows), device=self.device).split(self._patches_at_once):
                yield windows[rows[some], cols[some]].permute(0, 2, 3, 1)

    def _by_patch(self, patches: Iterable[torch.Tensor], report: Callable[[int], None] | None = None) -> torch.Tensor:
        """Return logits (n, views) of patches that come some at a time; all views of a patch follow each other."""
        import torch

        logits, done = [torch.empty(0, device=self.device)], 0
        for batch, count in self._batches(self._in_views(some) for some in patches):
            logits.append(self._pass(batch)[:count])
            if report is not None:
                report((done + count) // self.views - done // self.views)
            done += count
        return torch.cat(logits).view(-1, self.views)

    def _in_views(self, patches: torch.Tensor) -> torch.Tensor:
        import torch

        if self.views == 1:
            return patches
        rows = torch.arange(len(patches) * self.views, device=self.device)
        return dihedral(patches[rows // self.views], rows % self.views)

    def _batches(self, rows: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, int]]:
        """Gather rows into padded batches; give each with the number of rows in it that count."""
        import torch

        batch, count = torch.empty(0), 0
        for some in rows:
            while len(some):
                if not count:
                    batch = some.new_zeros((self._rows, *some.shape[1:]))
                fitting = some[: self.batch_size - count]
                batch[count : count + len(fitting)] = fitting
                count, some = count + len(fitting), some[len(fitting) :]
                if count == self.batch_size:
                    yield batch, count
                    count = 0
        if count:
            yield batch[: self._padded(count)], count

    def _padded(self, count: int) -> int:
        """Return how many rows a pass for `count` has: always the same number, since sums of floats depend on it."""
        return self._rows if self.precision != "int8" else -(-count // ROWS_ALIKE) * ROWS_ALIKE

    def _by_box(
        self, pieces: Iterator[torch.Tensor], wanted: NDArray[np.bool_], report: Callable[[int], None] | None
    ) -> torch.Tensor:
        """Return logits (rows, cols, views) of a block's cells: a pass of the trunk for each view of each rectangle."""
        import torch

        halo = self.halo_px // DENSE_STRIDE_PX
        logits = torch.zeros((*wanted.shape, self.views), device=self.device)
        for box in self._cut.boxes(wanted, DENSE_STRIDE_PX):
            shown: Iterable[torch.Tensor] = islice(pieces, len(self._cut.pieces(box, DENSE_STRIDE_PX)))
            if self.views > 1:
                shown = list(shown)
            for view in range(self.views):
                seen = self._see(turn(piece[None], view) for piece in shown)
                inner = seen[:, halo : seen.shape[1] - halo, halo : seen.shape[2] - halo]
                logits[(*box, view)] = turn_back(inner, view)[0]
            if report is not None:
                report(int(wanted[box].sum()))
        return logits

    def _see(self, pieces: Iterable[torch.Tensor]) -> torch.Tensor:
        """Run the network over an image that comes in pieces (1, height, width, 3) from top to bottom, or in one."""
        if self._in_bands:
            return self._see_bands(pieces)
        (image,) = pieces
        return self._pass(image.contiguous())

    def _pass(self, images: torch.Tensor) -> torch.Tensor:
        """Run the network over uint8 images (n, height, width, 3) on the device."""
        self._unless_stopped()
        with self._shared.passing():
            return self._network(images)

    def _unless_stopped(self) -> None:
        if self._stopped:
            raise InterruptedError("the predictor was stopped")

    def _send(self, pixels: torch.Tensor) -> torch.Tensor:
        self._unless_stopped()
        return self._shared.send(pixels)

    def _fetch(self, logits: torch.Tensor) -> NDArray[np.float32]:
        """Bring logits back.

        Raises
        ------
        ModelFileError
            when they are no numbers.
        """
        logits = self._shared.fetch(logits)
        if not logits.isfinite().all():
            raise ModelFileError(f"{self.model.path}: gives logits that are no numbers; train or download it again")
        return logits.numpy()
