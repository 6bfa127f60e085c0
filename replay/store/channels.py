"""The channels of a node: one connection that hears of appends, notifications and deletions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from replay.errors import StoreUnavailable
from replay.model.event import Event
from replay.store import Listener
from replay.store.connection import Address, Link
from replay.store.keys import NUL, Keys, unpack


class ValkeyChannels:
    """Subscriptions that are made again whenever the connection is."""

    def __init__(self, address: Address, keys: Keys, *, timeout_s: float) -> None:
        self._keys = keys
        self.on_missed: list[Callable[[], None]] = []
        self.link = Link(
            address, name="channels", timeout_s=timeout_s, on_up=self._subscribe_again, on_push=self._pushed
        )
        self._timeout_s = timeout_s
        self._listeners: dict[bytes, Listener] = {}
        self._confirmations: dict[bytes, list[asyncio.Future[None]]] = {}
        self._notified: Callable[[str, list[Event]], None] | None = None
        self._deleted: Callable[[str], None] | None = None
        self._own_channel = b""

    async def listen(self, generation_id: str, listener: Listener) -> None:
        """Hear of every append from now on; returns when Valkey has confirmed it."""
        channel = self._keys.channel(generation_id)
        self._listeners[channel] = listener
        await self.link.ready()
        await self._subscribe(channel)

    async def _subscribe(self, channel: bytes) -> None:
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._confirmations.setdefault(channel, []).append(confirmed)
        self.link.push("SSUBSCRIBE", channel)
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.shield(confirmed)
        except TimeoutError:
            raise StoreUnavailable(f"Valkey did not confirm a subscription within {self._timeout_s} s") from None

    def unlisten(self, generation_id: str) -> None:
        """Hear no more of it."""
        channel = self._keys.channel(generation_id)
        if self._listeners.pop(channel, None) is not None:
            self.link.push("SUNSUBSCRIBE", channel)

    def _subscribe_again(self) -> None:
        # One confirmation comes for each channel now, whatever was asked for on the connection that is lost.
        earlier, self._confirmations = self._confirmations, {}
        for channel in (*self._listeners, *((self._own_channel, self._keys.deleted) if self._own_channel else ())):
            self.link.push("SSUBSCRIBE", channel)
            if channel in earlier:
                self._confirmations[channel] = earlier[channel][-1:]

    def _pushed(self, push: list[Any]) -> None:
        """Hand on what a channel brings: a message, a confirmation, an error."""
        kind, channel = push[0], push[1]
        if kind == b"error":
            for waiting in self._confirmations.values():
                for confirmed in waiting:
                    if not confirmed.done():
                        confirmed.set_exception(push[1])
            self._confirmations.clear()
            return
        listener = self._listeners.get(channel)
        if kind == b"smessage":
            self._message(channel, listener, push[2])
        elif kind == b"ssubscribe":
            expected = self._next_expected(channel)
            if expected is not None:
                expected.set_result(None)
            elif listener is not None:
                listener.reconnected()
            elif channel == self._own_channel:
                for callback in self.on_missed:
                    callback()

    def _next_expected(self, channel: bytes) -> asyncio.Future[None] | None:
        """Who waits for a confirmation: they come in the order of the subscriptions."""
        waiting = self._confirmations.pop(channel, [])
        expected = waiting.pop(0) if waiting else None
        if waiting:
            self._confirmations[channel] = waiting
        return expected

    def _message(self, channel: bytes, listener: Listener | None, message: bytes) -> None:
        if channel == self._own_channel and self._notified is not None:
            generation_id, _, batch = message.partition(NUL)
            self._notified(generation_id.decode(), unpack(batch))
        elif channel == self._keys.deleted and self._deleted is not None:
            self._deleted(message.decode())
        elif listener is None:
            return
        elif message:
            listener.heard(unpack(message))
        else:
            listener.deleted()

    async def attend(
        self, node: str, *, notified: Callable[[str, list[Event]], None], deleted: Callable[[str], None]
    ) -> None:
        """Receive a node's notifications, and hear of deletions."""
        self._notified, self._deleted = notified, deleted
        self._own_channel = self._keys.node_channel(node)
        for channel in (self._own_channel, self._keys.deleted):
            await self._subscribe(channel)
