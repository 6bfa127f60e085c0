"""The list of generations, over more than one request looks at; a node elsewhere has written them."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from support.api import Api, assert_problem
from support.upstream import say
from support.valkey import ValkeyServer

from replay.model.event import number
from replay.model.generation import End, Start, Status
from replay.store.valkey import ValkeyStore
from replay.wire.events import encode_end, encode_start

TTL_MS = 3_600_000
MOST_LOOKED_AT = 2_000  # generations, by one request
NOW_MS = int(time.time() * 1000)

Query = dict[str, Any]


class Kept(NamedTuple):
    """A generation as it was written."""

    id: str
    created_ms: int
    status: str = "completed"
    model: str = "m"
    metadata: dict[str, Any] | None = None


@pytest.fixture
async def store(valkey: ValkeyServer) -> AsyncIterator[ValkeyStore]:
    """The store of a node elsewhere, which is alive."""
    store = ValkeyStore(valkey.url, timeout_s=30)
    await store.start(5)
    await store.renew_lease("elsewhere", 600_000)
    yield store
    await store.stop()


async def write(store: ValkeyStore, kept: Kept) -> None:
    start = Start(
        generation_id=kept.id, model=kept.model, node="elsewhere", run="1", ttl_ms=TTL_MS, metadata=kept.metadata
    )
    entries = [encode_start(start)]
    if kept.status != "queued":
        entries.append(b"tHel")
    if kept.status not in ("queued", "streaming"):
        entries.append(encode_end(End(status=Status(kept.status))))
    await store.register(kept.id, node="elsewhere", created_ms=kept.created_ms)
    events = number(entries, after=None, now_ms=kept.created_ms)
    assert await store.append(kept.id, events, after=None, ttl_ms=TTL_MS) is None
    if len(entries) == 3:
        await store.unregister(kept.id)


async def write_all(store: ValkeyStore, all_kept: list[Kept]) -> None:
    for start in range(0, len(all_kept), 500):
        await asyncio.gather(*(write(store, kept) for kept in all_kept[start : start + 500]))


async def pages(api: Api, **query: Any) -> list[list[str]]:
    """The ids of all pages, to the end."""
    found, before = [], None
    while True:
        answer = await api.get("/generations", before=before, **query)
        assert answer.status == 200, answer
        found.append([generation["id"] for generation in answer.json()["generations"]])
        before = answer.json()["next"]
        if before is None:
            return found
        assert len(found) < 500, "the pages go round in a circle"


async def listed(api: Api, **query: Any) -> list[str]:
    return list(itertools.chain.from_iterable(await pages(api, **query)))


def newest_first(all_kept: list[Kept], wanted: Callable[[Kept], bool]) -> list[str]:
    return [kept.id for kept in sorted(filter(wanted, all_kept), key=lambda kept: kept[1::-1], reverse=True)]


async def count_logs_read(valkey: ValkeyServer, work: Callable[[], Any]) -> int:
    """How many logs' last entries are asked for meanwhile."""

    async def count() -> int:
        async with valkey.client() as client:
            statistics = await client.info("commandstats")
        return int(statistics.get("cmdstat_xrevrange", {}).get("calls", 0))

    before = await count()
    await work()
    return await count() - before


# Filters.


_METADATA: tuple[dict[str, Any] | None, ...] = (
    None,
    {},
    {"user": "Ann"},
    {"user": "ann", "n": 42},
    {"user": "Zoë", "n": "42", "a.b": "x=y&z"},
    {"n": 4.5, "flag": True, "nothing": None, "list": [1, "STRASSE"], "": "blank"},
)
_MODELS = ("gpt-4o", "GPT-4O-mini", "meta/llama 3")


