"""How many bytes a scan of a slide at an address fetches, beside a scan of the same file on the disk; are the maps bit-equal?

    .venv/bin/python scripts/benchmarks/bytes_fetched.py SLIDE [SLIDE ...] [-- OPTIONS OF scan]

The slides are served on loopback by rangehttpserver, which the development environment has: seconds are not those of a network.
Bytes are those that `wsi-meta scan` reports.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from wsi_meta.heatmaps.store import Heatmap

FETCHED = re.compile(r"([\d,.]+) MB fetched of ([\d,.]+) MB \(([\d.]+) %\)")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder by range; yields its address."""
    command = [sys.executable, "-u", "-m", "RangeHTTPServer", "--bind", "127.0.0.1", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        found = re.search(r"port (\d+)", server.stdout.readline())
        assert found is not None
        yield f"http://127.0.0.1:{found[1]}"
        server.terminate()


def scan(slide: str, out: Path, options: list[str]) -> tuple[float, str]:
    """Scan a slide by the command; return seconds and what it told."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "wsi_meta", "scan", slide, "--out", str(out), *options]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return time.perf_counter() - began, told


def main() -> None:
    """Print a row of a table for each slide."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", nargs="+", type=Path)
    mine, _, theirs = " ".join(sys.argv[1:]).partition(" -- ")
    slides, options = parser.parse_args(mine.split()).slides, theirs.split()
    print("| slide | MB | MB fetched | share | s from the disk | s from the address | maps |\n|---|---|---|---|---|---|---|")
    for slide in slides:
        with tempfile.TemporaryDirectory() as scratch, served(slide.absolute().parent) as address:
            here, there = Path(scratch) / "here.zarr", Path(scratch) / "there.zarr"
            from_disk, _ = scan(str(slide), here, options)
            from_address, told = scan(f"{address}/{slide.name}", there, options)
            found = FETCHED.search(told)
            assert found is not None, told
            maps = [Heatmap.open(store) for store in (here, there)]
            same = all(np.array_equal(maps[0].probability, one.probability, equal_nan=True) for one in maps[1:])
            same &= maps[0].record.identity == maps[1].record.identity
        row = [slide.name, found[2], found[1], f"{found[3]} %", f"{from_disk:.1f}", f"{from_address:.1f}"]
        print("| " + " | ".join([*row, "bit-equal, same identity" if same else "DIFFERENT"]) + " |", flush=True)


if __name__ == "__main__":
    main()
