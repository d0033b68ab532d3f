"""A Chromium without a window, driven by its DevTools protocol: pages opened, asked, clicked and photographed."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tornado.websocket import WebSocketClientConnection, websocket_connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
WAIT_S = 30.0


def find_chromium() -> str | None:
    """The program, from ``WSI_META_CHROMIUM`` or the path; None where there is none."""
    given = os.environ.get("WSI_META_CHROMIUM")
    return given or next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """A page of the browser.

    Attributes
    ----------
    complaints : errors and warnings of its console, and exceptions
    asked : addresses that it asked for
    """

    def __init__(self, connection: WebSocketClientConnection, session: str) -> None:
        self._connection, self._session, self._number = connection, session, 0
        self.complaints: list[str] = []
        self.asked: list[str] = []

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; what the page tells meanwhile is kept."""
        self._number += 1
        call = {"id": self._number, "method": method, "params": parameters, "sessionId": self._session}
        await self._connection.write_message(json.dumps(call))
        while (answer := await self._next()).get("id") != self._number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    async def open(self, link: str, width: int = 1000, height: int = 640) -> None:
        """Load a page anew, and wait until it says that it is ready."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")
        await self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        await self.send("Page.navigate", url="about:blank")
        await self.send("Page.navigate", url=link)
        await self.until("document.body && document.body.dataset.ready === 'yes'")

    async def ask(self, expression: str) -> Any:
        """The value of an expression, waited for where it is a promise."""
        found = await self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        for _ in range(int(WAIT_S / 0.05)):
            if await self.ask(f"Boolean({expression})"):
                return
            await asyncio.sleep(0.05)
        raise TimeoutError(f"{expression}; the page complains of {self.complaints}")

    async def settle(self) -> None:
        """Wait until the slide is drawn and nothing moves."""
        await self.until(
            "WsiMeta.page.viewer.world.getItemCount() && WsiMeta.page.viewer.world.getItemAt(0).getFullyLoaded()"
            " && !WsiMeta.page.viewer.isAnimating()"
        )
        await self.ask("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    async def press(self, key: str) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            await self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" and len(key) == 1 else ""
            )

    async def click(self, x: float, y: float) -> None:
        """Click at a place of the window."""
        await self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            await self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def photograph(self, out: Path | None = None) -> NDArray[np.uint8]:
        """The window as pixels, uint8 (height, width, 3)."""
        shot = base64.b64decode((await self.send("Page.captureScreenshot", format="png"))["data"])
        if out is not None:
            out.write_bytes(shot)
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))

    async def _next(self) -> dict[str, Any]:
        message = await asyncio.wait_for(self._connection.read_message(), WAIT_S)
        if message is None:
            raise RuntimeError(f"the browser has ended; the page complains of {self.complaints}")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
        elif event.get("method") == "Log.entryAdded":
            self.complaints.append(f"{told['entry']['level']}: {told['entry']['text']} {told['entry'].get('url', '')}")
        elif event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        elif event.get("method") == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.complaints.append(" ".join(str(part.get("value", part.get("description"))) for part in told["args"]))


@asynccontextmanager
async def browser_tab() -> AsyncIterator[Tab]:
    """A new browser with one empty page; it ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [str(find_chromium()), *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            connection = await websocket_connect(await asyncio.to_thread(_address, process), max_message_size=256 << 20)
            yield await _new_tab(connection)
            connection.close()
            while await asyncio.wait_for(connection.read_message(), WAIT_S) is not None:
                pass
        finally:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


async def _new_tab(connection: WebSocketClientConnection) -> Tab:
    root = Tab(connection, "")

    async def call(number: int, method: str, **parameters: Any) -> dict[str, Any]:
        await connection.write_message(json.dumps({"id": -number, "method": method, "params": parameters}))
        while (answer := await root._next()).get("id") != -number:
            pass
        return dict(answer["result"])

    target = (await call(1, "Target.createTarget", url="about:blank"))["targetId"]
    return Tab(connection, (await call(2, "Target.attachToTarget", targetId=target, flatten=True))["sessionId"])


def _address(process: subprocess.Popen[str]) -> str:
    """The address that the browser prints when it is ready."""
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"DevTools listening on (ws://\S+)", line):
            return found[1]
    raise RuntimeError("the browser does not start")
