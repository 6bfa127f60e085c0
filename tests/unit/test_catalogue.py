"""Looking through the list of generations: what else a node does has its turn meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, cast

from replay.live.catalogue import Catalogue
from replay.model.event import number
from replay.model.generation import Generation, Start
from replay.model.selection import Selection
from replay.store import Ends, Page, Row
from replay.wire.events import encode_start

COUNT = 150


class Shelf:
    """A store that answers at once, with large metadata."""

    async def recent(self, *, before: Row | None, limit: int, since_ms: int | None) -> Page:
        last = COUNT if before is None else before.created_ms
        rows = [Row(ms, f"g{ms}") for ms in range(last - 1, max(0, last - limit) - 1, -1)]
        return Page(rows, rows[-1] if rows[-1].created_ms else None)

    async def ends(self, generation_ids: Sequence[str]) -> list[Ends | None]:
        return [_ends(name) for name in generation_ids]

    async def forget(self, rows: Sequence[Row]) -> None:
        assert not rows


class Steady:
    healing = False


class Noting(Selection):
    """Wants nothing, and notes in which turn of the loop it was asked."""

    turn: ClassVar = 0
    asked: ClassVar[Counter[int]] = Counter()

    def has(self, generation: Generation) -> bool:
        self.asked[Noting.turn] += 1
        return False


def _ends(name: str) -> Ends:
    start = Start(generation_id=name, model="m", node="n", run="1", ttl_ms=1, metadata={"x": "y" * 16_000})
    (event,) = number([encode_start(start)], after=None, now_ms=1)
    return Ends(event, event, None)


async def test_others_have_their_turn_between_large_rows_however_many_lists_are_asked_for():
    # given something else that a node does
    async def work() -> None:
        while True:
            Noting.turn += 1
            await asyncio.sleep(0)

    working = asyncio.create_task(work())
    # when several look through everything at once
    catalogue = Catalogue(cast(Any, Shelf()), cast(Any, Steady()), cast(Any, ()))
    await asyncio.gather(*(catalogue.find(Noting(), before=None, limit=50) for _ in range(5)))
    working.cancel()
    # then there was a turn for it behind one of them or two
    assert Noting.asked.total() >= 5 * 30
    assert max(Noting.asked.values()) <= 2
