"""What the server answers. Names in a link are looked up among what is shown; none ever becomes a path."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from tornado.httputil import HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.web import Application, HTTPError, RequestHandler

from wsi_meta.errors import HeatmapError, OutputExistsError, OutputPathError, SlideReadError
from wsi_meta.heatmaps.record import ScanRecord
from wsi_meta.viewer.assets import Assets
from wsi_meta.viewer.corrections import Corrections, read_corrections, write_corrections
from wsi_meta.viewer.facts import left_out_facts, list_facts, map_facts, slide_facts, slide_scanned
from wsi_meta.viewer.guard import HEADERS, Gate
from wsi_meta.viewer.shelf import Shelf, ShownStore
from wsi_meta.viewer.shown_map import MapState, version_of
from wsi_meta.words import from_json, one_line

__all__ = ["Desk", "make_application"]

Answer = TypeVar("Answer")

KEY, NUMBER = "([0-9a-f]{12})", r"(\d{1,6})"
"""How a store and a number stand in a link."""
GROWN = 412
"""The answer where an older version of a map is asked for: a page then asks for all anew. Every other failure it tells."""
FOREVER = "private, max-age=31536000, immutable"
"""For what a link with another mark would name if it changed."""
THRESHOLD = r"(\d\.?\d{0,25}(?:e-\d{1,3})?)"
"""How a threshold stands in a link: as JavaScript writes a number."""


@dataclass(frozen=True, eq=False)
class Desk:
    """What all answers are made from."""

    shelf: Shelf
    gate: Gate
    assets: Assets
    threads: ThreadPoolExecutor


def make_application(desk: Desk) -> Application:
    """Return the tornado application."""
    return Application(
        [
            ("/", Front, {"desk": desk}),
            (f"/s/{KEY}/?", Page, {"desk": desk}),
            ("/list", List, {"desk": desk}),
            (f"/s/{KEY}/facts", MapFacts, {"desk": desk}),
            (f"/s/{KEY}/version", Version, {"desk": desk}),
            (f"/s/{KEY}/map/([0-9a-f]{{16}})", Map, {"desk": desk}),
            (f"/s/{KEY}/lesions/([0-9a-f]{{16}})/{THRESHOLD}", Lesions, {"desk": desk}),
            (f"/s/{KEY}/tile/([0-9a-f]{{16}})/{NUMBER}/{NUMBER}/{NUMBER}", Tile, {"desk": desk}),
            (f"/s/{KEY}/corrections", MapCorrections, {"desk": desk}),
            (r"/assets/([a-z0-9.\-]{1,40})", Static, {"desk": desk}),
            ("/report/", Report, {"desk": desk}),
            (r"/report/thumbnails/([^/]{1,300})", Thumbnail, {"desk": desk}),
        ],
        default_handler_class=Nothing,
        default_handler_args={"desk": desk},
        log_function=lambda _handler: None,
        compress_response=False,
    )


class _Handler(RequestHandler):
    """Checks who asks before anything else, and answers failures in one line."""

    def initialize(self, desk: Desk) -> None:
        self.desk = desk
        self._gone = False

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in HEADERS.items():
            self.set_header(name, value)
        self.set_header("Cache-Control", "no-store")

    def prepare(self) -> None:
        gate, request = self.desk.gate, self.request
        if not gate.knows_host(request.host):
            raise HTTPError(421, reason="Another host")
        if not gate.knows_origin(request.headers.get("Origin"), request.host) or _is_from_elsewhere(request):
            raise HTTPError(403, reason="Another site")
        if gate.token is not None and not gate.knows_token(self.get_cookie(gate.cookie)):
            self._take_token()

    def on_connection_close(self) -> None:
        self._gone = True

    def write_error(self, status_code: int, **kwargs: Any) -> None:  # noqa: ARG002  (tornado names them)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{self._reason}\n")

    def log_exception(self, *error: Any) -> None:
        if not isinstance(error[1], HTTPError):
            super().log_exception(*error)

    async def in_thread(self, work: Callable[[], Answer]) -> Answer:
        """Run what takes time off the loop; a request whose browser is gone by then is not worked for."""

        def unless_gone() -> Answer:
            if self._gone:
                raise HTTPError(499, reason="Gone")
            return work()

        try:
            return await IOLoop.current().run_in_executor(self.desk.threads, unless_gone)
        except (KeyError, IndexError) as error:
            raise HTTPError(404, reason="There is no such thing") from error
        except (HeatmapError, SlideReadError, OutputExistsError, OutputPathError) as error:
            raise HTTPError(409, reason=_as_reason(error)) from error

    async def shown(self, key: str, record: ScanRecord | None = None) -> ShownStore:
        return await self.in_thread(lambda: self.desk.shelf.show(key, record))

    async def state_of(self, key: str, version: str) -> MapState:
        """Return a map in the version of the facts that a page has."""
        if (state := (await self.shown(key)).map.state_of(version)) is None:
            raise HTTPError(GROWN, reason="The map has grown")
        return state

    def send(self, body: bytes | str, kind: str, *, mark: str | None = None, forever: bool = False) -> None:
        """Answer with a body; `mark` names its content, so that a browser that has it is told so."""
        self.set_header("Content-Type", kind)
        if mark is not None:
            self.set_header("Etag", f'"{mark}"')
            self.set_header("Cache-Control", FOREVER if forever else "private, no-cache")
            if self.check_etag_header():
                self.clear_header("Content-Encoding")
                self.set_status(304)
                self.finish()
                return
        self.finish(body)

    def compute_etag(self) -> str | None:
        return None

    def has_it(self, mark: str) -> bool:
        """Tell whether the browser says that it has a content, so that it need not be made."""
        return f'"{mark}"' in self.request.headers.get("If-None-Match", "")

    def _take_token(self) -> None:
        """Turn the token of a link into a cookie, and take it out of the address; a request without it ends here."""
        gate = self.desk.gate
        if self.request.method != "GET" or not gate.knows_token(self.get_query_argument("token", None)):
            raise HTTPError(403, reason="Open the link that wsi-meta view printed; it holds the token")
        self.set_cookie(gate.cookie, gate.token or "", httponly=True, samesite="Lax", path="/")
        self.redirect(self.request.path)


class Nothing(_Handler):
    def prepare(self) -> None:
        super().prepare()
        if not self._finished:
            raise HTTPError(404, reason="There is no such thing")


class Front(_Handler):
    async def get(self) -> None:
        shelf = self.desk.shelf
        if alone := await self.in_thread(lambda: None if shelf.has_list else next(iter(shelf.stores), None)):
            self.redirect(f"/s/{alone}")
        else:
            self.send(self.desk.assets.list_page, "text/html; charset=utf-8")


class Page(_Handler):
    async def get(self, key: str) -> None:
        await self.in_thread(lambda: self.desk.shelf.find(key))
        self.send(self.desk.assets.map_page, "text/html; charset=utf-8")


class List(_Handler):
    async def get(self) -> None:
        shelf = self.desk.shelf
        stores = await self.in_thread(lambda: [list_facts(store) for store in shelf.stores.values()])
        left_out = await self.in_thread(lambda: [left_out_facts(row) for row in shelf.left_out()])
        facts = {"stores": stores, "left_out": left_out, "report": await self.in_thread(shelf.report) is not None}
        self.send(json.dumps(facts), "application/json")


class MapFacts(_Handler):
    async def get(self, key: str) -> None:
        state = await self.in_thread((await self.shown(key)).map.state)
        shown = await self.shown(key, state.heatmap.record)
        facts = map_facts(state) | {"slide": slide_facts(shown.tiles, shown.slide_told)}
        facts |= await self.in_thread(lambda: self.desk.shelf.surroundings(key))
        self.send(json.dumps(facts), "application/json")


class Version(_Handler):
    async def get(self, key: str) -> None:
        shown = await self.shown(key)
        version, unread = (
            await self.in_thread(lambda: version_of(shown.map.path)),
            shown.tiles is not None and shown.tiles.unread,
        )
        self.send(json.dumps({"version": version, "unread": unread}), "application/json")


class Map(_Handler):
    async def get(self, key: str, version: str) -> None:
        state = await self.state_of(key, version)
        self.set_header("Content-Encoding", "gzip")
        self.send(state.packed, "application/octet-stream", mark=version)


class Lesions(_Handler):
    async def get(self, key: str, version: str, asked: str) -> None:
        if not 0 < float(asked) <= 1:
            raise HTTPError(400, reason="A threshold is more than 0 and at most 1")
        state = await self.state_of(key, version)
        threshold = state.nearest_threshold(float(asked))
        found = await self.in_thread(lambda: json.dumps(state.lesions(threshold)))
        self.send(found, "application/json", mark=f"{version}-{threshold!r}")


class Tile(_Handler):
    async def get(self, key: str, mark: str, level: str, col: str, row: str) -> None:
        if (tiles := (await self.shown(key)).tiles) is None or tiles.mark != mark:
            raise HTTPError(404, reason="There is no such slide")
        name = f"{mark}-{level}-{col}-{row}"
        place = int(level), int(col), int(row)
        body, damaged = (b"", False) if self.has_it(name) else await self.in_thread(lambda: tiles.jpeg(*place))
        self.send(body, "image/jpeg", mark=None if damaged else name, forever=True)


class MapCorrections(_Handler):
    async def get(self, key: str) -> None:
        state = (await self.shown(key)).map
        found = await self.in_thread(lambda: read_corrections(state.state().heatmap))
        self.send(json.dumps(found.to_dict()), "application/json")

    async def put(self, key: str) -> None:
        if self.request.headers.get("Content-Type", "").partition(";")[0] != "application/json":
            raise HTTPError(415, reason="Corrections are JSON")
        shown = await self.shown(key)
        try:
            heatmap = await self.in_thread(lambda: shown.map.state().heatmap)
            parts = from_json(self.request.body)
            given = Corrections.from_dict(parts, heatmap.grid)
        except ValueError as error:
            raise HTTPError(400, reason=_as_reason(error)) from error
        if parts.get("slide") != slide_scanned(heatmap):
            raise HTTPError(409, reason="Drawn on another slide than the one that the map is of now; load the page again")
        saved = await self.in_thread(lambda: write_corrections(heatmap, given))
        self.send(json.dumps(saved.to_dict()), "application/json")


class Static(_Handler):
    def get(self, name: str) -> None:
        if (asset := self.desk.assets.files.get(name)) is None:
            raise HTTPError(404, reason="There is no such file")
        self.send(asset.content, asset.kind, mark=asset.mark)


class Report(_Handler):
    async def get(self) -> None:
        if (found := await self.in_thread(self.desk.shelf.report)) is None:
            raise HTTPError(404, reason="There is no worklist")
        self.set_header("Content-Security-Policy", REPORT_POLICY)
        self.send(found, "text/html; charset=utf-8")


class Thumbnail(_Handler):
    def decode_argument(self, value: bytes, name: str | None = None) -> str:  # noqa: ARG002  (tornado names it)
        return os.fsdecode(value)  # a file's name may be no UTF-8

    async def get(self, name: str) -> None:
        found = await self.in_thread(lambda: self.desk.shelf.thumbnail(name))
        if found is None:
            raise HTTPError(404, reason="There is no such picture")
        self.send(found, "image/jpeg")


REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' data:; connect-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The worklist is one file with its scripts and styles in it; it may load its pictures, and ask for nothing else."""


def _is_from_elsewhere(request: HTTPServerRequest) -> bool:
    """Tell whether a browser says that another site asks, other than by a link that someone followed."""
    site, mode = request.headers.get("Sec-Fetch-Site"), request.headers.get("Sec-Fetch-Mode")
    return site in ("cross-site", "same-site") and not (mode == "navigate" and request.method == "GET")


def _as_reason(error: Exception) -> str:
    """Return an error as the line that ends a request: of letters that a header may hold."""
    return one_line(error).encode("ascii", "replace").decode()[:300]
