"""OpenAI's API in front of the log: what an unmodified client sends to `/v1`, and what it gets back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import re
import uuid
from functools import partial
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from support.api import text_of
from support.deadlines import DEADLINE_S, eventually
from support.http1 import open_stream, request
from support.node import Node
from support.ports import free_port
from support.samples import SAMPLES
from support.sse import messages
from support.upstream import USAGE, Call, ScriptedUpstream, play, say

CHAT_PATH = "/v1/chat/completions"
CHAT = {"model": "test-model", "messages": [{"role": "user", "content": "Hi"}]}
LEGACY = {"model": "test-model", "prompt": "Hi"}
COUNTED = {"stream_options": {"include_usage": True}}

PROMPT_S = 5  # a refusal waits for nothing, and least of all for what is done behind it

DONE = "[DONE]"
BOTH = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])

# Samples that are an answer of their own, not a stream of chunks; 15 is another API's.
NOT_CHUNKS = ("15", "21", "23", "25", "28")
FAILING = {"19": "temperature", "20": "APIConnectionError"}
CUT_IN_A_LINE = "22"
TWO_CHOICES = "11"  # of which one never finishes
STREAMS = {name: sample for name, sample in SAMPLES.items() if name[:2] not in NOT_CHUNKS}
COMPLETE = {name: sample for name, sample in STREAMS.items() if name[:2] not in (*FAILING, CUT_IN_A_LINE)}


def each(samples):
    return pytest.mark.parametrize("sample", [pytest.param(sample, id=name) for name, sample in samples.items()])


def body_for(sample):
    """A request that such a stream answers."""
    return LEGACY if any("text" in choice for chunk in sample.chunks for choice in chunk["choices"]) else CHAT


# A client.


async def opened(api, body=CHAT, headers=None, *, seconds=DEADLINE_S):
    """A streamed call; returns when its head has come."""
    stream = await open_stream(
        api.at("/v1/completions" if "prompt" in body else CHAT_PATH),
        method="POST",
        headers={"Content-Type": "application/json", **(headers or {})},
        body=json.dumps({**body, "stream": True}).encode(),
        seconds=seconds,
    )
    api.started.append(stream.headers.get("replay-generation-id", "none"))
    return stream


async def ask(api, body=CHAT, headers=None, *, stream=False, seconds=DEADLINE_S):
    """A call, streamed or not, and its whole answer."""
    if stream:
        return await (await opened(api, body, headers, seconds=seconds)).to_end(seconds)
    path = "/v1/completions" if "prompt" in body else CHAT_PATH
    answer = await api.post(path, {**body, "stream": False}, headers, seconds=seconds)
    api.started.append(answer.headers.get("replay-generation-id", "none"))
    return answer


def asking(api, body=CHAT, headers=None):
    """A call without streaming that is under way."""
    return asyncio.create_task(ask(api, body, headers))


def opening(api, body=CHAT, headers=None):
    """A streamed call whose head has not come yet."""
    return asyncio.create_task(opened(api, body, headers))


async def stays_silent(task, seconds=0.3):
    """Nothing has come for so long."""
    done, _ = await asyncio.wait([task], timeout=seconds)
    return not done


def id_of(answer) -> str:
    return answer.headers["replay-generation-id"]


def data_of(answer) -> list:
    """What stands in each `data:`: parsed, or `[DONE]`."""
    return [event.data if event.data == DONE else event.json() for event in messages(answer.body)]


def texts_of(payloads) -> list:
    """The text of choice 0 in each chunk that has some."""
    deltas = [payload["choices"][0]["delta"] for payload in payloads if payload != DONE and payload.get("choices")]
    return [delta["content"] for delta in deltas if delta.get("content")]


def under(id, chunks) -> list:
    """The upstream's chunks as the client has to see them."""
    return [{**chunk, "id": id} for chunk in chunks]


def is_usage_alone(chunk) -> bool:
    """Whether a chunk counts usage and says nothing: OpenAI sends it without choices, LiteLLM with empty ones."""
    said = [value for choice in chunk["choices"] for key, value in choice.items() if key != "index" and value]
    return isinstance(chunk.get("usage"), dict) and not said


