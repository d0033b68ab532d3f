"""A TOML file that a command's options come from, and are kept in beside its results."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

import wsi_meta
from wsi_meta.cli import options
from wsi_meta.errors import DataError, SlideReadError, WsiMetaError
from wsi_meta.files.address import from_file_uri, is_address, portable, slide_path
from wsi_meta.words import first_line

if TYPE_CHECKING:
    from wsi_meta.cohorts.batch import OpenScanner
    from wsi_meta.scanning.scanner import Scanner

__all__ = ["configurable", "keeping_config"]

NOT_KEPT = ("config", "dry-run", "json", "log-file", "log-json", "overwrite", "quiet", "retry-crashed", "shard", "verbose")
"""Options that belong to one occasion: a file that a run writes does not hold them."""
WORDS = {"model": "default", "tissue-mask": "none"}
"""Options that are a file, or this word."""
EITHER = (("slides", "manifest"), ("out", "out_dir"), ("scheduler", "scheduler_file", "gpus"))
"""Where the command line gives one of these, the file's others do not count."""
WAIT_S = 60.0
"""For how long to wait until another process has written its file of options, which takes milliseconds."""

Command = TypeVar("Command", bound=Callable[..., Any])

logger = logging.getLogger("wsi_meta")


def configurable(command: Command) -> Command:
    """Give a command ``--config``, a TOML file of its options; what the command line says wins."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        context = click.get_current_context()
        context.params.update(options | _chosen(context, options))
        return command(*arguments, **{name: context.params[name] for name in options})

    return click.option(
        "--config",
        type=options.PATH,
        is_eager=True,
        expose_value=False,
        callback=_take_config,
        help="TOML file of options to start from; what is given here wins.",
    )(run)  # type: ignore[return-value]


def keeping_config(open_scanner: OpenScanner, out: Path, *, alone: bool) -> OpenScanner:
    """Return what opens a scanner and keeps the command's options beside its results, as soon as there is a place for them.

    Parameters
    ----------
    out : folder of the stores; `alone`, the one slide's store itself
    """
    context = click.get_current_context()
    path = out.parent / f"{out.name}.run.toml" if alone else out / "run.toml"  # a folder such as . has no name

    def keep() -> None:
        if out.is_dir():
            _keep(path, context)

    @contextmanager
    def opened(own: dict[str, Any]) -> Iterator[Scanner]:
        refused = False
        with open_scanner(own) as scanner:
            if not alone:
                keep()
            try:
                yield scanner
            except WsiMetaError:
                refused = alone  # what stands there may be another scan's
                raise
            finally:
                if not refused:
                    keep()

    return opened


def _take_config(context: click.Context, _option: click.Parameter, path: Path | None) -> None:
    if path is not None:
        context.default_map = _read_config(path, context)


def _read_config(path: Path, context: click.Context) -> dict[str, Any]:
    """Return the values of a file of options as click takes them from a command line, by the parameters' names.

    Raises
    ------
    DataError
        when it is no TOML, or holds what is no option, or no value of one.
    """
    import tomllib

    try:
        parts = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected a TOML file of options") from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise DataError(f'{path}: no TOML ({first_line(error)}); expected lines such as mode = "dense"') from error
    known = _keys(context.command)
    values: dict[str, Any] = {}
    for key, value in parts.items():
        name = key.replace("_", "-")
        if name not in known or name == "config":
            others = ", ".join(other for other in known if other != "config")
            raise DataError(f"{path}: {key} is no option of {context.command.name}; expected some of {others}")
        parameter = known[name]
        if str(parameter.name) in values:
            raise DataError(f"{path}: {name} stands there twice, with a dash and with an underscore; leave one out")
        try:
            values[str(parameter.name)] = _checked(context, parameter, _placed(path, name, parameter, value))
        except (click.BadParameter, TypeError, OverflowError, SlideReadError) as error:
            told = error.message if isinstance(error, click.BadParameter) else str(error)
            raise DataError(f"{path}: {key} = {json.dumps(value, default=str)}: {told}") from error
    return values


def _keys(command: click.Command) -> dict[str, click.Parameter]:
    """Return a command's parameters by their names in a file: as on the command line, without dashes in front."""
    named = {max(parameter.opts, key=len).lstrip("-"): parameter for parameter in command.params}
    return {name: parameter for name, parameter in named.items() if name != "help"}


