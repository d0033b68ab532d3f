"""How a command runs: what it says meanwhile, in which logs, and over several heatmaps."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from traceback import format_exception
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wsi_meta.cli import options
from wsi_meta.cli.interrupts import was_interrupted
from wsi_meta.errors import INTERRUPTED, HeatmapError, OptionsError, OutputPathError, WsiMetaError
from wsi_meta.logs import Console, LogFile
from wsi_meta.outputs.checks import check_folder, refuse_one_name
from wsi_meta.outputs.paths import real_path, told_by_the_system
from wsi_meta.outputs.writing import remove_empty
from wsi_meta.progress import note, progress_bar
from wsi_meta.words import one_line, out_of_memory, printable

if TYPE_CHECKING:
    from wsi_meta.files.address import SlidePath

__all__ = ["console", "describe_error", "log_json_option", "over_heatmaps", "tell_where_to_look", "with_logs"]

Command = TypeVar("Command", bound=Callable[..., Any])

NAME = "{name}"
"""What stands in the name of a file to write for a store's name without .zarr."""

logger = logging.getLogger("wsi_meta")
tifffile = logging.getLogger("tifffile")
log_json_option = click.option(
    "--log-json",
    type=options.NEW_FILE,
    help="Add events to this file, a JSON object a line: begun, cells done, finished, failed, with seconds.",
)
OPTIONS = (
    click.option("--log-file", type=options.NEW_FILE, help="Add what is told on stderr to this file, with times."),
    click.option("-q", "--quiet", is_flag=True, help="Show warnings and errors only, and no bar; logs stay whole."),
    click.option("-v", "--verbose", is_flag=True, help="Show more, as logs have it: tracebacks of slides that failed."),
)


@contextmanager
def console() -> Iterator[None]:
    """Show the package's records on stderr while a command runs; after that the process's logging is as it was.

    What tifffile says of odd tags is not shown: what follows from it is told in lines of our own.
    """
    handler, level, unheard = Console(logging.INFO), logger.level, logging.NullHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    tifffile.addHandler(unheard)
    try:
        yield
    finally:
        tifffile.removeHandler(unheard)
        logger.setLevel(level)
        logger.removeHandler(handler)


def with_logs(command: Command) -> Command:
    """Give a long command ``-v``, ``-q`` and ``--log-file``, and log how it ends; it does not see these options."""

    @wraps(command)
    def run(*arguments: Any, verbose: bool, quiet: bool, log_file: Path | None, **options: Any) -> Any:
        log_json = options.pop("log_json", None)
        if verbose and quiet:
            raise click.UsageError("Expected --verbose or --quiet, not both.")
        refuse_one_name(log_file, log_json, "--log-file and --log-json")
        for name in ("out", "out_dir"):  # before a log is written there
            refuse_one_name(log_file, options.get(name), f"--log-file and --{name.replace('_', '-')}")
            refuse_one_name(log_json, options.get(name), f"--log-json and --{name.replace('_', '-')}")
        level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
        with _logged(level, {path: as_json for path, as_json in ((log_file, False), (log_json, True)) if path is not None}):
            return command(*arguments, **options)

    for option in OPTIONS:
        run = option(run)
    return run  # type: ignore[return-value]


def tell_where_to_look(path: Path, slide: SlidePath | None = None) -> None:
    """Say on stderr how a heatmap, or a folder of them, is seen; of a folder also where its worklist and its table lie.

    Parameters
    ----------
    slide : of the one heatmap; it is named where it would not be found
    """
    from wsi_meta.cohorts.retry import shell_word
    from wsi_meta.heatmaps.ownership import is_store
    from wsi_meta.worklist.slide_places import lies_near
    from wsi_meta.worklist.worklist import worklist_page

    named = "" if slide is None or lies_near(path, slide) else f" --slide {shell_word(str(slide))}"
    word = f"./{path}" if str(path).startswith("-") else str(path)  # which would be options
    lines = [f"look: wsi-meta view {shell_word(word)}{named}"]
    if not is_store(path):
        page, table = worklist_page(path), path / "summary.csv"
        lines += [f"worklist: {page}"] if page is not None else []
        lines += [f"table: {table}"] if table.is_file() else []
    for line in lines:
        note(line, enabled=True)


def describe_error(error: BaseException) -> str:
    """Say in one line what went wrong and what to do."""
    told = one_line(error)
    if was_interrupted(error):
        return INTERRUPTED
    if isinstance(error, FileNotFoundError) and error.filename is None and not _has_working_folder():
        return "the folder in which this command runs is not there any more; change to one that is, and run it again"
    if isinstance(error, OSError) and not isinstance(error, WsiMetaError):
        told = told_by_the_system(error)
    if isinstance(error, WsiMetaError | OSError):
        return told or type(error).__name__
    if (short := out_of_memory(error)) is not None:
        return short
    found = f" ({told[:400]})" if told else ""
    return f"{type(error).__name__}{found}; 'wsi-meta --debug ...' shows where it came from"


def _has_working_folder() -> bool:
    try:
        os.getcwd()  # noqa: PTH109  (Path.cwd does the same)
    except FileNotFoundError:
        return False
    return True