def assert_error_object(payload, message="", code=None):
    """Hold an error against OpenAI's shape."""
    assert set(payload) == {"error"}, payload
    error = payload["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert isinstance(error["message"], str)
    assert error["message"]
    assert message in error["message"]
    assert isinstance(error["type"], str)
    assert code is None or error["code"] == code


def assert_refused(answer, status, code=None):
    """Hold an answer against what OpenAI's clients know as an error."""
    assert answer.status == status, answer
    assert answer.media_type == "application/json", answer
    assert answer.headers["x-request-id"]
    assert_error_object(answer.json(), code=code)


def assert_broken_off(answer, message="", code=None) -> list:
    """Hold a streamed answer against what a failure has to look like; the chunks before it."""
    assert answer.status == 200, answer
    assert not answer.clean
    *chunks, last = data_of(answer)
    assert DONE not in chunks
    assert all("error" not in chunk for chunk in chunks)
    assert_error_object(last, message, code)
    return chunks


@pytest.fixture
def key() -> dict[str, str]:
    return {"Idempotency-Key": f"key-{uuid.uuid4()}"}


def new_id() -> str:
    return f"gen_{uuid.uuid4().hex}"


# What the upstream sent is what comes back.


@pytest.mark.parametrize("piece", [None, 7], ids=["at once", "in pieces"])
@each(COMPLETE)
async def test_a_stream_is_the_upstreams_but_for_the_id_live_recorded_and_again(service, upstream, key, sample, piece):
    # given an upstream that answers with this sample, cut anywhere
    upstream.script = play(sample, piece)
    body = body_for(sample) | COUNTED

    # when it is streamed, read again from the log, and asked for again with its key
    live = await ask(service, body, key, stream=True)
    id = id_of(live)
    recorded = await service.read(id, format="openai")
    again = await ask(service, body, key, stream=True)

    # then each gives every chunk in its order, and says that this was all
    for answer in (live, recorded, again):
        assert (answer.status, answer.clean) == (200, True)
        assert data_of(answer) == [*under(id, sample.chunks), DONE]
    assert id_of(again) == id
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("piece", [None, 7], ids=["at once", "in pieces"])
@each({name: sample for name, sample in STREAMS.items() if name[:2] in FAILING})
async def test_a_stream_that_breaks_is_chunks_an_error_object_and_a_cut(service, upstream, sample, piece):
    # given an upstream that breaks off
    upstream.script = play(sample, piece)
    live = await ask(service, CHAT | COUNTED, stream=True)
    id = id_of(live)

    # then it is what came before, one error object, no [DONE], and no clean end
    assert assert_broken_off(live, FAILING[sample.name[:2]]) == under(id, sample.chunks)

    # and from the log the same, but with a clean end, since there an id says that it was one
    recorded = await service.read(id, format="openai")
    assert recorded.clean
    assert data_of(recorded) == data_of(live)
    assert (await service.generation(id))["status"] == "failed"
    assert len(upstream.calls) == 1


@BOTH
async def test_a_stream_that_is_cut_in_its_first_line_is_broken_or_refused(service, upstream, stream):
    # what of an unfinished event counts, nobody says
    upstream.script = play(SAMPLES["22-cut-midline-no-final-chunk"])
    answer = await ask(service, stream=stream, seconds=PROMPT_S)
    if answer.status == 200:
        assert stream
        assert_broken_off(answer, code="upstream_truncated")
    else:
        assert_refused(answer, 502, "upstream_truncated")


NASTY = (
    *("", " ", "\n\ndata: x\n\n", "\r", "\0", '"', "\\", '\\"}}]}', "\u2028", "é😀", "\ufeff", DONE, "x" * 300),
    *('"}}],"usage":null}', '"content":"x"', "{", "\ud83d", "\ude00"),
)


def nasty_chunk(chance) -> dict:
    """A chunk of any of the shapes that servers send, with any text."""
    text = chance.choice(NASTY)
    index = chance.choice((0, 0, 0, 1))
    choice = chance.choice(
        (
            {"index": index, "delta": {"content": text}},
            {"index": index, "delta": {"content": text}, "finish_reason": None, "logprobs": None},
            {"delta": {"content": text}, "index": index},
            {"index": index, "delta": {"role": "assistant", "content": text}},
            {"index": index, "delta": {"reasoning_content": text}},
            {"index": index, "delta": {"content": text, "reasoning_content": chance.choice(NASTY)}},
            {"index": index, "delta": {"refusal": text}},
            {"index": index, "delta": {"tool_calls": [{"index": index, "function": {"arguments": text}}]}},
            {"index": index, "delta": {"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": text}}]}},
            {"index": index, "delta": {"content": text}, "logprobs": {"content": [{"token": text, "logprob": -1e-7}]}},
            {"index": index, "delta": None},
            {"index": index, "delta": {}},
        )
    )
    further = chance.choice(
        (
            *({}, {}, {}, {"usage": None}, {"usage": USAGE}, {"error": None}, {"obfuscation": text}),
            *({"x": [1.5, -0.0, 1e300, 12345678901234567890123, None, {"content": text}]}, {"created": 2**64}),
        )
    )
    return {"id": chance.choice(("a", "", "chatcmpl")), "model": "m", "choices": [choice], **further}


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_chunks_look_like_they_come_back_equal(service, upstream, key, seed):
    # given chunks of many shapes in any order, written in several ways
    chance = random.Random(seed)
    chunks = [nasty_chunk(chance) for _ in range(120)]
    styles = [{}, {"separators": (",", ":")}, {"ensure_ascii": False}]

    async def script(call):
        for chunk in chunks:
            style = chance.choice(styles)
            line = f"data:{chance.choice(('', ' '))}{json.dumps(chunk, **style)}"
            with contextlib.suppress(UnicodeEncodeError):  # half a surrogate pair can only be sent as an escape
                await call.send_raw(f"{line}\n\n".encode())
                continue
            await call.send_raw(f"data: {json.dumps(chunk)}\n\n".encode())
        finish = [{"index": index, "delta": {}, "finish_reason": "stop"} for index in (0, 1)]
        chunks.append({"id": "z", "choices": finish})
        await call.send(chunks[-1])
        await call.done()

    upstream.script = script

    # when they are streamed, read again, and asked for again, then they are the same, as JSON
    live = await ask(service, CHAT | COUNTED, key, stream=True)
    again = await ask(service, CHAT | COUNTED, key, stream=True)
    for answer in (live, await service.read(id_of(live), format="openai"), again):
        assert data_of(answer) == [*under(id_of(live), chunks), DONE]


async def test_what_a_post_streams_arrives_before_the_next_is_produced(service, upstream):
    starting = opening(service)
    call = await upstream.called()
    await call.say("word0")
    stream = await starting
    for number in range(1, 20):
        await stream.until(b"word%d" % (number - 1))
        await call.say(f"word{number}")
    await stream.until(b"word19")
    await call.finish()
    answer = await stream.to_end()
    assert texts_of(data_of(answer)) == [f"word{number}" for number in range(20)]


@BOTH
async def test_an_upstream_that_answers_200_and_nothing_is_a_502(service, upstream, stream):
    upstream.script = play(SAMPLES["21-empty-200"])
    answer = await ask(service, stream=stream, seconds=PROMPT_S)
    assert_refused(answer, 502, "upstream_truncated")


@pytest.mark.parametrize("body", [CHAT, LEGACY], ids=["chat", "legacy"])
async def test_why_nothing_is_streamed_is_asked_without_a_stream_where_none_is_wanted(service, upstream, body):
    # given a server that refuses a prompt, but in a stream just says nothing
    async def too_long(call):
        await (call.done() if call.request["stream"] else call.respond(400, ERROR))

    upstream.script = too_long

    # when the whole answer is wanted, then the refusal is the answer, after two calls that are the same otherwise
    answer = await ask(service, body | COUNTED)
    assert (answer.status, answer.json()) == (400, ERROR)
    first, second = (call.request for call in upstream.calls)
    assert second == {name: value for name, value in first.items() if name != "stream_options"} | {"stream": False}

    # and when a stream is, its one call is all
    assert_refused(await ask(service, body, stream=True), 502, "upstream_truncated")
    assert len(upstream.calls) == 3


@pytest.mark.parametrize("spoken", [b":\n\n", b"data: [DONE]\n\n"])
async def test_what_has_said_anything_is_not_asked_again(service, upstream, spoken):
    async def script(call):
        await call.send_raw(spoken)
        await call.done()

    upstream.script = script
    assert_refused(await ask(service), 502, "upstream_truncated")
    assert len(upstream.calls) == 1


