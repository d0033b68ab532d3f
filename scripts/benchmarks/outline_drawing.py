"""How fast outlines are drawn, and how right: each file at level 5 of its slide, areas beside shapely's.

    .venv/bin/python scripts/benchmarks/outline_drawing.py FILE... [--width 97792 --height 221184]

FILE is ASAP XML, QuPath GeoJSON or JSON.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from shapely.geometry import Polygon

from wsi_meta import read_annotations

DOWNSAMPLE = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--width", type=int, default=97792, help="of the slide, level-0 pixels")
    parser.add_argument("--height", type=int, default=221184)
    arguments = parser.parse_args()
    for file in arguments.files:
        start = time.perf_counter()
        outlines = read_annotations(file)
        read = time.perf_counter()
        mask = outlines.mask((arguments.height // DOWNSAMPLE, arguments.width // DOWNSAMPLE), DOWNSAMPLE)
        drawn = time.perf_counter()
        off = max(abs(outline.area / Polygon(outline.vertices, outline.holes).area - 1) for outline in outlines.tumor)
        vertices = sum(len(outline.vertices) for outline in (*outlines.tumor, *outlines.excluded))
        print(
            f"{file.name}: {len(outlines.tumor)} outlines and {len(outlines.excluded)} excluded, {vertices} vertices; read in "
            f"{read - start:.2f} s, drawn as {mask.shape[1]} x {mask.shape[0]} in {drawn - read:.2f} s; areas off shapely's by "
            f"{off:.1e} at most"
        )


if __name__ == "__main__":
    main()
