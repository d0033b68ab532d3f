"""wsi-meta beside TIAToolbox and WSInfer: same slide, network, tissue and stride, in turns, from a process's start to its end.

Makes an environment for each tool in --envs (5 GB each, kept), writes a slide of Camelyon's size and the files that each tool
needs, runs the tools one after the other --turns times and prints medians and ratios. By default the others run at batches of
64 with one worker; --tune tries other settings, and docs/benchmarks.md names those of each figure.

    .venv/bin/python scripts/benchmarks/peers.py --turns 3                    stride 96: half an hour on two cores
    .venv/bin/python scripts/benchmarks/peers.py --case dense:32 --part 0.1   TIAToolbox on a tenth of the slide
    .venv/bin/python scripts/benchmarks/peers.py --size 1/16 --turns 1        to see that everything works
    .venv/bin/python scripts/benchmarks/peers.py --size 1/16 --tune
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peer_files
from large_slide import SIZES
from peer_files import PatchRun
from peer_runs import OURS, Comparison, Settings

LEAST_SHARE = 0.002
"""Of the tissue, for the run that shows a tool's start-up."""


def _in_turns(comparison: Comparison, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all tools one after the other, several times, on the whole slide."""
    tia = Settings(arguments.tia_batch, arguments.tia_workers, arguments.tia_precision)
    wsinfer = Settings(arguments.wsinfer_batch, arguments.wsinfer_workers, speedup=arguments.wsinfer_speedup)
    tools: dict[str, Callable[[], PatchRun]] = {
        "TIAToolbox": functools.partial(comparison.run_tiatoolbox, tia),
        "WSInfer": functools.partial(comparison.run_wsinfer, wsinfer),
    }
    ours = {OURS[precision]: functools.partial(comparison.run_ours, precision) for precision in arguments.precisions}
    chosen = ours | {name: tools[name] for name in arguments.tools}
    runs: dict[str, list[PatchRun]] = {name: [] for name in chosen}
    for turn, (name, run) in itertools.product(range(arguments.turns), chosen.items()):
        runs[name].append(run())
        _say(f"turn {turn + 1}: {name} {runs[name][-1].timing.seconds:.1f} s, {runs[name][-1].cells:,} patches")
    _print_turns(runs, list(ours))
    return {"seconds": {name: [run.timing.seconds for run in those] for name, those in runs.items()}}


def _print_turns(runs: dict[str, list[PatchRun]], ours: list[str]) -> None:
    seconds = {name: statistics.median(run.timing.seconds for run in those) for name, those in runs.items()}
    columns = ["tool", "patches", "seconds, median (all)", "patches/s", "peak GB", *(f"{name} is faster by" for name in ours)]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name, those in runs.items():
        took, cells = seconds[name], those[0].cells
        alls = ", ".join(f"{run.timing.seconds:.1f}" for run in those)
        peak = max(run.timing.peak_bytes for run in those) / 1e9
        ratios = " | ".join(f"{took / seconds[mine]:.2f}" for mine in ours)
        print(f"| {name} | {cells:,} | {took:.1f} ({alls}) | {cells / took:.0f} | {peak:.2f} | {ratios} |")


def _dense(comparison: Comparison, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run wsi-meta on the whole slide, TIAToolbox on a part and on almost nothing of it, in turns."""
    settings = Settings(arguments.tia_batch, arguments.tia_workers, arguments.tia_precision)
    part, least = (peer_files.first_part(comparison.tissue, share) for share in (arguments.part, LEAST_SHARE))
    ours: dict[str, list[PatchRun]] = {precision: [] for precision in arguments.precisions}
    theirs = []
    for turn in range(arguments.turns):
        for precision, runs in ours.items():
            runs.append(comparison.run_ours(precision))
            _say(f"turn {turn + 1}: {OURS[precision]} {runs[-1].timing.seconds:.1f} s for {runs[-1].cells:,} cells")
        cells = next(iter(ours.values()))[-1].cells
        small, large = comparison.run_tiatoolbox(settings, least), comparison.run_tiatoolbox(settings, part)
        theirs.append(peer_files.whole_slide_seconds(large, small, cells))
        _say(
            f"turn {turn + 1}: TIAToolbox {small.timing.seconds:.1f} s for {small.cells:,} cells, "
            f"{large.timing.seconds:.1f} s for {large.cells:,}"
        )
    would = statistics.median(theirs)
    for precision, runs in ours.items():
        took = statistics.median(run.timing.seconds for run in runs)
        print(
            f"{OURS[precision]}: {took:.1f} s for {cells:,} cells at stride {comparison.stride_px}: {cells / took:.0f} cells/s "
            f"end to end; TIAToolbox would take {would:.0f} s ({cells / would:.0f} cells/s): faster by {would / took:.1f}; "
            f"peak {max(run.timing.peak_bytes for run in runs) / 1e9:.2f} GB"
        )
    return {"seconds": {name: [run.timing.seconds for run in runs] for name, runs in ours.items()}, "would": theirs}


def _tune(comparison: Comparison) -> None:
    """Try the peers' settings once each, one thing changed at a time; the first again at the end, to show the noise."""
    tools, usual = comparison.arguments.tools, Settings(64, 1)
    changes: list[dict[str, Any]] = [{}, {"batch_size": 32}, {"batch_size": 128}, {"workers": 0}, {"workers": 2}]
    for change in [*changes, {"precision": "bf16", "speedup": True}, {}]:
        settings = replace(usual, **change)
        if "TIAToolbox" in tools:
            told = f"batch {settings.batch_size}, workers {settings.workers}, {settings.precision}"
            print(f"TIAToolbox, {told}: {comparison.run_tiatoolbox(settings).timing.seconds:.1f} s", flush=True)
        if "WSInfer" in tools and settings.workers:  # it fails with none
            told = f"batch {settings.batch_size}, workers {settings.workers}{', speedup' * settings.speedup}"
            print(f"WSInfer, {told}: {comparison.run_wsinfer(settings).timing.seconds:.1f} s", flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=Path, default=Path(tempfile.gettempdir(), "wsi-meta-peers"))
    parser.add_argument("--case", choices=("patch:96", "patch:32", "dense:32"), default="patch:96")
    parser.add_argument("--part", type=float, default=0.1, help="of the tissue that TIAToolbox scans at stride 32")
    parser.add_argument("--precisions", nargs="+", choices=OURS, default=list(OURS), help="of ours, a run each")
    parser.add_argument("--tools", nargs="*", choices=("TIAToolbox", "WSInfer"), default=["TIAToolbox", "WSInfer"])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--patches", type=Path, help="folder of real patches to make tissue of; else tissue is drawn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tune", action="store_true", help="try the other tools' settings instead")
    parser.add_argument("--folder", type=Path, help="keep slide and results there; by default they are deleted")
    parser.add_argument("--json", type=Path, help="write all times")
    parser.add_argument("--model", default="default")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tia-batch", type=int, default=64)
    parser.add_argument("--tia-workers", type=int, default=1)
    parser.add_argument("--tia-precision", choices=("fp32", "bf16"), default="fp32", help="it offers fp32; bf16 is ours to add")
    parser.add_argument("--wsinfer-batch", type=int, default=64)
    parser.add_argument("--wsinfer-workers", type=int, default=1)
    parser.add_argument("--wsinfer-speedup", action="store_true")
    return parser.parse_args()


def _main() -> None:
    arguments = _parse()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        comparison = Comparison(arguments, folder)
        if arguments.tune:
            _tune(comparison)
            return
        found = (_dense if comparison.mode == "dense" else _in_turns)(comparison, arguments)
        ours = comparison.results.pop(OURS[arguments.precisions[0]])
        for name, cells in comparison.results.items():
            found[name] = peer_files.compare(ours, cells)
            print(
                f"{name}, probabilities beside ours: " + ", ".join(f"{key} {value:.4g}" for key, value in found[name].items())
            )
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    _main()