@BOTH
@each({name: sample for name, sample in SAMPLES.items() if name[:2] in ("25", "28")})
async def test_a_recorded_refusal_is_answered_as_it_came(service, upstream, sample, stream):
    upstream.script = play(sample)
    answer = await ask(service, stream=stream, seconds=PROMPT_S)
    assert (answer.status, answer.body, answer.clean) == (sample.status, sample.body, True)
    for name in ("content-type", "retry-after"):
        assert answer.headers.get(name) == sample.headers.get(name)
    assert len(upstream.calls) == 1


@BOTH
async def test_a_recorded_refusal_that_is_a_stream_becomes_an_error_object(service, upstream, stream):
    sample = SAMPLES["23-status500-with-sse-body"]
    upstream.script = play(sample)
    answer = await ask(service, stream=stream, seconds=PROMPT_S)
    assert (answer.status, answer.headers["content-type"]) == (500, "application/json")
    assert answer.json() == {"error": {"param": None} | sample.payloads[0]["error"]}


# The upstream's count.


@each(COMPLETE)
async def test_usage_alone_is_not_shown_to_whoever_did_not_ask_for_it(service, upstream, sample):
    upstream.script = play(sample, 50)
    answer = await ask(service, body_for(sample), stream=True)
    shown = [chunk for chunk in sample.chunks if not is_usage_alone(chunk)]
    assert data_of(answer) == [*under(id_of(answer), shown), DONE]


@pytest.mark.parametrize(
    ("beside", "shown"),
    [
        ({}, False),
        ({"citations": None, "service_tier": "default"}, False),
        ({"timings": {"prompt_ms": 0.7}}, False),
        ({"citations": ["https://a"]}, True),
        ({"x_vendor": {"cost": 0.1}}, True),
    ],
)
async def test_usage_is_shown_to_whoever_did_not_ask_where_more_is_said_with_it(service, upstream, beside, shown):
    async def script(call):
        await call.say("a")
        await call.send(call.chunk({"delta": {}, "finish_reason": "stop"}))
        await call.send(call.chunk(usage=USAGE, **beside))
        await call.done()

    upstream.script = script
    answer = await ask(service, stream=True)
    assert ("usage" in data_of(answer)[-2]) == shown

    # and to whoever asks for the log's own chunks always
    everything = data_of(await service.read(id_of(answer), format="openai"))
    assert everything[-2].items() >= {"usage": USAGE, **beside}.items()


@pytest.mark.parametrize(
    "options", [None, {}, {"include_usage": False}, {"include_usage": None}, {"include_obfuscation": False}]
)
async def test_the_upstream_always_counts_and_the_log_has_it(service, upstream, options):
    # given a client that does not ask for usage
    starting = opening(service, CHAT if options is None else CHAT | {"stream_options": options})

    # then the upstream is asked for it all the same, beside what the client wanted
    call = await upstream.called()
    assert call.request["stream_options"] == {**(options or {}), "include_usage": True}

    # and what it counts is in the log, and not in the client's stream
    await call.say("a")
    await call.finish(usage=USAGE)
    answer = await (await starting).to_end()
    assert not any(is_usage_alone(chunk) for chunk in data_of(answer)[:-1])
    id = id_of(answer)
    assert (await service.generation(id))["usage"] == USAGE
    assert is_usage_alone(data_of(await service.read(id, format="openai"))[-2])


@pytest.mark.parametrize("body", [CHAT, LEGACY], ids=["chat", "legacy"])
async def test_an_upstream_that_cannot_count_is_asked_again_without_and_only_once(make_node, upstream, body):
    # given an upstream that does not know stream_options
    async def old(call):
        if "stream_options" in call.request:
            message = "Unrecognized request argument supplied: stream_options"
            await call.respond(400, {"error": {"message": message, "type": "invalid_request_error"}})
        else:
            await say("a")(call)

    upstream.script = old
    node = await make_node()

    # when it is called twice, then its clients notice nothing
    answers = [await ask(node.api, body, stream=True), await ask(node.api, body)]
    assert [answer.status for answer in answers] == [200, 200]
    assert data_of(answers[0])[-1] == DONE
    for answer in answers:
        assert (await node.api.generation(id_of(answer)))["status"] == "completed"

    # and the second call knows from the first
    assert ["stream_options" in call.request for call in upstream.calls] == [True, False, False]


# Answers in one piece.


@each({name: sample for name, sample in COMPLETE.items() if name[:2] != TWO_CHOICES})
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


@BOTH
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
    await eventually("both", lambda: service.generation(id), lambda g: g["subscribers"] == 2)
    first.cancel()

    # then it goes on for the other
    assert await stays_silent(second, 2.2)
    await call.say("a")
    await call.finish()
    assert (await second).json()["choices"][0]["message"]["content"] == "a"


@BOTH
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
    await eventually("nobody", lambda: service.generation(id), lambda g: g["subscribers"] == 0)

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


# Framing.


@pytest.mark.parametrize("body", [CHAT, LEGACY], ids=["chat", "legacy"])
async def test_a_stream_is_data_lines_and_keep_alive_lines_alone(make_node, upstream, body):
    # given a model that pauses after its first word
    node = await make_node(keepalive_s=0.2)
    starting = opening(node.api, body | COUNTED)
    call = await upstream.called()
    await call.say("first")
    stream = await starting
    await stream.until(b"first")
    await stream.until(b"\n\n:k\n:k\n")
    await call.say("second")
    await call.finish(usage=USAGE)
    answer = await stream.to_end()

    # then the pause is kept alive by lines that are no blocks, and nothing else is there
    assert answer.clean
    assert re.fullmatch(rb"(?:data: [^\r\n]+\n\n(?::k\n)*)+", answer.body)
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert len(data_of(answer)) == 5


@pytest.mark.parametrize("body", [CHAT, LEGACY], ids=["chat", "legacy"])
async def test_the_head_of_a_stream_names_the_generation(service, upstream, body):
    upstream.script = say("a")
    answer = await ask(service, body, {"Accept-Encoding": "gzip, br"}, stream=True)
    id = id_of(answer)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in answer.headers
    assert answer.headers["link"] == f'</generations/{id}/events>; rel="monitor"'
    assert answer.headers["x-request-id"]
    assert (await service.generation(id))["status"] == "completed"


async def test_the_head_of_a_whole_answer_names_the_generation(service, upstream):
    upstream.script = say("a")
    answer = await ask(service)
    assert answer.headers["link"] == f'</generations/{id_of(answer)}/events>; rel="monitor"'
    assert (await service.generation(id_of(answer)))["status"] == "completed"


