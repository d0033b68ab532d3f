"""From pixels to logits: batches of patches, and the rectangles of a block. Knows nothing of slides or stores."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from wsi_meta.errors import ModelFileError, of_kind, truth
from wsi_meta.inference.batches import Batching, as_tensor, check_cells, check_pixels, cut_patches, in_shares, take_pieces
from wsi_meta.inference.device import SharedDevice, share_device
from wsi_meta.inference.options import InferenceOptions, InferencePlan, fit_to_model, resolve_inference, runs_in_bands
from wsi_meta.inference.passes import FewShapes, HalvedPasses, OneProcess
from wsi_meta.inference.torch_settings import own_modes
from wsi_meta.models.dihedral import AVERAGED, mean_over_views, turn, turn_back
from wsi_meta.models.model import Model
from wsi_meta.tiling.block_plan import MEASURED_SIZES, BlockCut, PieceSizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch
    from numpy.typing import NDArray

__all__ = ["Predictor", "PredictorParts"]

DENSE_STRIDE_PX = 32
"""Side of a cell in dense mode: the trunk's own stride."""
DENSE_HALO_PX = 128
"""Pixels around a block's patches that dense mode sees as well, so that no seam shows (docs/benchmarks.md)."""


@dataclass(frozen=True)
class PredictorParts:
    """What a predictor is made of, besides its model and plan."""

    sizes: PieceSizes = MEASURED_SIZES
    """How large the pieces are in which it reads and computes a block's image."""
    share: Callable[..., SharedDevice] = share_device
    """Called as :func:`.share_device`: how threads share the device."""
    compiler: Callable[..., Callable[[torch.Tensor], torch.Tensor]] | None = None
    """Called as :func:`wsi_meta.inference.fast_network.compile_network`, which None stands for."""


USUAL_PARTS = PredictorParts()


