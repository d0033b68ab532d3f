"""A trunk applied to an image from top to bottom, in bands of rows: the features of one pass over the whole, in little memory.

A layer whose windows reach over a band's edge keeps the rows that its next windows need. So no feature is lost at an edge or
computed twice, and memory holds only bands, whatever the image's size. Where a ResNet halves its rows, two bands are joined:
late layers have fewer features than early ones, and so every layer gets about the same amount at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import nn

__all__ = ["Residual", "Windowed", "features_in_bands", "see_rows", "window_side"]

Bands = Iterator[tuple[torch.Tensor, bool]]
"""Rows (1, channels, rows, width) from top to bottom, and whether they are the last ones."""


class WindowLayer(Protocol):
    """A convolution or a pooling of square windows; each of its numbers is the same for both axes."""

    kernel_size: int | tuple[int, ...]
    stride: int | tuple[int, ...]
    padding: int | tuple[int, ...]

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Apply it."""


class Residual(nn.Module):
    """A ResNet's block: ``relu(last(main(x)) + side(x))``."""

    def __init__(self, main: nn.Module, last: nn.Module, side: nn.Module) -> None:
        super().__init__()
        self.main, self.last, self.side = main, last, side

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        return self.join(self.main(inputs), [self.side(inputs)])

    def join(self, main: torch.Tensor, side: list[torch.Tensor]) -> torch.Tensor:
        """Finish a block from the outputs of its branches; that of `side` comes in one piece or several, from the top down."""
        joined: torch.Tensor = self.last(main)
        row = 0
        for piece in side:
            joined[:, :, row : row + piece.shape[2]] += piece
            row += piece.shape[2]
        return joined.relu_()


class Windowed(nn.Module):
    """A layer whose windows reach beyond their own row, without its padding above and below: :func:`features_in_bands` adds it.

    Beyond the image everything is zero (or the integer that stands for it). After a ReLU this is right for a maximum too.
    """

    def __init__(self, layer: WindowLayer) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = (window_side(n) for n in (layer.kernel_size, layer.stride, layer.padding))
        layer.padding = (0, self.padding)
        self.beyond = getattr(layer, "input_zero_point", 0)
        self.layer = layer

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Apply the layer to rows that already include the rows needed above and below."""
        return self.layer(rows)


def see_rows(trunk: nn.Module) -> None:
    """Make a trunk ready for :func:`features_in_bands`, in place. It can then not be called by itself any more."""
    for name, layer in list(trunk.named_modules()):
        if hasattr(layer, "kernel_size") and (window_side(layer.kernel_size), window_side(layer.stride)) != (1, 1):
            trunk.set_submodule(name, Windowed(layer))


def features_in_bands(trunk: nn.Module, bands: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the features of an image.

    Parameters
    ----------
    trunk : made of ``Sequential``, :class:`Residual`, :class:`Windowed` and layers that see one place at a time
    bands : the image's rows from top to bottom, each (1, channels, rows, width), `rows` a multiple of the trunk's stride

    Returns
    -------
    tensor (1, channels, rows, cols): what ``trunk(image)`` returned before :func:`see_rows`.
    """
    return torch.cat([rows for rows, _ in _through(trunk, _telling_last(bands))], 2)


def _through(layer: nn.Module, bands: Bands) -> Bands:
    """Send bands through a layer.

    No generator here keeps a band after it has yielded it: there are a hundred of them, one for each layer, and each would keep
    a band in memory. This is why variables are deleted and results popped from lists.
    """
    if isinstance(layer, nn.Sequential):
        for part in layer:
            bands = _through(part, bands)
        return bands
    if isinstance(layer, Residual):
        return _through_residual(layer, bands)
    if isinstance(layer, Windowed):
        return _through_windows(layer, bands)
    return _through_each(layer, bands)


def _through_each(layer: nn.Module, bands: Bands) -> Bands:
    for rows, last in bands:
        done = [layer(rows)]
        del rows
        yield done.pop(), last


def _through_windows(layer: Windowed, bands: Bands) -> Bands:
    """Put the rows kept from earlier bands above each band, and keep the rows that later windows need."""
    left: torch.Tensor | None = None
    for rows, last in bands:
        edge = torch.full_like(rows[:, :, : layer.padding], layer.beyond)
        parts = [edge if left is None else left, rows, *([edge] if last else [])]
        rows = torch.cat(parts, 2) if len(parts) > 2 or parts[0].shape[2] else rows
        parts.clear()
        count = (rows.shape[2] - layer.kernel) // layer.stride + 1
        if not last:  # where windows are smaller than the stride, the next one may begin below these rows
            count = min(count, rows.shape[2] // layer.stride)
        left = rows[:, :, max(0, count) * layer.stride :].clone(memory_format=torch.channels_last)
        if count > 0:
            parts.append(layer(rows[:, :, : (count - 1) * layer.stride + layer.kernel]))
            del rows, edge
            yield parts.pop(), last


def _through_residual(block: Residual, bands: Bands) -> Bands:
    """Show the bands to both branches. The main branch keeps rows back, so the side's output waits until it gets there."""
    if isinstance(block.side, Windowed):
        bands = _gathered(bands, block.side.stride)
    seen: deque[tuple[torch.Tensor, bool]] = deque()

    def for_main() -> Bands:
        for rows, last in bands:
            seen.append((rows, last))
            del rows
            yield seen[-1]

    def for_side() -> Bands:
        while True:
            yield seen.popleft()

    side = _through(block.side, for_side())
    waiting: torch.Tensor | None = None
    for rows, last in _through(block.main, for_main()):
        pieces, missing = [], rows.shape[2]
        while missing:
            if waiting is None or not waiting.shape[2]:
                waiting, _ = next(side)
            pieces.append(waiting[:, :, :missing])
            missing -= pieces[-1].shape[2]
            waiting = waiting[:, :, pieces[-1].shape[2] :]
        done = [block.join(rows, pieces)]
        # a copy of the few rows that wait, not a view that holds a whole band
        waiting = None if waiting is None else waiting.clone(memory_format=torch.channels_last)
        del rows, pieces
        yield done.pop(), last


def _gathered(bands: Bands, count: int) -> Bands:
    """Join every `count` bands into one."""
    waiting: list[torch.Tensor] = []
    for rows, last in bands:
        waiting.append(rows)
        del rows
        if last or len(waiting) == count:
            done = [torch.cat(waiting, 2) if len(waiting) > 1 else waiting[0]]
            waiting.clear()
            yield done.pop(), last


def _telling_last(bands: Iterable[torch.Tensor]) -> Bands:
    coming = iter(bands)
    rows = next(coming)
    for following in coming:
        done = [rows]
        rows = following
        del following
        yield done.pop(), False
    yield rows, True


def window_side(size: Any) -> int:
    """Return a number of a square window; torch keeps it once, or once for each axis."""
    return size if isinstance(size, int) else int(size[0])
