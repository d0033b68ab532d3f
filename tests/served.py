"""A viewer's server in this process, and a client that asks it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from wsi_meta.heatmaps.inspection import stores_at
from wsi_meta.viewer.guard import Gate
from wsi_meta.viewer.server import serving
from wsi_meta.viewer.shelf import Shelf, folders_of_stores


class Client:
    """Asks a server that runs in this process."""

    def __init__(self, gate: Gate, shelf: Shelf) -> None:
        self.gate, self.shelf = gate, shelf
        self.key = next(iter(shelf.stores))
        self._client = AsyncHTTPClient(force_instance=True, max_clients=300)

    async def get(self, path: str, **options: Any) -> HTTPResponse:
        link = f"http://127.0.0.1:{self.gate.port}{path}"
        options = {"raise_error": False, "follow_redirects": False} | options
        return await self._client.fetch(link, **options)

    async def json(self, path: str) -> Any:
        answer = await self.get(f"/s/{self.key}/{path}")
        assert answer.code == 200, answer.body
        return json.loads(answer.body)

    async def put(self, value: Any, kind: str = "application/json", **headers: str) -> HTTPResponse:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return await self.get(f"/s/{self.key}/corrections", method="PUT", body=body, headers={"Content-Type": kind} | headers)


def ask(
    store: Path | list[Path],
    what: Callable[[Client], Awaitable[None]],
    *,
    host: str | None = None,
    run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run,
) -> None:
    """Serve stores, and run a coroutine with a client; in a new event loop, or by `run` in another."""

    async def serve() -> None:
        paths = store if isinstance(store, list) else [store]
        shelf = Shelf(stores_at(*paths), None, folders_of_stores(paths))
        try:
            async with serving(shelf, host=host) as gate:
                await what(Client(gate, shelf))
        finally:
            shelf.close()

    run(serve())
