"""Scan every slide of a folder and list them, most suspicious first.

    python examples/scan_folder.py slides/ results/ [model.safetensors]

Slides that are already in results/ are not scanned again; an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from wsi_meta import scan_slides
from wsi_meta.words import format_probability


def main(slides: Path, results: Path, model: str = "default") -> None:
    rows = scan_slides([slides], results, model=model, progress=True)  # tells which files it passes over
    for row in sorted(rows, key=lambda row: -1 if row["score"] is None else row["score"], reverse=True):
        score = "unknown" if row["score"] is None else format_probability(row["score"])
        print(f"{score:>11}  {Path(row['slide']).name}" + (f"  ({row['error']})" if row["error"] else ""))
    failed = sum(bool(row["error"]) for row in rows)
    if failed == len(rows):
        sys.exit(f"{slides}: none of the {failed} slides could be scanned")
    if failed:
        print(f"{failed} of {len(rows)} slides could not be scanned", file=sys.stderr)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("slides", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("model", nargs="?", default="default")
    main(**vars(parser.parse_args()))
