"""``wsi-meta demo``."""

from __future__ import annotations

from pathlib import Path

import click

from wsi_meta.cli import options, running

__all__ = ["demo"]

NEXT_STEPS = """
The tissue is synthetic: a picture to try the program on. It does not measure how good the program is.
With a real slide:
  wsi-meta scan slide.tif --out heat.zarr
  wsi-meta overlay heat.zarr --slide slide.tif --out overlay.png"""


@click.command(epilog=options.example("wsi-meta demo --out my-demo"))
@click.option("--out", default="wsi-meta-demo", show_default=True, type=options.PATH, help="Folder to write to.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the drawing.")
@options.device_option
@options.as_json_option
@running.with_logs
def demo(out: Path, seed: int, device: str, as_json: bool) -> None:
    """Draw a slide of synthetic lymph-node tissue, scan it with the default model, show overlay and score."""
    from wsi_meta.demo.demo import run_demo

    with options.tuned_memory(device, in_bands=True):  # the default model scans in dense mode
        made = run_demo(out, seed=seed, device=device, progress=True)
    paths = {name: str(getattr(made, name)) for name in ("slide", "heatmap", "overlay")}
    options.print_result(paths | {"score": made.score, "auc_drawn_tumor_vs_normal": made.auc}, as_json=as_json)
    if not as_json:
        print(NEXT_STEPS, flush=True)
    running.tell_where_to_look(made.heatmap, made.slide)
