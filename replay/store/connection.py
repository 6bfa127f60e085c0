"""One multiplexed connection to Valkey that is made again whenever it is lost.

Any number of tasks share it. Commands of one turn of the event loop leave in one write and are answered
in order, so a round trip carries as many as there are. A lost connection fails what is under way: whether
those commands were carried out is unknown, and only a question that changes nothing (`ask`) is sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from valkey.asyncio.connection import SSLConnection, UnixDomainSocketConnection, parse_url
from valkey.exceptions import ValkeyError

from replay.errors import InvalidSetting, StoreRefused, StoreUnavailable
from replay.store.resp import ConnectionLost, Wire

logger = logging.getLogger(__name__)

_OLDEST = (8, 0)
_DATABASE = re.compile(r"/?|/[0-9]{1,9}")
_SHORT_PAUSE_S = 0.1  # before connecting to a server that accepts and drops
_LONGEST_PAUSE_S = 1.0  # between two tries to connect
_GRACE_S = 1.0  # a call waits that long for a connection which has only just been lost


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Valkey server is, and how to be let in."""

    host: str
    port: int
    path: str | None
    database: int
    username: str | None
    password: str | None
    tls: ssl.SSLContext | None

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a valkey://, valkeys:// (also redis://, rediss://) or unix:// URL; raises InvalidSetting."""
        try:
            parts: dict[str, Any] = dict(parse_url(url))
            kind = parts.pop("connection_class", None)
            _check_path(parts.get("path"), url)
            tls = SSLConnection(**parts).ssl_context.get() if kind is SSLConnection else None
        except OSError as error:
            raise InvalidSetting("--valkey-url: a file that it names cannot be read", aside=str(error)) from error
        except (ValueError, TypeError, ValkeyError) as error:  # its text may be a part of the password
            raise InvalidSetting(
                "--valkey-url: expected valkey://[user:password@]host[:port][/database], valkeys://…, or "
                "unix:///path[?db=database]; user and password are percent-encoded"
            ) from error
        return cls(
            host=parts.get("host", "localhost"),
            port=parts.get("port", 6379),
            path=parts["path"] if kind is UnixDomainSocketConnection else None,
            database=parts.get("db", 0),
            username=parts.get("username"),
            password=parts.get("password"),
            tls=tls,
        )

    def __str__(self) -> str:
        """The address without its secrets, for messages."""
        return self.path or f"{self.host}:{self.port}"


def _check_path(socket: str | None, url: str) -> None:
    """Refuse what the parser passes over: a socket without a path, and a database that is no number."""
    if socket is None and (url.startswith("unix:") or not _DATABASE.fullmatch(urlsplit(url).path)):
        raise ValueError


