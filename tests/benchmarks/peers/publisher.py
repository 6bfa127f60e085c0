"""One kept-alive connection for requests that are answered in order, so that many may be on their way at once.

The publisher must not be what is measured: some ten microseconds a request, and no round trip between two.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, cast

_ANSWER_S = 60.0  # a server that is flooded with subscribers answers late

# Where the answer that begins here ends, None while it is not whole; raises Refused for an answer that is no yes.
Answer = Callable[[bytes, int], int | None]


class Refused(Exception):
    """A server did not take what was published, or went away."""


class _Waiting(NamedTuple):
    answered: asyncio.Future[None]
    answers: int  # of the whole connection, once this one has all of its own


class Publisher(asyncio.Protocol):
    """The connection, as an async context manager."""

    def __init__(self, port: int, answer: Answer) -> None:
        self._port = port
        self._answer = answer
        self._transport: asyncio.Transport
        self._unread = b""
        self._asked = self._answered = 0
        self._waiting: deque[_Waiting] = deque()
        self._gone: Refused | None = None

    async def __aenter__(self) -> Publisher:
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._transport.abort()

    async def ask(self, requests: bytes, answers: int = 1) -> None:
        """Send requests, and wait for as many answers; raises Refused if one of them says no, and ever after."""
        if self._gone:
            raise self._gone
        self._asked += answers
        answered = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(answered, self._asked))
        self._transport.write(requests)
        async with asyncio.timeout(_ANSWER_S):
            await answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        unread, place = self._unread + data, 0
        try:
            while (end := self._answer(unread, place)) is not None:
                self._answered += 1
                place = end
        except Refused as refused:
            self._give_up(refused)
        self._unread = unread[place:]
        while self._waiting and self._waiting[0].answers <= self._answered:
            self._tell(self._waiting.popleft())

    def connection_lost(self, exc: Exception | None) -> None:
        self._give_up(Refused(f"the server closed the connection: {exc or 'no reason'}"))

    def _give_up(self, refused: Refused) -> None:
        self._gone = self._gone or refused
        self._transport.abort()
        while self._waiting:
            self._tell(self._waiting.popleft())

    def _tell(self, waiting: _Waiting) -> None:
        if waiting.answered.done():  # whoever waited has been cancelled
            return
        if waiting.answers <= self._answered:
            waiting.answered.set_result(None)
        else:
            waiting.answered.set_exception(self._gone or Refused("no answer"))


_STATUS = re.compile(rb"HTTP/1\.[01] 2\d\d ")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked\r\n", re.IGNORECASE)
_LAST_CHUNK = b"0\r\n\r\n"


def http_answer(data: bytes, begin: int) -> int | None:
    """An HTTP response of a length that it names, or with no body, or with one in chunks."""
    head_end = data.find(b"\r\n\r\n", begin) + 4
    if head_end < 4:
        return None
    if not _STATUS.match(data, begin):
        raise Refused(f"expected a status of 2xx, got {data[begin : begin + 500]!r}")
    if _CHUNKED.search(data, begin, head_end):
        # From the line end before it, since a chunk of text may end as the last one does.
        last = data.find(b"\r\n" + _LAST_CHUNK, head_end - 2)
        return last + 2 + len(_LAST_CHUNK) if last >= 0 else None
    length = _LENGTH.search(data, begin, head_end)
    end = head_end + (int(length[1]) if length else 0)
    return end if end <= len(data) else None


def resp_answer(data: bytes, begin: int) -> int | None:
    """A Redis reply of one line, such as the number of subscribers that PUBLISH gives."""
    end = data.find(b"\r\n", begin) + 2
    if end < 2:
        return None
    if data[begin : begin + 1] not in (b":", b"+"):
        raise Refused(f"expected an integer or a status, got {data[begin:end]!r}")
    return end


def resp_command(*words: bytes) -> bytes:
    """A Redis command."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
