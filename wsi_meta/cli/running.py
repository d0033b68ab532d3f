"""What a command says while it runs, and in which logs."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wsi_meta.cli import options
from wsi_meta.errors import INTERRUPTED, WsiMetaError
from wsi_meta.logs import Console, LogFile
from wsi_meta.outputs.checks import refuse_one_name
from wsi_meta.progress import note
from wsi_meta.words import one_line, out_of_memory

if TYPE_CHECKING:
    from wsi_meta.files.address import SlidePath

__all__ = ["console", "describe_error", "log_json_option", "tell_where_to_look", "with_logs"]

Command = TypeVar("Command", bound=Callable[..., Any])

logger = logging.getLogger("wsi_meta")
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
    """Show the package's records on stderr while a command runs; after that the process's logging is as it was."""
    handler, level = Console(logging.INFO), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
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
    from wsi_meta.heatmaps.ownership import is_store
    from wsi_meta.worklist.slide_places import lies_near
    from wsi_meta.worklist.worklist import worklist_page

    named = "" if slide is None or lies_near(path, slide) else f" --slide {shlex.quote(str(slide))}"
    lines = [f"look: wsi-meta view {shlex.quote(str(path))}{named}"]
    if not is_store(path):
        page, table = worklist_page(path), path / "summary.csv"
        lines += [f"worklist: {page}"] if page is not None else []
        lines += [f"table: {table}"] if table.is_file() else []
    for line in lines:
        note(line, enabled=True)


def describe_error(error: BaseException) -> str:
    """Say in one line what went wrong and what to do."""
    told = one_line(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, FileNotFoundError) and error.filename is None and not _has_working_folder():
        return "the folder in which this command runs is not there any more; change to one that is, and run it again"
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


def _end_of(error: BaseException) -> logging.LogRecord:
    """Return a record of the error that ends a command, with the traceback where nobody foresaw it."""
    foreseen = isinstance(error, WsiMetaError | click.ClickException | KeyboardInterrupt | OSError)
    told = error.format_message() if isinstance(error, click.ClickException) else describe_error(error)
    trace = None if foreseen else sys.exc_info()
    facts = {"event": "command failed", "error": told}
    return logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "%s", (told,), trace, extra={"facts": facts})
