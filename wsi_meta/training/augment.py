"""Random changes of patches that keep the label right, for whole batches, on the device that trains.

uint8 in, uint8 out: ``Preprocessing.to_input`` turns the result into the network's input. On a GPU nothing here waits for the
device: the next step is prepared while the last one is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn.functional import conv2d, grid_sample, normalize, pad

from wsi_meta.models.dihedral import VIEWS, dihedral
from wsi_meta.training.recipe import Augmentation

__all__ = ["augment", "blur", "damage_as_jpeg", "jitter_brightness", "jitter_colour", "jitter_stain", "shift", "zoom"]

ZOOM_SHARE = 0.5
"""Share of the patches that are zoomed. The others stay as sharp as the scanner made them: resampling softens a picture."""
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
    """Shift, turn, zoom, recolour, blur and damage the images of a batch, each by random numbers of its own.

    The order is that of the real world: the tissue and its stain, the lamp, the lens, the camera's colours, the file.

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
    if how.zoom:
        changed = zoom(changed, how.zoom, generator)
    if how.stain or how.stain_offset:
        changed = jitter_stain(changed, how.stain, generator, offset=how.stain_offset)
    if how.brightness or how.contrast or how.levels:
        changed = jitter_brightness(changed, how.brightness, generator, contrast=how.contrast, levels=how.levels)
    if how.blur:
        changed = _change_some(changed, how.blur, blur, generator)
    if how.gain or how.saturation:
        changed = jitter_colour(changed, generator, gain=how.gain, saturation=how.saturation)
    if how.jpeg:
        changed = _change_some(changed, how.jpeg, damage_as_jpeg, generator)
    return changed.round().clamp(0, 255).to(torch.uint8)


def shift(images: torch.Tensor, most_px: int, generator: torch.Generator) -> torch.Tensor:
    """Move each image by up to `most_px` along each axis; the uncovered edge is filled by mirroring."""
    n, side = images.shape[:2]
    by = torch.randint(-most_px, most_px + 1, (2, n, 1), generator=generator, device=images.device)
    place = (torch.arange(side, device=images.device) + by).abs()
    rows, cols = torch.where(place < side, place, 2 * (side - 1) - place)
    return images[torch.arange(n, device=images.device)[:, None, None], rows[:, :, None], cols[:, None, :]]


def zoom(images: torch.Tensor, most: float, generator: torch.Generator) -> torch.Tensor:
    """Magnify half of the images by a factor from ``1 - most`` to ``1 + most``; mirrored pixels fill what comes into view.

    The centre stays in its place, so the label stays right: it says whether the centre square holds tumor, and the edges of
    that square, half of `label_px` away from the centre, move by `most` times as much. With 0.12 that is 2 px, half of what a
    shift moves them.

    Parameters
    ----------
    images : float tensor (n, side, side, 3)
    most : largest relative change of magnification

    Returns
    -------
    float tensor of the same shape, interpolated linearly.
    """
    n, side = images.shape[:2]
    factor = 1 + most * _uniform((n, 1, 1, 1), images, generator)
    chosen = torch.rand((n, 1, 1, 1), generator=generator, device=images.device) < ZOOM_SHARE
    place = (2 * torch.arange(side, device=images.device) + 1) / side - 1  # of the pixels' centres; the edges are -1 and 1
    rows, cols = torch.meshgrid(place, place, indexing="ij")
    grid = torch.stack([cols, rows], -1) / torch.where(chosen, factor, 1.0)
    seen = grid_sample(images.permute(0, 3, 1, 2), grid, padding_mode="reflection", align_corners=False)
    return seen.permute(0, 2, 3, 1).contiguous()


def jitter_stain(images: torch.Tensor, most: float, generator: torch.Generator, *, offset: float = 0.0) -> torch.Tensor:
    """Vary the amount of each stain (haematoxylin, eosin, residual), each image by random numbers of its own.

    Colour deconvolution by Ruifrok & Johnston 2001; the jitter by Tellez et al. 2018, "Whole-slide mitosis detection".

    Parameters
    ----------
    images : float tensor (n, height, width, 3), RGB 0..255
    most : largest relative change of a stain's amount
    offset : largest absolute change of it, in optical density

    Returns
    -------
    float tensor of the same shape, RGB 0..255.
    """
    stains = normalize(torch.tensor(_RGB_FROM_HED), dim=1)
    to_rgb, from_rgb = (_bring(matrix, images) for matrix in (stains, torch.linalg.inv(stains)))
    scale = 1 + most * _uniform((len(images), 3), images, generator)
    more = offset * _uniform((len(images), 1, 1, 3), images, generator)
    # separate the stains, scale each and mix them again: one 3x3 matrix for each image
    change = from_rgb @ (scale[:, :, None] * to_rgb)
    density = -torch.log((images + 1) / 256)
    density = (density.flatten(1, 2) @ change).view_as(images) + more @ to_rgb
    return (256 * torch.exp(-density) - 1).clamp(0, 255)