def _some(count: int) -> list[Kept]:
    chance = random.Random(7)
    return [
        Kept(
            f"{chance.choice('abAB_-')}{number:05}",
            NOW_MS - 1_000_000 + chance.randrange(count // 2) * 100,  # many of the same millisecond
            chance.choice([status.value for status in Status]),
            chance.choice(_MODELS),
            chance.choice(_METADATA),
        )
        for number in range(count)
    ]


def _iso(ms: float) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)).isoformat()


_EARLY, _LATE = NOW_MS - 990_000, NOW_MS - 950_000

_QUERIES: list[tuple[Query, Callable[[Kept], bool]]] = [
    ({}, lambda kept: True),
    ({"status": "failed"}, lambda kept: kept.status == "failed"),
    ({"status": "streaming"}, lambda kept: kept.status == "streaming"),
    ({"status": "queued,streaming"}, lambda kept: kept.status in ("queued", "streaming")),
    ({"status": "streaming,completed"}, lambda kept: kept.status in ("streaming", "completed")),
    ({"model": "gpt-4o"}, lambda kept: kept.model == "gpt-4o"),
    ({"model": "meta/llama 3"}, lambda kept: kept.model == "meta/llama 3"),
    ({"model": "GPT-4o"}, lambda kept: False),
    ({"metadata.user": "ann"}, lambda kept: (kept.metadata or {}).get("user") == "ann"),
    ({"metadata.n": "42"}, lambda kept: str((kept.metadata or {}).get("n")) == "42"),
    ({"metadata.n": "4.5"}, lambda kept: (kept.metadata or {}).get("n") == 4.5),
    ({"metadata.flag": "true"}, lambda kept: "flag" in (kept.metadata or {})),
    ({"metadata.nothing": "null"}, lambda kept: "nothing" in (kept.metadata or {})),
    ({"metadata.list": '[1,"STRASSE"]'}, lambda kept: "list" in (kept.metadata or {})),
    ({"metadata.a.b": "x=y&z"}, lambda kept: "a.b" in (kept.metadata or {})),
    ({"metadata.": "blank"}, lambda kept: "" in (kept.metadata or {})),
    ({"metadata.user": "Zoë", "metadata.n": "42"}, lambda kept: "a.b" in (kept.metadata or {})),
    ({"metadata.user": "Ann", "metadata.n": "42"}, lambda kept: False),
    ({"q": "ANN"}, lambda kept: (kept.metadata or {}).get("user") in ("Ann", "ann")),
    ({"q": "zOË"}, lambda kept: (kept.metadata or {}).get("user") == "Zoë"),
    ({"q": "straße"}, lambda kept: "list" in (kept.metadata or {})),
    ({"q": "LLAMA 3"}, lambda kept: kept.model == "meta/llama 3"),
    ({"q": "A0001"}, lambda kept: "a0001" in kept.id.lower()),
    ({"q": "user"}, lambda kept: False),
    ({"q": ""}, lambda kept: True),
    ({"since": _EARLY}, lambda kept: kept.created_ms >= _EARLY),
    ({"until": _EARLY}, lambda kept: kept.created_ms <= _EARLY),
    ({"since": _EARLY, "until": _LATE}, lambda kept: _EARLY <= kept.created_ms <= _LATE),
    ({"since": _iso(_EARLY), "until": _iso(_LATE)}, lambda kept: _EARLY <= kept.created_ms <= _LATE),
    ({"since": _iso(_EARLY + 0.5), "until": _iso(_LATE - 0.5)}, lambda kept: _EARLY < kept.created_ms < _LATE),
    ({"since": _LATE, "until": _EARLY}, lambda kept: False),
    ({"since": NOW_MS + 5}, lambda kept: False),
    (
        {"status": "queued", "until": _LATE, "q": "gpt", "metadata.user": "Ann"},
        lambda kept: (
            (kept.status, kept.metadata) == ("queued", {"user": "Ann"})
            and kept.created_ms <= _LATE
            and "gpt" in kept.model.lower()
        ),
    ),
]


