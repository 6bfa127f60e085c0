"""Completions that are streamed: every chunk is the upstream's but for its id, and nothing else is on the wire."""

from __future__ import annotations

import contextlib
import json
import random
import re

import pytest
from support.deadlines import stays_silent
from support.samples import COMPLETE, FAILING, SAMPLES, STREAMS, each_sample
from support.upstream import USAGE, play, say
from support.v1 import (
    CHAT,
    CHAT_PATH,
    COUNTED,
    DONE,
    ERROR,
    LEGACY,
    NASTY,
    PROMPT_S,
    ask,
    assert_broken_off,
    assert_refused,
    body_for,
    data_of,
    id_of,
    opening,
    streamed_or_whole,
    texts_of,
    under,
)


def is_usage_alone(chunk) -> bool:
    """Whether a chunk counts usage and says nothing: OpenAI sends it without choices, LiteLLM with empty ones."""
    said = [value for choice in chunk["choices"] for key, value in choice.items() if key != "index" and value]
    return isinstance(chunk.get("usage"), dict) and not said


# What the upstream sent is what comes back.


@pytest.mark.parametrize("piece", [None, 7], ids=["at once", "in pieces"])
@each_sample(COMPLETE)
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
@each_sample({name: sample for name, sample in STREAMS.items() if name[:2] in FAILING})
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


@streamed_or_whole
async def test_a_stream_that_is_cut_in_its_first_line_is_broken_or_refused(service, upstream, stream):
    # what of an unfinished event counts, nobody says
    upstream.script = play(SAMPLES["22-cut-midline-no-final-chunk"])
    answer = await ask(service, stream=stream, seconds=PROMPT_S)
    if answer.status == 200:
        assert stream
        assert_broken_off(answer, code="upstream_truncated")
    else:
        assert_refused(answer, 502, "upstream_truncated")


TEXTS = (*NASTY, '"}}],"usage":null}', '"content":"x"')


def nasty_chunk(chance) -> dict:
    """A chunk of any of the shapes that servers send, with any text."""
    text = chance.choice(TEXTS)
    index = chance.choice((0, 0, 0, 1))
    choice = chance.choice(
        (
            {"index": index, "delta": {"content": text}},
            {"index": index, "delta": {"content": text}, "finish_reason": None, "logprobs": None},
            {"delta": {"content": text}, "index": index},
            {"index": index, "delta": {"role": "assistant", "content": text}},
            {"index": index, "delta": {"reasoning_content": text}},
            {"index": index, "delta": {"content": text, "reasoning_content": chance.choice(TEXTS)}},
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


@streamed_or_whole
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


@streamed_or_whole
@each_sample({name: sample for name, sample in SAMPLES.items() if name[:2] in ("25", "28")})
async def test_a_recorded_refusal_is_answered_as_it_came(service, upstream, sample, stream):
    upstream.script = play(sample)
    answer = await ask(service, stream=stream, seconds=PROMPT_S)
    assert (answer.status, answer.body, answer.clean) == (sample.status, sample.body, True)
    for name in ("content-type", "retry-after"):
        assert answer.headers.get(name) == sample.headers.get(name)
    assert len(upstream.calls) == 1


@streamed_or_whole
async def test_a_recorded_refusal_that_is_a_stream_becomes_an_error_object(service, upstream, stream):
    sample = SAMPLES["23-status500-with-sse-body"]
    upstream.script = play(sample)
    answer = await ask(service, stream=stream, seconds=PROMPT_S)
    assert (answer.status, answer.headers["content-type"]) == (500, "application/json")
    assert answer.json() == {"error": {"param": None} | sample.payloads[0]["error"]}


# The upstream's count.


@each_sample(COMPLETE)
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
