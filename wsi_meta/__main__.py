"""``wsi-meta`` and ``python -m wsi_meta``: the command, started quickly; the second is what ``torchrun -m`` starts."""

import gc
import io
import sys

__all__ = ["run"]


def run() -> None:
    """Load the command and run it on the words of the command line; end the process with its exit code.

    What is loaded stays until the end, so the garbage collector need not look through it: that was a fifth of the start.
    Ctrl-C while it loads ends as it does later. A result is printed whatever stdout's encoding is: what that lacks is escaped.
    """
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and (out.errors == "strict" or out.encoding.lower() != "utf-8"):
        out.reconfigure(errors="backslashreplace")
    gc.disable()
    try:
        from wsi_meta.cli import main

        gc.freeze()
        gc.enable()
        main(prog_name="wsi-meta")
    except KeyboardInterrupt:
        from wsi_meta.errors import EXIT_INTERRUPTED, INTERRUPTED

        print(f"Error: {INTERRUPTED}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    run()