async def test_every_answer_has_a_request_id_of_its_own(service, upstream):
    upstream.script = say("a")
    answers = [
        await ask(service, stream=True),
        await ask(service),
        await service.get("/v1/models"),
        await service.get("/v1/models/test-model"),
        await service.get(CHAT_PATH),
        await service.get("/v1/nowhere"),
        await service.post(CHAT_PATH, {}),
    ]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)
    assert "x-request-id" not in (await service.get("/healthz")).headers


async def test_nothing_is_on_the_wire_before_the_upstreams_first_word(service, upstream):
    # given a streamed call, whose upstream first says nothing, and then no more than 200
    starting = opening(service)
    call = await upstream.called()
    assert await stays_silent(starting)
    await call.answer()
    assert await stays_silent(starting)

    # when it speaks, then the head comes
    await call.say("a")
    stream = await starting
    await stream.until(b'"a"')
    assert stream.status == 200


@pytest.mark.parametrize("ending", ["well", "badly"])
async def test_an_upstream_that_has_accepted_and_thinks_is_kept_alive(make_node, upstream, ending):
    # given an upstream that takes longer than a keep-alive, first to answer
    node = await make_node(keepalive_s=0.2)
    starting = opening(node.api)
    call = await upstream.called()
    assert await stays_silent(starting, 0.8)

    # when it has answered 200, and has not said a word, then the head comes, and keep-alives
    await call.answer()
    stream = await starting
    assert stream.status == 200
    assert (await stream.until(b":k\n:k\n")).replace(b":k\n", b"") == b""

    # and whatever comes then, comes in the stream
    if ending == "well":
        await call.say("a")
        await call.finish()
        answer = await stream.to_end()
        assert answer.clean
        assert (texts_of(data_of(answer)), data_of(answer)[-1]) == (["a"], DONE)
    else:
        await call.done()
        assert assert_broken_off(await stream.to_end(), code="upstream_truncated") == []


# Requests that cannot be.


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/nowhere"), ("POST", "/v1/nowhere"), ("GET", "/v1/"), ("POST", "/v1/chat/completions/x/y/z")],
)
async def test_an_unknown_path_is_a_404(service, method, path):
    assert_refused(await request(method, service.at(path)), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", CHAT_PATH, {"GET", "POST"}),
        ("DELETE", CHAT_PATH, {"GET", "POST"}),
        ("GET", "/v1/completions", {"POST"}),
        ("POST", "/v1/models", {"GET"}),
        ("PUT", f"{CHAT_PATH}/gen_x", {"GET", "DELETE"}),
    ],
)
async def test_a_wrong_method_is_a_405_that_says_the_right_ones(service, method, path, allowed):
    answer = await request(method, service.at(path), body=b"{}" if method != "GET" else None)
    assert_refused(answer, 405)
    assert allowed <= set(answer.headers["allow"].split(", "))


@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/completions"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b'"x"', b"null", b"\xff{}", b"{}", b'{"a":NaN}', b"[" * 5000])
async def test_a_body_that_is_no_request_is_a_400(service, upstream, path, body):
    answer = await service.post(path, headers={"Content-Type": "application/json"}, body=body)
    assert_refused(answer, 400, "invalid_request")
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert upstream.calls == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": "x"},
        {"messages": []},
        {"messages": ["x"]},
        {"model": 7},
        {"model": ""},
        {"stream": "true"},
        {"stream": 1},
        {"replay": 7},
        {"replay": {"id": "a b"}},
        {"replay": {"id": ""}},
        {"replay": {"id": "x" * 129}},
        {"replay": {"ttl": "x"}},
        {"replay": {"ttl": -1}},
        {"replay": {"ttl": True}},
        {"replay": {"abandon_after": "x"}},
        {"replay": {"metadata": 7}},
        {"replay": {"metadata": {"x": "x" * 20_000}}},
        {"replay": {"unheard_of": 1}},
    ],
    ids=lambda wrong: json.dumps(wrong)[:40],
)
async def test_members_of_the_wrong_kind_are_a_400(service, upstream, wrong):
    answer = await service.post(CHAT_PATH, CHAT | wrong)
    assert_refused(answer, 400, "invalid_request")
    said = answer.json()["error"]["message"]
    assert next(iter(wrong)) in said or "generation id" in said
    assert upstream.calls == []


@pytest.mark.parametrize("prompt", [None, 7, {}])
async def test_a_legacy_prompt_of_the_wrong_kind_is_a_400(service, upstream, prompt):
    assert_refused(await service.post("/v1/completions", {"model": "m", "prompt": prompt}), 400, "invalid_request")
    assert upstream.calls == []


@pytest.mark.parametrize("prompt", ["Hi", ["Hi", "Ho"], [1, 2, 3], [[1], [2]]])
async def test_a_legacy_prompt_is_passed_on_as_it_is(service, upstream, prompt):
    upstream.script = say("a")
    assert (await ask(service, {"model": "test-model", "prompt": prompt, "echo": False})).status == 200
    (call,) = upstream.calls
    assert call.legacy
    assert (call.request["prompt"], call.request["echo"]) == (prompt, False)


@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/completions"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_a_413(service, upstream, path, chunked):
    body = json.dumps(CHAT | LEGACY | {"user": "x" * (8 << 20)}).encode()
    headers = {"Content-Type": "application/json"}
    if chunked:
        headers["Transfer-Encoding"] = "chunked"
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    assert_refused(await service.post(path, headers=headers, body=body), 413, "body_too_large")
    assert upstream.calls == []


async def test_a_page_of_another_site_may_not_start_anything(service, upstream):
    answer = await service.post(CHAT_PATH, CHAT, {"Sec-Fetch-Site": "cross-site"})
    assert_refused(answer, 403, "cross_site_request")
    assert upstream.calls == []


# Upstreams that refuse, or are not there.

ERROR = {"error": {"message": "no", "type": "some_error", "param": None, "code": "some_code", "further": [1]}}
REFUSALS = {
    "json": ("application/json", json.dumps(ERROR).encode()),
    "another json": ("application/json; charset=utf-8", b'{ "detail" : "n\xc3\xb6" }\n'),
    "problem": ("application/problem+json", b'{"title": "no", "status": 400}'),
}
# What is no JSON would be a page of the service's own origin: its content type, its body, and what is said of it.
NO_JSON = {
    "html": ("text/html; charset=utf-8", "<h1>nö</h1>".encode(), "the upstream answered with text/html"),
    "json that is none": ("application/json", b"{no", "the upstream answered with application/json"),
    "more than is kept": ("application/json", b'"%b"' % (b"x" * (64 << 10)), "the upstream answered with application/"),
    "plain": ("text/plain", b"no\r\nthanks", "no thanks"),
    "latin": ("text/plain; charset=iso-8859-1", "nö".encode("iso-8859-1"), "nö"),
    "stream": ("text/event-stream", b'event: error\ndata: {"error": "no"}\n\ndata: [DONE]\n\n', "no"),
    "image": ("image/svg+xml", b"<svg onload='alert(1)'/>", "the upstream answered with image/svg+xml"),
    "empty": ("text/plain", b"", "the upstream answered without a word"),
}