async def test_filters_find_exactly_what_matches_page_by_page_to_the_end(valkey, store, node):
    # given more generations than a request looks at, written in any order
    all_kept = _some(2 * MOST_LOOKED_AT + 300)
    await write_all(store, all_kept)
    # then every filter gives what a plain loop gives, in its order, whatever the size of the pages
    for place, (query, wanted) in enumerate(_QUERIES):
        limit = (11, 50, 333, 1000)[place % 4]
        expected = newest_first(all_kept, wanted)
        found = await pages(node.api, limit=limit, **query)
        assert list(itertools.chain.from_iterable(found)) == expected, query
        assert all(len(page) <= limit for page in found)


async def test_every_match_comes_once_while_others_start_end_and_are_deleted(valkey, store, node, upstream):
    # given generations that stay, among others and such as are not wanted
    lasting = [Kept(f"s{n:04}", NOW_MS - 500_000 + n * 10, metadata={"k": "v"}) for n in range(600)]
    passing = [Kept(f"p{n:04}", NOW_MS - 500_000 + n * 10 + n % 3, metadata={"k": "v"}) for n in range(600)]
    unwanted = [Kept(f"u{n:04}", NOW_MS - 500_000 + n * 10 + n % 2, metadata={"k": "w"}) for n in range(300)]
    await write_all(store, [*lasting, *passing, *unwanted])
    upstream.script = say("a")
    chance = random.Random(3)

    async def disturb() -> None:
        for kept in chance.sample(passing, 150):
            await node.api.delete(f"/generations/{kept.id}")
            await node.api.run(metadata={"k": "v"})

    # when the list is read to its end meanwhile, again and again
    disturbing = asyncio.create_task(disturb())
    readings = 0
    while not disturbing.done():
        found = await listed(node.api, limit=41, **{"metadata.k": "v"})
        readings += 1
        # then each of those that stay is there once, in its order, and nothing is there twice, or not wanted
        assert [id for id in found if id.startswith("s")] == newest_first(lasting, lambda kept: True)
        assert len(set(found)) == len(found)
        assert not any(id.startswith("u") for id in found)
    await disturbing
    assert readings > 2


# What a request costs.


async def test_a_request_looks_at_a_bounded_number_and_says_where_to_go_on(valkey, store, node):
    # given one match, the oldest of many
    await write_all(store, [Kept("old", NOW_MS - 900_000, "failed")])
    await write_all(store, [Kept(f"g{n}", NOW_MS - 800_000 + n) for n in range(MOST_LOOKED_AT + 500)])
    # when
    first: dict[str, Any] = {}

    async def ask() -> None:
        first.update((await node.api.get("/generations", status="failed", limit=1000)).json())

    looked_at = await count_logs_read(valkey, ask)
    # then
    assert (first["generations"], isinstance(first["next"], str)) == ([], True)
    assert MOST_LOOKED_AT <= looked_at < MOST_LOOKED_AT + 50
    assert await listed(node.api, status="failed") == ["old"]


@pytest.mark.parametrize("query", [{}, {"q": "zzz"}, {"status": "failed"}], ids=["all", "none", "one"])
async def test_a_request_reads_no_more_than_some_large_metadata_whatever_it_finds(valkey, store, node, query):
    # given large metadata, and one that has failed, the oldest
    large = {"x": "y" * 16_000}
    all_kept = [Kept(f"g{n:03}", NOW_MS - 800_000 + n, metadata=large) for n in range(400)]
    all_kept[0] = all_kept[0]._replace(status="failed")
    await write_all(store, all_kept)
    answers = []

    async def ask() -> None:
        answers.append(await node.api.get("/generations", limit=1000, **query))

    # when
    looked_at = await count_logs_read(valkey, ask)
    # then
    assert 50 <= looked_at < 150
    assert len(answers[0].body) < 3 << 20
    assert isinstance(answers[0].json()["next"], str)
    expected = (
        [] if "q" in query else newest_first(all_kept, lambda kept: kept.status == query.get("status", kept.status))
    )
    assert await listed(node.api, limit=1000, **query) == expected


