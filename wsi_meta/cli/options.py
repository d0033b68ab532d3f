"""Options that mean the same on every command, and how results are printed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click

from wsi_meta import __version__
from wsi_meta.files.address import from_file_uri, is_address, portable, slide_path
from wsi_meta.outputs.paths import without_secrets
from wsi_meta.words import is_text, printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = [
    "FILE_OR_WORD",
    "NEW_FILE",
    "PATH",
    "PRINTED",
    "SLIDE",
    "SLIDE_OR_WORD",
    "CommandWithViews",
    "NumberRange",
    "as_json_option",
    "batch_size_option",
    "block_workers_option",
    "device_option",
    "example",
    "exclude_class_option",
    "overwrite_option",
    "precision_option",
    "print_document",
    "print_result",
    "print_results",
    "reader_option",
    "reading_workers_option",
    "score_model_option",
    "training_precision_option",
    "tta_option",
    "tumor_option",
    "tuned_memory",
    "workers_option",
]

Command = TypeVar("Command", bound=Callable[..., Any])
PathKind: TypeAlias = "click.Path | click.types.StringParamType"


def _file_named(kind: PathKind, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
    """Return what names a file or a folder, of a file URI its path; a usage error for a text that names none.

    An address of the web or of a store, which a path would quietly mangle, is refused.
    """
    if value == "":  # as a path it would be the current folder
        kind.fail("an empty text; expected a path; is a variable of the shell not set?", param, ctx)
    if value == "-":
        kind.fail("- is no stream here; expected a path; a file of that name is ./-", param, ctx)
    value = from_file_uri(value) if isinstance(value, str) else value
    if "://" in str(value):
        raise click.ClickException(printable(f"{without_secrets(str(value))}: an address; expected a path on a disk"))
    return value


class LocalPath(click.Path):
    """A path on a disk."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; of a file URI the one that it names."""
        return super().convert(_file_named(self, value, param, ctx), param, ctx)


class NewFile(LocalPath):
    """A file to write; a name that ends as a folder's does is refused: a path would drop the slash."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if str(value).endswith("/"):
            raise click.ClickException(printable(f"{value}: a folder; expected the name of a file to write"))
        return super().convert(value, param, ctx)


class SlideLocation(click.Path):
    """A slide: a path on a disk, or an address, which a path would mangle."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path or the address; an address of a kind that is not read is refused."""
        if is_address(value):
            return slide_path(value)
        return super().convert(_file_named(self, value, param, ctx), param, ctx)


class FileOrWord(click.types.StringParamType):
    """A path, or a word that stands for something, such as ``default``: the shell completes it as a file."""

    def __init__(self, *, slides: bool = False) -> None:
        self._slides = slides

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the text; of a file URI the path that it names, and where slides are meant an address of one."""
        if self._slides and is_address(value):
            return slide_path(value)
        return _file_named(self, super().convert(value, param, ctx), param, ctx)

    def shell_complete(self, _ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return what lets the shell look for files."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


PRINTED = "wsi_meta.printed"
"""Mark in the context of a command whose JSON is printed."""
PATH, NEW_FILE, SLIDE = LocalPath(path_type=Path), NewFile(path_type=Path), SlideLocation(path_type=Path)
FILE_OR_WORD, SLIDE_OR_WORD = FileOrWord(), FileOrWord(slides=True)

device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
training_precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Arithmetic; auto is bf16 where the hardware has it, on a CPU only in a long training, else fp32.",
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "int8"]),
    default="auto",
    show_default=True,
    help="Arithmetic; auto is int8 where the model's card says that it agrees with fp32 and the CPU has VNNI, "
    "else bf16 where the hardware has it, else fp32. int8 is the fastest on a CPU, and the least exact.",
)
batch_size_option = click.option(
    "--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Patches in one pass on a CPU; on a GPU 256."
)


class NumberRange(click.FloatRange):
    """A number within limits; NaN, which is beyond none, and infinity are refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; a usage error for what is none, or beyond the limits."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is no number.", param, ctx)
        return number


class CommandWithViews(click.Command):
    """A command whose ``--tta`` may stand without a number, also before an argument that is none."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words after the command's name; a ``--tta`` without a number gets an empty value."""
        end, following = args.index("--") if "--" in args else len(args), [*args, ""][1:]
        bare = [word == "--tta" and not number.isdigit() for word, number in zip(args, following, strict=True)]
        return super().parse_args(ctx, [f"{word}=" if bare[place] and place < end else word for place, word in enumerate(args)])


