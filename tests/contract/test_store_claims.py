"""Claims: which generation a caller's key leads to; and which a call without a key has started already."""

from __future__ import annotations

import asyncio

import pytest
from support.deadlines import eventually
from support.stores import batch, claim_of, grow

from replay.store import Claim, Refused

# Idempotency keys.


async def test_first_claim_binds_and_every_other_is_told_to_what(store, other):
    mine, theirs = claim_of("a"), claim_of("b", fingerprint="2")
    assert await store.claim("k", mine, ttl_ms=60_000) == mine
    assert await other.claim("k", theirs, ttl_ms=60_000) == mine
    assert await other.claimed("k") == mine
    assert await store.claim("k2", theirs, ttl_ms=60_000) == theirs
    await other.release("k", mine.mark)
    assert await store.claimed("k") is None
    assert await other.claim("k", theirs, ttl_ms=60_000) == theirs


async def test_of_many_who_claim_one_wins(start_store):
    stores = [await start_store() for _ in range(4)]
    before = None
    for attempt in range(2):
        claims = [claim_of(f"{n}", attempt, before) for n in range(4)]
        answers = await asyncio.gather(
            *(store.claim("k", claim, ttl_ms=60_000) for store, claim in zip(stores, claims, strict=True))
        )
        assert len({claim.generation_id for claim in answers}) == 1
        assert {claim.attempts_before for claim in answers} == {attempt}
        before = answers[0]


@pytest.mark.parametrize("name", ["b", "a"], ids=["another id", "the same chosen id"])
async def test_attempt_takes_a_claim_over_from_no_claim_but_the_one_before_it(store, other, name):
    first = claim_of("a")
    await store.claim("k", first, ttl_ms=60_000)
    await store.release("k", first.mark)
    anew = claim_of(name)
    await store.claim("k", anew, ttl_ms=60_000)
    assert await other.claim("k", claim_of("c", 1, first), ttl_ms=60_000) == anew


async def test_later_attempt_takes_a_claim_over_and_no_earlier_one_takes_it_back(store, other):
    first = claim_of("a")
    second = claim_of("b", 1, first)
    third = claim_of("c", 2, second)
    await store.claim("k", first, ttl_ms=60_000)
    assert await other.claim("k", second, ttl_ms=60_000) == second
    assert await store.claim("k", claim_of("x", 1, first), ttl_ms=60_000) == second
    assert await store.claim("k", third, ttl_ms=60_000) == third
    for late in (first, second):  # as whoever puts back what Valkey has lost does
        assert await other.claim("k", late, ttl_ms=60_000) == third
    assert await store.claimed("k") == third


async def test_claim_is_released_by_nobody_but_whom_it_leads_to(store, other):
    first, second = claim_of("a"), claim_of("a")  # a chosen id, twice
    await store.claim("k", second, ttl_ms=60_000)
    await other.release("k", first.mark)
    await grow(store, "a", "s")
    await other.delete("a", run="1", idempotency="k", claim=first.mark)
    assert await store.claimed("k") == second
    await grow(store, "a", "s")
    await other.delete("a", run="2", idempotency="k", claim=second.mark)
    assert await store.claimed("k") is None


async def test_nothing_is_created_under_a_claim_that_is_over(store, other):
    first, second = claim_of("a"), claim_of("a")
    (start,) = batch("s")
    assert await store.create("a", [start], node="n", ttl_ms=60_000, claim=first.mark) is None
    assert await other.create("a", [start], node="n", ttl_ms=60_000, claim=first.mark) is None  # a lost answer
    await other.delete("a", run="1", claim=first.mark)
    assert await store.create("a", [start], node="n", ttl_ms=60_000, claim=first.mark) == Refused(None)
    assert await store.last("a") is None
    assert await store.create("a", [start], node="n", ttl_ms=60_000, claim=second.mark) is None


async def test_claim_of_an_earlier_version_is_a_first_attempt(store, valkey):
    async with valkey.client() as client:
        await client.set("replay:idempotency:k", '{"id":"a","body":"1"}', ex=60)
    old = await store.claimed("k")
    assert old == Claim("a", "1", mark="a")
    assert await store.claim("k", claim_of("b"), ttl_ms=60_000) == old
    taken_over = claim_of("b", 1, old)
    assert await store.claim("k", taken_over, ttl_ms=60_000) == taken_over
    await store.release("k", taken_over.mark)
    async with valkey.client() as client:
        await client.set("replay:idempotency:k", '{"id":"a","body":"1"}', ex=60)
    await grow(store, "a", "s")
    await store.delete("a", run="1", idempotency="k")
    assert await store.claimed("k") is None


async def test_claim_keeps_the_ttl_of_the_first(store, valkey):
    await store.claim("k", claim_of("a"), ttl_ms=50_000)
    await store.claim("k", claim_of("b"), ttl_ms=5_000_000)
    async with valkey.client() as client:
        (key,) = await client.keys("*k")
        assert 0 < await client.ttl(key) <= 50


# First tries.


async def test_what_a_call_has_started_is_noted_until_it_is_forgotten(store, other):
    assert await store.tries("digest") == []
    await store.note_try("digest", "b", created_ms=2)
    await other.note_try("digest", "a", created_ms=1)
    await store.note_try("digest", "a", created_ms=1)  # as whoever puts back what Valkey has lost does
    await store.note_try("another", "c", created_ms=1)
    assert await other.tries("digest") == ["a", "b"]
    await other.forget_try("digest", "a")
    await other.forget_try("digest", "nobody")
    assert await store.tries("digest") == ["b"]


async def test_of_one_call_the_last_tries_are_noted(store):
    for count in range(40):
        await store.note_try("digest", f"g{count}", created_ms=count)
    assert await store.tries("digest") == [f"g{count}" for count in range(8, 40)]


async def test_of_many_who_take_a_generation_one_has_it_for_some_time(store, other):
    taken = await asyncio.gather(*(each.take_try("g", hold_ms=60_000) for each in (store, other) * 4))
    assert sorted(taken) == [False] * 7 + [True]
    assert await other.take_try("h", hold_ms=1)
    await eventually("the time to be over", lambda: store.take_try("h", hold_ms=60_000), bool)
