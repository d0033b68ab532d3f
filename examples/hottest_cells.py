"""Read a heatmap with nothing but zarr and print its hottest cells in level-0 pixels, to look them up in a viewer.

python examples/hottest_cells.py heat.zarr
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

import numpy as np
import zarr


def main(store: Path, count: int = 10) -> None:
    group = zarr.open_group(store, mode="r")
    attributes: Any = group.attrs
    scale, translation = attributes["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    mpp = attributes["wsi_meta"]["slide"]["mpp"]
    result = attributes["wsi_meta"].get("result")
    if result is None or not result["complete"]:
        print(f"{store}: not all of the slide was scanned; hotter cells may be missing", file=sys.stderr)
    probability = np.asarray(group["0"])
    if np.isnan(probability).all():
        sys.exit(f"{store}: no cell was scanned; wsi-meta info says why")
    order = np.argsort(np.nan_to_num(probability, nan=-1), axis=None)[::-1][:count]
    print("probability      x      y   (centre of the cell, level-0 pixels)")
    for index in order:
        row, col = np.unravel_index(index, probability.shape)
        if np.isnan(probability[row, col]):
            break
        y, x = (np.array([row, col]) * scale["scale"] + translation["translation"]) / mpp
        print(f"{probability[row, col]:11.7g} {x:6.0f} {y:6.0f}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    main(**vars(parser.parse_args()))
