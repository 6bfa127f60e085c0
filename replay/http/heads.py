"""Where requests' heads begin and end in the bytes of a connection.

The parser says which requests have come, but not whether a part of another one is after them, which has a limit of
time and of size, and which nobody else could answer. Told here from the bytes: a head ends with the first empty line,
and what it announces says how much of the rest is its body. An empty line in front of a request begins none (RFC 9112,
2.2).
"""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp.http import RawRequestMessage

_END = b"\r\n\r\n"
_SPLIT = len(_END) - 1
_EMPTY = b"\r\n"


class Heads:
    """Counts the bytes of a head that has begun and not ended."""

    def __init__(self) -> None:
        self.unfinished: int | None = 0  # None where it cannot be said
        self._last = b""  # of what has come; the end of a head may be split between it and what comes next
        self._body: int | None = 0  # bytes to come of the last request's body; None where it cannot be said
        self._ends_with_empty_line = True  # the last request, be it with its head or with a body in chunks

    def take(
        self, data: bytes, requests: Iterable[RawRequestMessage] = (), *, within_body: bool = False, ended: bool = True
    ) -> None:
        """Take what has come.

        ``requests`` are those whose heads end in it. ``within_body`` is whether the body of the one before them went
        on, ``ended`` whether the last of all is here with its body.
        """
        if not within_body:
            self._body = 0
        rest = self._after_body(data)
        for request in requests:
            rest = self._after_head(rest)
            self._body = None if request.chunked else int(request.headers.get("Content-Length", 0))
            self._ends_with_empty_line = not self._body
            rest = self._after_body(rest)
        if rest is None and ended and self._ends_with_empty_line:
            head = self._last + data  # and no part of a head has an empty line in it
            rest = _after(head, head.rfind(_END))
        self._begin(rest)
        self._last = (self._last + data[-_SPLIT:])[-_SPLIT:]

    def lose(self) -> None:
        """Forget where this stands, since somebody else read what came."""
        self.unfinished = None

    def _after_body(self, data: bytes | None) -> bytes | None:
        if data is None or self._body is None:
            self._body = None
            return None
        count = min(self._body, len(data))
        self._body -= count
        return data[count:]

    def _after_head(self, data: bytes | None) -> bytes | None:
        if data is None or self.unfinished is None:
            return None
        head = self._last + data if self.unfinished else data.lstrip(_EMPTY)
        self.unfinished = 0
        return _after(head, head.find(_END))

    def _begin(self, rest: bytes | None) -> None:
        if rest is None:
            self.unfinished = None
        elif self.unfinished:
            self.unfinished += len(rest)
        else:
            self.unfinished = len(rest.lstrip(_EMPTY))


def _after(data: bytes, end: int) -> bytes | None:
    return None if end < 0 else data[end + len(_END) :]
