"""Gives up what nobody has watched for as long as its caller allowed (`abandon_after`)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from replay.errors import Abandoned, StoreUnavailable
from replay.live.producer import Producer
from replay.model.generation import Status
from replay.store import EventStore

_LONG_S = 1.0  # for an answer of Valkey's: it was away, or near it


class Abandonment:
    """Looks for what is abandoned among what this node produces. Who watches elsewhere, the other nodes say."""

    def __init__(self, store: EventStore, producers: Iterable[Producer], *, node: str, lease_s: float) -> None:
        self._store = store
        self._producers = producers
        self._node = node
        self._lease_s = lease_s
        self._not_before = 0.0  # loop time

    async def look(self) -> None:
        """Cancel what nobody has watched for too long; raises StoreUnavailable."""
        candidates = {each.generation_id: each for each in self._producers if each.abandon_after_ms is not None}
        if not candidates:
            return
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            elsewhere = await self._store.subscribers(list(candidates), beside=self._node)
        except StoreUnavailable:
            self.hold()
            raise
        if loop.time() - began > _LONG_S:
            self.hold()
        if loop.time() < self._not_before:
            elsewhere = dict.fromkeys(candidates, 1)  # nobody knows; count as watched
        for name, producer in candidates.items():
            _judge(producer, elsewhere=elsewhere[name], now=loop.time())

    def hold(self) -> None:
        """Give nothing up until the other nodes have said again who reads there: Valkey was away, and that with it."""
        self._not_before = asyncio.get_running_loop().time() + self._lease_s


def _judge(producer: Producer, *, elsewhere: int, now: float) -> None:
    idle_since = producer.feed.idle_since
    left_just_now = producer.subscribed_elsewhere and not elsewhere
    producer.subscribed_elsewhere = bool(elsewhere)
    if elsewhere or left_just_now or idle_since is None:
        producer.last_subscribed = now
    else:
        producer.last_subscribed = max(producer.last_subscribed, idle_since)
    allowed_ms = producer.abandon_after_ms
    if allowed_ms is not None and (now - producer.last_subscribed) * 1000 >= allowed_ms:
        producer.finish(Status.CANCELLED, Abandoned(f"nobody watched for {allowed_ms / 1000:g} s"))
