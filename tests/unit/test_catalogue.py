"""Looking through the list of generations: what else a node does has its turn meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, cast

from support.deadlines import within

from replay.live.catalogue import Catalogue
from replay.live.tasks import Tasks
from replay.model.event import number
from replay.model.generation import Generation, Start
from replay.model.selection import Selection
from replay.store import Bounds, Page, Row
from replay.wire.events import encode_start

COUNT = 150


class Shelf:
    """A store that answers at once, with large metadata."""

    async def recent(self, *, before: Row | None, limit: int, since_ms: int | None) -> Page:
        last = COUNT if before is None else before.created_ms
        rows = [Row(ms, f"g{ms}") for ms in range(last - 1, max(0, last - limit) - 1, -1)]
        return Page(rows, rows[-1] if rows[-1].created_ms else None)

    async def bounds(self, generation_ids: Sequence[str]) -> list[Bounds | None]:
        return [_ends(name) for name in generation_ids]

    async def forget(self, rows: Sequence[Row]) -> None:
        assert not rows


class EmptyShelf(Shelf):
    """A store whose logs are gone, and which takes its time to forget them."""

    def __init__(self) -> None:
        self.asked_to_forget, self.may_forget, self.forgotten = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def bounds(self, generation_ids: Sequence[str]) -> list[Bounds | None]:
        return [None for _ in generation_ids]

    async def forget(self, rows: Sequence[Row]) -> None:
        self.asked_to_forget.set()
        await self.may_forget.wait()
        self.forgotten.set()


class Idle:
    """A node that produces nothing."""

    def __contains__(self, generation_id: str) -> bool:
        return False


class Steady:
    healing = False


class Noting(Selection):
    """Wants nothing, and notes in which turn of the loop it was asked."""

    turn: ClassVar = 0
    asked: ClassVar[Counter[int]] = Counter()

    def has(self, generation: Generation) -> bool:
        self.asked[Noting.turn] += 1
        return False


def _ends(name: str) -> Bounds:
    start = Start(generation_id=name, model="m", node="n", run="1", ttl_ms=1, metadata={"x": "y" * 16_000})
    (event,) = number([encode_start(start)], after=None, now_ms=1)
    return Bounds(event, event, None)


def _catalogue(store: Shelf) -> Catalogue:
    return Catalogue(cast(Any, store), cast(Any, Steady()), cast(Any, Idle()), Tasks())


async def test_others_have_their_turn_between_large_rows_however_many_lists_are_asked_for():
    # given something else that a node does
    async def work() -> None:
        while True:
            Noting.turn += 1
            await asyncio.sleep(0)

    working = asyncio.create_task(work())
    # when several look through everything at once
    catalogue = _catalogue(Shelf())
    await asyncio.gather(*(catalogue.find(Noting(), before=None, limit=50) for _ in range(5)))
    working.cancel()
    # then there was a turn for it after one of them or two
    assert Noting.asked.total() >= 5 * 30
    assert max(Noting.asked.values()) <= 2


async def test_what_is_gone_is_forgotten_to_the_end_though_whoever_asked_has_left():
    store = EmptyShelf()
    asking = asyncio.create_task(_catalogue(store).find(Selection(), before=None, limit=50))
    await within("something to be forgotten", store.asked_to_forget.wait())
    # when
    asking.cancel()
    await asyncio.wait([asking])
    store.may_forget.set()
    # then
    await within("it to be forgotten", store.forgotten.wait())