def _views(_context: click.Context, _option: click.Parameter, value: str | None) -> bool | int:
    """Return how many views are averaged: True, which is all, for an empty value; False without the option."""
    if not value:
        return value is not None
    if value not in ("2", "4", "8"):
        raise click.BadParameter(f"{value} is not 2, 4 or 8.")
    return int(value)


tta_option = click.option(
    "--tta",
    callback=_views,
    metavar="[2|4|8]",
    help="Test-time averaging: mean over so many turned and mirrored views, 8 without a number; takes so many times as long.",
)
reader_option = click.option(
    "--reader",
    type=click.Choice(["auto", "openslide", "direct", "picture", "zarr"]),
    default="auto",
    show_default=True,
    help="What decodes a slide; auto is the one for its kind: direct (faster) for plain TIFFs of JPEG tiles and OME-TIFF.",
)
score_model_option = click.option(
    "--score-model", type=PATH, help="File from fit-score, for a fitted score beside the default one."
)


def _workers_option(meaning: str) -> Callable[[Command], Command]:
    return click.option("--workers", type=click.IntRange(0), default=2, show_default=True, help=meaning)


workers_option = _workers_option("Processes that decode patches; 0: this process decodes them.")
reading_workers_option = _workers_option("Patches that are read at the same time.")
block_workers_option = _workers_option("Blocks in work at the same time.")
tumor_option = click.option(
    "--tumor",
    multiple=True,
    metavar="CLASS",
    help="Class or group of outlines that is tumor; repeatable.  [Tumor, _0, _1, ...]",
)
exclude_class_option = click.option(
    "--exclude-class",
    multiple=True,
    metavar="CLASS",
    help="Class that is removed from it; repeatable.  [Exclusion, _2, Normal]",
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, for machines.")


def tuned_memory(device: str, *, in_bands: bool = False) -> AbstractContextManager[None]:
    """Tune the memory of this process, which is the command's own, unless it is to compute on a GPU.

    This does not ask torch, which takes seconds to load: where ``auto`` becomes a GPU, memory is tuned all the same.
    See :func:`wsi_meta.inference.allocator.tuned_memory`; without `in_bands` it is for patches.
    """
    from wsi_meta.inference.allocator import tuned_memory as tuned

    return nullcontext() if device.startswith("cuda") else tuned(in_bands=in_bands)


def example(text: str) -> str:
    r"""Return an epilog with an example that click does not re-wrap."""
    return f"\b\nExample:\n  {text}"


def told_verdict(verdict: dict[str, Any] | None) -> str | None:
    """Return a verdict in words, each with its figure; None of a store that has none.

    Parameters
    ----------
    verdict : its ``words`` and ``figures``, as ``--json`` prints them
    """
    from wsi_meta.quality.verdict import Verdict

    return None if verdict is None else Verdict(tuple(verdict["words"]), verdict["figures"]).summary_with_figures


def print_result(result: dict[str, Any], *, as_json: bool) -> None:
    """Print a result to stdout: JSON, or a line per figure."""
    print_results([result], as_json=as_json)


def print_results(results: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print results: as one JSON object, or below each other."""
    if as_json:
        context = click.get_current_context()
        print_document(context, context.command.name, results=results)
    else:
        print("\n\n".join("\n".join(_lines(result)) for result in results), flush=True)  # before what is said of it on stderr


def print_document(context: click.Context, command: str | None, **content: Any) -> None:
    """Print what ``--json`` prints: one JSON object in one line, the same outline for every command (docs/json.md)."""
    context.meta[PRINTED] = True
    print(json.dumps({"wsi_meta": __version__, "command": command, **_as_text(content)}), flush=True)


def _as_text(value: Any) -> Any:
    """Return a value of JSON whose texts any program can read: a path with bytes that are no text is its file URI."""
    if isinstance(value, dict):
        return {name: _as_text(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_text(part) for part in value]
    if not isinstance(value, str) or is_text(value):
        return value
    return portable(Path(value)) if os.path.lexists(value) else printable(value)


def _lines(result: dict[str, Any], indent: str = "") -> Iterator[str]:
    for name, value in result.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from _lines(value, indent + "  ")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            yield f"{indent}{name}:"
            for part in value:
                if "line" in part:  # which tells it all
                    yield printable(f"{indent}- {part['line']}")
                    continue
                first, *rest = _lines(part)
                yield from (f"{indent}- {first}", *(f"{indent}  {line}" for line in rest))
        elif value is not None:
            yield printable(f"{indent}{name}: {_rounded(value)}")


def _rounded(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    if not isinstance(value, float):
        return value
    digits = 4
    while (rounded := round(value, digits)) in (0, 1) and rounded != value:  # a probability that is neither
        digits += 1
    return rounded
