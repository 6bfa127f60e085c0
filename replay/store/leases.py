"""What nodes tell each other of themselves: that they live, and how many follow what there."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from replay.store import Renewed, keys
from replay.store.connection import Link, at_once
from replay.store.keys import Keys

_FORGOTTEN_MS = 86_400_000  # a node that has not renewed its lease for a day


class ValkeyLeases:
    """The part of a ValkeyStore that is about nodes."""

    _keys: Keys
    _reads: Link

    @property
    def leases_steady_for(self) -> float:
        """Seconds since the connection of leases was last away; infinite when it never was."""
        return self._reads.steady_for

    async def renew_lease(self, node: str, lease_ms: int) -> Renewed:
        """Say that a node is alive for that long."""
        await self._reads.ready()
        call = self._reads.start_call
        seconds, _ = await call("TIME")  # one clock for all nodes
        now_ms = int(seconds) * 1000
        lease, counts, _ = await asyncio.gather(
            call("SET", self._keys.node(node), "1", "GET", "PX", lease_ms),
            call("PEXPIRE", self._keys.subscribers(node), lease_ms),
            at_once(
                self._reads,
                ("ZADD", self._keys.nodes, now_ms, node),
                ("ZREMRANGEBYSCORE", self._keys.nodes, "-inf", now_ms - _FORGOTTEN_MS),
                ("PEXPIRE", self._keys.nodes, keys.LISTS_MS),
            ),
        )
        return Renewed(lease is not None, bool(counts))

    async def end_lease(self, node: str) -> None:
        """Say that a node is gone."""
        await self._reads.ready()
        call = self._reads.start_call
        await asyncio.gather(
            call("DEL", self._keys.node(node)),
            call("DEL", self._keys.subscribers(node)),
            call("ZREM", self._keys.nodes, node),
        )

    async def alive(self, nodes: Collection[str]) -> set[str]:
        """Return which of these nodes are alive."""
        names = list(nodes)
        answers = await asyncio.gather(*(self._reads.ask("EXISTS", self._keys.node(name)) for name in names))
        return {name for name, answer in zip(names, answers, strict=True) if answer}

    async def listens(self, node: str) -> bool:
        """Whether a node hears its notifications."""
        empty = keys.NUL  # about no generation
        return bool(await self._reads.ask("SPUBLISH", self._keys.node_channel(node), empty))

    async def report_subscribers(self, node: str, counts: dict[str, int], lease_ms: int) -> None:
        """Say how many follow what on a node, where that has changed."""
        key = self._keys.subscribers(node)
        pairs = [part for name, count in counts.items() if count for part in (name, count)]
        left = [name for name, count in counts.items() if not count]
        commands: list[tuple[str | int, ...]] = [("HSET", key, *pairs)] if pairs else []
        commands += [("HDEL", key, *left)] if left else []
        await self._reads.ready()
        await at_once(self._reads, *commands, ("PEXPIRE", key, lease_ms))

    async def subscribers(self, generation_ids: Sequence[str], *, beside: str) -> dict[str, int]:
        """Return how many follow each generation on the other nodes that are alive."""
        members = await self._reads.ask("ZRANGE", self._keys.nodes, 0, -1)
        nodes = [node for member in members if (node := member.decode()) != beside]
        if not generation_ids or not nodes:
            return dict.fromkeys(generation_ids, 0)
        rows = await asyncio.gather(
            *(self._reads.ask("HMGET", self._keys.subscribers(node), *generation_ids) for node in nodes)
        )
        return {
            generation_id: sum(int(count or 0) for count in column)
            for generation_id, column in zip(generation_ids, zip(*rows, strict=True), strict=True)
        }