class Predictor:
    """Applies a model to patches and blocks.

    Every pass over patches has the same number of rows (the last one is padded). So a patch's logit depends neither on its
    neighbours in the batch nor on how many there are. Sums of integers are exact, so int8 needs less padding.

    Threads may share a predictor, and should. On a CPU one of them computes at a time, on all cores, while others read and
    write. On a GPU each has a stream of its own, so that one thread's pixels travel while another's are computed
    (:mod:`wsi_meta.inference.device`).

    Parameters
    ----------
    model : as :func:`wsi_meta.load_model` returns it; it is not changed
    device, precision, batch_size, tta : see :class:`wsi_meta.inference.options.InferenceOptions`
    dense : predict blocks by passes of the trunk over larger parts of them (:func:`wsi_meta.models.resnet.cell_logits`)
    compiled : compile the network first, which takes seconds, or a minute the first time; needs a C++ compiler

    Attributes
    ----------
    plan : what the options became on this machine
    device, precision, batch_size : the plan's
    views : views of each patch: 1, or with `tta` 2, 4 or 8
    halo_px : pixels beyond a block's patches that :meth:`predict_block` needs on each side

    Raises
    ------
    DeviceError
        when the device is not available, it cannot compute in this precision, there is no compiler, or int8 is to be compiled;
        and from its methods in a process that was forked after it was made.
    OptionsError
        when `batch_size` is below 1, or `tta` no number of views that can be averaged.
    """

    def __init__(
        self,
        model: Model,
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 64,
        tta: bool | int = False,
        dense: bool = False,
        compiled: bool = False,
    ) -> None:
        of_kind("model", model, Model, "a Model, as load_model returns it")
        dense, compiled = truth("dense", dense), truth("compiled", compiled)
        plan = resolve_inference(fit_to_model(InferenceOptions(device, precision, batch_size, tta), model.card))
        self._set_up(model.as_it_is(), plan, USUAL_PARTS, dense=dense, compiled=compiled)

    @classmethod
    def from_plan(
        cls,
        model: Model,
        plan: InferencePlan,
        *,
        dense: bool = False,
        compiled: bool = False,
        parts: PredictorParts = USUAL_PARTS,
    ) -> Self:
        """Make a predictor from options that were resolved on this machine.

        Parameters
        ----------
        model, dense, compiled : as for :class:`Predictor`
        plan : as :func:`wsi_meta.inference.options.resolve_inference` returns it
        parts : what the predictor is made of
        """
        predictor = cls.__new__(cls)
        predictor._set_up(model, plan, parts, dense=dense, compiled=compiled)
        return predictor

    @own_modes()
    def _set_up(self, model: Model, plan: InferencePlan, parts: PredictorParts, *, dense: bool, compiled: bool) -> None:
        from wsi_meta.inference.fast_network import FastNetwork, compile_network
        from wsi_meta.inference.plain_network import PlainNetwork

        self.model, self.plan = model, plan
        self.device, self.precision, self.batch_size = plan.device, plan.precision, plan.batch_size
        self.compiled, self.views, self._here = compiled, plan.views, OneProcess()
        self.halo_px = DENSE_HALO_PX if dense else 0
        self._batching = Batching(plan.batch_size, self.views, integers=plan.precision == "int8")
        self._dense = dense
        self._shared = parts.share(plan.device, exact=plan.precision == "fp32", compiled=compiled)
        self._in_bands = runs_in_bands(plan.device, dense=dense, compiled=compiled)
        self._network: Callable[[torch.Tensor], torch.Tensor]
        if model.card.foreign:
            self._network = PlainNetwork(model, plan, dense=dense, compiled=compiled).to(plan.device)
        else:
            network = FastNetwork(model, precision=plan.precision, dense=dense, in_bands=self._in_bands, sizes=parts.sizes)
            self._network = self._fast = network.to(plan.device)
        patch_px = model.card.preprocessing.patch_px
        self._cut = BlockCut(patch_px, self.halo_px, dense, from_top=self._in_bands and plan.views == 1, sizes=parts.sizes)
        if compiled:
            compiler = parts.compiler or compile_network
            with self._shared.passing():  # else what torch looks at first would differ in passes, and it would compile again
                self._network = compiler(self._fast, plan.device, patch_px=patch_px, rows=self._batching.rows)
        fill = dense and plan.device != "cpu"
        self._network = HalvedPasses(FewShapes(self._network) if fill else self._network, plan.device)

    def predict_patches(self, patches: torch.Tensor | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the logit of every patch; with `tta` the mean logit over its views. Not for a dense predictor.

        Parameters
        ----------
        patches : uint8 tensor or array (n, patch_px, patch_px, 3), RGB, at the model's mpp; DataError for others

        Returns
        -------
        float32 array (n,): raw logits, before calibration.
        """
        return mean_over_views(self.predict_views(patches))

    def predict_views(self, patches: torch.Tensor | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the logit of every view of every patch, as :meth:`predict_patches` takes them.

        Returns
        -------
        float32 array (n, views): raw logits; in the order of :data:`.AVERAGED`.
        """
        pixels = check_pixels("patches", patches, (None, self._cut.patch_px, self._cut.patch_px, 3))
        at_once = self._batching.patches_at_once
        with self._here, self._shared.turn():
            parts = (as_tensor(pixels[first : first + at_once]) for first in range(0, len(pixels), at_once))
            return self._fetch(self._by_patch(map(self._shared.send, parts)))

    def pieces(self, wanted: NDArray[np.bool_], stride_px: int) -> list[tuple[slice, slice]]:
        """Return the parts of a block's image that :meth:`predict_block` needs, in the order in which it takes them.

        Parameters
        ----------
        wanted : bool (rows, cols), the block's cells that are to be predicted
        stride_px : side of a cell, pixels at the model's mpp; 32 for a dense predictor

        Returns
        -------
        Rows and columns of each part, in pixels of an image that extends `halo_px` beyond the block's patches on each side.
        Without this halo, the patch of cell (row, col) has its corner at ``(row * stride_px, col * stride_px)``.
        """
        check_cells(wanted, stride_px, DENSE_STRIDE_PX if self._dense else None)
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
        pieces : uint8 arrays (height, width, 3), RGB at the model's mpp: the parts of the image that :meth:`pieces` lists. They
            are taken one after the other and not kept
        wanted, stride_px : as for :meth:`pieces`
        report : called as the work goes on with how many more cells are finished

        Returns
        -------
        float32 array (rows, cols, views): raw logits as :meth:`predict_views` gives them; NaN where not wanted. DataError for
        fewer pieces, or of another shape or type, OptionsError for such a `wanted`, or another stride of a dense one.
        """
        parts, logits = self.pieces(wanted, stride_px), np.full((*wanted.shape, self.views), np.nan, np.float32)
        with self._here, self._shared.turn():
            sent = (self._shared.send(piece) for piece in take_pieces(pieces, parts))
            if self._dense:
                logits[wanted] = self._fetch(self._by_box(sent, wanted, report))[wanted]
            else:
                logits[wanted] = self._fetch(self._by_patch(self._patches(sent, wanted, stride_px), report))
        return logits

    def predict_image(self, image: NDArray[np.uint8], wanted: NDArray[np.bool_], stride_px: int) -> NDArray[np.float32]:
        """Return what :meth:`predict_block` returns, for a block whose image is in memory."""
        parts, beyond = self.pieces(wanted, stride_px), self._cut.beyond_px(stride_px)
        pixels: Any = check_pixels("image", image, [*(side * stride_px + beyond for side in wanted.shape), 3])
        return self.predict_block((pixels[part] for part in parts), wanted, stride_px)

    def _patches(self, strips: Iterable[torch.Tensor], wanted: NDArray[np.bool_], stride_px: int) -> Iterator[torch.Tensor]:
        """Cut strips of a block's image into the patches of its wanted cells, some at a time."""
        patch_px, at_once = self._cut.patch_px, self._batching.patches_at_once
        for strip, box in zip(strips, self._cut.boxes(wanted, stride_px), strict=False):
            yield from cut_patches(strip, wanted[box], patch_px=patch_px, stride_px=stride_px, at_once=at_once)

    def _by_patch(self, patches: Iterable[torch.Tensor], report: Callable[[int], None] | None = None) -> torch.Tensor:
        """Return logits (n, views) of patches that come some at a time."""
        return self._in_batches(patches, self._network, report).view(-1, self.views)

    def _in_batches(
        self,
        patches: Iterable[torch.Tensor],
        network: Callable[[torch.Tensor], torch.Tensor],
        report: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Return what the network makes of each view of patches."""
        import torch

        found, done = [], 0
        for batch, count in self._batching.batches(patches):
            with self._shared.passing():
                found.append(network(batch)[:count])
            if report is not None:
                report((done + count) // self.views - done // self.views)
            done += count
        return torch.cat(found) if found else torch.empty(0, dtype=torch.float32, device=self.device)

    def _by_box(
        self, pieces: Iterator[torch.Tensor], wanted: NDArray[np.bool_], report: Callable[[int], None] | None
    ) -> torch.Tensor:
        """Return logits (rows, cols, views) of a block's cells, by a pass of the trunk for each view of each rectangle."""
        import torch

        halo = self.halo_px // DENSE_STRIDE_PX
        logits = torch.zeros((*wanted.shape, self.views), dtype=torch.float32, device=self.device)
        for box in self._cut.boxes(wanted, DENSE_STRIDE_PX):
            parts, reach = self._cut.pieces(box, DENSE_STRIDE_PX), in_shares(report, int(wanted[box].sum()))
            told = partial(reach, of=parts[-1][0].stop - parts[0][0].start) if self.views == 1 else None
            shown = islice(pieces, len(parts)) if self.views == 1 else list(islice(pieces, len(parts)))
            for place, view in enumerate(AVERAGED[self.views]):
                seen = self._see((turn(piece[None], view) for piece in shown), told)
                inner = seen[:, halo : seen.shape[1] - halo, halo : seen.shape[2] - halo]
                logits[(*box, place)] = turn_back(inner, view)[0]
                reach(place + 1, of=self.views)
        return logits

    def _see(self, pieces: Iterable[torch.Tensor], told: Callable[[int], None] | None) -> torch.Tensor:
        """Run the network over an image that comes in pieces (1, height, width, 3) from top to bottom, or in one piece."""
        if self._in_bands:
            with self._shared.passing():
                return self._fast.top_to_bottom(pieces, told)
        (image,) = pieces
        return self._pass(image.contiguous())

    def _pass(self, images: torch.Tensor) -> torch.Tensor:
        """Run the network over uint8 images (n, height, width, 3) on the device."""
        with self._shared.passing():
            return self._network(images)

    def _fetch(self, logits: torch.Tensor) -> NDArray[np.float32]:
        """Bring logits back from the device.

        Raises
        ------
        ModelFileError
            when some are no finite numbers.
        """
        logits = self._shared.fetch(logits)
        if not logits.isfinite().all():
            raise ModelFileError(f"{self.model.path}: gives logits that are no numbers; train or download it again")
        return logits.numpy()
