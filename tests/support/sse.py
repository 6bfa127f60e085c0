"""An `EventSource` written from the WHATWG rules alone, to hold the service's own encoder against.

`Parser` is section 9.2.6 ("Interpreting an event stream"), `EventSourceClient` is 9.2.2 and 9.2.3: it
dispatches only complete events, comes back by itself with `Last-Event-ID` when a connection is cut *or*
ends, and is closed for good by any status but 200 and by any other content type.

One liberty, which every browser takes: a new connection starts with the last event id of the one
before, so that an event without `id:` does not take the cursor back.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

from support.deadlines import DEADLINE_S, within
from support.http1 import Answer, Stream, open_stream

CONNECTING, OPEN, CLOSED = 0, 1, 2

_LINE_END = re.compile(r"\r\n|\r|\n")
_DIGITS = re.compile(r"[0-9]+")


class Message(NamedTuple):
    """One dispatched event."""

    event: str  # "message" where the stream names none
    data: str
    last_event_id: str  # what the cursor is after it, own `id:` or not

    def json(self) -> Any:
        return json.loads(self.data)


class Parser:
    """Bytes in, complete events out; comments and `retry` are kept aside."""

    def __init__(self, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        self.retry_ms: int | None = None
        self.comments: list[str] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = True
        self._after_cr = False
        self._line = ""
        self._clear()

    def _clear(self) -> None:
        self._data = ""
        self._event = ""

    def parse(self, data: bytes) -> list[Message]:
        """The events that these bytes complete."""
        text = self._decoder.decode(data)
        if text and self._at_start:
            text = text.removeprefix("\ufeff")
            self._at_start = False
        if self._after_cr and text:
            text = text.removeprefix("\n")  # the other half of a CRLF whose line is already done
            self._after_cr = False
        if text.endswith("\r"):
            self._after_cr = True
        *lines, rest = _LINE_END.split(self._line + text)
        self._line = rest
        return [message for line in lines if (message := self._take(line)) is not None]

    def _take(self, line: str) -> Message | None:
        if not line:
            return self._dispatch()
        name, colon, value = line.partition(":")
        if not name and colon:
            self.comments.append(value)
            return None
        value = value.removeprefix(" ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._data += value + "\n"
        elif name == "id" and "\0" not in value:
            self.last_event_id = value
        elif name == "retry" and _DIGITS.fullmatch(value):
            self.retry_ms = int(value)
        return None

    def _dispatch(self) -> Message | None:
        event, data = self._event, self._data
        self._clear()
        if not data:
            return None
        return Message(event or "message", data.removesuffix("\n"), self.last_event_id)


@dataclass
class Connection:
    """One try of an `EventSourceClient`."""

    asked_after: str  # the Last-Event-ID it sent, "" for none
    status: int | None = None  # None where no response came
    content_type: str = ""
    clean: bool | None = None  # how it ended; None while it goes on


class SourceClosed(AssertionError):
    """The source is closed for good, and the awaited event had not come."""


class EventSourceClient:
    """`new EventSource(url)`: use as an async context manager.

    `events` is everything dispatched so far; `next` and `event` walk through it.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        last_event_id: str = "",
        retry_ms: int = 100,  # until the stream says something else
    ) -> None:
        self.url = url
        self.ready_state = CONNECTING
        self.last_event_id = last_event_id
        self.retry_ms = retry_ms
        self.events: list[Message] = []
        self.comments: list[str] = []
        self.connections: list[Connection] = []
        self._headers = {"Accept": "text/event-stream", "Cache-Control": "no-store", **(headers or {})}
        self._taken = 0
        self._changed = asyncio.Event()
        self._stream: Stream | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> EventSourceClient:
        self._task = asyncio.create_task(self._run(), name=f"EventSource {self.url}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """`close()`: the client has had enough."""
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def cut(self) -> None:
        """Lose the connection, as in a tunnel; the client comes back by itself."""
        if self._stream is not None:
            self._stream.hang_up()

    async def next(self, seconds: float = DEADLINE_S) -> Message:
        """The next event that has not been taken yet."""
        await self._wait("an event", lambda: self._taken < len(self.events), seconds)
        self._taken += 1
        return self.events[self._taken - 1]

    async def event(self, name: str, seconds: float = DEADLINE_S) -> Message:
        """The next event of this name; those before it are passed over."""
        while True:
            message = await self.next(seconds)
            if message.event == name:
                return message

    async def opened(self, seconds: float = DEADLINE_S) -> None:
        """Wait until a connection stands."""
        await self._wait("an open connection", lambda: self.ready_state == OPEN, seconds)

    async def connected(self, times: int, seconds: float = DEADLINE_S) -> None:
        """Wait until the source has tried to connect so many times."""
        await self._wait(f"connection {times}", lambda: len(self.connections) >= times, seconds)

    async def closed(self, seconds: float = DEADLINE_S) -> Connection:
        """Wait until the source is closed for good; the connection that did it."""
        await self._wait("to be closed for good", lambda: self.ready_state == CLOSED, seconds)
        return self.connections[-1]

    @property
    def received(self) -> list[Message]:
        """The events of the log; without those about the connection, which are no part of it."""
        return [event for event in self.events if event.event not in ("live", "reset", "expired")]

    async def _wait(self, what: str, met: Any, seconds: float) -> None:
        async def until_met() -> None:
            while not met():
                if self.ready_state == CLOSED:
                    raise SourceClosed(f"closed by {self.connections[-1]} while waiting for {what}; got {self.events}")
                self._changed.clear()
                await self._changed.wait()

        await within(f"{self.url}: {what}", until_met(), seconds)

    async def _run(self) -> None:
        try:
            while await self._connect():
                self._become(CONNECTING)
                await asyncio.sleep(self.retry_ms / 1000)
        finally:
            self.cut()
            self._become(CLOSED)

    async def _connect(self) -> bool:
        """One connection, to its end; whether to try again."""
        connection = Connection(self.last_event_id)
        self.connections.append(connection)
        self._changed.set()
        cursor = {"Last-Event-ID": self.last_event_id} if self.last_event_id else {}
        try:
            self._stream = await open_stream(self.url, headers=self._headers | cursor)
        except OSError:
            return True  # a network error is a reason to come back
        connection.status = self._stream.status
        connection.content_type = self._stream.headers.get("content-type", "")
        if connection.status != 200 or connection.content_type.partition(";")[0].strip() != "text/event-stream":
            return False
        self._become(OPEN)
        await self._consume(self._stream)
        connection.clean = self._stream.clean
        return True

    async def _consume(self, stream: Stream) -> None:
        parser = Parser(self.last_event_id)
        parser.comments = self.comments
        while piece := await stream.read():
            for message in parser.parse(piece):
                self.events.append(message)
                self.last_event_id = message.last_event_id
            self.retry_ms = self.retry_ms if parser.retry_ms is None else parser.retry_ms
            self._changed.set()

    def _become(self, state: int) -> None:
        self.ready_state = state
        self._changed.set()


def messages(body: bytes, last_event_id: str = "") -> list[Message]:
    """The events of a whole body."""
    return Parser(last_event_id).parse(body)


async def read_stream(url: str, headers: Mapping[str, str] | None = None, seconds: float = DEADLINE_S) -> Answer:
    """One connection read to its end: exactly the bytes that came, and whether the end was clean."""
    stream = await open_stream(url, headers={"Accept": "text/event-stream", **(headers or {})}, seconds=seconds)
    return await stream.to_end(seconds)


@contextlib.asynccontextmanager
async def streaming(url: str, headers: Mapping[str, str] | None = None, **options: Any) -> AsyncIterator[Stream]:
    """One connection, read by hand."""
    stream = await open_stream(url, headers={"Accept": "text/event-stream", **(headers or {})}, **options)
    try:
        yield stream
    finally:
        stream.hang_up()
