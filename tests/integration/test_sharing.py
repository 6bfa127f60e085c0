"""Services that share a Valkey, each in a database or under a prefix of its own: none sees anything of another."""

from __future__ import annotations

import asyncio

import pytest
from support.api import assert_problem, text_of
from support.logs import assert_whole
from support.upstream import ScriptedUpstream

APART = {
    "databases": ({}, {"database": 1}),
    "two databases that are not the first": ({"database": 2}, {"database": 3}),
    "prefixes": ({}, {"key_prefix": "other:"}),
    "prefixes, one of which begins like the other": ({"key_prefix": "a:"}, {"key_prefix": "a:b:"}),
}


@pytest.fixture(params=APART)
async def services(request, make_node, valkey):
    async def start(settings):
        database = settings.get("database", 0)
        rest = {name: value for name, value in settings.items() if name != "database"}
        url = f"{valkey.url.removesuffix('/0')}/{database}"
        producing, reading = [await make_node(valkey_url=url, **rest) for _ in range(2)]
        return producing.api, reading.api

    return [await start(settings) for settings in APART[request.param]]


async def test_the_same_id_is_another_generation_in_each(services, upstream: ScriptedUpstream):
    # given a generation of the same name in each, with a reader on another node, and on the feed
    sources, calls = [], []
    for number, (producing, reading) in enumerate(services):
        await producing.start({"model": f"model-{number}", "prompt": "Hi"}, id="same")
        calls.append(await upstream.called())
        sources.append(reading.source("same"))
    async with sources[0], sources[1]:
        # when both speak, one in front of the other and the other way round
        for turn in range(20):
            for number in (0, 1) if turn % 2 else (1, 0):
                await calls[number].say(f"{number}.{turn} ")
            await asyncio.sleep(0.01)
        for call in calls:
            await call.finish()

        # then each reader has its own, whole
        for number, source in enumerate(sources):
            assert (await source.event("end")).json()["status"] == "completed"
            assert text_of(source.received) == "".join(f"{number}.{turn} " for turn in range(20))
            assert_whole(source.received)

    # and a deletion is that of one
    (first, first_reading), (second, second_reading) = services
    assert (await first.delete("/generations/same")).status == 204
    assert_problem(await first_reading.get("/generations/same"), 404)
    for api in (second, second_reading):
        assert text_of(await api.log("same")).startswith("1.0 ")
        assert (await api.get("/generations")).json()["generations"][0]["model"] == "model-1"
    assert (await first.get("/generations")).json()["generations"] == []


async def test_a_key_is_used_once_in_each(services, upstream: ScriptedUpstream):
    started = []
    for producing, reading in services:
        for api in (producing, reading):
            answer = await api.post("/generations", {"model": "m", "prompt": "Hi"}, {"Idempotency-Key": "k"})
            started.append((answer.status, answer.json()["id"]))
    assert [status for status, _ in started] == [201, 200, 201, 200]
    assert started[0][1] == started[1][1] != started[2][1] == started[3][1]
    assert len(upstream.calls) == 2
