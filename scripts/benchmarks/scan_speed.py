"""How fast slides of Camelyon's size are scanned here, beside the limits that reading alone and the network alone set.

Writes slides (large_slide.py) and scans each with `wsi-meta scan` in a process of its own: once with an empty cache of compiled
kernels, then --turns times with a full one. After each of these it measures both limits on the same blocks. Prints a table of
medians; --json writes everything.

    .venv/bin/python scripts/benchmarks/scan_speed.py --sizes 1/16          a few minutes on two cores
    .venv/bin/python scripts/benchmarks/scan_speed.py --sizes 1/16 1/4 full --patches pcam/valid --json bench.json
    .venv/bin/python scripts/benchmarks/scan_speed.py --sizes full --cases dense:32 --stream 10 --device cuda
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from large_slide import SIZES, make_slide
from scan_figures import MeasuredScan, figures, scan_timeline, table
from scan_limits import Limits, Window, measure_limits, memory_of_scan, predictor_of_scan
from stopwatch import time_command

from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.slides.slide import Slide


@dataclass(frozen=True)
class Case:
    """A way to scan: ``dense:32``, ``patch:96``, ``patch:32``."""

    mode: str
    stride_px: int

    @classmethod
    def parse(cls, text: str) -> Case:
        mode, _, stride = text.partition(":")
        return cls(mode, int(stride or 32))

    def __str__(self) -> str:
        return f"{self.mode}:{self.stride_px}"


class Bench:
    """Paths and settings that every measurement needs."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.cache = folder / "compiled"
        self.env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(self.cache)}
        self.model = _dense_model(arguments.model, folder)

    def options(self, case: Case) -> list[str]:
        chosen = self.arguments
        options = ["--mode", case.mode, "--stride", str(case.stride_px), "--model", str(self.model)]
        options += ["--workers", str(chosen.workers), "--device", chosen.device]
        return [*options, "--precision", chosen.precision, "--compiled", chosen.compiled]

    def scan(self, slide: Path, case: Case) -> MeasuredScan:
        """Scan in a process of its own and read from the store what happened when."""
        store, counts = self.store(slide, case), self.folder / "tiles.json"
        command: list[str | Path] = [sys.executable, __file__, "--child-scan", counts, "--"]
        command += ["scan", slide, "--out", store, "--overwrite", *self.options(case)]
        timing = time_command(command, env=self.env)
        tiles = json.loads(counts.read_text())
        return MeasuredScan(timing, scan_timeline(store, timing.began, self.arguments.workers), tiles)

    def limits(self, slide: Path, case: Case, *, first_only: bool = False) -> Limits:
        """Measure both limits in a process of its own; the store of an earlier scan says which blocks."""
        settings = {
            "store": str(self.store(slide, case)),
            "slide": str(slide),
            "model": str(self.model),
            "device": self.arguments.device,
            "workers": self.arguments.workers,
            "first_only": first_only,
        }
        command = [sys.executable, __file__, "--child-limits", json.dumps(settings)]
        return Limits(**json.loads(time_command(command, env=self.env).output))

    def store(self, slide: Path, case: Case) -> Path:
        return self.folder / f"{slide.stem}-{case.mode}-{case.stride_px}.zarr"

    def stream(self, slide: Path, case: Case, count: int) -> float:
        """Scan the same slide under `count` names by one command; return slides a minute."""
        names, out = self.folder / "stream", self.folder / "stream-maps"
        for stale in (names, out):
            shutil.rmtree(stale, ignore_errors=True)
        names.mkdir()
        links = [names / f"slide-{number}.tif" for number in range(count)]
        for link in links:
            link.symlink_to(slide.absolute())
        command: list[str | Path] = [sys.executable, "-m", "wsi_meta", "scan", *links, "--out", out, *self.options(case)]
        return 60 * count / time_command(command, env=self.env).seconds

    def forget_compiled(self) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)


def _dense_model(model: str, folder: Path) -> Path:
    """Return the model's file; where its card does not allow dense mode, a copy whose card does: speed is the same."""
    from wsi_meta.models.model import load_model, model_path, save_model

    path = model_path(model)
    loaded = load_model(path)
    if loaded.card.dense:
        return path
    copy = folder / "dense.safetensors"
    save_model(copy, loaded.network.state_dict(), replace(loaded.card, dense=True))
    _say("the model's card does not allow dense mode; a copy that does is timed")
    return copy


