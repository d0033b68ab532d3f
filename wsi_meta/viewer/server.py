"""The server: one loop that only sends and receives; what takes time runs in threads."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from tornado.httpserver import HTTPServer

from wsi_meta.errors import OptionsError
from wsi_meta.viewer.assets import read_assets
from wsi_meta.viewer.guard import LOOPBACK, Gate, make_gate
from wsi_meta.viewer.handlers import Desk, make_application
from wsi_meta.viewer.shelf import Shelf

__all__ = ["serve", "serving"]

USUAL_PORT = 8417
"""Taken where it is free, so that a saved link is good the next time as well."""
BODY_BYTES, HEADER_BYTES = 8 << 20, 32 << 10
"""Of a request."""
IDLE_S = 120.0
"""A connection without a request for so long is closed."""


def serve(shelf: Shelf, *, host: str | None, port: int | None, opened: Callable[[str], None]) -> None:
    """Serve a shelf until the process gets an interrupt or is told to end.

    Parameters
    ----------
    host, port : where to listen; None is this machine alone, and a port that is free
    opened : called with the link once it can be opened

    Raises
    ------
    OptionsError
        when the server cannot listen there.
    """

    async def until_ended() -> None:
        with _ended() as end:
            async with serving(shelf, host=host, port=port) as gate:
                opened(gate.link)
                await end.wait()

    asyncio.run(until_ended())


@asynccontextmanager
async def serving(shelf: Shelf, *, host: str | None = None, port: int | None = None) -> AsyncIterator[Gate]:
    """Serve a shelf on the running loop until the block ends; parameters and errors as :func:`serve`."""
    listening = _listen(host or LOOPBACK, port)
    gate = make_gate(host, listening.getsockname()[1])
    limits: dict[str, Any] = {"max_body_size": BODY_BYTES, "max_header_size": HEADER_BYTES, "idle_connection_timeout": IDLE_S}
    with ThreadPoolExecutor(max(2, os.cpu_count() or 2), "wsi-meta view") as threads:
        server = HTTPServer(make_application(Desk(shelf, gate, read_assets(), threads)), **limits)
        server.add_socket(listening)
        threads.submit(shelf.prepare)
        try:
            yield gate
        finally:
            server.stop()
            threads.shutdown(wait=False, cancel_futures=True)
            await server.close_all_connections()


@contextmanager
def _ended() -> Iterator[asyncio.Event]:
    """Yield an event that is set by Ctrl-C and by SIGTERM; other threads than the main one have no signals."""
    end, loop = asyncio.Event(), asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    taken = []
    try:
        for number in numbers:
            loop.add_signal_handler(number, end.set)
            taken.append(number)
    except (RuntimeError, ValueError):
        pass
    try:
        yield end
    finally:
        for number in taken:
            loop.remove_signal_handler(number)


def _listen(host: str, port: int | None) -> socket.socket:
    wanted = (USUAL_PORT, 0) if port is None else (port,)
    for place, number in enumerate(wanted, 1):
        try:
            family, _, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            listening = socket.create_server(address[:2], family=family, backlog=256)
        except OSError as error:
            if place < len(wanted):
                continue
            told = error.strerror or str(error)
            raise OptionsError(f"host {host}, port {number}: cannot listen there ({told}); expected another one") from error
        listening.setblocking(False)
        return listening
    raise AssertionError("no port")
