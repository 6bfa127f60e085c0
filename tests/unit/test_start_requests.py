"""The body of a call that starts a generation: what is taken from it, and what is refused with which words."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp.streams import StreamReader
from aiohttp.test_utils import make_mocked_request
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chunk_streams import values

from replay.config import Settings
from replay.errors import InvalidRequest
from replay.http.bodies import Bodies
from replay.http.start_requests import read_start_request
from replay.live.start_request import StartRequest

SETTINGS = Settings(ttl_s=100, max_ttl_s=1000, max_metadata_bytes=100, attach_retries="off")
USER = [{"role": "user", "content": "Hi"}]


async def start_request(
    body: Any = None, *, raw: bytes | None = None, settings: Settings = SETTINGS, **headers: str
) -> StartRequest:
    """What a body asks to start."""
    payload = StreamReader(Mock(_reading_paused=False), 1 << 20)
    payload.feed_data(json.dumps(body).encode() if raw is None else raw)
    payload.feed_eof()
    request = make_mocked_request("POST", "/generations", headers=headers, payload=payload)
    async with Bodies(settings).read_object(request) as read:
        return replace(read_start_request(request, read, settings), size=0)


def _in_short(value: Any) -> str:
    return repr(value)[:20]


async def with_options(**options: Any) -> StartRequest:
    """What a body asks to start with these options of ours."""
    return await start_request({"messages": USER, "replay": options})


# What is taken.


async def test_request_goes_to_the_upstream_as_it_is():
    body = {"model": "m", "messages": USER, "temperature": 0.5, "tools": [{"x": [1, None]}], "seed": 2**70}
    assert (await start_request(body)).request == body


async def test_prompt_is_one_message_of_the_user():
    assert (await start_request({"prompt": "Hi", "max_tokens": 3})).request == {"messages": USER, "max_tokens": 3}


async def test_our_options_and_stream_are_not_the_upstreams():
    assert (await start_request({"messages": USER, "stream": False, "replay": {"ttl": 5}})).request == {
        "messages": USER
    }


@pytest.mark.parametrize("body", [{"messages": USER}, {"messages": USER, "model": None, "replay": None}])
async def test_model_and_options_may_be_left_out(body):
    assert await start_request(body) == StartRequest(request={"messages": USER}, ttl_ms=100_000)


async def test_options_that_are_null_count_as_left_out():
    expected = StartRequest(request={"messages": USER}, ttl_ms=100_000)
    assert await with_options(id=None, ttl=None, metadata=None, abandon_after=None) == expected


async def test_options_are_read():
    assert await with_options(id="my-id", ttl=7, metadata={"a": [1]}, abandon_after=0.25) == StartRequest(
        request={"messages": USER},
        generation_id="my-id",
        ttl_ms=7000,
        metadata={"a": [1]},
        abandon_after_ms=250,
    )


@pytest.mark.parametrize(("ttl", "ttl_ms"), [(1, 1000), (1000, 1_000_000), (1.0, 1000), (1.0015, 1002)])
async def test_ttl_is_seconds_rounded_up_to_ms(ttl, ttl_ms):
    assert (await with_options(ttl=ttl)).ttl_ms == ttl_ms


async def test_ttl_by_default_is_none_that_a_caller_may_not_ask_for():
    assert (await start_request({"prompt": "Hi"}, settings=Settings(ttl_s=100, max_ttl_s=50))).ttl_ms == 50_000


async def test_idempotency_key_is_read():
    assert (await start_request({"prompt": "Hi"}, **{"Idempotency-Key": "k" * 255})).idempotency_key == "k" * 255
    assert (await start_request({"prompt": "Hi"})).idempotency_key is None


async def test_job_is_read():
    assert (await start_request({"prompt": "Hi"}, **{"Replay-Job": "k"})).job == "k"
    assert (await start_request({"prompt": "Hi"})).job is None


@pytest.mark.parametrize("count", ["1", "2", "10", "007"])
async def test_retry_is_told_by_the_count_of_openai_s_clients(count):
    assert (await start_request({"prompt": "Hi"}, **{"x-stainless-retry-count": count})).retry
    assert not (await start_request({"prompt": "Hi"})).retry


@pytest.mark.parametrize("count", ["0", "", "-1", "1.5", "x", "²", "true"])
async def test_any_other_count_is_no_retry(count):
    assert not (await start_request({"prompt": "Hi"}, **{"x-stainless-retry-count": count})).retry


async def test_caller_is_known_by_the_credentials_and_stands_nowhere():
    async def caller(**headers: str) -> bytes | None:
        asked = await start_request({"prompt": "Hi"}, settings=replace(SETTINGS, attach_retries="on"), **headers)
        assert "caller" not in repr(asked)
        return asked.caller

    same = {"Authorization": "Bearer sk-a", "api-key": "b"}
    assert await caller(**same) == await caller(**same, Accept="x", **{"x-stainless-retry-count": "1"})
    others = [{}, {"Authorization": "Bearer sk-a"}, {"api-key": "b"}, {"x-api-key": "b"}, same | {"Cookie": "c"}, same]
    assert len({await caller(**headers) for headers in others}) == len(others)
    assert (await start_request({"prompt": "Hi"}, **same)).caller is None  # turned off


# What is refused.


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"nope", b"\xff", b'{"prompt": NaN}', b"[" * 100_000, b'{"a":1}{"b":2}', b"null", b"[]", b'"x"', b"7"],
)
async def test_body_that_is_no_json_object_is_refused(raw):
    with pytest.raises(InvalidRequest, match="body: expected a JSON object"):
        await start_request(raw=raw)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "messages: expected a list of at least one message, or a prompt"),
        ({"messages": []}, "messages: expected"),
        ({"messages": None}, "messages: expected"),
        ({"messages": "Hi"}, "messages: expected"),
        ({"messages": ["Hi"]}, "messages: expected"),
        ({"messages": [*USER, None]}, "messages: expected"),
        ({"prompt": 1}, "prompt: expected a string"),
        ({"prompt": None}, "prompt: expected a string"),
        ({"prompt": ["Hi"]}, "prompt: expected a string"),
        ({"prompt": "Hi", "messages": USER}, "prompt and messages"),
        ({"prompt": "Hi", "messages": None}, "prompt and messages"),
        ({"messages": USER, "model": ""}, "model: expected a name"),
        ({"messages": USER, "model": 1}, "model: expected a name"),
        ({"messages": USER, "model": ["m"]}, "model: expected a name"),
        ({"messages": USER, "replay": []}, "replay: expected an object"),
        ({"messages": USER, "replay": "x"}, "replay: expected an object"),
        ({"messages": USER, "replay": False}, "replay: expected an object"),
        ({"messages": USER, "replay": {"tll": 5}}, "replay: expected .*ttl.*, got tll"),
    ],
)
async def test_refusal_says_what_was_expected(body, says):
    with pytest.raises(InvalidRequest, match=says):
        await start_request(body)


@pytest.mark.parametrize(("name", "least"), [("ttl", "1"), ("abandon_after", "0.1")])
@pytest.mark.parametrize("value", [0, -1, 0.099, 1001, 10**400, 1e300, "5", True, False, [], {}], ids=_in_short)
async def test_seconds_out_of_their_range_are_refused(name, least, value):
    with pytest.raises(InvalidRequest, match=rf"replay\.{name}: expected seconds from {least} to 1000, got"):
        await with_options(**{name: value})


@pytest.mark.parametrize(
    "value", ["", "a b", "x" * 129, "ä", "a\n", "{a}", 5, True, [], {}, "x" * 100_000], ids=_in_short
)
async def test_id_that_cannot_be_one_is_refused(value):
    with pytest.raises(InvalidRequest, match=r"generation id .*expected 1 to 128 of"):
        await with_options(id=value)


@pytest.mark.parametrize("value", [[], "x", 5, False])
async def test_metadata_that_is_no_object_is_refused(value):
    with pytest.raises(InvalidRequest, match=r"replay\.metadata: expected an object"):
        await with_options(metadata=value)


async def test_metadata_is_limited_as_json():
    assert (await with_options(metadata={"a": "x" * 92})).metadata == {"a": "x" * 92}
    with pytest.raises(InvalidRequest, match=r"replay\.metadata: expected at most 100 bytes, got 101"):
        await with_options(metadata={"a": "x" * 93})
    with pytest.raises(InvalidRequest, match="got 128"):
        await with_options(metadata={"a": "ä" * 60})


@pytest.mark.parametrize("key", ["", "k" * 256])
@pytest.mark.parametrize("header", ["Idempotency-Key", "Replay-Job"])
async def test_keys_are_limited(header, key):
    with pytest.raises(InvalidRequest, match=f"{header}: expected 1 to 255 characters"):
        await start_request({"prompt": "Hi"}, **{header: key})


@pytest.mark.parametrize("depth", [150, 500, 950, 1000, 1020])
@pytest.mark.parametrize("place", ["metadata", "ttl", "replay", "model", "messages"])
async def test_deep_body_is_refused_or_taken(depth, place):
    deep = b"[" * depth + b"]" * depth
    raw = {
        "metadata": b'{"prompt":"Hi","replay":{"metadata":{"x":%b}}}',
        "ttl": b'{"prompt":"Hi","replay":{"ttl":%b}}',
        "replay": b'{"prompt":"Hi","replay":%b}',
        "model": b'{"prompt":"Hi","model":%b}',
        "messages": b'{"messages":%b}',
    }[place] % deep
    with pytest.raises(InvalidRequest):
        await start_request(raw=raw)


@given(
    body=st.fixed_dictionaries(
        {},
        optional={
            "prompt": values,
            "model": values,
            "messages": values | st.lists(st.dictionaries(st.just("role"), values, max_size=1), max_size=2),
            "stream": values,
            "replay": values
            | st.fixed_dictionaries(
                {}, optional={"id": values, "ttl": values, "metadata": values, "abandon_after": values}
            ),
        },
    )
)
@settings(deadline=None)
async def test_any_body_is_an_order_or_refused(body):
    try:
        taken = await start_request(body)
    except InvalidRequest:
        return
    assert taken.ttl_ms > 0
    assert taken.request["messages"]
