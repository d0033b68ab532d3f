"""Child processes for tests, which start in an instant: they are forked from a server that has imported everything.

The server only imports. It runs no thread and computes nothing, so its children may do anything: a child of the tests' own
process may not, since autograd refuses to work in a process forked beside its threads for a GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import cloudpickle
import dask

__all__ = ["start_child"]

# one thread of torch, as in the tests' own process: more of them sum in another order, and wait for each other
os.environ["OMP_NUM_THREADS"] = "1"
# compiled where it is asked for: processes for that would import torch first, longer than the few kernels of a test take
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
# the server finds modules by this alone, not by the path of the process that starts it
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["preloaded"])  # else each child would import for seconds what it needs
dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})


class Child:
    """A process that runs a function."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process

    def poll(self) -> int | None:
        """What it exited with, minus the signal that killed it, or None while it runs."""
        return self._process.exitcode

    def wait(self) -> int:
        """Wait for its end; give what it exited with."""
        self._process.join()
        code = self._process.exitcode
        assert code is not None
        return code

    def interrupt(self) -> None:
        """Send it SIGINT, as Ctrl-C does."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGINT)

    def kill(self) -> int:
        """Kill it with SIGKILL, and wait for its end."""
        self._process.kill()
        return self.wait()


def start_child(work: Callable[[], object], log: Path, **environment: object) -> Child:
    """Run `work` in a process of its own that prints to the file `log`."""
    variables = {name: str(value) for name, value in environment.items()}
    process = _CONTEXT.Process(target=_run, args=(cloudpickle.dumps(work), str(log), variables))
    process.start()
    return Child(process)


def _run(work: bytes, log: str, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    sys.stdout.flush()
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
    cloudpickle.loads(work)()