def _placed(path: Path, name: str, parameter: click.Parameter, value: Any) -> Any:
    """Return a value of the file with its paths counted from the file's folder; TypeError where it has another type."""
    many = parameter.multiple or parameter.nargs == -1
    types, told = _kind_of(name, parameter)
    every = value if many else [value]
    fits = isinstance(every, list) and all(isinstance(one, types) and (bool in types or type(one) is not bool) for one in every)
    if not fits:
        raise TypeError(f"expected {f'a list, each {told}' if many else told}")
    if any("\0" in str(one) for one in every):
        raise TypeError("holds a character of number 0, which no name has; remove it")
    if isinstance(parameter.type, click.Path) or name in WORDS:
        every = [one if one == WORDS.get(name) else _from_folder(path.absolute().parent, one) for one in every]
    return every if many else every[0]


def _kind_of(name: str, parameter: click.Parameter) -> tuple[tuple[type, ...], str]:
    """Return the types that a value of a file may have for an option, and what they are in words."""
    if name == "tta":  # bare, or with a number
        return (bool, int), "true, false, 2, 4 or 8"
    if getattr(parameter, "is_flag", False):
        return (bool,), "true or false"
    if isinstance(parameter.type, click.types.IntParamType):
        return (int,), "a whole number"
    if isinstance(parameter.type, click.types.FloatParamType):
        return (int, float), "a number"
    return (str,), "a text in quotes"


def _checked(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Return a value as click would take it from the command line; click.BadParameter where it would not."""
    if parameter.name == "tta":
        value = {True: "", False: None}[value] if isinstance(value, bool) else str(value)
    parameter.process_value(context, value)
    return value


def _chosen(context: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """Return those options that are others than click says, because a file and the command line meet."""
    from_file = context.default_map or {}
    source = context.get_parameter_source
    chosen: dict[str, Any] = {}
    if not options.get("slides") and from_file.get("slides"):  # not all versions of click look there for an argument
        chosen["slides"] = tuple(map(slide_path, from_file["slides"]))
    for pair in EITHER:
        given = [name for name in pair if options.get(name) and source(name) is ParameterSource.COMMANDLINE]
        if given:
            chosen |= {name: () if name == "slides" else None for name in pair if name in options and name not in given}
    return chosen


def _as_toml(context: click.Context) -> str:
    """Return a command's options as TOML; ValueError where one that is no path has bytes that are no text."""
    import tomli_w

    command = context.command.name
    head = f"# wsi-meta {wsi_meta.__version__}; start from it again: wsi-meta {command} --config THIS_FILE\n"
    kept = {}
    for name, parameter in _keys(context.command).items():
        value = context.params.get(str(parameter.name))
        if name in NOT_KEPT or value is None or value == ():
            continue
        is_path = isinstance(parameter.type, click.Path) or (name in WORDS and value != WORDS[name])
        if is_path:
            value = [portable(slide_path(one)) for one in value] if isinstance(value, tuple) else portable(slide_path(value))
        kept[name] = value
    text = head + tomli_w.dumps(kept)
    text.encode()  # a UnicodeEncodeError, which is a ValueError
    return text


def _from_folder(folder: Path, given: str) -> str:
    return given if given == "" or is_address(given) else str(folder / from_file_uri(given))


def _keep(path: Path, context: click.Context) -> None:
    """Write a file of options; one that is there and says something else stays, and the next free name is taken."""
    from wsi_meta.files.locks import locked
    from wsi_meta.outputs.writing import written_whole

    try:
        text = _as_toml(context)
        with locked(path, wait_s=WAIT_S):
            names = (path if number == 1 else path.with_stem(f"{path.stem}-{number}") for number in count(1))
            free = next(name for name in names if not name.exists() or _holds(name, text))
            if not free.exists():
                with written_whole(free) as partial:
                    partial.write_text(text, "utf-8")
    except (OSError, ValueError) as error:  # the scan itself says so where it cannot write
        logger.warning("%s: the options of this run are not kept (%s)", path, first_line(error))


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()
