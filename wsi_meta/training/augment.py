"""Random changes of patches that keep the label right, for whole batches, on the device that trains.

uint8 in, uint8 out: ``Preprocessing.to_input`` turns the result into the network's input.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import conv2d, normalize, pad

from wsi_meta.models.dihedral import VIEWS, dihedral
from wsi_meta.training.recipe import Augmentation

__all__ = ["augment", "blur", "damage_as_jpeg", "jitter_brightness", "jitter_stain", "shift"]

STAIN_SHIFT = 0.1
"""Largest absolute change of a stain's amount, in optical density, relative to the largest relative change."""
CONTRAST = 1.5
"""Largest relative change of contrast, relative to that of brightness."""
BLUR_SIGMA_PX = (0.3, 1.2)
"""Range of the Gaussian's standard deviation."""
JPEG_QUALITY = (30, 90)
"""Range of the quality, as libjpeg counts it."""

# Optical density per unit of haematoxylin, eosin and DAB: Ruifrok & Johnston 2001
_RGB_FROM_HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
# JFIF's colour space, and the luminance table of ITU-T T.81, annex K.1
_YCC_FROM_RGB = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_QUANTISATION = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


def augment(images: torch.Tensor, how: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """Shift, turn, recolour, blur and damage the images of a batch, each by random numbers of its own.

    Parameters
    ----------
    images : uint8 tensor (n, side, side, 3), RGB; the side a multiple of 8
    how : the strength of each change; a change of 0 is not made
    generator : on the same device; the only source of random numbers

    Returns
    -------
    uint8 tensor of the same shape; `images` is not changed.
    """
    if how.shift_px:
        images = shift(images, how.shift_px, generator)
    if how.turn:
        images = dihedral(images, torch.randint(VIEWS, (len(images),), generator=generator, device=images.device))
    changed = images.float()
    if how.stain:
        changed = jitter_stain(changed, how.stain, generator)
    if how.brightness:
        changed = jitter_brightness(changed, how.brightness, generator)
    for share, change in ((how.blur, blur), (how.jpeg, damage_as_jpeg)):
        if share:
            chosen = torch.rand(len(images), generator=generator, device=images.device) < share
            changed[chosen] = change(changed[chosen], generator)
    return changed.round().clamp(0, 255).to(torch.uint8)


def shift(images: torch.Tensor, most_px: int, generator: torch.Generator) -> torch.Tensor:
    """Move each image by up to `most_px` along each axis; the uncovered edge is filled by mirroring."""
    n, side = images.shape[:2]
    by = torch.randint(-most_px, most_px + 1, (2, n, 1), generator=generator, device=images.device)
    place = (torch.arange(side, device=images.device) + by).abs()
    rows, cols = torch.where(place < side, place, 2 * (side - 1) - place)
    return images[torch.arange(n, device=images.device)[:, None, None], rows[:, :, None], cols[:, None, :]]


def jitter_stain(images: torch.Tensor, most: float, generator: torch.Generator, *, shift: float = STAIN_SHIFT) -> torch.Tensor:
    """Vary the amount of each stain (haematoxylin, eosin, residual), each image by random numbers of its own.

    Colour deconvolution by Ruifrok & Johnston 2001; the jitter by Tellez et al. 2018, "Whole-slide mitosis detection".

    Parameters
    ----------
    images : float tensor (n, height, width, 3), RGB 0..255
    most : largest relative change of a stain's amount
    shift : largest absolute change of it, relative to `most`

    Returns
    -------
    float tensor of the same shape, RGB 0..255.
    """
    to_rgb = normalize(torch.tensor(_RGB_FROM_HED, device=images.device), dim=1)
    scale = 1 + most * _uniform((len(images), 3), images, generator)
    offset = shift * most * _uniform((len(images), 1, 1, 3), images, generator)
    # separate the stains, scale each and mix them again: one 3x3 matrix for each image
    change = torch.linalg.inv(to_rgb) @ (scale[:, :, None] * to_rgb)
    density = -torch.log((images + 1) / 256)
    density = (density.flatten(1, 2) @ change).view_as(images) + offset @ to_rgb
    return (256 * torch.exp(-density) - 1).clamp(0, 255)


def jitter_brightness(images: torch.Tensor, most: float, generator: torch.Generator) -> torch.Tensor:
    """Vary brightness and contrast (around the image's mean) of each image at random; floats 0..255 in and out."""
    brightness = 1 + most * _uniform((len(images), 1, 1, 1), images, generator)
    contrast = 1 + CONTRAST * most * _uniform((len(images), 1, 1, 1), images, generator)
    mean = images.mean((1, 2, 3), keepdim=True)
    return (((images - mean) * contrast + mean) * brightness).clamp(0, 255)


def blur(images: torch.Tensor, generator: torch.Generator, *, sigma_px: tuple[float, float] = BLUR_SIGMA_PX) -> torch.Tensor:
    """Blur each image with a Gaussian of its own random width; floats (n, height, width, 3) in and out.

    `sigma_px` is the range of the Gaussian's standard deviation.
    """
    if not len(images):
        return images
    n, height, width, channels = images.shape
    low, high = sigma_px
    sigma = low + (high - low) * torch.rand((n, 1), generator=generator, device=images.device)
    reach = math.ceil(3 * high)
    place = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-0.5 * (place / sigma) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    planes = pad(images.permute(0, 3, 1, 2).reshape(1, n * channels, height, width), (reach,) * 4, mode="reflect")
    planes = conv2d(planes, kernel[:, None, :, None], groups=n * channels)
    planes = conv2d(planes, kernel[:, None, None, :], groups=n * channels)
    return planes.reshape(n, channels, height, width).permute(0, 2, 3, 1)


def damage_as_jpeg(
    images: torch.Tensor, generator: torch.Generator, *, quality: tuple[int, int] = JPEG_QUALITY
) -> torch.Tensor:
    """Round each image's 8x8 cosine coefficients as JPEG (ITU-T T.81) of a random quality does; floats 0..255 in and out.

    `quality` is the range of the quality. The luminance table is used for all three planes, and colour is not subsampled: the
    damage resembles JPEG's, but this is no codec.
    """
    n, height, width, _ = images.shape
    low, high = quality
    drawn = low + (high - low) * torch.rand((n, 1, 1, 1, 1, 1), generator=generator, device=images.device)
    scale = torch.where(drawn < 50, 50 / drawn, 2 - drawn / 50)
    table = torch.tensor(_QUANTISATION, device=images.device, dtype=torch.float32)
    steps = (table[None, None, :, None, :, None] * scale).round().clamp(min=1)
    cosine, to_ycc = _cosine_transform(images.device), torch.tensor(_YCC_FROM_RGB, device=images.device)
    # (n, block row, frequency row, block col, frequency col, plane)
    blocks = ((images - 128) @ to_ycc.T).view(n, height // 8, 8, width // 8, 8, 3)
    spectrum = torch.einsum("ui,vj,nbidjc->nbudvc", cosine, cosine, blocks)
    blocks = torch.einsum("ui,vj,nbudvc->nbidjc", cosine, cosine, (spectrum / steps).round() * steps)
    damaged: torch.Tensor = blocks.reshape(n, height, width, 3) @ torch.linalg.inv(to_ycc).T + 128
    return damaged.clamp(0, 255)


def _cosine_transform(device: torch.device) -> torch.Tensor:
    """Return the orthonormal 8-point DCT-II as a matrix (frequency, place)."""
    frequency, place = torch.arange(8, device=device)[:, None], torch.arange(8, device=device)[None, :]
    matrix: torch.Tensor = 0.5 * torch.cos(math.pi / 16 * frequency * (2 * place + 1))
    matrix[0] /= math.sqrt(2)
    return matrix


def _uniform(shape: tuple[int, ...], like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return random numbers from -1 to 1."""
    return torch.rand(shape, generator=generator, device=like.device) * 2 - 1