@BOTH
@pytest.mark.parametrize("kind", REFUSALS)
async def test_a_refusal_of_the_upstream_is_answered_as_it_came(service, upstream, kind, stream):
    content_type, body = REFUSALS[kind]
    headers = {"content-type": content_type, "retry-after": "7", "set-cookie": "a=b"}
    for status in (400, 401, 404, 409, 429, 500, 503):
        # given an upstream that refuses
        del upstream.calls[:]
        upstream.script = lambda call, status=status: call.respond(status, body, headers)

        # when it is called, then its client sees just that
        answer = await ask(service, stream=stream, seconds=PROMPT_S)
        assert (answer.status, answer.body, answer.clean) == (status, body, True)
        assert (answer.headers["content-type"], answer.headers["retry-after"]) == (content_type, "7")
        assert answer.headers["x-request-id"]
        assert "set-cookie" not in answer.headers

        assert len(upstream.calls) == 1


@BOTH
@pytest.mark.parametrize("kind", NO_JSON)
async def test_a_refusal_that_is_no_json_becomes_an_error_object(service, upstream, kind, stream):
    content_type, body, message = NO_JSON[kind]
    headers = {"content-type": content_type, "retry-after": "7"}
    for status, type in ((400, "invalid_request_error"), (429, "rate_limit_error"), (503, "server_error")):
        upstream.script = lambda call, status=status: call.respond(status, body, headers)
        answer = await ask(service, stream=stream, seconds=PROMPT_S)
        assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
        assert answer.headers["retry-after"] == "7"
        error = answer.json()["error"]
        assert (error["type"], error["param"], error["code"]) == (type, None, "upstream_error")
        assert error["message"].startswith(message)


@BOTH
async def test_an_endless_refusal_is_read_no_further_than_it_is_kept(service, upstream, stream):
    # given an upstream whose error never ends
    async def endless(call):
        await call.answer(500, {"content-type": "application/json"})
        while True:
            await call.send_raw(b"x" * 10_000)

    upstream.script = endless

    # when it is called, then there is an answer, and it is let go
    answer = await ask(service, stream=stream, seconds=PROMPT_S)
    assert_refused(answer, 500, "upstream_error")
    await upstream.calls[0].hung_up()


@BOTH
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(service, upstream, stream, status):
    upstream.script = lambda call: call.respond(status, b"", {"location": call.path})
    answer = await ask(service, stream=stream, seconds=PROMPT_S)
    assert_refused(answer, 502, "upstream_error")
    assert f"HTTP {status}, a redirect" in answer.json()["error"]["message"]
    assert len(upstream.calls) == 1


async def test_the_service_does_not_try_again_since_the_clients_do(make_node, upstream):
    node = await make_node(upstream_retries=2)
    calls = itertools.product((408, 409, 429, 500, 503), (CHAT, LEGACY), (True, False))
    for status, body, stream in calls:
        del upstream.calls[:]
        upstream.script = lambda call, status=status: call.respond(status, ERROR)
        assert (await ask(node.api, body, stream=stream, seconds=PROMPT_S)).status == status
        assert len(upstream.calls) == 1


async def test_an_upstream_that_cannot_be_reached_is_a_502(make_node):
    node = await make_node(upstream_url=f"http://127.0.0.1:{free_port()}/v1", upstream_retries=2)
    for stream in (True, False):
        answer = await ask(node.api, stream=stream, seconds=PROMPT_S)
        assert_refused(answer, 502, "upstream_unreachable")
    assert_refused(await node.api.get("/v1/models"), 502, "upstream_unreachable")


@BOTH
async def test_an_upstream_that_hangs_up_before_it_answers_is_an_error(service, upstream, stream):
    upstream.script = lambda call: call.cut()
    assert_refused(await ask(service, stream=stream, seconds=PROMPT_S), 502)


@BOTH
async def test_a_page_instead_of_a_stream_is_a_502(service, upstream, stream):
    upstream.script = lambda call: call.respond(200, b"<html>Welcome</html>", {"content-type": "text/html"})
    assert_refused(await ask(service, stream=stream, seconds=PROMPT_S), 502, "upstream_invalid")


@BOTH
@pytest.mark.parametrize("error", [ERROR["error"], "no"], ids=["object", "string"])
async def test_an_error_that_is_all_of_a_stream_is_a_502(service, upstream, error, stream):
    async def script(call):
        await call.send({"error": error})
        await call.done()

    upstream.script = script
    answer = await ask(service, stream=stream, seconds=PROMPT_S)
    assert_refused(answer, 502)
    assert answer.json()["error"]["message"] == "no"


@pytest.mark.parametrize("error", [ERROR["error"], "no", {"message": "no", "type": None, "code": 500}])
async def test_an_error_in_mid_stream_is_brought_to_openais_shape(service, upstream, error):
    async def script(call):
        await call.say("partial")
        await call.send({"error": error})
        await call.send_raw(b"data: [DONE]\n\n")
        await call.done()

    upstream.script = script
    answer = await ask(service, stream=True)
    assert texts_of(assert_broken_off(answer, "no")) == ["partial"]
    told = data_of(answer)[-1]["error"]
    if isinstance(error, dict):
        assert (told["message"], told["code"]) == (error["message"], error["code"])


async def test_a_cancel_in_mid_stream_is_an_error_object_and_a_cut(service, other_service, upstream):
    # given a streamed call
    starting = opening(service)
    call = await upstream.called()
    await call.say("partial")
    stream = await starting
    await stream.until(b"partial")

    # when somebody cancels it elsewhere
    await other_service.post(f"/generations/{id_of(stream)}/cancel")

    # then its client is told in a way that it cannot take for the end
    assert texts_of(assert_broken_off(await stream.to_end(), code="cancelled")) == ["partial"]
    await call.hung_up()


