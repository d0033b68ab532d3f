"""Reaching a dask cluster that stands: a client for its scheduler; and a look at it, for ``wsi-meta doctor``."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distributed import Client

from wsi_meta.errors import DeviceError
from wsi_meta.files.process_settings import no_warnings
from wsi_meta.versions import library_versions
from wsi_meta.words import first_line, from_json

__all__ = ["look_at_cluster", "reached"]

logger = logging.getLogger("wsi_meta")

ANSWER_S = 30.0
"""For how long a scheduler is waited for."""
JOIN_S = 600.0
"""For how long the first worker is waited for: a batch system may start it late."""
PAUSE_S = 0.5
"""For how long to wait before trying again to connect."""
COMPARED = ("torch", "numpy", "zarr", "dask", "distributed", "openslide-python")
"""Libraries of which workers must have the versions of this machine, besides Python and wsi-meta."""


@contextmanager
def reached(scheduler: str | Path, *, answer_s: float = ANSWER_S, join_s: float = JOIN_S) -> Iterator[Client]:
    """Yield a client for a scheduler; it is closed in the end, the cluster stays.

    Parameters
    ----------
    scheduler : its address, ``tcp://HOST:PORT``; or the path of the file that ``dask scheduler --scheduler-file`` wrote
    answer_s, join_s : for how long to wait for the scheduler, and for its first worker

    Raises
    ------
    DeviceError
        when it does not answer, or has no worker.
    """
    where: dict[str, Any] = {"address": scheduler} if isinstance(scheduler, str) else {"scheduler_file": str(scheduler)}
    if isinstance(scheduler, Path):
        _check_file(scheduler)
    try:
        client = _connect(where, answer_s)
    except (OSError, ValueError, LookupError) as error:
        told = "no answer" if isinstance(error, OSError) else first_line(error)
        raise DeviceError(
            f"{scheduler}: {told} from a dask scheduler within {answer_s:g} s; see that it runs and that this machine reaches "
            "its port; 'wsi-meta doctor --scheduler' looks at it"
        ) from error
    with client:
        if not client.nthreads():
            logger.warning("%s: no worker has joined yet; waiting for one", scheduler)
        try:
            client.wait_for_workers(1, timeout=join_s)
        except TimeoutError as error:
            raise DeviceError(f"{scheduler}: no worker has joined in {join_s:g} s; start some: dask worker ADDRESS") from error
        yield client


def _check_file(path: Path) -> None:
    """Refuse a file that says no scheduler's address; DeviceError if so."""
    expected = "expected what 'dask scheduler --scheduler-file' wrote"
    try:
        said = from_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DeviceError(f"{path}: no such file; {expected}; start that first") from error
    except (OSError, ValueError) as error:
        raise DeviceError(f"{path}: no file of a dask scheduler ({first_line(error)}); {expected}") from error
    if not (isinstance(said, dict) and isinstance(said.get("address"), str)):
        raise DeviceError(f"{path}: says no address of a dask scheduler; {expected}")


def _connect(where: dict[str, Any], answer_s: float) -> Client:
    """Return a client; a scheduler that only begins to answer may close the first connections."""
    ends = time.monotonic() + answer_s
    while True:
        try:
            return Client(**where, timeout=answer_s, set_as_default=False)
        except OSError:
            if time.monotonic() >= ends:
                raise
            time.sleep(PAUSE_S)


def look_at_cluster(
    address: str, *, limit_s: float = 10.0, here: dict[str, str] | None = None
) -> tuple[dict[str, Any], str, list[str]]:
    """Ask a cluster's workers for their versions, and compare them with those here.

    Parameters
    ----------
    address : of the scheduler, ``tcp://HOST:PORT``
    limit_s : for how long to wait for all answers
    here : versions to compare with; None are those of this machine

    Returns
    -------
    Facts as plain JSON values; the same in one line; problems, a line each. None of them names a host.
    """
    try:
        with no_warnings():  # dask warns of other versions, which are compared here
            answers, threads = asyncio.run(asyncio.wait_for(_ask_workers(address, limit_s), limit_s))
    except ValueError as error:
        told = f"no address of a scheduler ({first_line(error)})"
        return {"reachable": False}, told, [f"{told}; give it as tcp://HOST:PORT"]
    except (TimeoutError, OSError):
        told = f"no answer from the scheduler within {limit_s:g} s"
        return {"reachable": False}, told, [f"{told}; see that it runs, and that its port is open to this machine"]
    here = here or library_versions(COMPARED)
    others = Counter(line for answer in answers for line in _differences(answer, here))
    facts = {"reachable": True, "workers": len(answers), "threads": threads, "differences": dict(others)}
    problems = [f"{count} of {len(answers)} workers: {told}; install the same everywhere" for told, count in others.items()]
    if not answers:
        problems = ["no worker has joined; start some: dask worker ADDRESS"]
    versions = "versions differ" if others else "versions as here"
    return facts, f"{len(answers)} workers, {threads} threads; {versions if answers else 'nothing to compare'}", problems


async def _ask_workers(address: str, limit_s: float) -> tuple[list[Any], int]:
    """Return each worker's versions, or the error that it raised, and the threads of all."""
    client = Client(address, asynchronous=True, timeout=limit_s, set_as_default=False)
    try:
        await client
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        answers = await client.run(library_versions, COMPARED, on_error="return")
        return list(answers.values()), sum(worker["nthreads"] for worker in workers)
    finally:
        await client.close()  # also one that never reached its scheduler, or it would try again when it is collected


def _differences(answer: Any, here: dict[str, str]) -> list[str]:
    """Return what a worker has in another version than this machine has, or why it cannot be asked."""
    if isinstance(answer, BaseException):
        return [f"wsi-meta cannot be used there ({type(answer).__name__}: {first_line(answer)})"]
    others = [(name, version, answer.get(name, "missing")) for name, version in here.items()]
    return [f"{name} is {there}, here {version}" for name, version, there in others if there != version]
