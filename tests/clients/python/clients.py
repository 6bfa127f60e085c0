"""Reads a generation with one of Python's libraries: `clients.py LIBRARY URL`. See ../libraries.py.

Each function is the lines that the library's users write. One that takes a cursor reads one connection, and `resuming`
opens the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import sysconfig
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

PAUSE_S = 0.1  # a second elsewhere: nobody else waits here


def show(id: str | None, event: str, data: str) -> bool:
    """Print an event; whether it was the last."""
    print(json.dumps([id or "", event, data]), file=sys.__stdout__, flush=True)
    return event == "end"


# Those that are exact by themselves.


def requests_sse(url: str) -> None:
    import requests_sse

    with requests_sse.EventSource(url, timeout=30) as source:
        for event in source:
            if show(event.last_event_id, event.type, event.data):
                return


def launchdarkly(url: str) -> None:
    from ld_eventsource import SSEClient
    from ld_eventsource.config import ErrorStrategy, RetryDelayStrategy

    client = SSEClient(
        url,
        initial_retry_delay=PAUSE_S,
        error_strategy=ErrorStrategy.always_continue(),
        retry_delay_strategy=RetryDelayStrategy.default(max_delay=2, backoff_multiplier=1, jitter_multiplier=0),
    )
    for event in client.events:
        if show(event.last_event_id, event.event, event.data):
            client.close()  # or it asks for ever
            return


async def launchdarkly_async(url: str) -> None:
    from ld_eventsource.async_client import AsyncSSEClient
    from ld_eventsource.config import ErrorStrategy, RetryDelayStrategy

    async with AsyncSSEClient(
        url,
        initial_retry_delay=PAUSE_S,
        error_strategy=ErrorStrategy.always_continue(),
        retry_delay_strategy=RetryDelayStrategy.default(max_delay=2, backoff_multiplier=1, jitter_multiplier=0),
    ) as client:
        async for event in client.events:
            if show(event.last_event_id, event.event, event.data):
                return  # which closes it: or it asks for ever


# Those that end with their connection.

Event = tuple[str | None, str, str]


def sseclient(url: str, cursor: str) -> Iterator[Event]:
    # It and sseclient-py are both called `sseclient` when they are imported; nobody else has both.
    path = Path(sysconfig.get_path("purelib")) / "sseclient.py"
    library = SourceFileLoader("the_other_sseclient", str(path)).load_module()

    for event in library.SSEClient(url, last_id=cursor):
        if event.data:  # of which the last line is the event's: in front of it may be what a cut left
            yield event.id, event.event, event.data.rpartition("\n")[2]


def sseclient_py(url: str, cursor: str) -> Iterator[Event]:
    import requests
    from sseclient import SSEClient

    with requests.get(url, stream=True, headers={"Last-Event-ID": cursor}, timeout=60) as answer:
        answer.raise_for_status()
        for event in SSEClient(answer).events():
            yield event.id, event.event, event.data


def httpx_sse(url: str, cursor: str) -> Iterator[Event]:
    import httpx
    from httpx_sse import connect_sse

    with (
        httpx.Client(timeout=httpx.Timeout(10, read=60)) as client,
        connect_sse(client, "GET", url, headers={"Last-Event-ID": cursor}) as source,
    ):
        source.response.raise_for_status()
        for event in source.iter_sse():
            yield event.id, event.event, event.data


def simple_sse_client(url: str, cursor: str) -> Iterator[Event]:
    from simple_sse_client import stream

    for event in stream(url, headers={"Last-Event-ID": cursor}, timeout=60):
        yield event.id, event.event, event.data


def assel(url: str, cursor: str) -> Iterator[Event]:
    import assel
    import requests

    with requests.get(url, stream=True, headers={"Last-Event-ID": cursor}, timeout=60) as answer:
        answer.raise_for_status()
        for event in assel.parse(answer.iter_content(None)):
            yield event.id, event.event, event.data


async def aiohttp_sse_client2(url: str, cursor: str) -> AsyncIterator[Event]:
    import aiohttp
    from aiohttp_sse_client2.client import EventSource

    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    async with EventSource(url, headers={"Last-Event-ID": cursor}, timeout=timeout) as source:
        async for event in source:
            yield event.last_event_id, event.type, event.data


async def aiosseclient(url: str, cursor: str) -> AsyncIterator[Event]:
    from aiosseclient import aiosseclient

    async for event in aiosseclient(url, last_id=cursor, raise_for_status=True, headers={}):
        yield event.id, event.event, event.data


def resuming(connect: Callable[[str, str], Iterator[Event]]) -> Callable[[str], None]:
    """Open the next connection after what has been shown, until the end."""

    def read(url: str) -> None:
        cursor = "-1"
        while True:
            with contextlib.suppress(OSError, *_errors()):
                for id, event, data in connect(url, cursor):
                    cursor = id or cursor
                    if show(id, event, data):
                        return
            time.sleep(PAUSE_S)

    return read


def resuming_async(connect: Callable[[str, str], AsyncIterator[Event]]) -> Callable[[str], Any]:
    """The same for an asynchronous one."""

    async def read(url: str) -> None:
        cursor = "-1"
        while True:
            with contextlib.suppress(OSError, *_errors()):
                async for id, event, data in connect(url, cursor):
                    cursor = id or cursor
                    if show(id, event, data):
                        return
            await asyncio.sleep(PAUSE_S)

    return read


def _errors() -> tuple[type[Exception], ...]:
    """What the HTTP libraries raise when a connection ends too early."""
    import aiohttp
    import httpx
    import urllib3

    return aiohttp.ClientError, httpx.TransportError, urllib3.exceptions.HTTPError


LIBRARIES = {
    "sseclient": resuming(sseclient),
    "sseclient-py": resuming(sseclient_py),
    "httpx-sse": resuming(httpx_sse),
    "aiohttp-sse-client2": resuming_async(aiohttp_sse_client2),
    "requests-sse": requests_sse,
    "launchdarkly-eventsource": launchdarkly,
    "launchdarkly-eventsource async": launchdarkly_async,
    "aiosseclient": resuming_async(aiosseclient),
    "simple-sse-client": resuming(simple_sse_client),
    "assel": resuming(assel),
}

if __name__ == "__main__":
    sys.stdout = sys.stderr  # sseclient prints the errors that it met
    read = LIBRARIES[sys.argv[1]]
    if asyncio.iscoroutinefunction(read):
        asyncio.run(read(sys.argv[2]))
    else:
        read(sys.argv[2])
