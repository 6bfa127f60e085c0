"""A connection that is written to as fast as its reader takes it, from the end of the request's headers on.

It is the protocol of its transport: once the request is answered, nothing of the HTTP server is needed any
more. When its transport holds more than the high-water mark it is full, and nothing is written until the transport
has drained, which has a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

from replay.live.counters import Counters
from replay.wire.framing import Framing

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Handover(NamedTuple):
    """A connection, and how it is given back for another request; None where it has to be closed in the end."""

    transport: asyncio.Transport
    give_back: Callable[[], None] | None


def cut(transport: asyncio.Transport, framing: Framing) -> None:
    """Close a connection so that its reader cannot take it for the end."""
    if framing.ends_by_closing:
        _reset_on_close(transport)
    transport.abort()


def _reset_on_close(transport: asyncio.Transport) -> None:
    """Make the next close a reset: where closing is the end, only that tells a cut from it."""
    with contextlib.suppress(OSError, AttributeError):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


class StreamConnection(asyncio.Protocol):
    """What all long-lived connections have in common; see `drained` and `left` for what differs."""

    __slots__ = ("_counters", "_deadline_s", "_full", "_give_back", "_handle", "_loop", "_transport", "framing")

    def __init__(self, counters: Counters, framing: Framing, *, deadline_s: float) -> None:
        self.framing = framing
        self._counters = counters
        self._deadline_s = deadline_s
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._give_back: Callable[[], None] | None = None
        self._full = False
        self._handle: asyncio.Handle | None = None  # a turn that was left to others, or the write deadline

    def _take(self, handover: Handover, buffer_bytes: int) -> None:
        """Take the connection over."""
        transport, self._give_back = handover
        self._transport = transport
        transport.set_protocol(self)
        transport.resume_reading()  # the server pauses it over a body that nobody reads
        transport.set_write_buffer_limits(high=buffer_bytes // 2)  # the rest is for the piece that passes it

    def write(self, data: bytes) -> None:
        """Hand bytes to the transport, which may tell at once that it is full."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _write_both(self, own: bytes, shared: bytes) -> None:
        """The same in one write for two pieces, of which the second is not copied."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines((own, shared))

    def abort(self) -> None:
        """Cut the connection so that the reader sees that this was not the end."""
        if self._transport is not None:
            cut(self._transport, self.framing)

    def _finish(self, *, clean: bool) -> None:
        """End the response; ``clean`` lets the reader take it for the end, and use the connection again."""
        assert self._transport is not None, "who has lost it has left"
        if clean:
            self.write(self.framing.end)
        elif self.framing.ends_by_closing:
            _reset_on_close(self._transport)
        self._cancel_timers()
        transport, self._transport = self._transport, None
        if clean and self._give_back is not None and not self._full:
            self._give_back()
        else:
            if clean:
                # What the reader is still sending would be answered with a reset, which may take the end from it; so it
                # is read, and leads nowhere, until the reader closes too (RFC 9112, 9.6).
                transport.write_eof()
            else:
                transport.close()
            # Either waits for the reader to take what is buffered, and this one may never do so.
            self._handle = self._loop.call_later(self._deadline_s, transport.abort)
        self.left()

    def drained(self) -> None:
        """Write on: there is room again."""

    def left(self) -> None:
        """Let go of what is followed: the reader has gone, or has everything. It may come twice."""

    def _leave_to_others(self) -> None:
        """Go on in the next turn of the loop."""
        if self._handle is None:
            self._handle = self._loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._handle = None
        self.drained()

    # What comes from the transport.

    def data_received(self, data: bytes) -> None:
        """Keep the connection from being given back: nobody reads what comes after the request."""
        self._give_back = None

    def pause_writing(self) -> None:
        """Write nothing more, and set the deadline: the transport is full."""
        if self._transport is None:
            return
        self._full = True
        self._cancel_timers()
        self._handle = self._loop.call_later(self._deadline_s, self._too_slow)

    def resume_writing(self) -> None:
        """Write on: the transport has drained."""
        self._full = False
        if self._transport is None or self._transport.is_closing():
            return
        self._cancel_timers()
        self.drained()

    def _too_slow(self) -> None:
        self._counters.slow_aborts += 1
        self.abort()

    def eof_received(self) -> bool:
        """Have the transport closed: the reader has hung up, and nobody will read what is still buffered."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything; a client leaving is the most ordinary thing that happens."""
        self._cancel_timers()
        self._transport = None
        self.left()

    def _cancel_timers(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None
