"""The contract's "Events as EventSource sees them": what stands on the wire, byte by byte and event by event."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re

import pytest
from support.api import event_id, text_of
from support.samples import SAMPLES
from support.sse import Message, messages, streaming
from support.upstream import USAGE, play, say

EVENT = rb"event: (?:start|token|delta|end)\ndata: \{[^\r\n\0]*\}\nid: \d+-\d+\n\n"
LIVE = rb"event: live\ndata: \{[^\r\n\0]*\}\nid: \d+-\d+\n\n"

# What each recorded upstream answer is: status, error code, finish reason, the whole visible answer.
VERDICTS = {
    "01": ("completed", None, "length", " the ttl is cut"),
    "02": ("completed", None, "stop", "Hello café 😀"),
    "03": ("completed", None, "length", " a"),
    "04": ("completed", None, "length", "tet"),
    "05": ("completed", None, "length", " ée"),
    "07": ("completed", None, "length", " the reader"),
    "08": ("completed", None, "tool_calls", ""),
    "09": ("completed", None, "tool_calls", ""),
    "11": ("completed", None, "length", " the replay service records日"),  # one of two choices never finishes
    "12": ("completed", None, "length", " a "),
    "14": ("completed", None, "length", " never"),
    "19": ("failed", "upstream_error", None, ""),
    "20": ("failed", "upstream_error", None, " reader is"),
    "21": ("failed", "upstream_truncated", None, ""),
    "22": ("failed", "upstream_truncated", None, ""),
    "23": ("failed", "upstream_error", None, ""),
    "25": ("failed", "upstream_error", None, ""),
    "28": ("failed", "upstream_error", None, ""),
    "30": ("completed", None, "length", "\u2028\u2028"),
    "40": ("completed", None, "stop", "Hi"),
    "42": ("completed", None, "stop", "a"),
    "44": ("completed", None, "stop", "ab"),
    "47": ("completed", None, "content_filter", "x"),
    "49": ("completed", None, "length", "tr "),
}
VISIBLE = {number: text for number, (_, _, _, text) in VERDICTS.items()}
# 15 is another API's stream; see `test_a_stream_of_another_api_is_a_failure`.

of_each_sample = pytest.mark.parametrize(
    "sample",
    [pytest.param(sample, id=name) for name, sample in SAMPLES.items() if name[:2] in VISIBLE],
)


async def record(service, upstream, sample) -> list[Message]:
    """The events of a generation for which the upstream answered with this sample, cut anywhere into pieces."""
    upstream.script = play(sample, piece=97)
    return await service.log(await service.run())


# A naive model of what an upstream's chunk becomes.

ENVELOPE = ("id", "object", "created", "model", "system_fingerprint", "choices")


def visible_text(chunk) -> str:
    texts = [
        choice.get("text") or (choice.get("delta") or {}).get("content")
        for choice in chunk["choices"]
        if choice["index"] == 0
    ]
    return "".join(text for text in texts if text)


def further(chunk) -> dict:
    return {name: value for name, value in chunk.items() if name not in ENVELOPE and value is not None}


def carries_more(chunk) -> bool:
    """Whether a chunk with visible text carried anything beside it."""
    if len(chunk["choices"]) != 1 or further(chunk):
        return True
    choice = chunk["choices"][0]
    beside = [value for name, value in choice.items() if name not in ("index", "delta", "text")]
    beside += [value for name, value in (choice.get("delta") or {}).items() if name != "content"]
    return any(value is not None for value in beside)


# Framing.


async def test_stream_is_framed_exactly_as_written(service, upstream):
    # given a generation with a role, text, a finish reason and usage
    upstream.script = play(SAMPLES["02-role-and-content-together"])
    id = await service.run()

    # when it is read from the start to its end
    answer = await service.read(id)

    # then `retry:` opens the first block, each event is id, event and one line of data, and nothing else is there
    assert re.fullmatch(rb"retry: 1000\n(?:" + EVENT + rb")+", answer.body)
    assert answer.clean


@pytest.mark.parametrize("query", [{}, {"format": "openai"}, {"mode": "snapshot"}, {"after": "1-1"}, {"speed": 9}])
async def test_headers_say_what_browsers_and_proxies_need(service, upstream, query):
    upstream.script = say("Hi")
    answer = await service.read(await service.run(), {"Accept-Encoding": "gzip, deflate, br, zstd"}, **query)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in answer.headers


async def test_ids_count_from_zero_without_holes_and_time_never_goes_back(service, upstream):
    upstream.script = say(*"abcdefgh")
    ids = [event_id(event.last_event_id) for event in await service.log(await service.run())]
    assert [seq for _, seq in ids] == list(range(len(ids)))
    assert [ms for ms, _ in ids] == sorted(ms for ms, _ in ids)


async def test_start_names_generation_model_and_time(service, upstream):
    upstream.script = say("Hi")
    id = await service.run({"prompt": "Hi", "model": "other-model"})
    start = (await service.log(id))[0]
    assert start.event == "start"
    data = start.json()
    assert data | {"created": 0} == {"type": "start", "generation_id": id, "model": "other-model", "created": 0}
    assert data["created"] == pytest.approx(event_id(start.last_event_id)[0] / 1000, abs=0.1)


async def test_data_is_one_line_whatever_the_model_says(service, upstream):
    # given text with everything that could break a line, and with spaces that some clients strip
    texts = [
        " lead",
        "\r\n",
        "\n\n",
        "\r",
        "a\0b",
        "\u2028\u2029\u0085\v\f",
        "data: x\n\n",
        '"\\',
        "\ufeff",
        "😀é",
        " ",
    ]
    upstream.script = say(*texts)

    # when the stream is read
    answer = await service.read(await service.run())

    # then no raw CR or NUL is in it, every data is one line, and the text is what the model said
    assert b"\r" not in answer.body
    assert b"\0" not in answer.body
    assert re.fullmatch(rb"retry: 1000\n(?:" + EVENT + rb")+", answer.body)
    events = messages(answer.body)
    assert [event.json()["content"] for event in events if event.event == "token"] == texts


async def test_a_surrogate_pair_split_over_two_chunks_stays_json(service, upstream):
    # given an upstream that cuts a character in two and escapes each half
    async def halves(call):
        await call.send_raw(b'data: {"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}\n\n')
        await call.send_raw(b'data: {"choices":[{"index":0,"delta":{"content":"\\ude00"}}]}\n\n')
        await call.finish()

    upstream.script = halves
    events = await service.log(await service.run())

    # then, however that was judged, every event is still one line of JSON
    assert all(event.json()["type"] == event.event for event in events)
    assert events[-1].event == "end"


# Keep-alives, `live`, `retry`.


async def test_keep_alives_flow_while_the_model_thinks_and_are_never_a_block(make_node, upstream):
    # given a reader of a generation whose model has not answered yet
    node = await make_node(keepalive_s=0.1)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    async with streaming(node.api.events_url(id)) as stream:
        # when nothing happens for some time, then words come, then nothing, then the end
        await stream.until(b"\n\n:k\n:k\n")
        await call.say("Hel")
        said = await stream.until(b"Hel")
        await stream.until(b"\n\n:k\n:k\n", after=said.index(b"Hel"))
        await call.finish()
        answer = await stream.to_end()

    # then keep-alives are lines, none of which is a block of its own
    assert not re.search(rb"(?m)^:k?\n\n", answer.body)
    without = re.sub(rb"(?m)^:k\n", b"", answer.body)
    assert re.fullmatch(rb"retry: \d+\n(?:" + EVENT + rb"|" + LIVE + rb")+", without)
    # and a strict client sees no event more
    assert [event.event for event in messages(answer.body)] == ["start", "live", "token", "delta", "end"]


async def test_keep_alives_flow_through_replayed_pauses(make_node, upstream):
    # given a recording with a pause of half a second in it
    node = await make_node(keepalive_s=0.1)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    await call.say("a")
    await asyncio.sleep(0.5)
    await call.say("b")
    await call.finish()
    await node.api.ended(id)

    # when it is replayed as it happened, then the silence is kept alive
    answer = await node.api.read(id, speed=1)
    assert re.search(rb'"a"[^\n]*\nid: [^\n]*\n\n(:k\n){2,5}event: token\ndata: [^\n]*"b"', answer.body)
    assert messages(answer.body) == await node.api.log(id)


async def test_keep_alives_do_not_break_lines_of_json(make_node, upstream):
    node = await make_node(keepalive_s=0.05)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    async with streaming(node.api.events_url(id), {"Accept": "application/x-ndjson"}) as stream:
        await stream.until(b'"start"')
        await asyncio.sleep(0.3)
        await call.finish()
        answer = await stream.to_end()
    kinds = [json.loads(line)["type"] for line in answer.body.split(b"\n") if line]
    assert [kind for kind in kinds if kind != "live"] == ["start", "delta", "end"]


async def test_live_is_said_once_when_replay_has_caught_up(service, upstream):
    # given a generation that is going on, with one token so far
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("Hel")
    await service.has(id, 2)

    # when it is read to its end
    async with streaming(service.events_url(id)) as stream:
        await stream.until(b"event: live")
        await call.say("lo")
        await call.finish()
        answer = await stream.to_end()

    # then `live` stands between what was recorded and what was new, and its id is that of the last event
    events = messages(answer.body)
    assert [event.event for event in events] == ["start", "token", "live", "token", "delta", "end"]
    live = events[2]
    assert live.json() == {"type": "live", "last_event_id": events[1].last_event_id}
    assert live.last_event_id == events[1].last_event_id
    assert re.search(rb"\n\n" + LIVE, answer.body)


@pytest.mark.parametrize(
    ("query", "cursor", "first"),
    [
        ({}, "", "start"),
        ({}, "latest", "live"),
        ({}, "1-1", "reset"),
        ({"mode": "snapshot"}, "", "snapshot"),
        ({"format": "openai"}, "", "message"),
    ],
    ids=["start", "live", "reset", "snapshot", "openai"],
)
async def test_retry_stands_inside_the_first_block_that_carries_data(service, upstream, query, cursor, first):
    # given a generation that is going on
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("Hel")
    generation = await service.has(id, 2)
    headers = {"Last-Event-ID": cursor.replace("latest", generation["last_event_id"])} if cursor else {}

    # when it is read in a way that begins with another block
    async with streaming(service.events_url(id, **query), headers) as stream:
        await stream.until(b"\n\n")
        await call.finish()
        answer = await stream.to_end()

    # then that block carries `retry:` and data, and no other block has a `retry:`
    block = answer.body.partition(b"\n\n")[0].split(b"\n")
    assert b"retry: 1000" in block
    assert any(line.startswith(b"data: ") for line in block)
    assert messages(answer.body)[0].event == first
    assert len(re.findall(rb"(?m)^retry:", answer.body)) == 1


# Tokens and deltas.


@of_each_sample
async def test_each_upstream_chunk_is_one_event_and_nothing_is_lost(service, upstream, sample):
    # given a recorded upstream answer
    events = (await record(service, upstream, sample))[1:-1]
    if sample.cut:
        return  # what of the last, unfinished event counts, nobody says; its verdict does
    assert len(events) == len(sample.chunks)

    # then each chunk with visible text of choice 0 is a token, with choices only if it carried more
    for seq, (event, chunk) in enumerate(zip(events, sample.chunks, strict=True), start=1):
        data = event.json()
        assert data["type"] == event.event
        if text := visible_text(chunk):
            assert (data["type"], data["content"], data["index"]) == ("token", text, seq)
            assert ("choices" in data) == carries_more(chunk)
        else:  # and every other one is a delta, which always has them
            assert data["type"] == "delta"
            assert "content" not in data
        if "choices" in data:
            assert data["choices"] == chunk["choices"]
            assert further(chunk).items() <= data.items()


@of_each_sample
async def test_openai_format_gives_back_the_chunks_as_they_came(service, upstream, sample):
    # given a recorded upstream answer
    upstream.script = play(sample, piece=97)
    id = await service.run()

    # when its events are read as a chunk stream
    answer = await service.read(id, format="openai")

    # then each chunk is the upstream's but for the id, and what follows is [DONE], or the error of a failure
    assert answer.clean
    assert b"event:" not in answer.body
    *chunks, last = messages(answer.body)
    if not sample.cut:
        assert [{**event.json(), "id": 0} for event in chunks] == [{**chunk, "id": 0} for chunk in sample.chunks]
    if (await service.generation(id))["status"] == "completed":
        assert last.data == "[DONE]"
    else:
        assert isinstance(last.json()["error"]["message"], str)


async def test_openai_format_has_the_ids_of_the_events(service, upstream):
    upstream.script = say("a", "b")
    id = await service.run()
    log = await service.log(id)
    chunks = messages((await service.read(id, format="openai")).body)
    assert [chunk.last_event_id for chunk in chunks] == [event.last_event_id for event in log[1:]]
    after = await service.read(id, {"Last-Event-ID": log[1].last_event_id}, format="openai")
    assert messages(after.body) == chunks[1:]


async def test_openai_format_is_followed_live_without_live(service, upstream):
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("Hel")
    async with streaming(service.events_url(id, format="openai")) as stream:
        await stream.until(b"Hel")
        await call.say("lo")
        await stream.until(b"lo")
        await call.finish()
        answer = await stream.to_end()
    *chunks, done = messages(answer.body)
    assert [chunk.json()["choices"][0]["delta"].get("content") for chunk in chunks] == ["Hel", "lo", None]
    assert (done.event, done.data) == ("message", "[DONE]")


@of_each_sample
async def test_tokens_join_to_the_visible_answer_and_are_counted(service, upstream, sample):
    events = await record(service, upstream, sample)
    end = events[-1].json()
    assert end["tokens"] == sum(event.event == "token" for event in events)
    if not sample.cut:
        assert text_of(events) == VISIBLE[sample.name[:2]]


async def test_a_token_is_text_of_choice_zero_only(service, upstream):
    # given chunks in which another choice speaks, alone and beside choice 0
    choices = [
        [{"index": 1, "delta": {"content": "other"}}],
        [{"index": 1, "delta": {"content": "one"}}, {"index": 0, "delta": {"content": "zero"}}],
        [{"index": 0, "delta": {"content": "!"}, "finish_reason": "stop"}],
        [{"index": 1, "delta": {}, "finish_reason": "stop"}],
    ]

    async def interleave(call):
        for choice in choices:
            await call.send(call.chunk() | {"choices": choice})
        await call.done()

    upstream.script = interleave
    events = (await service.log(await service.run()))[1:-1]
    assert [event.event for event in events] == ["delta", "token", "token", "delta"]
    assert text_of(events) == "zero!"
    assert [event.json()["choices"] for event in events] == choices


# The end.


@pytest.mark.parametrize("number", VERDICTS)
async def test_upstream_answer_is_judged(service, upstream, number):
    status, code, finish_reason, _ = VERDICTS[number]
    sample = next(sample for name, sample in SAMPLES.items() if name.startswith(number))
    events = await record(service, upstream, sample)
    end = events[-1].json()
    assert (end["type"], end["status"]) == ("end", status)
    if status == "completed":
        assert end["finish_reason"] == finish_reason
        assert end.get("error") is None
    else:
        assert end["error"]["code"] == code
        assert isinstance(end["error"]["message"], str)
    usages = [chunk["usage"] for chunk in sample.chunks if chunk.get("usage")]
    assert end["usage"] == (usages[-1] if usages else None)


async def test_a_stream_of_another_api_is_a_failure(service, upstream):
    events = await record(service, upstream, SAMPLES["15-responses-event-lines"])
    end = events[-1].json()
    assert end["status"] == "failed"
    assert end["error"]["code"] in ("upstream_invalid", "upstream_truncated")


@of_each_sample
async def test_no_event_is_named_error_and_exactly_one_is_the_end(service, upstream, sample):
    names = [event.event for event in await record(service, upstream, sample)]
    assert set(names) <= {"start", "token", "delta", "end"}
    assert (names[0], names[-1]) == ("start", "end")
    assert (names.count("start"), names.count("end")) == (1, 1)


async def test_end_tells_tokens_usage_and_times(service, upstream):
    upstream.script = say("a", "b", reason="length", usage=USAGE)
    events = await service.log(await service.run())
    started, first, ended = (event_id(event.last_event_id)[0] for event in (events[0], events[1], events[-1]))
    end = events[-1].json()
    assert end["status"] == "completed"
    assert end["finish_reason"] == "length"
    assert end["usage"] == USAGE
    assert end["tokens"] == 2
    assert end["ttft_ms"] == pytest.approx(first - started, abs=50)
    assert end["duration_ms"] == pytest.approx(ended - started, abs=50)
    assert end["timestamp"] == pytest.approx(ended / 1000, abs=0.1)
    assert end.get("error") is None


async def test_ttft_is_null_without_tokens(service, upstream):
    upstream.script = play(SAMPLES["08-tool_calls"])
    end = (await service.log(await service.run()))[-1].json()
    assert (end["tokens"], end["ttft_ms"]) == (0, None)


# The rule behind all of it.


async def test_reader_sees_nothing_before_valkey_acknowledges(make_node, valkey, valkey_proxy, upstream):
    # given a reader that has caught up, and a second node whose way to Valkey is clear
    node = await make_node()
    witness = (await make_node(valkey_url=valkey.url)).api
    id = (await node.api.start())["id"]
    call = await upstream.called()
    async with node.api.source(id) as reader:
        await reader.event("live")

        # when the append of a token has been executed, and nobody has been told
        valkey_proxy.hold_replies()
        await call.say("Hel")
        await witness.has(id, 2)

        # then the reader has not seen it, until Valkey's answer comes
        assert [event.event for event in reader.received] == ["start"]
        valkey_proxy.release()
        assert (await reader.event("token")).json()["content"] == "Hel"


async def test_event_is_pushed_as_soon_as_it_is_said(service, other_service, upstream):
    # given a reader on the producing node and one on another
    id = (await service.start())["id"]
    call = await upstream.called()
    async with service.source(id) as here, other_service.source(id) as there:
        await here.event("live")
        await there.event("live")

        # then each word reaches both before the next is said
        for word in ("Hel", "lo", "!"):
            await call.say(word)
            for reader in (here, there):
                assert (await reader.event("token", 2)).json()["content"] == word
        await call.finish()
        assert (await here.event("end")).data == (await there.event("end")).data
        assert [event for event in here.events if event.event != "live"] == there.received


async def test_many_readers_see_the_same_log(service, other_service, upstream):
    id = (await service.start())["id"]
    call = await upstream.called()
    async with contextlib.AsyncExitStack() as stack:
        sources = [api.source(id) for api in (service, other_service) for _ in range(5)]
        readers = [await stack.enter_async_context(source) for source in sources]
        for number in range(20):
            await call.say(f"word{number} ")
        await call.finish()
        for reader in readers:
            await reader.event("end")
        log = await service.log(id)
        assert all(reader.received == log for reader in readers)


async def test_ndjson_and_pages_agree_with_the_stream(service, upstream):
    # one log, three spellings: SSE, NDJSON, a page
    upstream.script = play(SAMPLES["09-tool_calls-parallel"])
    id = await service.run()
    log = [{"id": event.last_event_id, **event.json()} for event in await service.log(id)]
    lines = await service.read(id, {"Accept": "application/x-ndjson"})
    page = await service.get(f"/generations/{id}/events", {"Accept": "application/json"})
    assert [json.loads(line) for line in lines.body.splitlines()] == log
    assert page.json()["events"] == log
