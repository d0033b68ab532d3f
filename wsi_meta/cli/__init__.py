"""The ``wsi-meta`` command: one small module per subcommand, each a single call into the library."""

from __future__ import annotations

import atexit
import gc
from typing import Any

import click

import wsi_meta
from wsi_meta.cli.calibrate import calibrate
from wsi_meta.cli.demo import demo
from wsi_meta.cli.evaluate import evaluate
from wsi_meta.cli.froc import froc
from wsi_meta.cli.info import info
from wsi_meta.cli.lesions import lesions
from wsi_meta.cli.overlay import overlay
from wsi_meta.cli.sample import sample
from wsi_meta.cli.scan import scan, summary
from wsi_meta.cli.score import fit_score, score
from wsi_meta.cli.stage import stage
from wsi_meta.cli.train import train
from wsi_meta.errors import OptionsError, WsiMetaError, one_line

__all__ = ["main"]


class _OneLineErrors(click.Group):
    """A group that turns wrong usage into a hint and exit code 2; bad input, full disks and the like into one line and 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OptionsError as error:
            name = str(ctx.invoked_subcommand)
            raise click.UsageError(str(error), click.Context(self.commands[name], ctx, name)) from error
        except (WsiMetaError, OSError) as error:
            told = one_line(error)
        except KeyboardInterrupt:
            told = "interrupted; what was finished is kept (scan goes on when run again, train with --resume)"
        # raised here, after the error and all that its frames held are gone: gloo's threads would abort the ending process
        raise click.ClickException(told)


@click.group(cls=_OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(wsi_meta.__version__, prog_name="wsi-meta")
def main() -> None:
    """Map tumor on whole-slide images of lymph nodes. A research tool, not a medical device.

    Start with:  wsi-meta demo
    """
    atexit.register(gc.freeze)  # else the ending process frees torch's modules object by object, which takes half a second


for _command in (
    demo,
    scan,
    summary,
    overlay,
    info,
    sample,
    train,
    evaluate,
    calibrate,
    stage,
    froc,
    lesions,
    score,
    fit_score,
):
    main.add_command(_command)
