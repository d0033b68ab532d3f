"""Patches in all their views, gathered into the batches of a network's passes, or side by side into mosaics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.errors import DataError, OptionsError, array
from wsi_meta.models.dihedral import AVERAGED, dihedral

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    Pixels = torch.Tensor | NDArray[np.uint8]

__all__ = ["Batching", "as_tensor", "check_cells", "check_pixels", "cut_patches", "make_mosaics", "take_pieces"]

ROWS_ALIKE = 4
"""A row's logit is the same at every place of a batch only if the number of rows is a multiple of this."""


@dataclass(frozen=True)
class Batching:
    """How patches become batches. A row of a batch is one view of one patch; all views of a patch follow each other."""

    batch_size: int
    """Rows of a batch that count."""
    views: int
    integers: bool
    """Whether the network computes in integers. Sums of floats depend on the number of rows, sums of integers do not."""

    @property
    def rows(self) -> int:
        """Rows of a full batch, with its padding."""
        return _padded(self.batch_size)

    @property
    def patches_at_once(self) -> int:
        """Patches whose views fill a batch."""
        return -(-self.batch_size // self.views)

    def batches(self, patches: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, int]]:
        """Gather the views of patches into padded batches; yield each with the number of its rows that count.

        Parameters
        ----------
        patches : uint8 tensors (n, patch_px, patch_px, 3), some patches each
        """
        import torch

        batch, count = torch.empty(0), 0
        for some in map(self._in_views, patches):
            while len(some):
                if not count:
                    batch = some.new_zeros((self.rows, *some.shape[1:]))
                fitting = some[: self.batch_size - count]
                batch[count : count + len(fitting)] = fitting
                count, some = count + len(fitting), some[len(fitting) :]
                if count == self.batch_size:
                    yield batch, count
                    count = 0
        if count:
            yield batch[: _padded(count) if self.integers else self.rows], count

    def _in_views(self, patches: torch.Tensor) -> torch.Tensor:
        import torch

        if self.views == 1:
            return patches
        rows = torch.arange(len(patches) * self.views, device=patches.device)
        shown = torch.tensor(AVERAGED[self.views], device=patches.device)
        return dihedral(patches[rows // self.views], shown[rows % self.views])


def check_pixels(name: str, pixels: Pixels, shape: Sequence[int | None]) -> Pixels:
    """Return pixels as they are; DataError where they are not uint8 of a shape, in which None is any length.

    A network takes patches of any size, and means nothing by those of another size than it was trained with.
    """
    import torch

    if not isinstance(pixels, torch.Tensor):
        pixels = np.asarray(pixels)
    kind, found = str(pixels.dtype).removeprefix("torch."), tuple(pixels.shape)
    fits = len(found) == len(shape) and all(side in (None, there) for side, there in zip(shape, found, strict=True))
    if kind != "uint8" or not fits:
        expected = str(tuple(shape)).replace("None", "n")
        raise DataError(f"{name}: {kind} of shape {found}; expected uint8 of shape {expected}, RGB")
    return pixels


def as_tensor(pixels: Pixels) -> torch.Tensor:
    """Return pixels as a tensor in memory. What is read-only is copied: torch warns of it; so are steps backwards."""
    import torch

    if not isinstance(pixels, torch.Tensor):
        pixels = np.require(pixels, requirements=("C", "W"))
    return torch.as_tensor(pixels, device="cpu")


def take_pieces(pieces: Iterable[NDArray[np.uint8]], parts: Sequence[tuple[slice, slice]]) -> Iterator[torch.Tensor]:
    """Yield the pieces of an image as tensors; DataError where they are not those parts of it, or some are missing."""
    coming = iter(pieces)
    for number, (rows, cols) in enumerate(parts):
        if (piece := next(coming, None)) is None:
            raise DataError(f"pieces: {number}; expected {len(parts)}, as the predictor's pieces() lists them")
        yield as_tensor(check_pixels("piece", piece, (rows.stop - rows.start, cols.stop - cols.start, 3)))


def check_cells(wanted: NDArray[np.bool_], stride_px: int, only: int | None) -> None:
    """Raise OptionsError for wanted cells that are no bool (rows, cols), or of another stride than the `only` one."""
    array("wanted", wanted, "bool (rows, cols)", kinds="b", ndim=2)
    if only not in (None, stride_px):
        raise OptionsError(f"stride_px {stride_px}; expected {only}, as dense mode has cells of that side")


def in_shares(report: Callable[[int], None] | None, cells: int) -> Callable[..., None]:
    """Return a function that tells `report` of the cells which were done since it was last called.

    It is called with how many parts `of` how many are done, such as rows of a picture; all of them are all `cells`.
    """
    told = 0

    def reach(done: int, of: int) -> None:
        nonlocal told
        due = cells * done // of
        if report is not None and due > told:
            report(due - told)
        told = due

    return reach


def cut_patches(
    strip: torch.Tensor, wanted: NDArray[np.bool_], *, patch_px: int, stride_px: int, at_once: int
) -> Iterator[torch.Tensor]:
    """Cut a strip of a block's image into the patches of its wanted cells; yield up to `at_once` of them at a time.

    Parameters
    ----------
    strip : uint8 tensor (height, width, 3)
    wanted : bool (rows, cols), the strip's cells that are to be predicted
    """
    import torch

    windows = strip.unfold(0, patch_px, stride_px).unfold(1, patch_px, stride_px)
    rows, cols = (torch.from_numpy(places).to(strip.device) for places in np.nonzero(wanted))
    for some in torch.arange(len(rows), device=strip.device).split(at_once):
        yield windows[rows[some], cols[some]].permute(0, 2, 3, 1)


def make_mosaics(images: torch.Tensor, side: int) -> torch.Tensor:
    """Put patches side by side into mosaics, row by row, in the order given.

    Parameters
    ----------
    images : uint8 tensor (n, patch_px, patch_px, 3), n a multiple of ``side ** 2``
    side : patches along a mosaic's side

    Returns
    -------
    uint8 tensor (n / side ** 2, side * patch_px, side * patch_px, 3)
    """
    px = images.shape[1]
    return images.view(-1, side, side, px, px, 3).transpose(2, 3).reshape(-1, side * px, side * px, 3)


def _padded(count: int) -> int:
    return -(-count // ROWS_ALIKE) * ROWS_ALIKE
