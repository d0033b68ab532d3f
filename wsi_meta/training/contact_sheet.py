"""A picture of augmented patches, so that a person sees what the network is shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.datasets.layouts import Patches
from wsi_meta.outputs.writing import written_whole
from wsi_meta.training.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["contact_sheet_path", "draw_contact_sheet"]

PATCHES, DRAWS = 10, 8
"""Number of rows, and of augmented versions in each row."""
GAP_PX = 2
TUMOR_COLOUR, NORMAL_COLOUR = (220, 20, 60), (0, 191, 255)


def contact_sheet_path(out: Path) -> Path:
    """Return the path of the contact sheet of the model file `out`."""
    return out.with_suffix(".augmented.png")


def draw_contact_sheet(out: Path, patches: Patches, recipe: Recipe) -> Path:
    """Draw some patches unchanged (left) and augmented, with a frame round the labelled centre, as ``<stem>.augmented.png``."""
    from matplotlib.figure import Figure

    chosen = np.random.default_rng(recipe.seed).permutation(len(patches))[:PATCHES]
    import torch

    from wsi_meta.training.augment import augment

    originals = torch.stack([torch.from_numpy(patches.read(int(index))) for index in chosen])
    generator = torch.Generator().manual_seed(recipe.seed)
    columns = [originals, *(augment(originals, recipe.augmentation, generator) for _ in range(DRAWS))]
    tumor = patches.labels[chosen].astype(bool)
    sheet = _lay_out(torch.stack(columns, 1).numpy(), tumor)
    figure = Figure(figsize=(len(columns) + 0.6, len(chosen) + 0.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet, origin="upper", interpolation="nearest")
    axes.set_xticks(_middles(sheet.shape[1], len(columns)), ["as it is", "augmented"] + [""] * (DRAWS - 1))
    axes.set_yticks(_middles(sheet.shape[0], len(chosen)), ["tumor" if one else "normal" for one in tumor])
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    with written_whole(contact_sheet_path(out)) as partial:
        figure.savefig(partial, dpi=100, format="png")
    return contact_sheet_path(out)


def _lay_out(images: NDArray[np.uint8], tumor: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Put images (rows, cols, side, side, 3) side by side with gaps, and frame the centre of each in its row's colour."""
    images = images.copy()
    low, high = images.shape[2] // 3 - 1, images.shape[2] - images.shape[2] // 3
    for row, colour in enumerate(np.where(tumor[:, None], TUMOR_COLOUR, NORMAL_COLOUR)):
        for edge in (low, high):
            images[row, :, edge, low : high + 1] = colour
            images[row, :, low : high + 1, edge] = colour
    gaps = ((0, 0), (0, 0), (GAP_PX, GAP_PX), (GAP_PX, GAP_PX), (0, 0))
    return np.concatenate(np.concatenate(np.pad(images, gaps, constant_values=255), 1), 1)


def _middles(length: int, n: int) -> NDArray[np.float64]:
    return (np.arange(n) + 0.5) * length / n - 0.5