async def test_a_cancel_before_the_first_word_is_a_409_for_good(service, upstream):
    id = new_id()
    starting = asyncio.create_task(ask(service, CHAT | {"replay": {"id": id}}, stream=True, seconds=PROMPT_S))
    await upstream.called()
    await service.post(f"/generations/{id}/cancel")
    answer = await starting
    assert_refused(answer, 409, "cancelled")
    assert answer.headers["x-should-retry"] == "false"


async def test_a_list_of_models_that_is_refused_is_answered_as_it_came(service, upstream):
    upstream.models_refusal = (401, ERROR)
    for answer in (await service.get("/v1/models"), await service.get("/v1/models/test-model")):
        assert (answer.status, answer.json()) == (401, ERROR)


@BOTH
async def test_a_call_whose_model_has_to_be_asked_for_is_refused_as_that_is(make_node, upstream, stream):
    # given an upstream that does not know who asks
    node = await make_node()
    upstream.models_refusal = (401, ERROR)
    body = {"messages": CHAT["messages"]}

    # when no model is named, then its client sees the upstream's answer, and may ask again
    answer = await ask(node.api, body, stream=stream)
    assert (answer.status, answer.json()) == (401, ERROR)
    upstream.models_refusal = None
    upstream.script = say("a")
    assert (await ask(node.api, body, stream=stream)).status == 200


# The service fails, or has to refuse.


@pytest.mark.parametrize("wait", ["streamed", "before the first word", "whole"])
async def test_a_node_that_goes_away_says_that_it_was_not_the_end(make_node, upstream, wait):
    # given a call that is under way on a node
    node = await make_node()
    waiting = asking(node.api) if wait == "whole" else opening(node.api)
    call = await upstream.called()
    if wait == "streamed":
        await call.say("partial")
        stream = await waiting
        await stream.until(b"partial")

    # when that node is shut down, then its client is told, and may try elsewhere
    assert await node.stop() == 0
    if wait == "streamed":
        assert texts_of(assert_broken_off(await stream.to_end(), code="shutdown")) == ["partial"]
    else:
        answer = await waiting if wait == "whole" else await (await waiting).to_end()
        assert_refused(answer, 503)
        assert answer.headers.get("x-should-retry") != "false"


@BOTH
async def test_a_client_on_another_node_is_told_that_the_producing_one_is_lost(make_node, upstream, key, stream):
    # given a call that was made on two nodes, of which the first is killed
    producing, other = await make_node(), await make_node()
    starting = opening(producing.api, CHAT, key)
    call = await upstream.called()
    await call.say("partial")
    await starting
    waiting = opening(other.api, CHAT, key) if stream else asking(other.api, CHAT, key)
    if stream:
        await (await waiting).until(b"partial")
    producing.kill()

    # then the client of the second is told
    if stream:
        assert texts_of(assert_broken_off(await (await waiting).to_end(), code="node_lost")) == ["partial"]
    else:
        answer = await waiting
        assert_refused(answer, 503, "node_lost")
        assert "x-should-retry" not in answer.headers  # its key begins anew


async def test_a_call_while_valkey_is_away_is_a_503(node, valkey, upstream):
    valkey.kill()
    for stream in (True, False):
        answer = await ask(node.api, stream=stream)
        assert_refused(answer, 503, "store_unavailable")
        assert answer.headers["retry-after"]
    assert upstream.calls == []


async def test_a_node_with_too_many_generations_answers_429(make_node, upstream):
    node = await make_node(max_generations=1)
    waiting = asking(node.api)
    call = await upstream.called()
    for stream in (True, False):
        assert_refused(await ask(node.api, stream=stream), 429, "too_many_generations")
    await call.finish()
    assert (await waiting).status == 200


async def test_an_answer_that_is_too_long_is_not_worth_another_try(make_node, upstream):
    node = await make_node(max_generation_bytes=4000)
    upstream.script = say(*["x" * 500] * 20)
    answer = await ask(node.api)
    assert_refused(answer, 507, "limit_exceeded")
    assert answer.headers["x-should-retry"] == "false"


# What the body says to us.


async def test_replay_options_are_ours_and_all_else_is_the_upstreams(service, upstream):
    # given a request with parameters of every kind, and our own
    id = new_id()
    parameters = {
        "temperature": 0.5,
        "stop": ["a", "b"],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "store": True,
        "logit_bias": {"1": -100},
        "x_vendor": {"nested": [1, None, "é", 12345678901234567890123]},
    }
    waiting = asking(service, CHAT | parameters | {"replay": {"id": id, "ttl": 600, "metadata": {"k": ["v"]}}})

    # then the upstream gets its own
    call = await upstream.called()
    assert "replay" not in call.request
    assert {name: call.request[name] for name in CHAT | parameters} == CHAT | parameters
    assert "metadata" not in call.request

    # and the generation has ours
    await call.say("a")
    await call.finish()
    assert id_of(await waiting) == id
    generation = await service.generation(id)
    assert generation["metadata"] == {"k": ["v"]}
    assert generation["expires_at"] == pytest.approx(generation["ended"] + 600, abs=2)


@BOTH
async def test_abandon_after_is_obeyed_once_its_client_has_left(service, upstream, stream):
    id = new_id()
    body = CHAT | {"replay": {"id": id, "abandon_after": 0.3}}
    waiting = opening(service, body) if stream else asking(service, body)
    call = await upstream.called()
    await call.say("a")
    if stream:
        (await waiting).hang_up()
    else:
        waiting.cancel()
    generation = await service.ended(id)
    assert (generation["status"], generation["error"]["code"]) == ("cancelled", "abandoned")
    await call.hung_up()


@BOTH
async def test_a_taken_id_is_a_409_for_good(service, other_service, upstream, stream):
    upstream.script = say("a")
    id = await service.run()
    for api in (service, other_service):
        answer = await ask(api, CHAT | {"replay": {"id": id}}, stream=stream)
        assert_refused(answer, 409, "generation_exists")
        assert answer.headers["x-should-retry"] == "false"
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("body", [CHAT, LEGACY], ids=["chat", "legacy"])
async def test_openais_metadata_goes_upstream_and_is_the_generations(service, upstream, body):
    upstream.script = say("a")
    answer = await ask(service, body | {"metadata": {"user": "u1"}})
    assert upstream.calls[0].request["metadata"] == {"user": "u1"}
    assert (await service.generation(id_of(answer)))["metadata"] == {"user": "u1"}


