"""``wsi-meta`` and ``python -m wsi_meta``: the command, started quickly; the second is what ``torchrun -m`` starts."""

import gc
import io
import sys

__all__ = ["run"]


def run() -> None:
    """Load the command and run it on the words of the command line; end the process with its exit code.

    What is loaded stays until the end, so the garbage collector need not look through it: that was a fifth of the start.
    A result is printed whatever stdout's encoding is: what that lacks is escaped.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    gc.disable()
    from wsi_meta.cli import main

    gc.freeze()
    gc.enable()
    main(prog_name="wsi-meta")


if __name__ == "__main__":
    run()
