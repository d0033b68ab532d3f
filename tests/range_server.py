"""A web server on this machine that gives parts of files, counts bytes, and misbehaves where a test asks for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SILENT_S = 0.5
"""So long a server that is silent keeps a connection."""


@dataclass
class Served:
    """A folder at an address. `spoil` is told the number of a request, from 1, and its range; it may return what goes wrong."""

    folder: Path
    url: str = ""
    sent: int = 0
    requests: list[tuple[str, int, int]] = field(default_factory=list)
    spoil: Callable[[int, int, int], str | int | None] = lambda _number, _start, _stop: None
    refusing: dict[str, str] = field(default_factory=dict)
    """Headers of what is refused."""
    tags: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    """Serve a folder for as long as a test needs it."""
    state = Served(folder)
    handler = type("Handler", (_Handler,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Served
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        state, path = self.state, self.state.folder / urlsplit(self.path).path.lstrip("/")
        if not path.is_file():
            self._say(404)
            return
        content = path.read_bytes()
        start, stop = 0, len(content)
        asked = self.headers.get("Range")
        if asked is not None:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else len(content), len(content))
        with state.lock:
            state.requests.append((self.path, start, stop))
            wrong = state.spoil(len(state.requests), start, stop)
        if wrong == "silent":
            time.sleep(SILENT_S)
            self.close_connection = True
            return
        if isinstance(wrong, int):
            self._say(wrong, state.refusing)
            return
        whole = asked is None or wrong in ("no ranges", "page")
        part = content if whole else content[start:stop]
        if start >= len(content):
            self._say(416, {"Content-Range": f"bytes */{len(content)}"})
            return
        headers = {
            "Content-Length": str(len(part)),
            "Content-Type": "text/html" if wrong == "page" else "application/octet-stream",
        }
        if state.tags:
            headers |= {"ETag": f'"{md5(content).hexdigest()}"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        if not whole:
            headers["Content-Range"] = f"bytes {start + (wrong == 'other range')}-{stop - 1}/{len(content)}"
        self._say(200 if whole else 206, headers)
        if body:
            part = part[: len(part) // 2] if wrong == "cut" else part
            with state.lock:
                state.sent += len(part)
            with suppress(OSError):  # who asked has gone
                self.wfile.write(part)
            self.close_connection = self.close_connection or wrong == "cut"

    def _say(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": "0"} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""
