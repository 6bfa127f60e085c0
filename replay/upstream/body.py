"""Reads the body of an upstream's answer, which may be silent, cut, or no HTTP any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import aiohttp


class Unreadable(Exception):
    """The connection was given up in the middle of a body, over bytes that are no HTTP."""


class Silent(Exception):
    """Nothing of a body has come for too long."""


async def read_body(response: aiohttp.ClientResponse, idle_timeout_s: float) -> AsyncIterator[bytes]:
    """The pieces of a body; raises Silent, Unreadable and aiohttp's errors.

    What its reader takes for itself is not the upstream's silence. The limit is looked at when it may be over, and not
    with each piece, which would cost 8 % of a chunk.
    """
    content, loop = response.content, asyncio.get_running_loop()
    waiting_since: float | None = None
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal timer
        since = loop.time() if waiting_since is None else waiting_since
        if since + idle_timeout_s > loop.time():
            timer = loop.call_at(since + idle_timeout_s, look)
        else:
            content.set_exception(Silent())

    timer = loop.call_later(idle_timeout_s, look)
    try:
        with _woken(response):
            while True:
                waiting_since = loop.time()
                piece = await content.readany()
                waiting_since = None
                if not piece:
                    return
                yield piece
    finally:
        timer.cancel()


@contextmanager
def _woken(response: aiohttp.ClientResponse) -> Iterator[None]:
    """Wakes the reader of a body when its connection is gone without a word.

    When bytes that are no HTTP come in the middle of a body, aiohttp (3.13 to 3.14.5) closes the connection and tells
    nobody.
    """
    content = response.content
    protocol = response.connection.protocol if response.connection is not None else None
    closed = protocol.closed if protocol is not None else None

    def wake(closed: asyncio.Future[None] | None) -> None:
        if closed is not None and not closed.cancelled():
            closed.exception()  # or it is reported as one that nobody has seen
        if not content.is_eof() and content.exception() is None:
            content.set_exception(Unreadable("the connection was closed over bytes that are no HTTP"))

    if closed is None:
        wake(None)
        yield
        return
    closed.add_done_callback(wake)
    try:
        yield
    finally:
        closed.remove_done_callback(wake)  # the connection may serve many more answers
