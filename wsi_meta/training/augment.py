"""Random changes that leave the label true, for whole batches, on the device that trains.

uint8 in, uint8 out: what the network is shown still goes through the one ``Preprocessing.to_input``.
"""

from __future__ import annotations

import torch

from wsi_meta.views import VIEWS, dihedral

__all__ = ["augment", "jitter_brightness", "jitter_stain"]

STAIN_SCALE = 0.2
"""Largest relative change of a stain's amount (Tellez et al. 2019, "HED-strong")."""
STAIN_SHIFT = 0.02
"""Largest absolute change of a stain's amount, in optical density."""
BRIGHTNESS = 0.1
"""Largest relative change of brightness."""
CONTRAST = 0.15
"""Largest relative change of contrast."""

# Optical density per unit of haematoxylin, eosin and DAB: Ruifrok & Johnston 2001
_RGB_FROM_HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turn, mirror and recolour each image of a batch by its own random draw.

    Parameters
    ----------
    images : uint8 tensor (n, side, side, 3), RGB
    generator : on the same device; the only source of randomness

    Returns
    -------
    uint8 tensor of the same shape; `images` is left as it was.
    """
    view = torch.randint(VIEWS, (len(images),), generator=generator, device=images.device)
    turned = dihedral(images, view)
    return jitter_brightness(jitter_stain(turned.float(), generator), generator).round().clamp(0, 255).to(torch.uint8)


def jitter_stain(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Vary the amount of each stain (haematoxylin, eosin, residual) by one draw an image.

    Colour deconvolution by Ruifrok & Johnston 2001; the jitter by Tellez et al. 2018, "Whole-slide mitosis detection".

    Parameters
    ----------
    images : float tensor (n, height, width, 3), RGB 0..255

    Returns
    -------
    float tensor of the same shape, RGB 0..255.
    """
    to_rgb = torch.nn.functional.normalize(torch.tensor(_RGB_FROM_HED, device=images.device), dim=1)
    scale = 1 + STAIN_SCALE * _uniform((len(images), 3), images, generator)
    shift = STAIN_SHIFT * _uniform((len(images), 1, 1, 3), images, generator)
    # un-mix, scale each stain and mix again: one 3x3 matrix an image
    change = torch.linalg.inv(to_rgb) @ (scale[:, :, None] * to_rgb)
    density = -torch.log((images + 1) / 256)
    density = (density.flatten(1, 2) @ change).view_as(images) + shift @ to_rgb
    return (256 * torch.exp(-density) - 1).clamp(0, 255)


def jitter_brightness(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Vary brightness and contrast (about each image's mean) by one draw an image; floats 0..255 in and out."""
    brightness = 1 + BRIGHTNESS * _uniform((len(images), 1, 1, 1), images, generator)
    contrast = 1 + CONTRAST * _uniform((len(images), 1, 1, 1), images, generator)
    mean = images.mean((1, 2, 3), keepdim=True)
    return (((images - mean) * contrast + mean) * brightness).clamp(0, 255)


def _uniform(shape: tuple[int, ...], like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw from -1..1."""
    return torch.rand(shape, generator=generator, device=like.device) * 2 - 1
