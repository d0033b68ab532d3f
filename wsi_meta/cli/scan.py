"""``wsi-meta scan``, ``wsi-meta summary`` and ``wsi-meta check``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_meta.cli import config, options, running
from wsi_meta.errors import OptionsError, OutputPathError
from wsi_meta.words import printable

if TYPE_CHECKING:
    from wsi_meta.cohorts.batch import OpenScanner
    from wsi_meta.cohorts.copies import Stage
    from wsi_meta.cohorts.request import Batch
    from wsi_meta.files.address import SlidePath
    from wsi_meta.scanning.crashes import Journal
    from wsi_meta.scanning.scanner import Scanner

__all__ = ["check", "scan", "summary"]


def _multiple_of_8(_context: click.Context, _option: click.Parameter, value: int) -> int:
    if value % 8:
        raise click.BadParameter(f"{value} is not a multiple of 8.")
    return value


@click.command(cls=options.CommandWithViews, epilog=options.example("wsi-meta scan slide.tif --out heat.zarr"))
@click.argument("slides", nargs=-1, metavar="SLIDE...", type=options.SLIDE)
@click.option("--manifest", type=options.PATH, help="CSV of slides with settings of their own; see above.")
@click.option("--recursive", is_flag=True, help="Look also into the folders in a folder.")
@click.option(
    "--extension",
    "extensions",
    multiple=True,
    metavar="ENDING",
    help="How files end that are taken from a folder; repeatable. Default: as those that can be read.",
)
@click.option("--out", type=options.PATH, help="Store to write; a folder for several slides.")
@click.option("--out-dir", type=options.PATH, help="Folder to write to, instead of --out; also for one slide.")
@click.option("--model", type=options.FILE_OR_WORD, default="default", show_default=True, help="Model file, or 'default'.")
@click.option(
    "--mode", type=click.Choice(["auto", "patch", "dense"]), default="auto", show_default=True, help="Dense: a pass per block."
)
@click.option(
    "--stride",
    "stride_px",
    type=click.IntRange(8, 96),
    callback=_multiple_of_8,
    default=32,
    show_default=True,
    help="Side of a cell, pixels at the model's mpp; a multiple of 8.",
)
@click.option(
    "--mpp",
    type=float,
    help="Micrometres per level-0 pixel, where a slide does not say. Where one slide is named, it overrules what that says.",
)
@options.reader_option
@click.option(
    "--tissue-mask",
    type=options.FILE_OR_WORD,
    help="Outlines (.geojson of QuPath, .xml of ASAP or ImageScope), or an image over the slide, 0 = background; 'none' scans "
    "everything. A file is for one slide: for several, --manifest names each one's. Default: found by colour, as wsi-meta "
    "tissue shows it.",
)
@options.score_model_option
@options.device_option
@options.precision_option
@click.option(
    "--compiled",
    type=click.Choice(["auto", "yes", "no"]),
    default="auto",
    show_default=True,
    help="Compile the network first; auto does where the slide is long enough to repay it.",
)
@options.batch_size_option
@options.tta_option
@click.option("--uncertainty", is_flag=True, help="With --tta: also keep the spread over the views.")
@options.block_workers_option
@click.option("--gpus", metavar="0,1|all", help="A process for each of these GPUs, as torch counts them.")
@click.option("--scheduler", metavar="ADDRESS", help="Compute on the dask cluster of this scheduler, tcp://HOST:PORT.")
@click.option("--scheduler-file", type=options.PATH, help="The same, by the file that the scheduler wrote.")
@click.option(
    "--shard",
    metavar="I/N",
    help="Scan every N-th slide only, in the order of names, from the I-th on (from 0). N commands that are given the same "
    "slides and --out share the work.",
)
@click.option("--stage", type=options.PATH, help="Copy each slide to this folder on a fast disk while it is needed.")
@click.option(
    "--stage-budget",
    type=float,
    default=50.0,
    show_default=True,
    metavar="GB",
    help="So much of --stage may be in use at once.",
)
@options.overwrite_option
@click.option("--dry-run", is_flag=True, help="Only tell what would be scanned, is done or is refused, with cells and time.")
@click.option("--retry-crashed", is_flag=True, help="Scan also slides on which an earlier scan here crashed.")
@options.as_json_option
@running.with_logs
@running.log_json_option
@config.configurable
def scan(
    slides: tuple[SlidePath, ...],
    manifest: Path | None,
    recursive: bool,
    extensions: tuple[str, ...],
    out: Path | None,
    out_dir: Path | None,
    as_json: bool,
    mpp: float | None,
    reader: str,
    tissue_mask: str | None,
    overwrite: bool,
    dry_run: bool,
    retry_crashed: bool,
    **settings: Any,
) -> None:
    """Scan slides into heatmap stores: the probability of tumor in every cell of tissue.

    SLIDE: a slide, a folder of slides, a pattern in quotes, or the address of a slide (https:// or s3://), of which only the
    tiles needed are fetched. All DICOM files of one series in one folder are one slide. One slide: --out is its store. Several,
    or a folder: --out is a folder that gets a store each, summary.csv and the page report/index.html, as --out-dir always is.
    The same command goes on where an interrupted one stopped.

    --manifest: a CSV with the column slide and, where wanted, name, mpp, tissue_mask, annotations, model, stride, patient and
    label: each slide with its own. Paths count from the manifest; what is empty is as for all.

    Each run keeps its options in run.toml in the folder of the stores, or in <store>.run.toml beside the one store. --config
    starts from such a file: names as here without dashes in front, SLIDE as slides; paths count from the file.
    """
    from wsi_meta.cohorts.jobs import SlideSettings
    from wsi_meta.cohorts.request import Request
    from wsi_meta.scanning.crashes import noted_crashes

    folder = out_dir or out
    if folder is None or (out and out_dir):
        raise click.UsageError("Expected --out or --out-dir: where the heatmaps go.")
    if not slides and manifest is None:
        raise click.UsageError("Expected SLIDE or --manifest: what to scan.")
    shard, copies = _take_who(settings)
    of_slide = SlideSettings(mpp, reader, tissue_mask, overwrite)
    request = Request(slides, folder, of_slide, manifest, recursive, extensions, shard, copies, settings, out_dir is None)
    batch = request.batch()
    with noted_crashes(batch.folder, [job.slide.path for job in batch.jobs], retry=retry_crashed) as journal:
        if dry_run:
            _preview(batch, _opener(journal, settings), as_json=as_json)
        else:
            _scan(batch, config.keeping_config(_opener(journal, settings), folder, alone=batch.alone), as_json=as_json)


def _take_who(settings: dict[str, Any]) -> tuple[str | None, Stage | None]:
    """Take the options that say who scans out of the settings of a scanner; return them, and leave the scheduler there."""
    from wsi_meta.cohorts.copies import BUDGET_GB, Stage
    from wsi_meta.scanning.options import choose_scheduler

    shard, stage, budget = (settings.pop(name) for name in ("shard", "stage", "stage_budget"))
    if stage is None and budget != BUDGET_GB:
        raise OptionsError(f"stage budget {budget:g} GB without a stage; expected --stage, too")
    asked = [settings.pop(name) for name in ("scheduler", "scheduler_file", "gpus")]
    settings["scheduler"] = choose_scheduler(*asked)
    return shard, None if stage is None else Stage(stage, budget)


def _opener(journal: Journal, settings: dict[str, Any]) -> OpenScanner:
    """Return what opens a scanner for a process of its own."""
    from wsi_meta.scanning.scanner import Scanner

    @contextmanager
    def open_scanner(own: dict[str, Any]) -> Iterator[Scanner]:
        with Scanner(progress=True, journal=journal, **settings | own) as scanner, scanner.tuned_memory():
            yield scanner

    return open_scanner


def _scan(batch: Batch, open_scanner: OpenScanner, *, as_json: bool) -> None:
    """Scan into a folder, or one slide into its store, and print what came of it."""
    from wsi_meta.cohorts.batch import scan_batch

    unwritten = None
    try:
        rows = scan_batch(batch, open_scanner)
    except OutputPathError as error:
        if not error.rows:
            raise
        rows, unwritten = list(error.rows), error
    _print_rows(rows, as_json=as_json)
    if any(row["heatmap"] for row in rows):
        running.tell_where_to_look(batch.out, batch.jobs[0].slide.path if batch.alone else None)
    if unwritten is not None:
        raise unwritten
    _end_with_errors(rows, [job.slide.path for job in batch.jobs])


def _end_with_errors(rows: list[dict[str, Any]], slides: Sequence[object]) -> None:
    """End the command with what the rows say of errors, if any; `slides` are the rows' slides."""
    from wsi_meta.cohorts.run_summary import failures
    from wsi_meta.worklist.summary import INCOMPLETE, UNFINISHED

    errors = [_named(slide, str(row["error"])) for slide, row in zip(slides, rows, strict=True) if row["error"]]
    if errors:
        incomplete = sum(row["error_kind"] in (INCOMPLETE, UNFINISHED) for row in rows)
        told = f"of {len(rows)} slides {failures(len(errors) - incomplete, incomplete)}"
        raise click.ClickException(errors[0] if len(errors) == 1 else told)


def _preview(batch: Batch, open_scanner: OpenScanner, *, as_json: bool) -> None:
    """Print what would become of each slide, a line as soon as it is known, and the sums."""
    from wsi_meta.cohorts.preview import preview_batch

    told = preview_batch(batch, open_scanner, None if as_json else lambda slide: print(slide.line, flush=True))
    if as_json:
        options.print_result(told.to_dict(), as_json=True)
    else:
        print(told.line)
    if told.refused:
        raise click.ClickException(f"{told.refused} of {len(batch.jobs)} slides would be refused")


def _named(slide: object, error: str) -> str:
    """Return a slide's error with its path before it, unless it is there already, as the scan or a table writes it."""
    from wsi_meta.files.address import name_in

    there = error.startswith(printable(str(slide))) or error.partition(": ")[0].endswith(printable(name_in(str(slide))))
    return error if there else f"{slide}: {error}"


@click.command(epilog=options.example("wsi-meta summary scans/"))
@click.argument("folder", type=options.PATH)
@options.as_json_option
def summary(folder: Path, as_json: bool) -> None:
    """Make summary.csv, summary.json and report/index.html of the FOLDER anew from the heatmaps in it; print the rows.

    Exits with 1 when a row has an error, as a scan of many slides does.
    """
    from wsi_meta.worklist.renewal import summarise_folder

    rows = summarise_folder(folder)
    _print_rows(rows, as_json=as_json)
    _end_with_errors(rows, [row["slide"] for row in rows])


def _print_rows(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print rows as the summary has them, in words with the verdict's figures once."""
    from wsi_meta.worklist.table import whole

    rows = list(map(whole, rows))
    told = [row | {"verdict": row["verdict_figures"] or row["verdict"], "verdict_figures": None} for row in rows]
    options.print_results(rows if as_json else told, as_json=as_json)


@click.command(epilog=options.example("wsi-meta check heat.zarr scans/"))
@click.argument("stores", nargs=-1, required=True, metavar="STORE...", type=options.PATH)
@options.as_json_option
def check(stores: tuple[Path, ...], as_json: bool) -> None:
    """Check heatmap stores: a line each says that it is sound, or what is damaged, where, and how to mend it.

    STORE may be a folder of stores. Values, checksums, coarser levels, score, lesions and record are looked at. Exits with 0
    when all are sound and scanned to the end, with 1 otherwise: an unfinished scan is no damage, but no whole map either.
    """
    from wsi_meta.heatmaps.inspection import check_heatmaps

    checks = check_heatmaps(*stores, progress=True)
    if as_json:
        options.print_results([check.to_dict() for check in checks], as_json=True)
    else:
        print("\n".join(printable(check.line) for check in checks))
    if bad := sum(check.state != "sound" for check in checks):
        raise click.ClickException(f"{bad} of {len(checks)} are not sound, whole heatmaps")
