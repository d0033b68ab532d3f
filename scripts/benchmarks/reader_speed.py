"""How fast a scan's blocks are read by OpenSlide, by the direct reader, and by decoding alone: megapixels per CPU second.

    .venv/bin/python scripts/benchmarks/reader_speed.py PATCHES
    .venv/bin/python scripts/benchmarks/reader_speed.py SLIDE

PATCHES is a folder {0,1}/*.jpg of real patches, of which slides are laid out: tiles of 512 and 256 px, quality 90 and 75. Of a
SLIDE at most --blocks blocks are read, from its middle.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scan_limits import Window

from wsi_meta.inference.allocator import tuned_memory
from wsi_meta.readers.levels import LevelWindow, find_window
from wsi_meta.slides.slide import Slide, open_slide
from wsi_meta.stored_tiles.jpeg_tiff import find_levels
from wsi_meta.stored_tiles.tile_form import TiledLevel
from wsi_meta.tiling.grid import PatchGrid

MODEL_MPP, HALO_PX = 0.972, 64
ONE_OPENSLIDE, ALONE = "openslide, 1 worker", "decode only"
VARIANTS = {ONE_OPENSLIDE: 1, "direct, 1 worker": 1, ALONE: 1, "openslide, 2 workers": 2, "direct, 2 workers": 2}
"""Names, which begin with the reader, and how many threads read."""


def _picture(patches: Path, side: int) -> NDArray[np.uint8]:
    """Lay real patches side by side: uint8 (side * 96, side * 96, 3)."""
    names = sorted(patches.glob("[01]/*.jpg"))
    drawn = itertools.cycle(np.random.default_rng(0).permutation(len(names)))
    image = np.empty((side * 96, side * 96, 3), np.uint8)
    for row, col in itertools.product(range(side), repeat=2):
        patch = Image.open(names[next(drawn)]).convert("RGB")
        image[row * 96 : row * 96 + 96, col * 96 : col * 96 + 96] = np.asarray(patch)
    return image


def _write(path: Path, image: NDArray[np.uint8], tile_px: int, quality: int) -> Path:
    def tiles() -> Iterator[bytes]:
        for row, col in itertools.product(range(0, len(image), tile_px), repeat=2):
            tile = image[row : row + tile_px, col : col + tile_px]
            whole = np.pad(tile, ((0, tile_px - tile.shape[0]), (0, tile_px - tile.shape[1]), (0, 0)), mode="edge")
            yield bytes(imagecodecs.jpeg8_encode(whole, level=quality, subsampling="420"))

    per_cm = 1e4 / MODEL_MPP
    tifffile.imwrite(
        path,
        tiles(),
        shape=image.shape,
        dtype=np.uint8,
        tile=(tile_px, tile_px),
        metadata=None,
        photometric="ycbcr",
        subsampling=(2, 2),
        compression="jpeg",
        resolution=(per_cm, per_cm),
        resolutionunit="CENTIMETER",
    )
    return path


def _level_window(slide: Slide, window: Window) -> LevelWindow:
    return find_window(dict(enumerate(slide.level_downsamples)), slide.check_resolution(MODEL_MPP), *window)


def _windows(slide: Slide, most: int) -> tuple[list[Window], float]:
    """Return what a scan in dense mode reads, row by row, and the megapixels of its cells."""
    grid = PatchGrid(slide.width, slide.height, slide.mpp, MODEL_MPP, 96, 32)
    blocks, side = grid.blocks(), int(most**0.5)
    rows, cols = (sorted({getattr(block, axis) for block in blocks}) for axis in ("row", "col"))
    middle = [set(starts[(len(starts) - side) // 2 :][:side] if len(starts) > side else starts) for starts in (rows, cols)]
    chosen = [block for block in blocks if block.row in middle[0] and block.col in middle[1]]
    cells = sum(block.rows * block.cols for block in chosen)
    level_px = _level_window(slide, (0, 0, 2000, 2000)).width / 2000
    return [grid.window(block, HALO_PX) for block in chosen], cells * (32 * level_px) ** 2 / 1e6


def _read(slide: Slide, windows: list[Window], workers: int) -> float:
    """Read windows on some threads, each of which takes the next one; return the process's CPU seconds."""
    waiting, lock = iter(windows), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                window = next(waiting, None)
            if window is None:
                return
            slide.read_at(MODEL_MPP, *window)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    start = time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.process_time() - start


