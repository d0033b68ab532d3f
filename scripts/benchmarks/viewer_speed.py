"""How fast ``wsi-meta view`` shows a slide: first view, tiles a second as a browser asks for them, and 200 requests at a time.

    .venv/bin/python scripts/benchmarks/viewer_speed.py heat.zarr --slide slide.tif

The server is a process of its own, started once before, so that Python has compiled the sources, as pip does. Seconds of its
start count until it prints its link; those of the first view from there until page, map, lesions and the tiles of a window of
1,400 x 900 px are there. Tiles are those of level 0, each for the first time. On a machine that others use too, look at the
processor seconds of the server, which are those of all that it did.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tornado.httpclient import AsyncHTTPClient

BROWSER_CONNECTIONS, AT_A_TIME = 6, 200
WINDOW = (1400, 900)


async def measure(link: str, tiles: int) -> dict[str, float]:
    """Ask a server as a browser would."""
    client = AsyncHTTPClient(force_instance=True, max_clients=AT_A_TIME)
    begun = time.perf_counter()
    store = (await client.fetch(link)).effective_url
    for name in ("viewer.css", "openseadragon.min.js", "sources.js", "layers.js", "correct.js", "map.js"):
        await client.fetch(f"{link}assets/{name}")
    facts = json.loads((await client.fetch(f"{store}/facts")).body)
    levels, tile = facts["slide"]["levels"], f"{store}/tile/{facts['slide']['mark']}"
    asked = [f"{store}/map/{facts['version']}", f"{store}/lesions/{facts['version']}/{round(facts['threshold'] * 1000)}"]
    asked += [f"{tile}/{place}" for place in first_tiles(levels)]
    await asyncio.gather(*map(client.fetch, asked))
    first_view = time.perf_counter() - begun
    links = [
        f"{store}/tile/{facts['slide']['mark']}/{place}" for place in some_tiles(facts["slide"]["levels"], tiles + AT_A_TIME)
    ]
    begun = time.perf_counter()
    queue = iter(links[:tiles])
    await asyncio.gather(*(fetch_all(client, queue) for _ in range(BROWSER_CONNECTIONS)))
    rate = tiles / (time.perf_counter() - begun)
    waits = await asyncio.gather(*(timed(client, one) for one in links[tiles:]))
    return {
        "first_view_s": first_view,
        "tiles_per_s": rate,
        "p50_s_of_200": float(np.percentile(waits, 50)),
        "p95_s_of_200": float(np.percentile(waits, 95)),
    }


async def fetch_all(client: AsyncHTTPClient, links: Any) -> None:
    """Fetch one link after the other."""
    for link in links:
        await client.fetch(link)


async def timed(client: AsyncHTTPClient, link: str) -> float:
    """Seconds that an answer takes."""
    begun = time.perf_counter()
    await client.fetch(link, request_timeout=120)
    return time.perf_counter() - begun


def first_tiles(levels: list[dict[str, int]]) -> list[str]:
    """The tiles that show the whole slide in a window: those of the first level that is as large as it is."""
    scale = min(WINDOW[0] / levels[-1]["width"], WINDOW[1] / levels[-1]["height"])
    number = next(place for place, level in enumerate(levels) if level["downsample"] * scale <= 1 or place == len(levels) - 1)
    columns, rows = size(levels[number])
    return [f"{number}/{col}/{row}" for row in range(rows) for col in range(columns)]


def some_tiles(levels: list[dict[str, int]], count: int) -> list[str]:
    """Tiles of level 0 anywhere on the slide, no two alike."""
    columns, rows = size(levels[-1])
    chosen = random.Random(0).sample(range(columns * rows), min(count, columns * rows))
    return [f"{len(levels) - 1}/{number % columns}/{number // columns}" for number in chosen]


def size(level: dict[str, int]) -> tuple[int, int]:
    """Columns and rows of tiles."""
    return -(-level["width"] // level["tile_width"]), -(-level["height"] // level["tile_height"])


def main() -> None:
    """Start a server, measure it, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--tiles", type=int, default=600)
    options = parser.parse_args()
    given = [] if options.slide is None else ["--slide", str(options.slide)]
    command = [sys.executable, "-m", "wsi_meta", "view", str(options.store), "--no-browser", *given]
    compiling = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=compiling) as server:
        assert server.stdout is not None
        server.stdout.readline()
        server.terminate()
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=compiling) as server:
        assert server.stdout is not None
        link = server.stdout.readline().strip()
        started = time.perf_counter() - begun
        try:
            figures = {"start_s": started} | asyncio.run(measure(link, options.tiles))
        finally:
            server.terminate()
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures["server_cpu_s"] = spent.ru_utime + spent.ru_stime
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=1))


if __name__ == "__main__":
    main()