async def test_live_ones_are_found_without_looking_at_those_that_have_ended(valkey, store, node):
    # given live ones that are older than many
    live = [
        Kept("a", NOW_MS - 900_000, "streaming"),
        Kept("b", NOW_MS - 900_000, "queued"),
        Kept("c", NOW_MS - 900_001, "streaming"),
    ]
    await write_all(store, live)
    await write_all(store, [Kept(f"g{n}", NOW_MS - 800_000 + n) for n in range(300)])
    found: list[list[str]] = []

    async def ask() -> None:
        found.extend(await pages(node.api, status="queued,streaming", limit=2))

    # then
    assert await count_logs_read(valkey, ask) < 50
    assert found == [["b", "a"], ["c"]]
    assert await pages(node.api, status="streaming", limit=1) == [["a"], ["c"]]


# What is not there.


async def test_what_has_expired_is_taken_off_the_list(valkey, store, node):
    await store.register("gone", node="elsewhere", created_ms=NOW_MS - 3_600_000)
    await write(store, Kept("kept", NOW_MS - 3_600_001))
    assert await listed(node.api) == ["kept"]
    assert [row.generation_id for row in (await store.recent(before=None, limit=9)).rows] == ["kept"]


@pytest.mark.parametrize("path", ["/generations", "/v1/chat/completions"])
async def test_a_log_that_somebody_has_cut_hides_no_other(valkey, node, upstream, path):
    upstream.script = say("a")
    cut, whole = [await node.api.run() for _ in range(2)]
    async with valkey.client() as client:
        await client.execute_command("XTRIM", f"replay:{{{cut}}}:events", "MAXLEN", "=", "1")
    answer = await node.api.get(path)
    assert answer.status == 200
    found = answer.json().get("generations") or answer.json()["data"]
    assert [each["id"] for each in found] == [whole]


async def test_a_generation_that_is_just_being_started_elsewhere_stays_on_the_list(store, node):
    # given one that is on the list before its log is there
    now_ms = int(time.time() * 1000)
    await store.register("g", node="elsewhere", created_ms=now_ms)
    assert await listed(node.api) == []
    # when its log comes
    await write(store, Kept("other", now_ms - 1))
    start = encode_start(Start(generation_id="g", model="m", node="elsewhere", run="1", ttl_ms=TTL_MS))
    await store.append("g", number([start], after=None, now_ms=now_ms), after=None, ttl_ms=TTL_MS)
    # then
    assert await listed(node.api) == ["g", "other"]


# What is not understood.


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"modle": "x"}, "modle: expected status, model, q, since, until, limit, before or metadata.<key>"),
        ({"metadata": "x"}, "metadata: expected"),
        ({"metadata[k]": "x"}, "metadata[k]: expected"),
        ({"Status": "failed"}, "Status: expected"),
        ({"model": ["a", "b"]}, "model: expected once"),
        ({"metadata.k": ["a", "b"]}, "metadata.k: expected once"),
        ({"limit": ["1", "2"]}, "limit: expected once"),
        ({"since": "yesterday"}, "since='yesterday': expected unix ms or ISO 8601"),
        ({"until": ""}, "until='': expected unix ms or ISO 8601"),
        *(
            ({"before": text}, "before=")
            for text in (
                "",
                "x",
                "-",
                "-a",
                "1",
                "1-",
                "1-a b",
                "١-a",
                "1.5-a",
                "(1-a",
                "+inf-a",
                "\0",
                "9" * 17 + "-a",
            )
        ),
    ],
)
async def test_a_query_that_is_not_understood_is_refused_by_name(service, query, named):
    answer = await service.get("/generations", **query)
    assert_problem(answer, 400, "invalid_request")
    assert named in answer.json()["detail"]