async def test_our_metadata_stands_before_openais(service, upstream):
    upstream.script = say("a")
    answer = await ask(service, CHAT | {"metadata": {"a": "1"}, "replay": {"metadata": {"b": 2}}})
    assert upstream.calls[0].request["metadata"] == {"a": "1"}
    assert (await service.generation(id_of(answer)))["metadata"] == {"b": 2}


async def test_without_a_model_the_first_of_the_upstream_is_taken(service, upstream):
    upstream.script = say("a")
    answer = await ask(service, {"messages": CHAT["messages"]})
    assert upstream.calls[0].request["model"] == answer.json()["model"] == "test-model"


# Idempotency-Key.


@BOTH
async def test_the_same_key_gives_the_same_answer_when_it_is_over(service, other_service, upstream, key, stream):
    upstream.script = say("Hel", "lo", usage=USAGE)
    first = await ask(service, CHAT, key, stream=stream)
    for api in (service, other_service):
        again = await ask(api, CHAT, key, stream=stream)
        assert (again.status, again.clean, id_of(again)) == (200, True, id_of(first))
        assert again.body == first.body
    assert len(upstream.calls) == 1


async def test_the_same_key_streams_from_the_first_byte_while_it_runs(service, other_service, upstream, key):
    # given a streamed call that has said something
    starting = opening(service, CHAT, key)
    call = await upstream.called()
    await call.say("Hel")
    streams = [await starting]
    await streams[0].until(b"Hel")

    # when it is made again, here and elsewhere, and goes on
    streams += [await opened(api, CHAT, key) for api in (service, other_service)]
    for stream in streams:
        await stream.until(b"Hel")
    await call.say("lo")
    await call.finish()

    # then all of them get all of it
    answers = [await stream.to_end() for stream in streams]
    assert len({id_of(answer) for answer in answers}) == 1
    for answer in answers:
        assert answer.clean
        assert texts_of(data_of(answer)) == ["Hel", "lo"]
        assert data_of(answer) == data_of(answers[0])
    assert len(upstream.calls) == 1


async def test_the_same_key_waits_for_the_same_whole_while_it_runs(service, other_service, upstream, key):
    waiting = [asking(service, CHAT, key)]
    call = await upstream.called()
    await call.say("Hel")
    waiting += [asking(api, CHAT, key) for api in (service, other_service)]
    assert await stays_silent(waiting[1])
    assert not waiting[2].done()
    await call.say("lo")
    await call.finish()
    answers = [await task for task in waiting]
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].json()["choices"][0]["message"]["content"] == "Hello"
    assert len(upstream.calls) == 1


@BOTH
async def test_of_racing_calls_one_starts_and_all_get_its_answer(service, other_service, upstream, key, stream):
    upstream.script = say("a", "b")
    racing = [ask(api, CHAT, key, stream=stream) for api in [service, other_service] * 4]
    answers = await asyncio.gather(*racing)
    assert {answer.status for answer in answers} == {200}
    assert len({id_of(answer) for answer in answers}) == 1
    assert len({json.dumps(data_of(answer) if stream else answer.json()) for answer in answers}) == 1
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("other", [CHAT | {"temperature": 1}, CHAT | {"replay": {"ttl": 60}}, LEGACY])
async def test_the_same_key_with_another_body_is_a_422(service, other_service, upstream, key, other):
    upstream.script = say("a")
    await ask(service, CHAT, key)
    for api in (service, other_service):
        assert_refused(await ask(api, other, key), 422, "idempotency_key_reused")
        assert_refused(await ask(api, other, key, stream=True), 422, "idempotency_key_reused")
    assert (await ask(service, CHAT, key)).status == 200
    assert len(upstream.calls) == 1


@BOTH
@pytest.mark.parametrize("refusal", ["429", "500", "empty", "hang up"])
async def test_a_call_that_was_refused_does_not_bind_its_key(service, other_service, upstream, key, refusal, stream):
    # given an upstream that refuses every other call
    async def by_turns(call):
        streamed = [other for other in upstream.calls if other.request["stream"]]
        if refusal == "empty" and (len(streamed) % 2 or call is not streamed[-1]):
            await call.done()
        elif len(streamed) % 2 == 0:
            await say("a")(call)
        elif refusal == "hang up":
            await call.cut()
        else:
            await call.respond(int(refusal), ERROR)

    upstream.script = by_turns
    for attempt, api in enumerate([service, other_service, service, other_service]):
        # when the client that was told so tries again with its key, at once
        named = {"Idempotency-Key": f"{key['Idempotency-Key']}-{attempt}"}
        refused = await ask(service, CHAT, named, stream=stream, seconds=PROMPT_S)
        assert refused.status >= 400
        assert refused.headers.get("x-should-retry") is None
        again = await ask(api, CHAT, named, stream=stream)

        # then that starts anew
        assert again.status == 200, again


async def test_a_request_that_cannot_be_does_not_use_up_its_key(service, upstream, key):
    upstream.script = say("a")
    assert_refused(await ask(service, {"model": "test-model"}, key), 400)
    assert (await ask(service, CHAT, key)).status == 200


# Whose key the upstream sees.

CALLER = {"Authorization": "Bearer sk-of-the-caller", "OpenAI-Organization": "org-of-the-caller"}
SERVICE_KEY = "sk-of-the-service"


@contextlib.contextmanager
def nothing_of(secrets, node, valkey):
    """Hold what a node writes, to stderr and to Valkey, against the secrets that went through it."""
    yield
    written = b"".join(path.read_bytes() for path in (valkey.directory / "appendonlydir").iterdir())
    assert b"a prompt that is kept" in written  # this is where it would stand
    for secret in secrets:
        assert secret.encode() not in written
        assert secret not in node.stderr


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "REPLAY_UPSTREAM_API_KEY"])
async def test_the_upstream_sees_the_services_key_and_never_the_callers(make_node, valkey, upstream, variable):
    node = await make_node(env={variable: SERVICE_KEY}, log_level="DEBUG")
    upstream.script = say("a")
    body = {"model": "test-model", "messages": [{"role": "user", "content": "a prompt that is kept"}]}
    with nothing_of([SERVICE_KEY, "of-the-caller"], node, valkey):
        for stream in (True, False):
            assert (await ask(node.api, body, CALLER, stream=stream)).status == 200
        assert (await node.api.get("/v1/models", CALLER)).status == 200
        upstream.script = lambda call: call.respond(401, ERROR)
        assert (await ask(node.api, body, CALLER)).status == 401
    for headers in [call.headers for call in upstream.calls] + upstream.model_headers:
        assert headers["Authorization"] == f"Bearer {SERVICE_KEY}"
        assert not any("of-the-caller" in value for value in headers.values())