def jitter_brightness(
    images: torch.Tensor, most: float, generator: torch.Generator, *, contrast: float = 0.0, levels: float = 0.0
) -> torch.Tensor:
    """Vary brightness and contrast (around the image's mean) of each image at random; floats 0..255 in and out.

    `most` is the largest relative change of brightness, `contrast` that of contrast, `levels` the largest absolute change of
    brightness.
    """
    brightness = 1 + most * _uniform((len(images), 1, 1, 1), images, generator)
    spread = 1 + contrast * _uniform((len(images), 1, 1, 1), images, generator)
    mean = images.mean((1, 2, 3), keepdim=True)
    changed = ((images - mean) * spread + mean) * brightness
    if levels:
        changed += levels * _uniform((len(images), 1, 1, 1), images, generator)
    return changed.clamp(0, 255)


def jitter_colour(images: torch.Tensor, generator: torch.Generator, *, gain: float, saturation: float) -> torch.Tensor:
    """Vary the gain of each channel, then the saturation, of each image at random; floats 0..255 in and out.

    `gain` and `saturation` are the largest relative changes; a change of saturation keeps the luminance.
    """
    images = images * (1 + gain * _uniform((len(images), 1, 1, 3), images, generator))
    grey = images @ _bring(torch.tensor(_YCC_FROM_RGB[:1]).T, images)
    amount = 1 + saturation * _uniform((len(images), 1, 1, 1), images, generator)
    return (grey + (images - grey) * amount).clamp(0, 255)


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
    table, colours = torch.tensor(_QUANTISATION, dtype=torch.float32), torch.tensor(_YCC_FROM_RGB)
    steps = (_bring(table, images)[None, None, :, None, :, None] * scale).round().clamp(min=1)
    cosine = _cosine_transform(images.device)
    to_ycc, to_rgb = (_bring(matrix, images) for matrix in (colours, torch.linalg.inv(colours)))
    # (n, block row, frequency row, block col, frequency col, plane)
    blocks = ((images - 128) @ to_ycc.T).view(n, height // 8, 8, width // 8, 8, 3)
    spectrum = torch.einsum("ui,vj,nbidjc->nbudvc", cosine, cosine, blocks)
    blocks = torch.einsum("ui,vj,nbudvc->nbidjc", cosine, cosine, (spectrum / steps).round() * steps)
    damaged: torch.Tensor = blocks.reshape(n, height, width, 3) @ to_rgb.T + 128
    return damaged.clamp(0, 255)


def _change_some(
    images: torch.Tensor,
    share: float,
    change: Callable[[torch.Tensor, torch.Generator], torch.Tensor],
    generator: torch.Generator,
) -> torch.Tensor:
    """Make a change to a share of the images, chosen at random. `images` may be changed in place."""
    chosen = torch.rand(len(images), generator=generator, device=images.device) < share
    if images.is_cuda:  # to pick the chosen ones would wait for the GPU, which changes all of them in less time
        return torch.where(chosen[:, None, None, None], change(images, generator), images)
    images[chosen] = change(images[chosen], generator)
    return images


def _bring(constants: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return constants on the images' device; from pinned memory, because a GPU's stream would wait for a copy from other."""
    return constants.pin_memory().to(images.device, non_blocking=True) if images.is_cuda else constants


def _cosine_transform(device: torch.device) -> torch.Tensor:
    """Return the orthonormal 8-point DCT-II as a matrix (frequency, place)."""
    frequency, place = torch.arange(8, device=device)[:, None], torch.arange(8, device=device)[None, :]
    matrix: torch.Tensor = 0.5 * torch.cos(math.pi / 16 * frequency * (2 * place + 1))
    matrix[0] /= math.sqrt(2)
    return matrix


def _uniform(shape: tuple[int, ...], like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return random numbers from -1 to 1."""
    return torch.rand(shape, generator=generator, device=like.device) * 2 - 1
