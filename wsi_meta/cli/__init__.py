"""The ``wsi-meta`` command: small modules, each subcommand a single call into the library. A command ends here."""

from __future__ import annotations

import atexit
import gc
import os
import select
import sys
import traceback
from contextlib import suppress
from typing import Any, TextIO

import click

import wsi_meta
from wsi_meta.cli import options
from wsi_meta.cli.camelyon import froc, stage
from wsi_meta.cli.demo import demo
from wsi_meta.cli.doctor import doctor
from wsi_meta.cli.info import info
from wsi_meta.cli.interrupts import never_lost, was_interrupted
from wsi_meta.cli.models import calibrate, evaluate, export_model, import_model
from wsi_meta.cli.results import export, fit_score, lesions, overlay, score, view
from wsi_meta.cli.running import console, describe_error
from wsi_meta.cli.scan import check, scan, summary
from wsi_meta.cli.tissue import tissue
from wsi_meta.cli.train import sample, train
from wsi_meta.errors import EXIT_INTERRUPTED, OptionsError, OutputPathError, WsiMetaError, kind_name
from wsi_meta.outputs.paths import cannot_be_written
from wsi_meta.words import printable

__all__ = ["main"]


JOURNEY: dict[str, tuple[click.Command, ...]] = {
    "Scan slides": (demo, doctor, tissue, scan, summary, check),
    "See what was found": (view, overlay, lesions, score, info, export),
    "Judge it": (froc, stage, fit_score),
    "Make a model": (sample, train, evaluate, calibrate, import_model, export_model),
}
"""The commands in the order in which they are needed."""


JSON = "wsi_meta.json"
"""Mark in the context of commands: whether JSON is asked for."""


class _Commands(click.Group):
    """A group that turns wrong usage into a hint and exit code 2, Ctrl-C into 130, any other failure into one line and 1.

    Its help lists the commands as :data:`JOURNEY` does.
    """

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return [str(command.name) for part in JOURNEY.values() for command in part]

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.list_commands(_ctx)))
        for part, commands in JOURNEY.items():
            with formatter.section(part):
                rows = [(str(command.name).ljust(width), command.get_short_help_str(limit=200)) for command in commands]
                formatter.write_dl(rows)

    def main(self, *arguments: Any, **settings: Any) -> Any:
        with never_lost():
            return super().main(*arguments, **settings)

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **settings)
        except KeyboardInterrupt as error:
            raise _end_of(error, debug=False) from None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note whether JSON is asked for: whoever reads it gets JSON too where the command's own options are wrong."""
        words = args[: args.index("--")] if "--" in args else args
        ctx.meta[JSON] = "--json" in words
        try:
            return super().parse_args(ctx, args)
        except OSError as error:  # --version and --help are printed here
            raise _end_of(error, debug=False) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return self._invoke(ctx)
        except click.ClickException as error:
            told = _with_the_right_option(error)
            if ctx.meta[JSON] and not ctx.meta.get(options.PRINTED):
                _print_failure(ctx, told)
            raise told from error.__cause__

    def _invoke(self, ctx: click.Context) -> Any:
        debug = bool(ctx.params.get("debug"))
        try:
            with console():
                result = super().invoke(ctx)
            print(end="", flush=True)  # a full disk or a closed pipe is noticed here, not by the interpreter when it ends
            return result
        except OptionsError as error:
            name = str(ctx.invoked_subcommand)
            raise click.UsageError(printable(str(error)), click.Context(self.commands[name], ctx, name)) from error
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            end = _end_of(error, debug=debug)
        # raised here, after the error and all that its frames held are gone: gloo's threads would abort the ending process
        raise end


class _Failure(click.ClickException):
    """The end of a command that failed: one line on stderr, and with ``--debug`` the traceback before it.

    It holds texts only, so that the error and its frames can go.
    """

    def __init__(self, message: str, exit_code: int, kind: str, trace: list[str]) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]
        self.kind, self.trace = kind, trace

    @classmethod
    def of(cls, error: BaseException, *, debug: bool) -> _Failure:
        code = EXIT_INTERRUPTED if was_interrupted(error) else 1
        trace = "".join(traceback.format_exception(error)).splitlines() if debug else []
        return cls(describe_error(error), code, kind_name(error), [printable(line) for line in trace])

    def show(self, file: Any = None) -> None:
        for line in self.trace:
            click.echo(line, file=file, err=True)
        super().show(file)


def _with_the_right_option(error: click.ClickException) -> click.ClickException:
    """Return the error; where an option is a Python function's word for one, such as ``--stride_px``, one that answers it."""
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        asked = error.option_name.lstrip("-").replace("-", "_")
        if right := [parameter.opts[0] for parameter in error.ctx.command.params if parameter.name == asked]:
            return click.UsageError(f"No such option '{error.option_name}'. Did you mean '{right[0]}'?", error.ctx)
    return error


def _print_failure(ctx: click.Context, error: click.ClickException) -> None:
    """Print as JSON why there is no result."""
    usual = OptionsError if isinstance(error, click.UsageError) else WsiMetaError
    told = {"kind": getattr(error, "kind", usual.__name__), "message": printable(error.format_message())}
    try:
        options.print_document(ctx, ctx.invoked_subcommand, error=told | {"exit_code": error.exit_code})
    except OSError:  # nobody reads it, or the disk is full; the line on stderr says what went wrong
        _let_go(sys.stdout)


def _end_of(error: BaseException, *, debug: bool) -> click.ClickException | click.exceptions.Exit:
    """Return how a command ends: quietly where nobody reads its output any more, as after ``| head``; let go of such output."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
    closed = isinstance(error, BrokenPipeError) and any(map(_is_closed, streams))
    for stream in streams:
        _let_go(stream)
    if closed:
        return click.exceptions.Exit(1)
    if isinstance(error, OSError) and not isinstance(error, WsiMetaError) and _is_of_stdout(error):
        told = OutputPathError(cannot_be_written("stdout:", error))
        told.__cause__, error = error, told
    return _Failure.of(error, debug=debug)


def _is_of_stdout(error: OSError) -> bool:
    """Tell whether what failed was to print, which the commands do, and click for them: the error does not name stdout."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return error.filename is None and str(frame.f_globals["__name__"]).startswith(("wsi_meta.cli", "click."))


def _is_closed(stream: TextIO) -> bool:
    """Tell whether a stream is a pipe that nobody reads."""
    poll = select.poll()
    with suppress(OSError, ValueError):
        poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _let_go(stream: TextIO) -> None:
    """Write what is in a stream's buffer, or send it to nowhere: the interpreter would try again when it ends, and complain."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _with_dashes(word: str) -> str:
    """Read the words of Python, such as ``--batch_size``, as those of a command line."""
    return word.replace("_", "-")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _with_dashes})
@click.version_option(wsi_meta.__version__, prog_name="wsi-meta")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Map tumor on whole-slide images of lymph nodes. A research tool, not a medical device.

    Start with:  wsi-meta demo
    """
    del debug  # the group reads it where a command fails
    atexit.register(gc.freeze)  # else the ending process frees torch's modules object by object, which takes half a second


for _part in JOURNEY.values():
    for _command in _part:
        main.add_command(_command)