async def test_the_upstream_sees_the_callers_key_where_that_is_wished(make_node, valkey, upstream):
    # given a node that passes on who calls
    node = await make_node(env={"OPENAI_API_KEY": SERVICE_KEY}, upstream_credentials="caller", log_level="DEBUG")
    upstream.script = say("a")
    body = {"messages": [{"role": "user", "content": "a prompt that is kept"}]}  # the model is asked for, too
    with nothing_of([SERVICE_KEY, "of-the-caller"], node, valkey):
        for stream in (True, False):
            assert (await ask(node.api, body, CALLER, stream=stream)).status == 200
        assert (await node.api.get("/v1/models", CALLER)).status == 200
        upstream.script = lambda call: call.respond(401, ERROR)
        assert (await ask(node.api, body, CALLER)).status == 401

    # then the upstream sees the caller, and nobody else
    for headers in [call.headers for call in upstream.calls] + upstream.model_headers:
        assert headers["Authorization"] == CALLER["Authorization"]
        assert headers["OpenAI-Organization"] == CALLER["OpenAI-Organization"]
        assert not any(SERVICE_KEY in value for value in headers.values())


async def test_a_caller_without_a_key_stays_without_where_callers_have_their_own(make_node, upstream):
    node = await make_node(env={"OPENAI_API_KEY": SERVICE_KEY}, upstream_credentials="caller")
    upstream.script = say("a")
    for stream in (True, False):
        assert (await ask(node.api, stream=stream)).status == 200
    assert (await node.api.get("/v1/models")).status == 200
    for headers in [call.headers for call in upstream.calls] + upstream.model_headers:
        assert "Authorization" not in headers
        assert not any(SERVICE_KEY in value for value in headers.values())


# Models, and upstreams by model.


async def test_models_are_the_upstreams(service, upstream):
    listed = (await service.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == upstream.models
    for model in listed["data"]:
        assert (await service.get(f"/v1/models/{model['id']}")).json() == model
    assert_refused(await service.get("/v1/models/unheard/of"), 404, "model_not_found")


@pytest.fixture
async def local():
    """A second upstream, for models of its own."""
    async with ScriptedUpstream() as server:
        server.models = ["local/a", "local/b", "gpt-stray"]
        yield server


async def test_models_lead_to_their_upstreams_each_with_its_key(make_node, upstream, local):
    # given a table of two rows, and an upstream for all else
    upstream.models = ["gpt-1", "other", "local/stray"]
    upstream.script = local.script = say("a")
    node = await make_node(
        upstreams=f"local/* {local.url}; gpt-* {upstream.url} GPT_KEY",
        env={"GPT_KEY": "sk-gpt", "OPENAI_API_KEY": SERVICE_KEY},
    )

    # when models of each are asked for, then each is answered where it should be, under its key
    for model, server, key in [
        ("local/a", local, None),
        ("gpt-1", upstream, "sk-gpt"),
        ("unheard-of", upstream, SERVICE_KEY),
        ("gpt-2", upstream, "sk-gpt"),
        ("other", upstream, SERVICE_KEY),
    ]:
        for stream in (True, False):
            seen = len(server.calls)
            assert (await ask(node.api, CHAT | {"model": model}, stream=stream)).status == 200
            (call,) = server.calls[seen:]
            assert call.request["model"] == model
            shown = call.headers.get("Authorization", "")
            assert shown == f"Bearer {key}" if key else not shown or "sk-" not in shown

    # and the list is one of all, where each model leads to the server that listed it
    listed = [model["id"] for model in (await node.api.get("/v1/models")).json()["data"]]
    assert sorted(listed) == ["gpt-1", "local/a", "local/b", "other"]
    assert (await node.api.get("/v1/models/local/b")).json()["id"] == "local/b"


async def test_a_model_without_an_upstream_is_a_404(make_node, local):
    node = await make_node(upstreams=f"local/* {local.url}", upstream_url=None)
    local.script = say("a")
    for stream in (True, False):
        assert (await ask(node.api, CHAT | {"model": "local/a"}, stream=stream)).status == 200
        assert_refused(await ask(node.api, stream=stream), 404, "model_not_found")
    assert [model["id"] for model in (await node.api.get("/v1/models")).json()["data"]] == ["local/a", "local/b"]
    assert len((await node.api.get("/generations")).json()["generations"]) == 2


@pytest.mark.parametrize(
    "rows",
    [
        "local/*",
        "local/* 127.0.0.1:1234/v1",
        "local/* http://127.0.0.1/v1 KEY further",
        "local/* http://127.0.0.1/v1 A_KEY_THAT_IS_NOT_SET",
    ],
)
async def test_a_row_that_cannot_be_read_keeps_the_node_from_starting(valkey, tmp_path, rows):
    node = Node(tmp_path / "node", valkey_url=valkey.url, upstreams=rows)
    try:
        with pytest.raises(AssertionError, match="on stdout"):
            await node.start()
        assert await node.wait() not in (0, None)
        (line,) = node.stderr.strip().splitlines()[-1:]
        assert "--upstreams" in line
        assert "Traceback" not in node.stderr
    finally:
        node.destroy()


# One log behind all.


@BOTH
async def test_what_starts_here_is_a_generation_like_any_other(service, other_service, upstream, stream):
    # given a call that is under way
    id = new_id()
    body = CHAT | {"replay": {"id": id}}
    waiting = opening(service, body) if stream else asking(service, body)
    call = await upstream.called()
    await call.say("Hel")
    await service.has(id, 2)

    # then it is listed, watched, and transcribed, on every node
    for api in (service, other_service):
        listed = (await api.get("/generations", limit=50)).json()["generations"]
        assert id in [generation["id"] for generation in listed]
        assert (await api.transcript(id))["text"] == "Hel"
        async with api.source(id) as source:
            assert (await source.event("token")).json()["content"] == "Hel"

    # and cancelled
    assert (await other_service.post(f"/generations/{id}/cancel")).status == 200
    await call.hung_up()
    assert (await service.ended(id))["status"] == "cancelled"
    with contextlib.suppress(asyncio.CancelledError):
        (await waiting).hang_up() if stream else await waiting


async def test_what_started_at_generations_is_attached_to_by_no_other_call(service, upstream, key):
    # the same key, and the same body, but another call
    upstream.script = say("a")
    await service.start(CHAT, headers=key)
    assert_refused(await ask(service, CHAT, key), 422, "idempotency_key_reused")
