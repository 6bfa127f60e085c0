"""Which generations there are: a hash of the live ones, and a sorted set of the recent ones."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib import resources

from replay.store import Page, Row, keys
from replay.store.connection import Link, at_once
from replay.store.keys import Keys

_FORGET = resources.files("replay.store").joinpath("forget.lua").read_text()
_MOST_RECENT = 100_000  # generations on the list; protects from growing for ever
_SCAN = 500  # live generations that are listed in one round trip


class ValkeyLists:
    """The part of a ValkeyStore that lists."""

    _keys: Keys
    _appends: Link
    _reads: Link

    async def register(self, generation_id: str, *, node: str, created_ms: int) -> None:
        """List a generation as recent and as live on a node."""
        await self._appends.ready()
        await asyncio.gather(
            at_once(
                self._appends,
                ("HSET", self._keys.live, generation_id, node),
                ("PEXPIRE", self._keys.live, keys.LISTS_MS),
            ),
            at_once(
                self._appends,
                ("ZADD", self._keys.recent, created_ms, generation_id),
                ("ZREMRANGEBYRANK", self._keys.recent, 0, -_MOST_RECENT - 1),
                ("PEXPIRE", self._keys.recent, keys.LISTS_MS),
            ),
        )

    async def unregister(self, generation_id: str) -> None:
        """List it as live no more."""
        await self._appends.call("HDEL", self._keys.live, generation_id)

    async def live(self) -> dict[str, str]:
        """Return the producing node by generation id."""
        pairs = await self._reads.ask("HGETALL", self._keys.live)
        return {pairs[i].decode(): pairs[i + 1].decode() for i in range(0, len(pairs), 2)}

    async def live_rows(self) -> list[Row]:
        """Return the rows of those in `live`, in order."""
        rows: dict[str, Row] = {}  # a scan may come by the same one twice
        cursor = b"0"
        while True:
            cursor, members = await self._reads.ask("HSCAN", self._keys.live, cursor, "COUNT", _SCAN, "NOVALUES")
            if members:
                scores = await self._reads.ask("ZMSCORE", self._keys.recent, *members)
                rows |= {row.generation_id: row for row in keys.parse_rows(members, scores)}
            if cursor == b"0":
                return sorted(rows.values())

    async def recent(
        self, *, before: Row | None, limit: int, since_ms: int | None = None, oldest_first: bool = False
    ) -> Page:
        """Return generations, newest first, after the row ``before``."""
        lowest, highest = "-inf" if since_ms is None else since_ms, "+inf"
        first = (lowest if oldest_first else highest) if before is None else before.created_ms
        span = (first, highest, "BYSCORE") if oldest_first else (first, lowest, "BYSCORE", "REV")
        count = limit + 2  # one that was the last of the page before, and one that tells whether there are more
        while True:
            answer = await self._reads.ask("ZRANGE", self._keys.recent, *span, "LIMIT", 0, count, "WITHSCORES")
            listed = keys.parse_rows(answer[::2], answer[1::2])
            # Equal times are ordered by id, in the same direction.
            rows = [row for row in listed if before is None or (row > before if oldest_first else row < before)]
            if len(rows) > limit or len(listed) < count:
                break
            count *= 2
        return Page(rows[:limit], rows[limit - 1] if len(rows) > limit else None)

    async def forget(self, rows: Sequence[Row]) -> None:
        """Take generations that are gone off the list.

        Whoever repairs a log appends first and then lists it, with the same time as before. So look for the log once
        more when the row is off: either it is there by now, or it will be listed after that. A log is in another slot
        than the list, so one script cannot do both; should this node die in between, such a row is lost.
        """
        if not rows:
            return
        parts = (part for row in rows for part in row)
        names = {name.decode() for name in await self._reads.call("EVAL", _FORGET, 1, self._keys.recent, *parts)}
        off = [row for row in rows if row.generation_id in names]
        there = await self._reads.ask_all([("EXISTS", self._keys.events(row.generation_id)) for row in off])
        for row in (row for row, exists in zip(off, there, strict=True) if exists):
            await at_once(
                self._reads,
                ("ZADD", self._keys.recent, "NX", *row),
                ("PEXPIRE", self._keys.recent, keys.LISTS_MS),
            )