class Link:
    """A connection that is kept: `run` makes it and makes it again, `call` uses it.

    ``greet`` is awaited on each new connection with its `call`, before anybody else may use it;
    ``on_up`` is called after that.
    """

    def __init__(
        self,
        address: Address,
        *,
        name: str,
        timeout_s: float,
        greet: Callable[[Callable[..., asyncio.Future[Any]]], Awaitable[None]] | None = None,
        on_up: Callable[[], None] | None = None,
        on_push: Callable[[list[Any]], None] | None = None,
    ) -> None:
        self._address = address
        self.name = name
        self._timeout_s = timeout_s
        self._greet = greet
        self._on_up = on_up
        self._on_push = on_push
        self._wire: Wire | None = None
        self._changed = asyncio.Event()  # set, and replaced, whenever the link goes up
        self._down_since: float | None = None
        self._up_since = 0.0
        self.problem: StoreUnavailable = StoreUnavailable("Valkey is not connected yet", aside=str(address))
        self.connects = 0

    @property
    def up(self) -> bool:
        """Whether there is a connection that works as far as is known."""
        # Between a loss and the turn of `run`, the connection is there and dead.
        return self._wire is not None and not self._wire.lost.done()

    @property
    def steady_for(self) -> float:
        """Seconds since the connection was last away; infinite when it never was."""
        if not self.up:
            return 0.0
        return math.inf if self.connects == 1 else asyncio.get_running_loop().time() - self._up_since

    async def wait_up(self, timeout: float) -> bool:
        """Wait for a connection; whether there is one."""
        try:
            async with asyncio.timeout(timeout):
                while not self.up:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def start_call(self, *args: bytes | str | int) -> asyncio.Future[Any]:
        """Send a command now; raises StoreUnavailable when there is no connection."""
        if self._wire is None or not self.up:
            raise self._why()
        return self._wire.call(*args)

    async def call(self, *args: bytes | str | int) -> Any:
        """Send a command and wait for its reply, after a short wait for a connection lost just now."""
        await self.ready()
        return await self.start_call(*args)

    async def ask(self, *args: bytes | str | int) -> Any:
        """`call` for a command that only reads: sent once more when the connection is cut under it."""
        try:
            return await self.call(*args)
        except ConnectionLost:
            return await self.call(*args)

    async def ask_all(self, commands: Sequence[Sequence[bytes | str | int]]) -> list[Any]:
        """`ask` for many at once: they leave in one write, and their replies are waited for together."""
        try:
            return await self._call_all(commands)
        except ConnectionLost:
            return await self._call_all(commands)

    async def _call_all(self, commands: Sequence[Sequence[bytes | str | int]]) -> list[Any]:
        await self.ready()
        return await asyncio.gather(*(self.start_call(*command) for command in commands))

    async def ready(self) -> None:
        """Wait a moment for a connection that was lost just now; raises StoreUnavailable."""
        if not self.up:
            now = asyncio.get_running_loop().time()
            down_for = 0.0 if self._wire is not None else now - (self._down_since or 0.0)
            if not await self.wait_up(max(0.0, _GRACE_S - down_for)):
                raise self._why()

    def push(self, *args: bytes | str | int) -> None:
        """Send a command that is answered by a push; nothing happens without a connection."""
        if self._wire is not None:
            self._wire.push(*args)

    def _why(self) -> StoreUnavailable:
        return _again(self.problem)

    async def run(self) -> None:
        """Keep connected until cancelled."""
        pause = 0.0
        while True:
            try:
                wire = await self._connect()
            except Exception as error:  # whatever answers there, it may be a Valkey the next time
                self._report(error)
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE_S, pause * 2 or 0.02)
                continue
            try:
                await self._watch(wire)
            finally:
                self._wire = None
                self._down_since = asyncio.get_running_loop().time()
                wire.abort()
            self.problem = StoreUnavailable("the connection to Valkey was lost", aside=str(self._address))
            logger.warning("valkey connection lost", extra={"address": str(self._address), "link": self.name})
            if self._down_since - self._up_since > _LONGEST_PAUSE_S:
                pause = 0.0
            await asyncio.sleep(pause)
            pause = min(_SHORT_PAUSE_S, pause * 2 or 0.02)

    async def _connect(self) -> Wire:
        address, loop = self._address, asyncio.get_running_loop()

        def factory() -> Wire:
            return Wire(self._on_push)

        async with asyncio.timeout(self._timeout_s):
            if address.path is not None:
                _, wire = await loop.create_unix_connection(factory, address.path)
            else:
                server_name = address.host if address.tls else None
                _, wire = await loop.create_connection(
                    factory, address.host, address.port, ssl=address.tls, server_hostname=server_name
                )
            try:
                await self._introduce(wire)
            except BaseException:
                wire.abort()
                raise
        self._wire = wire
        self._up_since = loop.time()
        self.connects += 1
        self._changed.set()
        self._changed = asyncio.Event()
        logger.info("valkey connected", extra={"address": str(address), "link": self.name})
        if self._on_up is not None:
            self._on_up()
        return wire

    async def _introduce(self, wire: Wire) -> None:
        address = self._address
        if address.password is not None:
            user = () if address.username is None else (address.username,)
            await wire.call("AUTH", *user, address.password)
        if address.database:
            await wire.call("SELECT", address.database)
        await wire.call("CLIENT", "SETNAME", f"replay-{self.name}")
        check_server(await wire.call("INFO", "server", "replication", "memory", "cluster"))
        if self._greet is not None:
            await self._greet(wire.call)

    async def _watch(self, wire: Wire) -> None:
        """Wait until the connection is lost, or gives no answer in time and is given up."""
        loop = asyncio.get_running_loop()
        while not wire.lost.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeout_s / 4):
                    await asyncio.shield(wire.lost)
            if wire.waiting_since is None:
                # A connection that is cut without a word shows only when it is used.
                wire.call("PING").add_done_callback(_read_error)
            elif loop.time() - wire.waiting_since > self._timeout_s:
                logger.warning("valkey does not answer", extra={"address": str(self._address), "link": self.name})
                wire.abort()
                await wire.lost

    def _report(self, error: Exception) -> None:
        if isinstance(error, StoreUnavailable):
            problem = _again(error)
        elif isinstance(error, OSError):  # and so is a TimeoutError
            reason = str(error) or "it does not answer"
            problem = StoreUnavailable("Valkey cannot be reached", aside=f"--valkey-url, at {self._address}: {reason}")
        else:
            reason = f"{type(error).__name__}: {error}"
            problem = StoreUnavailable(
                "what answers in Valkey's place is none", aside=f"--valkey-url, at {self._address}: {reason}"
            )
        if problem.in_full != self.problem.in_full:
            logger.warning("valkey unavailable", extra={"link": self.name, "reason": problem.in_full})
        self.problem = problem


def _again(error: StoreUnavailable) -> StoreUnavailable:
    """The same error for somebody else: an exception that is raised twice has two tracebacks in one."""
    return type(error)(str(error), aside=error.aside)


def _read_error(reply: asyncio.Future[Any]) -> None:
    if not reply.cancelled():
        reply.exception()


def check_server(info: bytes) -> None:
    """Raises StoreRefused for a server that cannot keep logs."""
    facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    version = facts.get("valkey_version")
    if version is None or tuple(map(int, version.split(".")[:2])) < _OLDEST:
        server = f"Valkey {version}" if version else f"Redis {facts.get('redis_version', '?')}"
        raise StoreRefused(f"--valkey-url names {server}: expected Valkey 8.0 or newer")
    if facts.get("role") == "slave":
        raise StoreRefused("--valkey-url names a read-only replica: expected the primary")
    if facts.get("cluster_enabled") == "1":
        # Even where it holds all slots: a start under a key compares two keys, which lie in two of them.
        raise StoreRefused("--valkey-url names a server in cluster mode: expected one with cluster-enabled no")
    if facts.get("maxmemory_policy") not in (None, "noeviction") and facts.get("maxmemory") != "0":
        logger.warning(
            "valkey may evict logs before their ttl; set maxmemory-policy to noeviction",
            extra={"maxmemory_policy": facts["maxmemory_policy"]},
        )


def at_once(link: Link, *commands: tuple[str | int, ...]) -> asyncio.Future[list[Any]]:
    """Send commands on one key that happen together: a node that dies in between must not leave a key for ever."""
    queued = [link.start_call("MULTI"), *(link.start_call(*command) for command in commands)]
    return asyncio.gather(*queued, link.start_call("EXEC"))
