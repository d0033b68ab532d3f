"""A cohort of 200 small slides, 12 of which cannot be scanned, in 8 ways, by one command; what comes of it, and what it costs.

    PYTHONPATH=tests .venv/bin/python scripts/benchmarks/cohort_of_200.py OUT

The network is a thin ResNet with random weights and a head fitted to drawn patches: what is measured is all but the network. It
draws slides, writes a manifest with patients, labels and annotations, runs `wsi-meta scan --manifest`, and checks the
stores, the rows, the worklist page and the command that retries a slide. It prints the overhead of a slide beyond reading and
computing, and the command's memory as it goes. OUT keeps everything, to look at OUT/scans/report/index.html. It exits with 1
where something is not as it should be.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import tifffile
from numpy.typing import NDArray
from slide_files import damage_tile, stored_tiles

from wsi_meta.cli import main
from wsi_meta.demo.pyramid_writer import write_pyramid
from wsi_meta.demo.synthetic import draw_lymph_node
from wsi_meta.models.card import ModelCard
from wsi_meta.models.model import Model
from wsi_meta.worklist.table import open_table

SIDE_PX, MPP = 1536, 0.243
NETWORK = "thin.safetensors"
DRAWN = 10
"""Pictures of four times that area that are drawn; the slides are quarters of them, turned and lit differently."""
BAD = {
    "empty": 2,
    "text": 2,
    "cut": 2,
    "no_pixel_size": 2,
    "too_coarse": 1,
    "missing": 1,
    "unreadable": 1,
    "other_mask": 1,
}
"""Slides that cannot be scanned: kinds, and how many of each."""
EXPECTED = {
    "empty": "empty",
    "text": "not a slide|no slide|cannot be opened|no known format|Unsupported",
    "cut": "cut|damaged|cannot be opened|not a slide|Unsupported",
    "no_pixel_size": "does not say how large its pixels are",
    "too_coarse": "too coarse",
    "missing": "no such file",
    "unreadable": "nothing of it can be read|could not be read|decod",
    "other_mask": "mask|shape|sides",
}
"""What the reasons of each kind say."""
EARLY, LATE = (20, 60), (150, 200)
"""Rows, as they were counted while the memory was looked at, that are compared."""


Picture = tuple[NDArray[np.uint8], NDArray[np.bool_]]
"""A picture, and where it shows tumor, a quarter as wide."""


@dataclass
class Watched:
    """A command that was looked at while it ran."""

    code: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    rows: list[tuple[float, int, int]] = field(default_factory=list)
    """Seconds, rows in the table, resident bytes."""

    def memory(self, part: tuple[int, int]) -> int:
        """Return the most resident bytes while the table had so many rows."""
        return max(held for _, rows, held in self.rows if part[0] <= rows <= part[1])

    def seconds_between(self, first: int, last: int) -> float:
        """Return the time from one number of rows to another."""
        at = {rows: passed for passed, rows, _ in reversed(self.rows)}
        return min(at[rows] for rows in at if rows >= last) - min(at[rows] for rows in at if rows >= first)


def draw_cohort(folder: Path, slides: int) -> Path:
    """Write the slides, their annotations, the network and the manifest; return the manifest. What is there is used again."""
    manifest = folder / "slides.csv"
    if manifest.exists():
        return manifest
    folder.mkdir(parents=True)
    kinds = [kind for kind, count in BAD.items() for _ in range(count)]
    places = np.linspace(5, slides - 5, len(kinds)).astype(int).tolist()
    bad = dict(zip(places, kinds, strict=True))
    pictures = [draw_lymph_node(2 * SIDE_PX, 2 * SIDE_PX, seed=seed) for seed in range(DRAWN)]
    fit_network(pictures[:3], folder.parent / NETWORK)
    rows = []
    for number in range(slides):
        image, tumor = _look(*pictures[number % DRAWN], number)
        kind = bad.get(number)
        path = folder / f"patient_{number // 5:03d}_node_{number % 5}{f'_{kind}' if kind else ''}.tif"
        row = {"slide": path.name, "patient": f"patient_{number // 5:03d}", "label": "tumor" if tumor.any() else "normal"}
        if kind is None:
            write_pyramid(path, image, mpp=MPP, tile_px=256)
            if tumor.any() and number % 2 == 0:
                row["annotations"] = f"{path.stem}_mask.tiff"
                tifffile.imwrite(folder / row["annotations"], np.where(tumor, np.uint8(255), np.uint8(0)), tile=(256, 256))
        else:
            row |= _spoil(kind, path, image)
        rows.append(row)
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["slide", "tissue_mask", "patient", "label", "annotations"])
        writer.writeheader()
        writer.writerows(rows)
    return manifest


def _look(image: NDArray[np.uint8], tumor: NDArray[np.bool_], number: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a quarter of a picture, turned and lit in a way of its own; every third one with grey glass for its tumor."""
    times, side = number // DRAWN, SIDE_PX
    top, left = (times % 2) * side, (times // 2 % 2) * side
    where = np.kron(tumor, np.ones((4, 4), bool))[top : top + side, left : left + side]
    seen = image[top : top + side, left : left + side].astype(np.float32) * (1 - 0.004 * times)
    if number % 3 == 0:
        seen, where = np.where(where[..., None], np.float32(240), seen), np.zeros_like(where)
    pixels = np.rot90(seen.astype(np.uint8), times // 4)
    return np.ascontiguousarray(pixels), np.ascontiguousarray(np.rot90(where, times // 4))


def _spoil(kind: str, path: Path, image: NDArray[np.uint8]) -> dict[str, str]:
    """Write a slide that cannot be scanned; return what the manifest says of it besides."""
    if kind in ("unreadable", "other_mask", "cut"):
        write_pyramid(path, image, mpp=MPP, tile_px=256, levels=1)
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("The slide is on the other disk.\n")
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "no_pixel_size":
        tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", compression="jpeg", metadata=None)
    elif kind == "too_coarse":
        write_pyramid(path, image, mpp=2.5, tile_px=256)
    elif kind == "unreadable":
        for tile in range(len(stored_tiles(path))):
            damage_tile(path, tile)
    elif kind == "other_mask":
        tifffile.imwrite(path.with_suffix(".png.tiff"), np.zeros((40, 200), np.uint8))
        return {"tissue_mask": path.with_suffix(".png.tiff").name}
    return {}


def watch(command: Sequence[str], out: Path, log: Path) -> Watched:
    """Run a command; look at the rows of its table and its memory meanwhile."""
    watched, begun = Watched(), time.perf_counter()
    table, status, seen = out / "summary.csv", 0, -1
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        while (status := process.poll()) is None:  # type: ignore[assignment]
            rows = table.read_bytes().count(b"\r\n") - 1 if table.exists() else 0
            held, cpu = _usage(process.pid)
            watched.cpu_seconds = cpu or watched.cpu_seconds
            if rows != seen and held:
                watched.rows.append((time.perf_counter() - begun, rows, held))
                seen = rows
            time.sleep(0.05)
    watched.code, watched.seconds = status, time.perf_counter() - begun
    return watched


def _usage(pid: int) -> tuple[int, float]:
    """Return a process's resident bytes and the seconds of CPU that it took; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0, 0.0
    return int(fields[21]) * 4096, (int(fields[11]) + int(fields[12])) / 100


def fit_network(pictures: Sequence[Picture], out: Path) -> None:
    """Write the weights of a thin network whose head tells drawn tumor from other tissue."""
    import torch
    from safetensors.torch import save_file
    from sklearn.linear_model import LogisticRegression

    torch.manual_seed(0)
    network, patches, labels = _network(), [], []
    for image, tumor in pictures:
        small = image.reshape(tumor.shape[0], 4, tumor.shape[1], 4, 3).mean((1, 3)).astype(np.uint8)
        for top, left in np.ndindex(*(length // 64 - 1 for length in tumor.shape)):
            place = np.s_[64 * top : 64 * top + 96, 64 * left : 64 * left + 96]
            patches.append(small[place])
            labels.append(tumor[place][32:64, 32:64].any())
    head, network.fc = network.fc, torch.nn.Identity()
    with torch.inference_mode():
        features = network(ModelCard().preprocessing.to_input(torch.from_numpy(np.stack(patches)))).numpy()
    spread = features.std(0) + 1e-6
    fitted = LogisticRegression(max_iter=500, C=0.1).fit(features / spread, labels)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(fitted.coef_ / spread).float())
        head.bias.copy_(torch.from_numpy(fitted.intercept_).float())
    network.fc = head
    save_file(network.state_dict(), out)


def _network() -> Any:
    from wsi_meta.models.resnet import ResNet, Stage

    stages = Stage(1, 16, 256), Stage(1, 32, 512), Stage(1, 64, 1024), Stage(1, 128, 2048)
    return ResNet(stages, classes=1).eval()


class FiledModel(Model):
    """A model that can stand where a file's path is expected, as the command line keeps it."""

    def __fspath__(self) -> str:
        return str(self.path)


class ThinModel(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Whatever model is asked for, the thin one is taken."""

    name = "model"

    def __init__(self, weights: Path) -> None:
        self.weights = weights

    def convert(self, *_values: Any) -> Model:
        from safetensors.torch import load_file

        network = _network()
        network.load_state_dict(load_file(self.weights))
        card = replace(ModelCard(), dense=True)
        return FiledModel(network, card, hashlib.sha256(self.weights.read_bytes()).hexdigest(), self.weights)


def run_command(weights: Path, words: Sequence[str]) -> None:
    """Run wsi-meta's command line with the thin network in place of any model."""
    for option in main.commands["scan"].params:
        if option.name == "model":
            option.type = ThinModel(weights)
    main(list(words))


def check(out: Path, slides: int) -> list[str]:
    """Return what is not as it should be."""
    wrong = []
    rows = open_table(out).rows
    failed = [row for row in rows if row["error"]]
    stores = sorted(path.name for path in out.glob("*.zarr"))
    if len(stores) != slides - sum(BAD.values()):
        wrong.append(f"{len(stores)} stores")
    if len(rows) != slides or len(failed) != sum(BAD.values()):
        wrong.append(f"{len(rows)} rows, {len(failed)} failures")
    for row in failed:
        kind = re.sub(r".*node_\d_", "", Path(row["slide"]).stem)
        if not re.search(EXPECTED.get(kind, "$^"), row["error"], re.IGNORECASE):
            wrong.append(f"{kind}: {row['error']}")
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    body = page[page.index("<tbody") :]
    counts = {
        "rows of slides": (body[: body.index("</tbody>")].count("<tr"), slides - sum(BAD.values())),
        "failures with a command": (page.count("<code>wsi-meta scan"), sum(BAD.values())),
        "pictures": (len(list((out / "report" / "thumbnails").glob("*.jpg"))), slides - sum(BAD.values())),
    }
    return wrong + [f"page: {found} {what}; expected {wanted}" for what, (found, wanted) in counts.items() if found != wanted]


def retry(out: Path) -> str:
    """Put a good slide where an empty one was, run the command that the table gives, and return what is wrong then."""
    rows = open_table(out).rows
    empty = next(row for row in rows if row["error"] and Path(row["slide"]).stem.endswith("_empty"))
    good = next(row for row in rows if not row["error"])
    shutil.copyfile(good["slide"], empty["slide"])
    words = [sys.executable, __file__, "--with", str(out.parent / NETWORK), *shlex.split(empty["retry"])[1:]]
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}  # absolute, since it runs elsewhere
    end = subprocess.run(words, check=False, capture_output=True, text=True, cwd="/", env=os.environ | paths)
    again = next(row for row in open_table(out).rows if row["slide"] == empty["slide"])
    Path(empty["slide"]).write_bytes(b"")
    return "" if end.returncode == 0 and again["complete"] else f"{empty['retry']}: {end.stderr[-500:]}"


def tell(watched: Watched, rows: Sequence[dict[str, Any]]) -> None:
    """Print the figures."""
    done = [row for row in rows if row["seconds"] is not None]
    parts = {name: sum(row[name] for row in done) / len(done) for name in ("tissue_s", "reading_s", "computing_s", "writing_s")}
    last = max(rows for _, rows, _ in watched.rows)
    each = watched.seconds_between(20, last) / (last - 20)
    early, late = (watched.memory(part) for part in (EARLY, (min(LATE[0], last), LATE[1])))
    print(f"whole command: {watched.seconds:.1f} s, {watched.cpu_seconds:.1f} s of CPU, exit code {watched.code}")
    print(f"a slide, from the 20th row to the last: {each:.3f} s")
    print("mean seconds of a slide: " + ", ".join(f"{name.removesuffix('_s')} {value:.3f}" for name, value in parts.items()))
    print(f"overhead beyond reading and computing: {each - parts['reading_s'] - parts['computing_s']:.3f} s a slide")
    print(f"memory: {early / 1e6:.0f} MB from row {EARLY[0]} to {EARLY[1]}, {late / 1e6:.0f} MB from row {LATE[0]} on")


def _main() -> int:
    if sys.argv[1:2] == ["--with"]:
        run_command(Path(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--slides", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1, help="blocks in work at the same time; each slide here is one block")
    arguments = parser.parse_args()
    manifest, scans = draw_cohort(arguments.out / "slides", arguments.slides), arguments.out / "scans"
    words = ["scan", "--manifest", str(manifest), "--out", str(scans), "--workers", str(arguments.workers)]
    command = [sys.executable, __file__, "--with", str(arguments.out / NETWORK), *words]
    print("wsi-meta", *words, flush=True)
    watched = watch(command, scans, arguments.out / "log.txt")
    tell(watched, open_table(scans).rows)
    wrong = check(scans, arguments.slides)
    wrong += [] if watched.code == 1 else [f"exit code {watched.code}; expected 1"]
    wrong += [told] if (told := retry(scans)) else []
    bad = sum(BAD.values())
    print("\n".join(wrong) or f"{arguments.slides - bad} stores, {bad} named failures, page and retry as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(_main())
