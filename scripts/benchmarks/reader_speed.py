"""What reading a scan's blocks costs: OpenSlide, the direct reader, decoding alone, in turn; in megapixels per CPU second.

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
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from PIL import Image

from wsi_meta.inference.allocator import keep_freed_memory
from wsi_meta.slides.slide import Slide, open_slide
from wsi_meta.tiling.grid import PatchGrid

MODEL_MPP, HALO_PX = 0.972, 64
Window = tuple[int, int, int, int]


def _picture(patches: Path, side: int) -> np.ndarray:
    """Lay real patches side by side: uint8 (side * 96, side * 96, 3)."""
    names = sorted(patches.glob("[01]/*.jpg"))
    drawn = itertools.cycle(np.random.default_rng(0).permutation(len(names)))
    image = np.empty((side * 96, side * 96, 3), np.uint8)
    for row, col in itertools.product(range(side), repeat=2):
        patch = Image.open(names[next(drawn)]).convert("RGB")
        image[row * 96 : row * 96 + 96, col * 96 : col * 96 + 96] = np.asarray(patch)
    return image


def _write(path: Path, image: np.ndarray, tile_px: int, quality: int) -> Path:
    def tiles() -> Iterator[bytes]:
        for row, col in itertools.product(range(0, len(image), tile_px), repeat=2):
            tile = image[row : row + tile_px, col : col + tile_px]
            whole = np.pad(tile, ((0, tile_px - tile.shape[0]), (0, tile_px - tile.shape[1]), (0, 0)), mode="edge")
            yield bytes(imagecodecs.jpeg8_encode(whole, level=quality, subsampling="420"))

    per_cm = 1e4 / MODEL_MPP
    layout = {"shape": image.shape, "dtype": np.uint8, "tile": (tile_px, tile_px), "metadata": None}
    colours = {"photometric": "ycbcr", "subsampling": (2, 2), "compression": "jpeg"}
    tifffile.imwrite(path, tiles(), **layout, **colours, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER")
    return path


def _windows(slide: Slide, most: int) -> tuple[list[Window], float]:
    """Return what a scan in dense mode reads, row by row, and the megapixels of its cells."""
    grid = PatchGrid(slide.width, slide.height, slide.mpp, MODEL_MPP, 96, 32)
    blocks, side = grid.blocks(), int(most**0.5)
    rows, cols = (sorted({getattr(block, axis) for block in blocks}) for axis in ("row", "col"))
    middle = [set(starts[(len(starts) - side) // 2 :][:side] if len(starts) > side else starts) for starts in (rows, cols)]
    chosen = [block for block in blocks if block.row in middle[0] and block.col in middle[1]]
    cells = sum(block.rows * block.cols for block in chosen)
    level_px = slide._window(MODEL_MPP, 0, 0, 2000, 2000).width / 2000
    return [grid.window(block, HALO_PX) for block in chosen], cells * (32 * level_px) ** 2 / 1e6


def _read(slide: Slide, windows: list[Window], workers: int) -> float:
    """Read windows with some threads that take the next one each; give the processor's seconds, whatever else runs."""
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


def _decode_only(slide: Slide, windows: list[Window]) -> float:
    """Decode the tiles that the windows need, each once, from memory; give the processor's seconds, whatever else runs."""
    reader = slide._reader
    level, left, top, *_ = slide._inside(slide._window(MODEL_MPP, *windows[0]).rectangle)
    _, *last = slide._inside(slide._window(MODEL_MPP, *windows[-1]).rectangle)
    stored, file = reader._levels[level], reader._open()
    rows = range(top // stored.tile_height, -(-(last[1] + last[3]) // stored.tile_height))
    cols = range(left // stored.tile_width, -(-(last[0] + last[2]) // stored.tile_width))
    numbers = [row * stored.columns + col for row in rows for col in cols]
    jpegs = [stored.head + file.read(int(stored.offsets[n]), int(stored.lengths[n]))[2:] for n in numbers if stored.lengths[n]]
    start = time.process_time()
    for jpeg in jpegs:
        simplejpeg.decode_jpeg(jpeg, "RGB", strict=True)
    return time.process_time() - start


def _measure(name: str, path: Path, most: int, turns: int) -> dict[str, object]:
    times: dict[str, list[float]] = {}
    amplification: dict[int, float] = {}
    with open_slide(path) as slide:
        windows, megapixels = _windows(slide, most)

    def direct(workers: int) -> float:
        with open_slide(path, reader="direct") as slide:
            needed, before = slide.expect(MODEL_MPP, windows), slide.tiles_decoded
            seconds = _read(slide, windows, workers)
            amplification[workers] = ((slide.tiles_decoded or 0) - (before or 0)) / (needed or 1)
            return seconds

    def openslide(workers: int) -> float:
        with open_slide(path, reader="openslide") as slide:
            return _read(slide, windows, workers)

    def limit() -> float:
        with open_slide(path, reader="direct") as slide:
            return _decode_only(slide, windows)

    variants: dict[str, Callable[[], float]] = {
        "openslide, 1 worker": lambda: openslide(1),
        "direct, 1 worker": lambda: direct(1),
        "decode only": limit,
        "openslide, 2 workers": lambda: openslide(2),
        "direct, 2 workers": lambda: direct(2),
    }
    for _ in range(turns):
        for variant, run in variants.items():
            times.setdefault(variant, []).append(run())
    rates = {variant: megapixels / statistics.median(seconds) for variant, seconds in times.items()}
    print(f"{name}: {len(windows)} blocks, {megapixels:.0f} Mpx of cells at the level that is read")
    for variant, rate in rates.items():
        share = rate / rates["openslide, 1 worker"], rate / rates["decode only"]
        print(f"  {variant:22}{rate:7.0f} Mpx/CPU-s  {share[0]:5.2f} x OpenSlide  {share[1]:5.2f} x decoding alone")
    print("  tiles decoded / needed: " + ", ".join(f"{value:.3f} ({count} workers)" for count, value in amplification.items()))
    return {"slide": name, "Mpx": megapixels, "Mpx/CPU-s": rates, "amplification": amplification}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    arguments = parser.parse_args()
    keep_freed_memory()  # as a scan does
    results = []
    if arguments.source.is_dir():
        image = _picture(arguments.source, 42)
        with tempfile.TemporaryDirectory() as folder:
            for tile_px, quality in itertools.product((512, 256), (90, 75)):
                slide = _write(Path(folder, "slide.tif"), image, tile_px, quality)
                results.append(_measure(f"tiles of {tile_px} px, q{quality}", slide, arguments.blocks, arguments.turns))
    else:
        results.append(_measure(arguments.source.name, arguments.source, arguments.blocks, arguments.turns))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