def _measure(bench: Bench, size: str, case: Case) -> dict[str, Any]:
    """Return all figures of one slide scanned one way."""
    _say(f"{size}: the slide")
    slide = make_slide(bench.folder, size, patches=bench.arguments.patches)
    bench.forget_compiled()
    _say(f"{size} {case}: scan, nothing compiled before")
    cold = bench.scan(slide, case)
    warm, limits = [], []
    for turn in range(bench.arguments.turns):
        _say(f"{size} {case}: scan and limits, {turn + 1} of {bench.arguments.turns}")
        warm.append(bench.scan(slide, case))
        limits.append(bench.limits(slide, case))
    bench.forget_compiled()
    cold_ready = bench.limits(slide, case, first_only=True).ready_seconds
    precision = Heatmap.open(bench.store(slide, case)).record.identity.precision
    found = figures(cold, warm, limits, cold_ready, case.stride_px)
    if bench.arguments.stream:
        _say(f"{size} {case}: a stream of {bench.arguments.stream} slides")
        found["slides a minute, as a stream"] = bench.stream(slide, case, bench.arguments.stream)
    record = {"size": size, "case": str(case), "precision": precision, "figures": found}
    return record | {
        "limits": [asdict(limit) for limit in limits],
        "cold": _plain(cold),
        "warm": [_plain(scan) for scan in warm],
    }


def _plain(scan: MeasuredScan) -> dict[str, Any]:
    timeline = {name: getattr(scan.timeline, name) for name in ("ready", "first", "last", "cells")}
    return {"seconds": scan.timing.seconds, "peak_bytes": scan.timing.peak_bytes, "tiles": scan.tiles, **timeline}


def _machine(device: str) -> dict[str, Any]:
    import torch

    from wsi_meta.inference.device import resolve_device
    from wsi_meta.versions import library_versions

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    device = resolve_device(device)
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "versions": library_versions(),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _child_scan(counts: Path, arguments: Sequence[str]) -> None:
    """Be `wsi-meta` with these arguments, and note how many stored tiles the blocks needed and how many were decoded."""
    from wsi_meta.cli import main

    noted: list[tuple[Slide, int | None, int | None]] = []
    expect = Slide.expect

    def noting(slide: Slide, mpp: float, windows: Iterable[Window]) -> int | None:
        needed = expect(slide, mpp, windows)
        noted.append((slide, needed, slide.tiles_decoded))
        return needed

    try:
        with mock.patch.object(Slide, "expect", noting):  # what is measured is the command itself
            main(list(arguments), prog_name="wsi-meta")
    finally:
        tiles = None
        if noted and noted[0][1] is not None:
            slide, needed, before = noted[0]
            after = noted[1][2] if len(noted) > 1 else slide.tiles_decoded  # what the verdict looks at is not the blocks'
            tiles = {"needed": needed, "decoded": (after or 0) - (before or 0)}
        counts.write_text(json.dumps(tiles))


def _child_limits(settings: dict[str, Any]) -> None:
    from wsi_meta.models.model import load_model

    model, device, store = load_model(settings.pop("model")), settings.pop("device"), settings["store"]
    with memory_of_scan(store):
        limits = measure_limits(make_predictor=lambda: predictor_of_scan(store, model, device=device), **settings)
    print(json.dumps(asdict(limits)))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1/16"], help="of the slide, by area")
    parser.add_argument("--cases", nargs="+", type=Case.parse, default=[Case("dense", 32), Case("patch", 96)])
    parser.add_argument("--patches", type=Path, help="folder of real patches to make tissue of; else tissue is drawn")
    parser.add_argument("--turns", type=int, default=1, help="scans with a full cache; figures are medians over them")
    parser.add_argument("--stream", type=int, default=0, help="also scan that many slides by one command")
    parser.add_argument("--folder", type=Path, help="keep slides and stores there; by default they are deleted")
    parser.add_argument("--json", type=Path, help="write everything that was measured")
    parser.add_argument("--model", default="default")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compiled", default="auto")
    parser.add_argument("--child-scan", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child-limits", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def _main() -> None:
    arguments = _parse()
    if arguments.child_scan:
        _child_scan(arguments.child_scan, arguments.rest)
    elif arguments.child_limits:
        _child_limits(arguments.child_limits)
    else:
        _bench(arguments)


def _bench(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(arguments, folder)
        records = [_measure(bench, size, case) for size in arguments.sizes for case in arguments.cases]
    machine = _machine(arguments.device)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "records": records}, indent=1))
    print(", ".join(f"{name} {value}" for name, value in machine.items() if name != "versions"))
    print("\n".join(table({f"{record['size']}, {record['case']}": record["figures"] for record in records})))


if __name__ == "__main__":
    _main()
