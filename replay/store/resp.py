"""Commands and replies on one established connection, in Valkey's protocol (RESP2).

libvalkey packs the commands and parses the replies; what is said here is which reply belongs to which command.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import libvalkey

from replay.errors import StoreRefused, StoreUnavailable

logger = logging.getLogger(__name__)

# What an operator should be told, by the first word of Valkey's error.
_REFUSALS = {
    "OOM": "Valkey is full: raise its maxmemory, or shorten --ttl-s",
    "MISCONF": "Valkey cannot write its files: look at its disk (--data-dir, where the node runs its own)",
    "READONLY": "Valkey is a read-only replica: --valkey-url has to name the primary",
    "NOAUTH": "Valkey asks for a password: put it into --valkey-url",
    "WRONGPASS": "Valkey refuses the user or the password in --valkey-url",
    "NOPERM": "Valkey's ACL does not let the user in --valkey-url do this",
    "NOSCRIPT": "Valkey does not know the script",
    "LOADING": "Valkey is still reading its file",
    "MASTERDOWN": "Valkey is a replica that has lost its primary",
    "CLUSTERDOWN": "the Valkey cluster is down",
    "TRYAGAIN": "the Valkey cluster is moving a slot",
    "BUSY": "Valkey is busy with a script",
    "MOVED": "Valkey is in cluster mode: --valkey-url has to name a server with cluster-enabled no",
}


class ConnectionLost(StoreUnavailable):
    """The connection was cut before the reply came; nobody knows whether the command was carried out."""


class ReadOnly(StoreRefused):
    """Valkey is a replica."""


class NotPermitted(StoreRefused):
    """Valkey's ACL does not let this user do it."""


class UnknownScript(StoreUnavailable):
    """Valkey does not know the script; nothing was done."""


# By itself, at the end of a transaction, or in a script, as Valkey 9 and 8 say it.
_NO_RIGHT = re.compile("^(EXECABORT .*)?NOPERM|^ERR (ACL failure in script|The user executing the script can't)")
_NOT_NOW = ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY")
_KINDS = {
    "NOSCRIPT": UnknownScript,
    "READONLY": ReadOnly,
    "NOPERM": NotPermitted,
    **dict.fromkeys(_NOT_NOW, StoreUnavailable),
}


class Wire(asyncio.Protocol):
    """One established connection: packs commands, matches replies."""

    def __init__(self, on_push: Callable[[list[Any]], None] | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_push = on_push
        self._reader = libvalkey.Reader(replyError=_translate)
        self._replies: deque[asyncio.Future[Any]] = deque()
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._pushing = False
        self._given_up = False
        self.waiting_since: float | None = None  # loop time of the last sign of life while replies are due
        self.lost = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        kind = StoreUnavailable if self._given_up else ConnectionLost
        for reply in self._replies:
            if not reply.done():
                reply.set_exception(kind("the connection to Valkey was lost", aside=str(exc or "closed")))
                reply.exception()  # seen: whoever made the call may be gone
        self._replies.clear()
        if not self.lost.done():
            self.lost.set_result(None)

    def call(self, *args: bytes | str | int) -> asyncio.Future[Any]:
        reply: asyncio.Future[Any] = self._loop.create_future()
        if self._transport is None:
            reply.set_exception(ConnectionLost("the connection to Valkey was lost"))
            return reply
        self._send(args)
        if not self._replies:
            self.waiting_since = self._loop.time()
        self._replies.append(reply)
        return reply

    def push(self, *args: bytes | str | int) -> None:
        """Send a command whose answer is a push; from now on an error answers such a command."""
        self._pushing = True
        self._send(args)

    def _send(self, args: tuple[bytes | str | int, ...]) -> None:
        command = libvalkey.pack_command(args)
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(command)

    def _flush(self) -> None:
        """Write in one go what was asked for in this turn of the loop."""
        unsent, self._unsent = self._unsent, []
        if self._transport is not None:
            self._transport.write(b"".join(unsent))

    def data_received(self, data: bytes) -> None:
        try:
            self._answered(data)
        except (libvalkey.ProtocolError, IndexError, TypeError) as error:
            # No protocol, a reply that nobody waits for, a push that is none: nothing after it can be trusted.
            logger.warning("valkey does not speak its protocol", extra={"reason": f"{type(error).__name__}: {error}"})
            self.abort()

    def _answered(self, data: bytes) -> None:
        reader, replies = self._reader, self._replies
        reader.feed(data)
        while (answer := reader.gets()) is not False:
            if self._pushing and isinstance(answer, Exception):
                self._pushed([b"error", answer])
                continue
            if self._on_push is not None and type(answer) is list and answer[0] != b"pong":
                self._pushed(answer)
                continue
            reply = replies.popleft()
            if reply.done():  # its caller has gone
                continue
            if isinstance(answer, Exception):
                reply.set_exception(answer)
                if isinstance(answer, StoreRefused):
                    reply.exception()
                if isinstance(answer, ReadOnly):
                    self.abort()  # it was the primary once; a new connection finds the one that is now
            else:
                reply.set_result(answer)
        self.waiting_since = self._loop.time() if replies else None

    def _pushed(self, push: list[Any]) -> None:
        try:
            assert self._on_push is not None, "only the link of the channels subscribes"
            self._on_push(push)
        except Exception:  # one listener's trouble is not the others'
            logger.exception("a push could not be handled")

    def abort(self) -> None:
        """Give the connection up."""
        self._given_up = True
        if self._transport is not None:
            self._transport.abort()


def _translate(message: str) -> StoreUnavailable:
    word = "NOPERM" if _NO_RIGHT.search(message) else message.split(" ", 1)[0]
    kind = _KINDS.get(word, StoreRefused)
    return kind(_REFUSALS.get(word, "Valkey does not do what it is asked; this node's log says why"), aside=message)
