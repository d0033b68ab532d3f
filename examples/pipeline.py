"""From the slides of lymph nodes to findings: heatmaps, lesions, pictures, and each patient's pN stage.

    python examples/pipeline.py slides/ results/ [model.safetensors]

Writes for each slide a heatmap, its lesions as outlines for QuPath and a picture, and for all of them nodes.csv in CAMELYON17's
format. Patients with five nodes, slides named patient_<...>_node_<...>, are staged. Research only: no diagnosis.
"""

from __future__ import annotations

import csv
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from pathlib import Path

from wsi_meta import Heatmap, draw_overlay, find_lesions, scan_slides, stage
from wsi_meta.words import format_probability

LABELS = {"macrometastasis": "macro", "micrometastasis": "micro", "isolated tumor cells": "itc"}


def main(slides: Path, results: Path, model: str = "default") -> None:
    files = sorted(slides.glob("*.tif"))
    for other in sorted(set(slides.iterdir()) - set(files)):
        print(f"{other.name}: no .tif; passed over", file=sys.stderr)
    labels = {}
    for file, row in zip(files, scan_slides(files, results, model=model, progress=True), strict=True):
        if not row["complete"]:
            print(f"{file.name}: {row['error']}; no findings", file=sys.stderr)
            continue
        if row["score"] is None:
            print(f"{file.name}: no tissue was found; no findings", file=sys.stderr)
            continue
        heatmap = Heatmap.open(row["heatmap"])
        lesions = find_lesions(heatmap, out=results / f"{file.stem}.geojson", overwrite=True)
        draw_overlay(heatmap, results / f"{file.stem}.png", slide=file, lesions=True, overwrite=True)
        widest = max(lesions, key=lambda lesion: lesion.diameter_mm, default=None)
        labels[file.name] = LABELS[widest.size_class] if widest else "negative"
        print(f"{file.name}: score {format_probability(row['score'])}, lesions: {len(lesions)}, {labels[file.name]}")
    if not labels:
        sys.exit(f"{slides}: no slide has findings; nothing is written to nodes.csv")
    nodes = Counter(name.partition("_node_")[0] for name in labels if "_node_" in name)
    for patient in sorted({file.name.partition("_node_")[0] for file in files if "_node_" in file.name}):
        if nodes[patient] != 5:
            print(f"{patient}: {nodes[patient]} of five nodes have findings; not staged", file=sys.stderr)
    table = results / "nodes.csv"
    with table.open("w", newline="", encoding="utf-8") as out:
        rows = [(name, label) for name, label in labels.items() if nodes[name.partition("_node_")[0]] == 5]
        csv.writer(out).writerows([("patient", "stage"), *rows])
    if rows:
        for patient, found in stage(table).stages.items():
            print(f"{patient}: {found}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("slides", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("model", nargs="?", default="default")
    main(**vars(parser.parse_args()))
