"""Synthetic lymph-node tissue, drawn from random numbers: pictures with a known answer, free of any patient's data.

Two stains are drawn, haematoxylin (nuclei) and eosin (cytoplasm, fibres), and turned into colours by Beer and Lambert's law.
Tissue is laid out at a quarter of the picture's resolution; nuclei are stamped at full resolution from small sets of sprites.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MPP", "draw_lymph_node"]

MPP = 0.243
"""Micrometres per pixel of the picture, as in Camelyon16's level 0."""
COARSE = 4
"""Pixels of the picture per pixel of the layout and of the tumor mask (0.972 um/px)."""
GLASS = (242.0, 241.0, 243.0)
"""Colour of bare glass, RGB, before noise of 0 to 3 is added."""
STAINS = ((0.62, 0.80, 0.47), (0.12, 0.46, 0.25))
"""Optical density of each of RGB per unit of haematoxylin and of eosin."""
SPRITES = 48
"""Different shapes of each kind of cell."""


class Zone(IntEnum):
    """What a pixel of the layout belongs to; also the row of :data:`GROUND`."""

    GLASS = 0
    FAT = 1
    CAPSULE = 2
    SINUS = 3
    LYMPH = 4
    FOLLICLE = 5
    VESSEL = 6
    TUMOR = 7
    STROMA = 8


GROUND = np.array(
    [[0, 0], [0.01, 0.06], [0.10, 0.95], [0.04, 0.22], [0.20, 0.58], [0.24, 0.60], [0.08, 1.10], [0.16, 0.50], [0.10, 0.85]],
    np.float32,
)
"""Units of haematoxylin and of eosin between the cells of each zone."""


@dataclass(frozen=True)
class Cell:
    """A kind of cell: sizes in micrometres, stains in units (2.55 at most)."""

    zones: tuple[Zone, ...]
    spacing: float
    """Of the cells of this kind, on average."""
    kept: float
    """Share of places that hold a cell."""
    diameter: tuple[float, float]
    """Smallest and largest nucleus."""
    elongation: float
    """Longest nucleus, relative to its width."""
    interior: float
    """Haematoxylin inside the nucleus."""
    rim: float
    """Haematoxylin that is added at its rim."""
    clumps: float
    """Unevenness of its chromatin."""
    nucleoli: int = 0
    """Most nucleoli in a nucleus."""
    body: float = 0.0
    """Width of the cytoplasm around the nucleus."""


CELLS = (
    Cell((Zone.LYMPH,), 6.8, 0.96, (5.6, 7.2), 1.2, 1.75, 0.25, 0.30),
    Cell((Zone.FOLLICLE,), 8.2, 0.95, (6.0, 8.2), 1.25, 1.35, 0.3, 0.30),
    Cell((Zone.SINUS,), 13.0, 0.7, (5.5, 7.0), 1.2, 1.75, 0.25, 0.3),
    Cell((Zone.CAPSULE, Zone.STROMA, Zone.VESSEL), 20.0, 0.6, (2.6, 4.0), 3.2, 1.3, 0.2, 0.2),
    Cell((Zone.TUMOR,), 14.5, 0.97, (9.5, 14.5), 1.4, 0.62, 0.55, 0.22, 3, 4.0),
)
"""What is drawn where."""


