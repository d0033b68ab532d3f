"""The command line, called in this process: what it prints and how it ends are those of a command of its own."""

from __future__ import annotations

import io
import json
import logging
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import click

from fuzzing.counts import Outcome
from wsi_meta.cli import main

__all__ = ["Ended", "judged", "line_with", "run_command"]

UNFORESEEN = "'wsi-meta --debug ...' shows where it came from"
"""How the line ends that the command line prints for an error that nobody foresaw."""
NO_MEMORY = "Error: out of memory"
"""How the line begins that it prints when this process got no memory."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    words: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

    @property
    def foreseen(self) -> bool:
        """Whether every error had a line of its own, and none a traceback."""
        return "Traceback" not in self.stderr and UNFORESEEN not in self.stderr

    @property
    def outcome(self) -> Outcome:
        """Whether it went well, was refused in one line, or failed in a way that nobody foresaw."""
        errors = [line for line in self.stderr.splitlines() if line.startswith("Error:")]
        if not self.foreseen:
            return Outcome.TRACEBACK
        if errors and errors[-1].startswith(NO_MEMORY):
            return Outcome.MEMORY
        if self.code == 0 and not errors:
            return Outcome.RIGHT
        return Outcome.REFUSED if self.code in (1, 2) and len(errors) == 1 else Outcome.TRACEBACK

    @property
    def result(self) -> Any:
        """What a command with ``--json`` printed; it has one result."""
        (result,) = json.loads(self.stdout)["results"]
        return result

    def told(self) -> str:
        """Return the command and how it ended, in one line."""
        last = self.stderr.strip().splitlines()[-1:]
        return f"{self.words[0]} ended with {self.code}: {' '.join(last)[:300]}"


def line_with(command: click.Command) -> click.Group:
    """Return a command line of one command, under the same net as the program's own: its errors end as they always do."""
    group = type(main)("wsi-meta", params=main.params, callback=main.callback)
    group.add_command(command)
    return group


def run_command(*words: object, line: click.Group = main) -> Ended:
    """Run the command line, or another one that ends as it does."""
    given = tuple(map(str, words))
    out, err = io.StringIO(), io.StringIO()
    logs = logging.StreamHandler(err)
    logging.getLogger().addHandler(logs)
    code = 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = _call(line, given)
    except Exception:
        err.write(traceback.format_exc())
        code = 1
    finally:
        logging.getLogger().removeHandler(logs)
    return Ended(given, code, out.getvalue(), err.getvalue())


def _call(line: click.Group, words: Sequence[str]) -> int:
    call: Callable[..., object] = line.main  # said to never return, but a part of it might
    try:
        call(list(words), prog_name="wsi-meta")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def judged(*ended: Ended) -> tuple[Outcome, str]:
    """Return the worst outcome of commands, and how that one ended."""
    order = list(Outcome)
    worst = max(ended, key=lambda one: order.index(one.outcome))
    return worst.outcome, worst.told()
