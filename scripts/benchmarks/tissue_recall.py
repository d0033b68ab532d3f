"""How much of the lesions a scan looks at, and what it looks at besides, on overviews of whole slides.

For each overview: recall of lesion area, the lesion of which least is looked at, tissue and what was left out in mm2, and a
picture of that.

    .venv/bin/python scripts/benchmarks/tissue_recall.py FOLDER --out pictures/

FOLDER holds NAME_overview.png at 15.552 um per pixel and NAME_lesion_mask.png.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import label

from wsi_meta.demo.pyramid_writer import write_pyramid
from wsi_meta.pictures.survey import survey_tissue

MPP = 15.552


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print("| slide | lesions, mm2 | recall of their area | least of a lesion | tissue, mm2 | filled | holes left out | ink |")
    print("|---|---|---|---|---|---|---|---|")
    for path in sorted(arguments.folder.glob("*_overview.png")):
        lesion = np.asarray(Image.open(path.with_name(path.name.replace("overview", "lesion_mask")))) > 0
        with tempfile.TemporaryDirectory() as folder:
            slide = write_pyramid(Path(folder) / f"{path.stem}.tif", _rgb(path), mpp=MPP, lossless=True)
            survey = survey_tissue(slide, picture=arguments.out / f"{path.stem}_tissue.png", overwrite=True)
        kept, mm2 = survey.tissue.mask, (MPP / 1000) ** 2
        figures = [lesion.sum() * mm2, kept[lesion].mean(), _least(kept, lesion), survey.tissue_mm2]
        areas = survey.areas_mm2(left_out=False) | survey.areas_mm2(left_out=True)
        figures += [areas.get(name, 0.0) for name in ("filled", "hole", "ink")]
        print(
            f"| {path.stem} | " + " | ".join(f"{figure:.4f}" if figure <= 1 else f"{figure:.1f}" for figure in figures) + " |"
        )


def _rgb(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def _least(kept: NDArray[np.bool_], lesion: NDArray[np.bool_]) -> Any:
    """Return the smallest share of a lesion that is looked at."""
    lesions, count = label(lesion, np.ones((3, 3)))
    return min(kept[lesions == number].mean() for number in range(1, count + 1))


if __name__ == "__main__":
    _main()
