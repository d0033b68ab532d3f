"""A Chromium without a window, driven by Playwright: pages opened, asked, clicked and photographed."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    import playwright.async_api as driven

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = ["--disable-gpu", "--disable-quic", "--no-first-run"]
"""Beside Playwright's own, which keep the browser from asking anything of the network."""
WAIT_MS, POLL_MS = 60_000, 50


def find_chromium() -> str | None:
    """The program, from ``WSI_META_CHROMIUM`` or the path; None where there is none."""
    given = os.environ.get("WSI_META_CHROMIUM")
    return given or next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """A page of the browser.

    Attributes
    ----------
    page : Playwright's page
    complaints : errors and warnings of its console, and exceptions
    asked : addresses that it asked for
    """

    def __init__(self, page: driven.Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self._heard: tuple[tuple[str, Callable[[Any], None]], ...] = (
            ("request", lambda request: self.asked.append(request.url)),
            ("pageerror", lambda error: self.complaints.append(str(error))),
            ("console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None),
        )
        for event, hear in self._heard:
            page.on(event, hear)  # type: ignore[call-overload]

    async def leave(self) -> None:
        """Leave the page empty, as a new one is."""
        for event, hear in self._heard:
            self.page.remove_listener(event, hear)
        await self.page.mouse.move(-1, -1)
        await self.page.goto("about:blank")
        await self.page.context.clear_cookies()

    async def open(self, link: str) -> None:
        """Load a page anew, and wait until it says that it is ready."""
        await self.page.goto("about:blank")
        await self.page.goto(link)
        await self.until("document.body && document.body.dataset.ready === 'yes'")

    async def ask(self, expression: str) -> Any:
        """The value of an expression, waited for where it is a promise."""
        return await self.page.evaluate(expression)

    async def until(self, expression: str) -> None:
        """Wait until an expression is true; asked again and again, because the page's policy forbids what Playwright does."""
        for _ in range(WAIT_MS // POLL_MS):
            if await self.ask(f"Boolean({expression})"):
                return
            await self.page.wait_for_timeout(POLL_MS)
        raise TimeoutError(f"{expression}; the page complains of {self.complaints}")

    async def settle(self) -> None:
        """Wait until the slide is drawn and nothing moves."""
        await self.until(
            "WsiMeta.page.viewer.world.getItemCount() && WsiMeta.page.viewer.world.getItemAt(0).getFullyLoaded()"
            " && !WsiMeta.page.viewer.isAnimating()"
            # a move that was asked for starts with the next frame: the place is reached when it is the one that was asked for
            " && ((at, to) => ['x', 'y', 'width', 'height'].every((of) => Math.abs(at[of] - to[of]) < 1e-7 * to.width))"
            "(WsiMeta.page.viewer.viewport.getBounds(true), WsiMeta.page.viewer.viewport.getBounds(false))"
        )
        await self.ask("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    async def photograph(self, out: Path | None = None) -> NDArray[np.uint8]:
        """The window as pixels, uint8 (height, width, 3)."""
        return np.asarray(Image.open(io.BytesIO(await self.page.screenshot(path=out))).convert("RGB"))


class Browser:
    """A running browser. It belongs to one event loop, in which all that drives it has to run."""

    def __init__(self, browser: driven.Browser, runner: asyncio.Runner) -> None:
        self._browser, self._runner = browser, runner
        self._page: driven.Page | None = None

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the browser's loop, as ``asyncio.run`` does in a new one."""
        self._runner.run(work)

    @asynccontextmanager
    async def tab(self, width: int = 1000, height: int = 640) -> AsyncIterator[Tab]:
        """An empty page, of which nothing is left after the block.

        It is the page of the block before, whose processes run already, for half the time; after an error it is a new one.
        Pages of other tests have ports or folders of their own, so that neither storage nor cache is shared.
        """
        page, self._page = self._page or await self._new_page(), None
        await page.set_viewport_size({"width": width, "height": height})
        tab = Tab(page)
        try:
            yield tab
            await tab.leave()
            self._page = page
        finally:
            if self._page is None:
                await page.context.close()

    async def _new_page(self) -> driven.Page:
        page = await (await self._browser.new_context(reduced_motion="reduce")).new_page()
        page.set_default_timeout(WAIT_MS)
        return page


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A new browser without a page; it ends with the block."""
    from playwright.async_api import async_playwright  # here, because most tests need none

    with asyncio.Runner() as runner:
        playwright = runner.run(async_playwright().start())
        try:
            browser = runner.run(playwright.chromium.launch(executable_path=find_chromium(), args=OPTIONS, timeout=WAIT_MS))
            yield Browser(browser, runner)
            runner.run(browser.close())
        finally:
            runner.run(playwright.stop())
