"""The dashboard as tests read it, and answers that have more to show than text."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from support.browser import Tab
from support.deadlines import eventually
from support.upstream import Call

Open = Callable[..., Awaitable[Tab]]

# A browser says itself, on the console, that a server was not there or had nothing, or that a head was cut in the
# middle of its content type; no page can keep it from that.
BROWSERS_OWN = ("Failed to load resource", "EventSource's response has a MIME type")

# How the page is read: by the parts that its own script fills.
TEXT = "document.querySelector('[data-part=text]')?.textContent === wanted"
STANDING = "document.querySelector('[data-part=standing]')?.textContent.startsWith(wanted)"
STATUS = "document.querySelector('[data-part=status]')?.textContent === wanted"
PLAYABLE = "document.querySelector('[data-part=player]')?.hidden === false"


async def think(call: Call, text: str) -> None:
    """Send a piece of reasoning."""
    await call.send(call.chunk({"delta": {"reasoning_content": text}}))


async def call_tool(call: Call, name: str, *fragments: str, index: int = 0) -> None:
    """Send a tool call, its arguments in pieces."""
    opening = {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": ""}}
    await call.send(call.chunk({"delta": {"tool_calls": [opening]}}))
    for fragment in fragments:
        piece = {"index": index, "function": {"arguments": fragment}}
        await call.send(call.chunk({"delta": {"tool_calls": [piece]}}))


async def rows(tab: Tab) -> list[tuple[str, str]]:
    """Id and status of the rows that are shown, in their order."""
    found = await tab.page.evaluate(
        """[...document.querySelectorAll('.rows .row:not([hidden])')].map(
             (row) => [row.querySelector('a').textContent, row.querySelector('.chip').textContent])"""
    )
    return [(id, status) for id, status in found]


async def shows_rows(tab: Tab, *expected: tuple[str, str]) -> None:
    """Wait until these rows are shown, in this order."""
    await eventually(f"the rows {expected}", lambda: rows(tab), lambda found: found == list(expected))