def _decode_only(slide: Slide, path: Path, windows: list[Window]) -> float:
    """Decode the tiles that the windows need, each once, from memory; return the process's CPU seconds."""
    parts = [_level_window(slide, window) for window in windows]
    level = parts[0].level
    stored = find_levels(path, slide.vendor, slide.level_dimensions, range(len(slide.level_dimensions)))[level]
    jpegs = _stored_tiles(path, stored, parts, slide.level_dimensions[level])
    start = time.process_time()
    for jpeg in jpegs:
        simplejpeg.decode_jpeg(jpeg, "RGB", strict=True)
    return time.process_time() - start


def _stored_tiles(path: Path, stored: TiledLevel, parts: list[LevelWindow], size: tuple[int, int]) -> list[bytes]:
    """Read the tiles, as they are stored, of the rectangle round some windows of a level; `size` is the level's."""
    left, top = (max(0, min(corner)) for corner in ([part.left for part in parts], [part.top for part in parts]))
    right = min(size[0], max(part.left + part.width for part in parts))
    bottom = min(size[1], max(part.top + part.height for part in parts))
    rows = range(top // stored.tile_height, -(-bottom // stored.tile_height))
    cols = range(left // stored.tile_width, -(-right // stored.tile_width))
    jpegs = []
    with path.open("rb") as file:
        for row, col in itertools.product(rows, cols):
            number = row * stored.columns + col
            if stored.lengths[number]:
                file.seek(int(stored.offsets[number]))
                jpegs.append(stored.form.whole_jpeg(file.read(int(stored.lengths[number]))))
    return jpegs


def _seconds(variant: str, path: Path, windows: list[Window], amplification: dict[int, float]) -> float:
    """Measure a variant once; the direct reader also notes its tiles decoded / needed, by the number of threads."""
    workers = VARIANTS[variant]
    if variant.startswith("openslide"):
        with open_slide(path, reader="openslide") as slide:
            return _read(slide, windows, workers)
    with open_slide(path, reader="direct") as slide:
        if variant == ALONE:
            return _decode_only(slide, path, windows)
        needed, before = slide.expect(MODEL_MPP, windows), slide.tiles_decoded
        seconds = _read(slide, windows, workers)
        amplification[workers] = ((slide.tiles_decoded or 0) - (before or 0)) / (needed or 1)
        return seconds


def _measure(name: str, path: Path, most: int, turns: int) -> dict[str, object]:
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    amplification: dict[int, float] = {}
    with open_slide(path) as slide:
        windows, megapixels = _windows(slide, most)
    for _ in range(turns):
        for variant, seconds in times.items():
            seconds.append(_seconds(variant, path, windows, amplification))
    rates = {variant: megapixels / statistics.median(seconds) for variant, seconds in times.items()}
    print(f"{name}: {len(windows)} blocks, {megapixels:.0f} Mpx of cells at the level that is read")
    for variant, rate in rates.items():
        share = rate / rates[ONE_OPENSLIDE], rate / rates[ALONE]
        print(f"  {variant:22}{rate:7.0f} Mpx/CPU-s  {share[0]:5.2f} x OpenSlide  {share[1]:5.2f} x decoding alone")
    print("  tiles decoded / needed: " + ", ".join(f"{value:.3f} ({count} workers)" for count, value in amplification.items()))
    return {"slide": name, "Mpx": megapixels, "Mpx/CPU-s": rates, "amplification": amplification}


def _measure_all(source: Path, most: int, turns: int) -> list[dict[str, object]]:
    """Measure a slide, or slides of several layouts made of a folder's patches."""
    if not source.is_dir():
        return [_measure(source.name, source, most, turns)]
    image, results = _picture(source, 42), []
    with tempfile.TemporaryDirectory() as folder:
        for tile_px, quality in itertools.product((512, 256), (90, 75)):
            slide = _write(Path(folder, "slide.tif"), image, tile_px, quality)
            results.append(_measure(f"tiles of {tile_px} px, q{quality}", slide, most, turns))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    arguments = parser.parse_args()
    with tuned_memory(in_bands=False):
        results = _measure_all(arguments.source, arguments.blocks, arguments.turns)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
