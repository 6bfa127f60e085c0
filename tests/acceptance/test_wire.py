"""What client libraries need of the wire: the order of lines, ids, escapes, and whole blocks in each HTTP chunk."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
from support.api import Api, text_of
from support.http1 import Answer, Stream, open_stream
from support.sse import EventSourceClient, Message, messages, read_stream, streaming
from support.upstream import Call, Script, said, say
from support.v1 import CHAT, INPUT, id_of, opened

ENDS_OF_LINES = "\u0085\u2028\u2029"
RAW = re.compile("[\u0085\u2028\u2029]".encode().replace(b"[", b"(?:").replace(b"]", b")"))
CHUNK = 8 << 10
LINES = {"Accept": "application/x-ndjson"}
LIFE = ("created", "first_token", "ended")


async def read_events(api: Api, id: str) -> Answer:
    return await api.read(id)


async def read_chunks(api: Api, id: str) -> Answer:
    return await api.read(id, format="openai")


async def read_many(api: Api, id: str) -> Answer:
    return await read_stream(api.at("/events", generation=id))


async def read_tokens(api: Api, id: str) -> Answer:
    return await read_stream(api.at("/v1/completions/stream", last_event_id=f"{id}:1-1"))


async def read_activity(api: Api, id: str) -> Answer:
    async with streaming(api.at("/feed", after="-1")) as stream:
        await stream.until(b"\n\n", after=(await stream.until(b"event: live")).index(b"event: live"))
        return Answer(stream.status, stream.headers, bytes(stream.body), clean=False)


def blocks_of(body: bytes) -> list[list[bytes]]:
    """The lines of each block."""
    *blocks, rest = body.split(b"\n\n")
    assert rest == b""
    return [block.split(b"\n") for block in blocks]


@contextlib.asynccontextmanager
async def talking(api: Api, upstream: Any) -> AsyncIterator[tuple[str, Call]]:
    """A generation that has said "a" and is going on."""
    id = (await api.start())["id"]
    call = await upstream.called()
    await call.say("a")
    await api.has(id, 2)
    yield id, call
    await call.finish()


# The id.


@pytest.mark.parametrize("read", [read_events, read_chunks, read_many, read_tokens, read_activity])
async def test_id_is_the_last_line_of_every_block_and_only_a_reset_has_none(
    service: Api, upstream: Any, read: Callable[[Api, str], Awaitable[Answer]]
) -> None:
    upstream.script = say("a", "b")
    id = await service.run()
    for lines in blocks_of((await read(service, id)).body):
        assert [line.startswith(b"id: ") for line in lines[:-1]] == [False] * (len(lines) - 1)
        assert lines[-1].startswith(b"id: ") == (b"event: reset" not in lines)


async def test_id_of_live_is_the_cursor_as_it_stands(service: Api, other_service: Api, upstream: Any) -> None:
    # given a reader that comes back after all there is, so that `live` is the first it is told
    async with talking(service, upstream) as (id, call):
        known = (await service.generation(id))["last_event_id"]
        async with service.source(id, last_event_id=known) as source:
            live = await source.event("live")
            assert b"id: " + live.last_event_id.encode() in await _live_block(service.events_url(id, after=known))
            assert live.last_event_id == known
            # when it is cut there, then nothing is lost and nothing comes twice
            await call.say("b")
            async with other_service.source(id, last_event_id=live.last_event_id) as again:
                assert (await again.event("token")).json()["content"] == "b"
                assert text_of(again.events) == "b"


async def test_id_of_live_of_lines_is_the_cursor_too(service: Api, upstream: Any) -> None:
    async with talking(service, upstream) as (id, _), streaming(service.events_url(id), LINES) as stream:
        body = await stream.until(b"\n", after=(await stream.until(b'"type":"live"')).index(b'"type":"live"'))
        *_, last, live = [json.loads(line) for line in body.splitlines()]
        assert live == {"id": last["id"], "type": "live", "last_event_id": last["id"]}


async def test_id_of_a_snapshot_of_lines_is_the_cursor_too(service: Api, other_service: Api, upstream: Any) -> None:
    upstream.script = say("a", "b")
    id = await service.run()
    snapshot, end = [json.loads(line) for line in (await service.read(id, LINES, mode="snapshot")).body.splitlines()]
    assert (snapshot["generation_id"], snapshot["id"]) == (id, snapshot["last_event_id"])
    rest = await other_service.read(id, LINES | {"Last-Event-ID": snapshot["id"]})
    assert [json.loads(line) for line in rest.body.splitlines()] == [end]


async def _live_block(url: str) -> list[bytes]:
    async with streaming(url) as stream:
        await stream.until(b"\n\n", after=(await stream.until(b"event: live")).index(b"event: live"))
        return blocks_of(bytes(stream.body))[-1]


async def test_ids_of_notices_about_one_of_several_are_the_cursor_over_all(service: Api, upstream: Any) -> None:
    # given one that is going on, and one that never was
    async with talking(service, upstream) as (id, call):
        url = service.at("/events", generation=["never-was", id])
        async with EventSourceClient(url) as source:
            await source.event("live")
            told = list(source.events)
        assert [event.event for event in told] == ["expired", "start", "token", "live"]
        await call.say("b")
        await service.has(id, 3)
        # when it comes back after any of them
        for place, event in enumerate(told, start=1):
            async with EventSourceClient(url, last_event_id=event.last_event_id) as again:
                await again.event("live")
                # then the rest comes, and what was told of the other is not told again
                names = [event.event for event in (*told[:place], *again.events) if event.event != "live"]
                assert names == ["expired", "start", "token", "token"]


async def test_cut_between_what_is_told_of_several_loses_no_reset(service: Api, upstream: Any) -> None:
    # given a cursor over two, of which one was deleted, and one is another log now
    upstream.script = say("old")
    gone, anew = [await service.run(None, id=id) for id in ("wire-gone", "wire-anew")]
    url = service.at("/events", generation=[gone, anew])
    cursor = messages((await read_stream(url)).body)[-1].last_event_id
    for id in (gone, anew):
        assert (await service.delete(f"/generations/{id}")).status == 204
    upstream.script = say("new")
    await service.run(None, id=anew)
    told = messages((await read_stream(url, {"Last-Event-ID": cursor})).body, cursor)
    assert {"reset", "expired"} <= {event.event for event in told}
    # when the connection is cut after any block
    for place in range(len(told)):
        have = told[:place]
        at = have[-1].last_event_id if have else cursor
        rest = messages((await read_stream(url, {"Last-Event-ID": at})).body, at)
        # then who has the first event of the new log was told before that it is one
        names = [event.event for event in (*have, *rest)]
        assert names.index("reset") < names.index("start")
        assert names.count("start") == 1


@pytest.mark.parametrize("name", ["progress", "deleted"])
async def test_id_of_what_the_feed_tells_beside_its_log_is_the_cursor(service: Api, upstream: Any, name: str) -> None:
    upstream.script = say("a")
    doomed = await service.run()
    async with EventSourceClient(service.at("/feed", progress="1")) as source:
        live = await source.event("live")
        # when something is told that is not kept
        async with _happening(name, service, upstream, doomed):
            notice = await source.event(name)
        assert notice.last_event_id
        upstream.script = say("b")
        last = await service.run()
        while (await source.event("ended")).json()["generation_id"] != last:
            pass
        # then who comes back with its id gets what came after it, and so with that of `live`
        for event in (live, notice):
            rest = source.events[source.events.index(event) + 1 :]
            expected = [(each.last_event_id, each.data) for each in rest if each.event in LIFE]
            body = (await _read_activity_after(service, event.last_event_id)).body
            assert b"event: reset" not in body
            found = [(each.last_event_id, each.data) for each in messages(body) if each.event in LIFE]
            assert found == expected


@contextlib.asynccontextmanager
async def _happening(name: str, service: Api, upstream: Any, doomed: str) -> AsyncIterator[None]:
    """Let happen what the feed calls so: a generation is deleted, or one is live for as long as this lasts."""
    if name == "deleted":
        assert (await service.delete(f"/generations/{doomed}")).status == 204
        yield
        return
    upstream.script = None
    id = (await service.start())["id"]
    await (await upstream.called()).answer()
    yield
    await service.post(f"/generations/{id}/cancel")


async def _read_activity_after(api: Api, cursor: str) -> Answer:
    async with streaming(api.at("/feed", after=cursor)) as stream:
        await stream.until(b"event: live")
        return Answer(stream.status, stream.headers, bytes(stream.body), clean=False)


@pytest.mark.parametrize("name", ["progress", "deleted"])
async def test_what_the_feed_tells_beside_its_log_has_its_id_in_the_block(
    service: Api, upstream: Any, name: str
) -> None:
    upstream.script = say("a")
    doomed = await service.run()
    async with streaming(service.at("/feed", progress="1")) as stream:
        await stream.until(b"event: live")
        async with _happening(name, service, upstream, doomed):
            begin = (await stream.until(b"event: " + name.encode())).index(b"event: " + name.encode())
            body = await stream.until(b"\n\n", after=begin)
    block = body[begin:].partition(b"\n\n")[0]
    assert re.fullmatch(rb"event: \w+\ndata: \{[^\n]+\}\nid: \d+-\d+", block)


# How the cursor is spelt.


async def test_cursor_is_understood_as_libraries_spell_it_in_the_query(service: Api, upstream: Any) -> None:
    upstream.script = say("a", "b")
    id = await service.run()

    async def after(path: str, cursor: str, **query: Any) -> list[Message]:
        url = service.at(path, lastEventId=cursor, **query)
        return messages((await read_stream(url)).body)

    log = await service.log(id)
    many = messages((await read_many(service, id)).body)
    tokens = messages((await read_tokens(service, id)).body)[1:]  # after the reset
    assert await after(f"/generations/{id}/events", log[1].last_event_id) == log[2:]
    assert await after("/events", many[1].last_event_id, generation=id) == many[2:]
    assert await after("/v1/completions/stream", tokens[0].last_event_id, prompt="Hi") == tokens[1:]
    assert len(upstream.calls) == 1
    cursor = messages((await read_activity(service, id)).body)[-3].last_event_id
    async with streaming(service.at("/feed", lastEventId=cursor)) as stream:
        assert messages(await stream.until(b"\n\n"))[0].event not in ("live", "reset")


# What some take for the end of a line.


def every_place(text: str) -> Script:
    """An answer with this text wherever a model may put some."""

    async def script(call: Call) -> None:
        function = {"name": "f", "arguments": json.dumps({"q": text}, ensure_ascii=False)}
        deltas: list[dict[str, Any]] = [
            {"reasoning_content": text},
            {"content": text},
            {"content": text + "."},
            {"refusal": text},
            {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": function}]},
        ]
        for delta in deltas:
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            chunk = call.chunk(choice, x_note=text)
            await call.send_raw(b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n")
        await call.finish()

    return script


@pytest.mark.parametrize(
    "query", [{}, {"format": "openai"}, {"mode": "snapshot"}], ids=["events", "openai", "snapshot"]
)
@pytest.mark.parametrize("lines", [False, True], ids=["sse", "ndjson"])
async def test_no_face_has_the_end_of_a_line_in_what_a_model_says(
    service: Api, upstream: Any, query: dict[str, str], lines: bool
) -> None:
    upstream.script = every_place(ENDS_OF_LINES)
    id = await service.run({"prompt": ENDS_OF_LINES}, metadata={ENDS_OF_LINES: ENDS_OF_LINES})
    answer = await service.read(id, LINES if lines else {}, **query)
    assert not RAW.search(answer.body)
    # and it says the same
    told = answer.body.splitlines() if lines and "format" not in query else [m.data for m in messages(answer.body)]
    objects = [json.loads(data) for data in told if data != "[DONE]"]
    page = (await service.get(f"/generations/{id}/events", {"Accept": "application/json"})).json()["events"]
    if not query:
        assert [{**data, "id": event["id"]} for data, event in zip(objects, page, strict=True)] == page
    shown = json.dumps(objects, ensure_ascii=False)
    assert shown.count(ENDS_OF_LINES) >= (4 if query else 11)


@pytest.mark.parametrize("read", [read_many, read_tokens])
async def test_no_other_face_has_it_either(
    service: Api, upstream: Any, read: Callable[[Api, str], Awaitable[Answer]]
) -> None:
    upstream.script = every_place(ENDS_OF_LINES)
    answer = await read(service, await service.run())
    assert not RAW.search(answer.body)
    texts = [json.loads(event.data) for event in messages(answer.body) if event.data != "[DONE]"]
    texts = [data.get("content", data.get("token")) for data in texts]
    assert [text for text in texts if text] == [ENDS_OF_LINES, ENDS_OF_LINES + "."]


async def test_feed_has_none_of_it(service: Api, upstream: Any) -> None:
    upstream.script = say("a")
    id = await service.run({"prompt": "Hi", "model": ENDS_OF_LINES})
    body = (await read_activity(service, id)).body
    assert not RAW.search(body)
    models = [event.json().get("model") for event in messages(body) if event.json().get("generation_id") == id]
    assert models == [ENDS_OF_LINES] * 3


STREAMED = CHAT | {"stream": True}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_streams_under_v1_have_none_of_it(service: Api, upstream: Any, path: str) -> None:
    upstream.script = every_place(ENDS_OF_LINES)
    body = STREAMED if "chat" in path else INPUT | {"stream": True, "metadata": {"a": ENDS_OF_LINES}}
    answer = await service.post(path, body)
    service.started.append(id_of(answer))
    assert answer.clean
    assert not RAW.search(answer.body)
    assert (
        json.dumps([m.data for m in messages(answer.body)]).count(json.dumps(ENDS_OF_LINES)[1:-1].replace("\\", "\\\\"))
        >= 4
    )


async def test_resumed_response_has_none_of_it_wherever_it_is_resumed(service: Api, upstream: Any) -> None:
    upstream.script = every_place(ENDS_OF_LINES)
    body = INPUT | {"stream": True, "metadata": {"a": ENDS_OF_LINES}}
    answer = await service.post("/v1/responses", body)
    id = id_of(answer)
    service.started.append(id)
    events = messages(answer.body)
    for number in range(len(events) - 1):
        rest = await read_stream(service.at(f"/v1/responses/{id}", stream="true", starting_after=number))
        assert rest.status == 200, rest
        assert not RAW.search(rest.body)
        assert messages(rest.body) == events[number + 1 :]


async def test_events_of_an_upstream_that_speaks_responses_have_none_of_it(make_node: Any, upstream: Any) -> None:
    # given an answer that passes through, with raw ends of lines in it
    async def script(call: Call) -> None:
        for event in said(ENDS_OF_LINES):
            name, data = event["type"], json.dumps(event, ensure_ascii=False)
            await call.send_raw(f"event: {name}\ndata: {data}\n\n".encode())
        await call.done()

    api = (await make_node()).api
    upstream.speaks_responses, upstream.script = True, script
    answer = await api.post("/v1/responses", {"model": "m", "input": "Hi", "stream": True})
    id = id_of(answer)
    assert upstream.calls[-1].path.endswith("/responses")
    # then no format shows them
    resumed = await read_stream(api.at(f"/v1/responses/{id}", stream="true", starting_after=1))
    for each in (answer, resumed, await api.read(id), await api.read(id, LINES), await api.read(id, format="openai")):
        assert not RAW.search(each.body)
        assert json.dumps(ENDS_OF_LINES)[1:-1].encode() in each.body


# HTTP's chunks.

BURST = [f"word {n} " for n in range(900)]
LARGE = "x" * 3 * CHUNK


async def in_a_burst(call: Call) -> None:
    """More than a chunk holds, at once, with blocks that are larger than one."""
    texts = [*BURST, LARGE, "between", LARGE, *BURST]
    chunks = [call.chunk({"index": 0, "delta": {"content": text}, "finish_reason": None}) for text in texts]
    await call.send_raw(b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks))
    await call.finish()


def assert_whole_blocks(stream: Stream, block_end: bytes) -> None:
    at = 0
    for size in stream.chunks:
        chunk = bytes(stream.body[at : at + size])
        at += size
        assert chunk.endswith(block_end) or re.fullmatch(rb"retry: \d+\n", chunk)
        assert size <= CHUNK or chunk.count(block_end) == 1
    assert at == len(stream.body)
    assert max(stream.chunks) > CHUNK
    assert len(stream.chunks) > len(stream.body) / CHUNK / 2


@pytest.mark.parametrize("headers", [{}, LINES], ids=["sse", "ndjson"])
@pytest.mark.parametrize("joining", ["live", "late"])
async def test_chunks_are_whole_blocks_and_small(
    service: Api, upstream: Any, headers: Mapping[str, str], joining: str
) -> None:
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.answer()
    if joining == "late":
        await in_a_burst(call)
        await service.ended(id)
    stream = await open_stream(service.events_url(id), headers={"Accept": "text/event-stream", **headers})
    if joining == "live":
        await stream.until(b'"type":"live"')
        await in_a_burst(call)
    await stream.to_end()
    assert_whole_blocks(stream, b"\n" if headers else b"\n\n")


@pytest.mark.parametrize("way", ["openai", "events of several", "chat"])
async def test_chunks_of_other_faces_are_whole_blocks_and_small(service: Api, upstream: Any, way: str) -> None:
    upstream.script = in_a_burst
    if way == "chat":
        stream = await opened(service)
    else:
        id = await service.run()
        url = service.at("/events", generation=id) if way != "openai" else service.events_url(id, format="openai")
        stream = await open_stream(url, headers={"Accept": "text/event-stream"})
    await stream.to_end()
    assert_whole_blocks(stream, b"\n\n")