def draw_lymph_node(width: int, height: int, *, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw one piece of lymph node with a few tumor islands, as if stained with haematoxylin and eosin.

    The drawing imitates what a patch classifier looks at (size, density and texture of nuclei, colours); it is no model of
    disease and can neither train nor validate one.

    Parameters
    ----------
    width, height : size of the picture in pixels of 0.243 um; meant for 2,048 and more
    seed : the same seed gives the same picture

    Returns
    -------
    image : uint8 (height, width, 3), RGB
    tumor : bool (ceil(height / 4), ceil(width / 4)), pixels of 0.972 um: True where tumor was drawn
    """
    rng = np.random.default_rng(seed)
    depth = _depth((-(-height // COARSE), -(-width // COARSE)), rng)
    zones, tumor = _lay_out(depth, rng)
    stains = [_enlarged(ground) for ground in _ground(zones, depth, rng)]
    for cell in CELLS:
        _scatter(cell, zones, stains, rng)
    return _coloured(stains[0][:height, :width], stains[1][:height, :width], rng), tumor


def _lay_out(depth: NDArray[np.float32], rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Lay the zones out: uint8 (rows, cols) of :class:`Zone`, and the bool mask of all that is tumor, its stroma included."""
    shape = (depth.shape[0], depth.shape[1])
    uneven = _noise(shape, 60, rng)
    zones = np.zeros(shape, np.uint8)
    _add_fat(zones, depth, rng)
    zones[depth > 0] = Zone.CAPSULE
    zones[depth > 26 + 8 * uneven] = Zone.SINUS
    zones[depth > 42 + 8 * uneven] = Zone.LYMPH
    inner = depth > 60
    side = min(shape) * MPP * COARSE
    follicles = _blobs(depth, np.linspace(min(150, 0.08 * side), 60, 5), 0.15, rng) < 1
    zones[follicles & inner] = Zone.FOLLICLE
    zones[(np.abs(_noise(shape, 150, rng)) < 0.05) & (depth > 150) & ~follicles] = Zone.SINUS
    vessels = _blobs(depth, np.full(7, 24.0), 0.1, rng)
    zones[vessels < 1] = Zone.VESSEL
    zones[vessels < 0.6] = Zone.SINUS
    count = int(rng.integers(4, 6))
    radii = np.geomspace(min(320, 0.14 * side), min(100, 0.09 * side), count) * rng.uniform(0.9, 1.1, count)
    tumor = (_blobs(depth, radii, 0.22, rng) < 1) & inner
    zones[tumor] = Zone.TUMOR
    zones[tumor & (np.abs(_noise(shape, 110, rng)) < 0.09)] = Zone.STROMA
    return zones, tumor


def _depth(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return how deep each pixel lies inside the node, um; negative outside."""
    from scipy.ndimage import distance_transform_edt

    small = (-(-shape[0] // 4), -(-shape[1] // 4))
    y, x = np.linspace(-1, 1, small[0])[:, None], np.linspace(-1, 1, small[1])[None, :]
    radius = (np.abs(x / 0.86) ** 2.3 + np.abs(y / 0.80) ** 2.3) ** (1 / 2.3)
    inside = radius + 0.055 * _noise(small, min(small) / 4, rng) + 0.012 * _noise(small, min(small) / 20, rng) < 1
    depth = distance_transform_edt(inside) - distance_transform_edt(~inside)
    return _resized(depth.astype(np.float32) * (4 * COARSE * MPP), shape)


def _blobs(
    depth: NDArray[np.float32], radii: NDArray[np.float64], rough: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Place irregular discs of these radii (um) inside the node, apart from each other.

    Returns float32 like `depth`: distance from the nearest disc's centre, relative to its radius (below 1 inside).
    """
    scale = MPP * COARSE
    free = np.array(depth[::8, ::8])
    y, x = np.ogrid[: depth.shape[0], : depth.shape[1]]
    shape = (depth.shape[0], depth.shape[1])
    ragged = np.exp(rough * (_noise(shape, 0.8 * float(np.mean(radii)) / scale, rng) + 0.35 * _noise(shape, 14, rng)))
    blobs = np.full(shape, np.inf, np.float32)
    for radius in radii:
        places = np.argwhere(free > 1.1 * radius + 30)
        if len(places) == 0:
            continue  # no room is left for one of this size
        row, col = places[rng.integers(len(places))] * 8
        distance = np.hypot(y - row, x - col, dtype=np.float32) * scale
        np.minimum(blobs, distance * ragged / np.float32(radius), out=blobs)
        free = np.minimum(free, distance[::8, ::8] - 1.6 * radius)
    return blobs


def _add_fat(zones: NDArray[np.uint8], depth: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Draw a patch of fat at the node's edge: pale cells with thin pink walls."""
    from scipy.spatial import cKDTree

    edge = np.argwhere(np.abs(depth[::8, ::8]) < 20) * 8
    if len(edge) == 0:
        return
    centre = edge[rng.integers(len(edge))]
    reach = 0.11 * min(zones.shape)
    rows, cols = (
        np.arange(max(0, int(at - 2 * reach)), min(size, int(at + 2 * reach)))
        for at, size in zip(centre, zones.shape, strict=True)
    )
    pixels = np.stack(np.meshgrid(rows, cols, indexing="ij"), -1)
    seeds = _jittered((len(rows), len(cols)), 62, 0.25, rng) + np.array([rows[0], cols[0]])
    nearest = cKDTree(seeds).query(pixels, k=2)[0]
    region = np.hypot(pixels[..., 0] - centre[0], pixels[..., 1] - centre[1])
    region = region * np.exp(0.13 * _noise((len(rows), len(cols)), reach / 2, rng)) < reach
    wall = nearest[..., 1] - nearest[..., 0] < 3.5
    part = zones[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    part[region] = Zone.FAT
    part[region & wall] = Zone.STROMA


def _ground(zones: NDArray[np.uint8], depth: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return both stains between the cells: uint8 (2, rows, cols), hundredths of a unit; fibres follow the node's outline."""
    from scipy.ndimage import gaussian_filter

    shape = (depth.shape[0], depth.shape[1])
    fibrous = np.isin(zones, (Zone.CAPSULE, Zone.STROMA, Zone.VESSEL))
    waves = np.abs(np.sin(0.36 * depth + 2.5 * _noise(shape, 45, rng) + 0.7 * _noise(shape, 7, rng)))
    grain = 0.24 * _noise(shape, 3, rng) + 0.16 * _noise(shape, 12, rng) + 0.08 * _noise(shape, 90, rng)
    texture = np.where(fibrous, 0.45 + 0.85 * waves, 1) + grain
    stains: NDArray[np.float32] = np.stack([gaussian_filter(ground[zones], 0.8) * texture for ground in GROUND.T])
    return np.clip(stains * 100, 0, 255).astype(np.uint8)


def _scatter(cell: Cell, zones: NDArray[np.uint8], stains: list[NDArray[np.uint8]], rng: np.random.Generator) -> None:
    """Stamp the cells of one kind into the stains wherever the layout has their zones."""
    sprites = [_sprite(cell, rng) for _ in range(SPRITES)]
    places = _jittered(stains[0].shape, cell.spacing / MPP, 0.2, rng).astype(int)
    places = places[np.isin(zones[places[:, 0] // COARSE, places[:, 1] // COARSE], cell.zones)]
    places = places[rng.random(len(places)) < cell.kept]
    for (row, col), which in zip(places, rng.integers(SPRITES, size=len(places)), strict=True):
        sprite, nucleus = sprites[which]
        half = len(nucleus) // 2
        top, left = max(0, half - row), max(0, half - col)
        for stain, drawn in zip(stains, sprite, strict=True):
            part = stain[row - half + top : row + half, col - half + left : col + half]
            seen = (slice(top, top + part.shape[0]), slice(left, left + part.shape[1]))
            np.maximum(part, drawn[seen], out=part)
            np.copyto(part, drawn[seen], where=nucleus[seen])


def _sprite(cell: Cell, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw one cell: uint8 (2, side, side), hundredths of a unit of both stains, and where its nucleus hides what is below."""
    width = rng.uniform(*cell.diameter) / MPP
    stretch = rng.uniform(1, cell.elongation) ** 0.5
    half = int(width * stretch / 2 + cell.body / MPP) + 5
    shape = (2 * half, 2 * half)
    y, x = np.mgrid[-half:half, -half:half] + 0.5
    turn = rng.uniform(0, np.pi)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    radius = np.hypot(along / stretch, across * stretch) * (1 + 0.06 * _noise(shape, 0.7 * width, rng))
    outside = radius - width / 2  # px from the rim, negative inside
    nucleus = np.clip(0.5 - outside / 2.5, 0, 1)
    chromatin = cell.interior * rng.uniform(0.8, 1.2) + cell.rim * np.exp(-(((outside + 2.5) / 2.2) ** 2))
    chromatin = chromatin + cell.clumps * _noise(shape, 6, rng)
    for _ in range(int(rng.integers(min(1, cell.nucleoli), cell.nucleoli + 1))):
        at = rng.uniform(-0.22, 0.22, 2) * width
        chromatin += 1.1 * np.exp(-((np.hypot(y - at[0], x - at[1]) / rng.uniform(3.0, 5.5)) ** 4))
    body = np.clip(0.5 - (outside - cell.body / MPP) / 4, 0, 1) * (cell.body > 0)
    texture = 1 + 0.2 * _noise(shape, 9, rng)
    blue = np.maximum(nucleus * chromatin, 0.28 * body * texture)
    pink = np.maximum(nucleus * 0.5, rng.uniform(0.6, 0.85) * body * texture)
    return np.clip(np.stack([blue, pink]) * 100, 0, 255).astype(np.uint8), nucleus > 0.95


def _coloured(blue: NDArray[np.uint8], pink: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turn stains (hundredths of a unit) into colours: uint8 (height, width, 3), RGB, with a little noise."""
    units = np.arange(256) / 100
    density = units[:, None, None] * np.array(STAINS[0]) + units[None, :, None] * np.array(STAINS[1])
    table = np.rint(np.array(GLASS) * np.exp(-density)).astype(np.uint8)
    image = np.empty((*blue.shape, 3), np.uint8)
    for top in range(0, len(image), 256):
        part = slice(top, top + 256)
        noise = rng.integers(0, 4, blue[part].shape, np.uint8)
        image[part] = table[blue[part], pink[part]] + noise[..., None]
    return image


def _jittered(shape: tuple[int, ...], spacing: float, jitter: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return places (n, 2), row and column within `shape`, on a hexagonal grid whose points are moved by normal noise."""
    rows, cols = np.meshgrid(np.arange(shape[0] / spacing / 0.866), np.arange(shape[1] / spacing), indexing="ij")
    places = np.stack([rows * 0.866, cols + 0.5 * (rows % 2)], -1).reshape(-1, 2)
    places = (places + rng.normal(0, jitter, places.shape)) * spacing
    return np.clip(places, 0, np.array(shape[:2]) - 1)


def _noise(shape: tuple[int, int], feature_px: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return smooth noise of mean 0 and standard deviation about 1 whose features are about `feature_px` wide: float32."""
    size = [max(4, int(np.ceil(side / feature_px)) + 3) for side in shape]
    return _resized(rng.standard_normal(size, np.float32) * 1.5, shape)


def _resized(field: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Interpolate a field to another shape."""
    from scipy.ndimage import affine_transform

    step = np.array(field.shape) / shape
    resized: NDArray[np.float32] = affine_transform(field, step, 0.5 * step - 0.5, shape, order=2, mode="nearest")
    return resized


def _enlarged(ground: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Interpolate a layout to the picture's resolution: uint8 (4 * rows, 4 * cols)."""
    from scipy.ndimage import zoom

    enlarged: NDArray[np.uint8] = zoom(ground, COARSE, order=1, mode="nearest", grid_mode=True)
    return enlarged
