"""A real Chromium, and what a page's `EventSource` goes through, told by the browser itself."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from playwright.async_api import BrowserContext, ConsoleMessage, Error, Page, TimeoutError, async_playwright

from support.deadlines import DEADLINE_S, DeadlineMissed

INSTALL = "apt-get install --no-install-recommends chromium"

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

CONNECTING, OPEN, CLOSED = 0, 1, 2

# Listens beside the page to every native EventSource that the page makes; the page does not know.
_WATCH = """
window.seen = [];
window.EventSource = class extends EventSource {
  constructor(...args) {
    super(...args);
    window.watched = this;
    const see = (event) => seen.push([event.type, event.lastEventId ?? "", event.data ?? "", this.readyState]);
    const ours = ["start", "token", "delta", "live", "reset", "snapshot", "expired", "end"];
    for (const name of ["open", "error", "message", ...ours]) this.addEventListener(name, see);
  }
};
"""


class Seen(NamedTuple):
    """One thing that happened to the page's EventSource."""

    name: str  # of an event of the stream, or open, or error
    last_event_id: str  # as the browser has it at that moment
    data: str
    ready_state: int


class Tab:
    """A page that shows one generation, in elements `text` and `outcome`."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []  # on the console, beside those about the network
        self.network_errors: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    async def shows(self, text: str, seconds: float = DEADLINE_S) -> None:
        """Wait until this is the text, exactly."""
        await self._until("window.text?.textContent === wanted", text, seconds)

    async def ended(self, outcome: str, seconds: float = DEADLINE_S) -> None:
        """Wait until the page says how the generation ended."""
        await self._until("window.outcome?.textContent === wanted", outcome, seconds)

    async def becomes(self, ready_state: int, seconds: float = DEADLINE_S) -> None:
        """Wait until the EventSource is in this state."""
        await self._until("window.watched?.readyState === wanted", ready_state, seconds)

    async def failed(self, times: int, seconds: float = DEADLINE_S) -> None:
        """Wait until this page load has had so many errors."""
        await self._until("seen.filter(([name]) => name === 'error').length >= wanted", times, seconds)

    async def seen(self, *names: str) -> list[Seen]:
        """What has happened since the page was loaded, or of that only what has one of these names."""
        everything = [Seen(*row) for row in await self.page.evaluate("seen")]
        return [each for each in everything if not names or each.name in names]

    async def until(self, condition: str, wanted: Any = None, seconds: float = DEADLINE_S) -> None:
        """Wait until this expression of JavaScript, which may speak of `wanted`, is true."""
        try:
            await self.page.wait_for_function(
                f"(wanted) => {condition}", arg=wanted, timeout=seconds * 1000, polling=20
            )
        except TimeoutError:
            shown = (await self.page.inner_text("body"))[-2000:]
            raise DeadlineMissed(
                f"not within {seconds:g} s: {condition}, wanted {wanted!r}; the page:\n{shown}"
            ) from None

    async def _until(self, condition: str, wanted: Any, seconds: float) -> None:
        try:
            await self.page.wait_for_function(
                f"(wanted) => {condition}", arg=wanted, timeout=seconds * 1000, polling=20
            )
        except TimeoutError:
            shown = await self.page.evaluate("[window.text?.textContent, window.outcome?.textContent, seen.slice(-9)]")
            raise DeadlineMissed(f"not within {seconds:g} s: {condition}, wanted {wanted!r}; now {shown}") from None

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        from_network = message.text.startswith("Failed to load resource: net::ERR_")
        (self.network_errors if from_network else self.complaints).append(message.text)


@contextlib.asynccontextmanager
async def chromium(*flags: str, watch: bool = True, **options: Any) -> AsyncIterator[BrowserContext]:
    """A fresh browser; without Chromium the test fails, since a skipped browser is a browser nobody has tried.

    With `watch`, every page's EventSource is listened to; flags are Chromium's, options those of a Playwright context.
    """
    program = shutil.which("chromium")
    assert program, f"chromium is not installed; on Debian, as root: {INSTALL}"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=[*FLAGS, *flags])
        try:
            context = await browser.new_context(**options)
            if watch:
                await context.add_init_script(_WATCH)
            yield context
        finally:
            with contextlib.suppress(Error):  # it has crashed, and the test has failed for that already
                await browser.close()


async def open_tab(context: BrowserContext, url: str) -> Tab:
    """A new tab with this page."""
    tab = Tab(await context.new_page())
    await tab.page.goto(url)
    return tab
