"""Options that mean the same on every command, and how results are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = [
    "as_json_option",
    "batch_size_option",
    "device_option",
    "example",
    "overwrite_option",
    "precision_option",
    "print_result",
    "workers_option",
]

Command = TypeVar("Command", bound=Callable[..., Any])

device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Arithmetic; auto is bf16 where the hardware has it.",
)
batch_size_option = click.option(
    "--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Patches in one forward pass."
)
workers_option = click.option(
    "--workers", type=click.IntRange(0), default=2, show_default=True, help="How many read at the same time."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, for machines.")


def example(text: str) -> str:
    r"""Give an epilog with an example that click does not re-wrap."""
    return f"\b\nExample:\n  {text}"


def print_result(result: dict[str, Any], *, as_json: bool) -> None:
    """Print a result to stdout: JSON, or a line per figure."""
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")


def show_progress() -> bool:
    """Say whether bars make sense: always, unless stderr was closed."""
    return sys.stderr is not None
