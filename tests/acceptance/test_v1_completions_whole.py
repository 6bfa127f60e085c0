"""Completions in one piece: assembled from the upstream's stream, for which its client waits."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from support.api import text_of
from support.deadlines import stays_silent
from support.samples import COMPLETE, SAMPLES, TWO_CHOICES, each_sample
from support.upstream import USAGE, Call, play, say
from support.v1 import (
    CHAT,
    CHAT_PATH,
    LEGACY,
    ask,
    asking,
    assert_refused,
    body_for,
    id_of,
    new_id,
    opening,
    streamed_or_whole,
)


@each_sample({name: sample for name, sample in COMPLETE.items() if name[:2] != TWO_CHOICES})
async def test_a_call_without_streaming_is_answered_with_the_whole(service, upstream, sample):
    upstream.script = play(sample, 50)
    answer = await ask(service, body_for(sample))

    # it is what the official client takes for an answer
    assert (answer.status, answer.media_type) == (200, "application/json")
    kind = Completion if body_for(sample) is LEGACY else ChatCompletion
    kind.model_validate(answer.json(), strict=True)

    # under the generation's id, with everything that choice 0 has said, and the upstream's own facts
    completion = answer.json()
    assert completion["id"] == id_of(answer)
    choices = [choice for chunk in sample.chunks for choice in chunk["choices"]]
    deltas = [choice.get("delta") or {"content": choice.get("text")} for choice in choices]
    (choice,) = completion["choices"]
    said = "".join(delta.get("content") or "" for delta in deltas)
    assert (choice["text"] if kind is Completion else choice["message"]["content"] or "") == said
    assert choice["finish_reason"] == [c["finish_reason"] for c in choices if c.get("finish_reason")][-1]
    usages = [chunk["usage"] for chunk in sample.chunks if chunk.get("usage")]
    assert completion["usage"] == (usages[-1] if usages else None)
    for name in ("model", "created"):
        assert completion[name] == sample.chunks[-1][name]


async def _as_an_event(call: Call, completion: dict[str, Any]) -> None:
    await call.send(completion)
    await call.done()


async def _as_json(call: Call, completion: dict[str, Any]) -> None:
    await call.respond(200, completion)


async def _asked_again(call: Call, completion: dict[str, Any]) -> None:
    """Nothing to who wants a stream."""
    await (call.done() if call.request["stream"] else call.respond(200, completion))


@pytest.mark.parametrize(
    ("way", "nulls"),
    [
        (_as_an_event, {"service_tier": None, "prompt_logprobs": None}),
        (_as_json, {}),  # it is recorded as a stream's chunk, of which a null beside the choices says nothing
        (_asked_again, {}),
    ],
)
async def test_what_the_upstream_sends_as_a_whole_is_the_answer_as_it_came(service, upstream, way, nulls):
    # given an upstream that does not stream, and says more than a stream's chunks do
    message = {"role": "assistant", "content": "Valkey", "refusal": None, "annotations": [], "x": [1, None]}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": 7}
    completion = {"id": "c", "object": "chat.completion", "created": 5, "model": "other", "choices": [choice]}
    completion |= {"usage": USAGE | {"cost": 0.1}, **nulls}

    upstream.script = partial(way, completion=completion)

    # then its answer comes as it was, and so it does later
    answer = await ask(service)
    assert (answer.status, answer.json()) == (200, completion | {"id": id_of(answer)})
    assert (await service.get(f"{CHAT_PATH}/{id_of(answer)}")).json() == answer.json() | {"metadata": {}}
    assert (await service.generation(id_of(answer)))["usage"] == completion["usage"]


@pytest.mark.parametrize("stream", [None, False])
async def test_without_streaming_the_upstream_streams_all_the_same(service, upstream, stream):
    waiting = asyncio.create_task(service.post(CHAT_PATH, CHAT | ({} if stream is None else {"stream": stream})))
    call = await upstream.called()
    assert call.request["stream"] is True
    assert call.request["stream_options"]["include_usage"] is True
    await call.say("a")
    await call.finish()
    assert (await waiting).json()["choices"][0]["message"]["content"] == "a"


async def test_plain_text_is_assembled(service, upstream):
    upstream.script = say("Val", "key", usage=USAGE)
    completion = (await ask(service)).json()
    assert completion["object"] == "chat.completion"
    assert completion["usage"] == USAGE
    assert completion["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Valkey", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]


@pytest.mark.parametrize(
    ("sample", "calls"),
    [
        ("08-tool_calls", [("ciZ4iQvGw94UgyET1rnHM1gfXGGeQRTO", "get_weather", {"city": "Paris é"})]),
        (
            "09-tool_calls-parallel",
            [
                ("call__Jpw_dlnOgeM7c9t", "get_weather", {"city": "Paris"}),
                ("call_H4UY_by5qR7nOFIY", "get_time", {"tz": "CET"}),
            ],
        ),
    ],
)
async def test_tool_calls_are_assembled(service, upstream, sample, calls):
    upstream.script = play(SAMPLES[sample])
    (choice,) = (await ask(service)).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assembled = choice["message"]["tool_calls"]
    assert [set(call) for call in assembled] == [{"id", "type", "function"}] * len(calls)  # no index
    assert [(c["id"], c["function"]["name"], json.loads(c["function"]["arguments"])) for c in assembled] == calls


async def test_reasoning_and_refusals_are_assembled(service, upstream):
    upstream.script = play(SAMPLES["07-reasoning_content"])
    message = (await ask(service)).json()["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == (" the reader", " the reader is")
    upstream.script = play(SAMPLES["47-empty-delta-and-null-delta"])
    message = (await ask(service)).json()["choices"][0]["message"]
    assert (message["content"], message["refusal"]) == ("x", "No.")


async def test_logprobs_are_joined(service, upstream):
    sample = SAMPLES["12-logprobs"]
    upstream.script = play(sample)
    (choice,) = (await ask(service)).json()["choices"]
    said = [choice["logprobs"] for chunk in sample.chunks for choice in chunk["choices"] if choice.get("logprobs")]
    assert choice["logprobs"]["content"] == [token for logprobs in said for token in logprobs["content"]]


async def test_several_choices_are_assembled_each(service, upstream):
    # given two choices that speak by turns and at once, the second one first
    turns = [
        [{"index": 1, "delta": {"role": "assistant", "content": None}}],
        [{"index": 1, "delta": {"content": "on"}}],
        [{"index": 0, "delta": {"role": "assistant", "content": "ze"}}],
        [{"index": 1, "delta": {"content": "e"}}, {"index": 0, "delta": {"content": "ro"}}],
        [{"index": 1, "delta": {}, "finish_reason": "length"}],
        [{"index": 0, "delta": {}, "finish_reason": "stop"}],
    ]

    async def interleave(call):
        for choices in turns:
            await call.send(call.chunk() | {"choices": choices})
        await call.done()

    upstream.script = interleave
    choices = (await ask(service, CHAT | {"n": 2})).json()["choices"]
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in choices] == [
        (0, "zero", "stop"),
        (1, "one", "length"),
    ]


async def test_fields_that_servers_add_are_kept(service, upstream):
    async def script(call):
        further = {"system_fingerprint": "fp_1", "service_tier": "default", "x_vendor": {"a": [1]}}
        await call.send(call.chunk({"delta": {"content": "a", "annotations": [1]}, "stop_reason": 7}, **further))
        await call.finish()

    upstream.script = script
    completion = (await ask(service)).json()
    assert (completion["system_fingerprint"], completion["service_tier"]) == ("fp_1", "default")
    assert completion["x_vendor"] == {"a": [1]}
    (choice,) = completion["choices"]
    assert (choice["stop_reason"], choice["message"]["annotations"]) == (7, [1])


async def test_a_legacy_completion_is_assembled(service, upstream):
    # given legacy chunks with their own kind of logprobs
    first = {"tokens": ["a"], "token_logprobs": [-0.5], "text_offset": [0], "top_logprobs": [{"a": -0.5}]}
    second = {"tokens": ["b"], "token_logprobs": [-1.5], "text_offset": [1], "top_logprobs": [None]}

    async def script(call):
        assert call.legacy
        await call.send(call.chunk({"text": "a", "logprobs": first}))
        await call.send(call.chunk({"text": "b", "logprobs": second}))
        await call.finish(usage=USAGE)

    upstream.script = script
    answer = await ask(service, LEGACY | {"logprobs": 1})
    assert answer.json() == {
        "id": id_of(answer),
        "object": "text_completion",
        "created": 1_700_000_000,
        "model": "test-model",
        "choices": [
            {
                "index": 0,
                "text": "ab",
                "logprobs": {name: first[name] + second[name] for name in first},
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }


async def test_a_call_without_streaming_can_be_watched_meanwhile(service, other_service, upstream):
    # given a call that waits for the whole answer, under an id that its client has chosen
    id = new_id()
    waiting = asking(service, CHAT | {"replay": {"id": id}})
    call = await upstream.called()

    # when others watch it, here and elsewhere, then they see it come
    async with service.source(id) as here, other_service.source(id) as there:
        await call.say("Hel")
        for source in (here, there):
            assert (await source.event("token")).json()["content"] == "Hel"
        assert not waiting.done()
        await call.say("lo")
        await call.finish()
        for source in (here, there):
            await source.event("end")
            assert text_of(source.received) == "Hello"

    # and its client gets the whole
    answer = await waiting
    assert (id_of(answer), answer.json()["choices"][0]["message"]["content"]) == (id, "Hello")


@streamed_or_whole
async def test_whoever_waits_for_an_answer_is_a_subscriber(service, upstream, stream):
    # given a generation that is given up when nobody watches it
    id = new_id()
    body = CHAT | {"replay": {"id": id, "abandon_after": 0.3}}
    waiting = opening(service, body) if stream else asking(service, body)
    call = await upstream.called()

    # when its client waits for longer than that, then it goes on
    assert await stays_silent(waiting, 1.2)
    generation = await service.generation(id)
    assert (generation["status"], generation["subscribers"]) == ("queued", 1)

    # and when its client hangs up, it does not
    waiting.cancel()
    generation = await service.ended(id)
    assert (generation["status"], generation["error"]["code"]) == ("cancelled", "abandoned")
    await call.hung_up()


async def test_whoever_waits_on_another_node_is_a_subscriber_too(service, other_service, upstream, key):
    # given two clients of one generation on two nodes, of which the first leaves
    id = new_id()
    body = CHAT | {"replay": {"id": id, "abandon_after": 1}}
    first = asking(service, body, key)
    call = await upstream.called()
    second = asking(other_service, body, key)
    await service.has_subscribers(id, 2)
    first.cancel()

    # then it goes on for the other
    assert await stays_silent(second, 2.2)
    await call.say("a")
    await call.finish()
    assert (await second).json()["choices"][0]["message"]["content"] == "a"


@streamed_or_whole
async def test_a_client_that_hangs_up_cancels_nothing(service, upstream, stream):
    # given a client that leaves before the answer is there
    id = new_id()
    body = CHAT | {"replay": {"id": id}}
    waiting = opening(service, body) if stream else asking(service, body)
    call = await upstream.called()
    if stream:
        await call.say("a")
        (await waiting).hang_up()
    else:
        waiting.cancel()
        await call.say("a")
    await service.has_subscribers(id, 0)

    # then the upstream is listened to, and the answer is there for whoever asks
    await call.say("b")
    await call.finish()
    assert (await service.ended(id))["status"] == "completed"
    assert (await service.transcript(id))["text"] == "ab"
    assert not call.disconnected.is_set()


@pytest.mark.parametrize("fault", ["error object", "cut", "clean end"])
@pytest.mark.parametrize("with_key", [False, True])
async def test_a_whole_answer_that_fails_half_way_is_a_502(service, upstream, key, fault, with_key):
    async def fail(call):
        await call.say("partial")
        if fault == "error object":
            await call.send({"error": {"message": "on fire", "type": "server_error", "param": "p", "code": "c"}})
        await (call.cut() if fault == "cut" else call.done())

    upstream.script = fail
    answer = await ask(service, CHAT, key if with_key else None)
    assert_refused(answer, 502, "c" if fault == "error object" else "upstream_truncated")
    if fault == "error object":
        error = answer.json()["error"]
        assert (error["type"], error["param"]) == ("server_error", "p")
        assert "on fire" in error["message"]

    # another try may help, also with its key, which begins anew
    assert "x-should-retry" not in answer.headers
    again = await ask(service, CHAT, key if with_key else None)
    assert id_of(again) != id_of(answer)
    assert again.headers.get("replay-previous-generation-id") == (id_of(answer) if with_key else None)
    assert len(upstream.calls) == 2


async def test_a_whole_answer_that_is_cancelled_is_a_409_for_good(service, other_service, upstream):
    id = new_id()
    waiting = asking(service, CHAT | {"replay": {"id": id}})
    call = await upstream.called()
    await call.say("partial")
    await other_service.post(f"/generations/{id}/cancel")
    answer = await waiting
    assert_refused(answer, 409, "cancelled")
    assert answer.headers["x-should-retry"] == "false"
    await call.hung_up()