def over_heatmaps(
    given: Sequence[Path],
    work: Callable[..., dict[str, Any]],
    *,
    slide: SlidePath | None = None,
    as_json: bool,
    **files: Path | None,
) -> None:
    """Do some work on each heatmap, print what comes of it; those that fail are told in a line each, and the others are done.

    Parameters
    ----------
    given : stores, or folders of them
    work : takes a heatmap as it is at one moment, and `files` of its own by their names; returns what is to be printed
    slide : the slide of one heatmap, or a folder of slides
    files : to write, by the names of their options; :data:`NAME` in them stands for the store's name

    Raises
    ------
    OptionsError
        when there are several heatmaps, and a file is one for all, or `slide` is.
    click.ClickException
        when some failed; where all did, and with the same words, their own error.
    """
    from wsi_meta.heatmaps.store import Heatmap
    from wsi_meta.worklist.slide_places import refuse_one_slide

    stores, failed = _find_stores(given)
    refuse_one_slide(slide, len(stores) + len(failed))
    wanted = {name: path for name, path in files.items() if path is not None}
    _refuse_one_file(wanted, len(stores) + len(failed))
    done, taken = list[dict[str, Any]](), dict[Path, Path]()
    with progress_bar(len(stores), "heatmaps", "reading", enabled=len(stores) > 1) as bar:
        for store in stores:
            try:
                heatmap = Heatmap.open(store).as_of_now()
                with _files_of(store, wanted, taken) as own:
                    done.append(work(heatmap, **dict.fromkeys(files) | own))
            except Exception as error:  # whatever one brings, the others are done
                failed.append((store, error))
            bar.update(1)
    if done:
        options.print_results(done, as_json=as_json)
    if failed:
        _raise_failed(failed, some=bool(done))


def _find_stores(given: Sequence[Path]) -> tuple[list[Path], list[tuple[Path, Exception]]]:
    """Return the heatmaps at some paths, and why others have none."""
    from wsi_meta.heatmaps.inspection import stores_at

    found, failed = list[Path](), list[tuple[Path, Exception]]()
    for path in given:
        try:
            found += stores_at(path)
        except HeatmapError as error:
            failed.append((path, error))
    return stores_at(*found), failed


def _refuse_one_file(files: Mapping[str, Path], heatmaps: int) -> None:
    for name, path in files.items():
        if heatmaps > 1 and NAME not in str(path):
            such = path.with_name(NAME + "".join(path.suffixes))
            raise OptionsError(
                f"--{name} {path}: one file for {heatmaps} heatmaps; expected {NAME} in it, such as --{name} '{such}'"
            )


@contextmanager
def _files_of(store: Path, files: Mapping[str, Path], taken: dict[Path, Path]) -> Iterator[dict[str, Path]]:
    """Give the files of one store, whose folder is made, and goes if it stays empty.

    Raises
    ------
    OutputPathError
        where they are another one's in `taken`.
    """
    name = store.absolute().name.removesuffix(".zarr")
    own = {option: Path(str(path).replace(NAME, name)) for option, path in files.items()}
    with ExitStack() as made:
        for option, path in own.items():
            if (other := taken.setdefault(path, store)) != store:
                raise OutputPathError(f"{store}: its {path} was that of {other}; give it by itself, with another --{option}")
            if NAME in str(files[option]) and not path.parent.exists():
                check_folder(path.parent)
                folder = real_path(path.parent)  # of a link, what it leads to
                folder.mkdir()
                made.callback(remove_empty, folder)
        yield own


def _raise_failed(failed: Sequence[tuple[Path, Exception]], *, some: bool) -> None:
    """Tell in a line each why heatmaps failed, the last line as the command's error; one that is the same for all once.

    With ``--debug`` the tracebacks of errors that nobody foresaw come before.

    Parameters
    ----------
    some : whether others were done
    """
    told = [describe_error(error) for _, error in failed]
    if not some and len(set(told)) == 1:
        raise failed[0][1]
    lines = [
        printable(f"{store}: {line}" if isinstance(error, OptionsError) or not _is_foreseen(error) else line)
        for (store, error), line in zip(failed, told, strict=True)
    ]
    odd = [error for _, error in failed if not _is_foreseen(error)]
    if click.get_current_context().find_root().params.get("debug"):
        for line in "".join(part for error in odd for part in format_exception(error)).splitlines():
            click.echo(printable(line), err=True)
    for line in lines[:-1]:
        click.echo(f"Error: {line}", err=True)
    raise click.ClickException(lines[-1])


@contextmanager
def _logged(level: int, logs: Mapping[Path, bool]) -> Iterator[None]:
    """Show records from a level on, write all of them to logs, and there also how the command ends.

    Parameters
    ----------
    logs : whether each is JSON
    """
    before = logger.level
    for handler in logger.handlers:
        if isinstance(handler, Console):
            handler.setLevel(level)
    with ExitStack() as stack:
        files = []
        for path, as_json in logs.items():
            files.append(LogFile(path, as_json=as_json))
            stack.callback(files[-1].close)
            logger.addHandler(files[-1])
            stack.callback(logger.removeHandler, files[-1])
        logger.setLevel(logging.DEBUG if files else min(level, logging.INFO))
        stack.callback(logger.setLevel, before)
        try:
            yield
        except BaseException as error:
            for file in files:
                file.handle(_end_of(error))
            raise


def _is_foreseen(error: BaseException) -> bool:
    return was_interrupted(error) or isinstance(error, WsiMetaError | click.ClickException | OSError)


def _end_of(error: BaseException) -> logging.LogRecord:
    """Return a record of the error that ends a command, with the traceback where nobody foresaw it."""
    told = error.format_message() if isinstance(error, click.ClickException) else describe_error(error)
    trace = None if _is_foreseen(error) else sys.exc_info()
    facts = {"event": "command failed", "error": told}
    return logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "%s", (told,), trace, extra={"facts": facts})
