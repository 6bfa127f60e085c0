"""The contract's "Generations" as they are read: in lists, as lines, in pages, as transcripts."""

from __future__ import annotations

import asyncio
import itertools
import json
import time

import pytest
from support.api import assert_problem, event_id, text_of
from support.deadlines import eventually, within
from support.samples import SAMPLES
from support.sse import streaming
from support.upstream import USAGE, play, say
from support.v1 import CHAT

# Lists.


async def test_list_is_newest_first_and_paged_to_its_end(node, upstream):
    # given seven generations
    upstream.script = say("a")
    ids = [await node.api.run() for _ in range(7)]

    # when they are listed in pages of three
    pages, before = [], None
    while True:
        answer = await node.api.get("/generations", limit=3, before=before)
        assert answer.status == 200
        page = answer.json()
        pages.append([generation["id"] for generation in page["generations"]])
        before = page["next"]
        assert isinstance(page["feed_cursor"], str)
        if before is None:
            break

    # then each is there once, newest first
    assert [len(page) for page in pages if page] == [3, 3, 1]
    assert [id for page in pages for id in page] == ids[::-1]


async def test_list_shows_the_generation_objects(node, upstream):
    upstream.script = say("a")
    id = await node.api.run(None, metadata={"k": "v"})
    (listed,) = (await node.api.get("/generations")).json()["generations"]
    generation = await node.api.generation(id)
    for name in ("id", "status", "model", "created", "metadata"):
        assert listed[name] == generation[name]


async def test_list_can_be_narrowed_to_a_status_and_agrees_on_every_node(make_node, upstream):
    # given a generation of each status that can be had by asking
    nodes = [await make_node(), await make_node()]
    upstream.script = say("a")
    completed = [await nodes[0].api.run(), await nodes[1].api.run()]
    upstream.script = play(SAMPLES["21-empty-200"])
    failed = [await nodes[0].api.run()]
    upstream.script = None
    ids = [(await nodes[0].api.start())["id"] for _ in range(3)]
    calls = [await upstream.called() for _ in ids]
    for call in calls[:2]:
        await call.say("x")
    await asyncio.gather(*(eventually("a", lambda id=id: nodes[0].api.generation(id)) for id in ids))

    async def by_status():
        return {id: (await nodes[0].api.generation(id))["status"] for id in ids}

    status = await eventually(
        "two streaming", by_status, lambda s: sorted(s.values()) == ["queued", "streaming", "streaming"]
    )
    streaming_ids = [id for id in ids if status[id] == "streaming"]
    await nodes[0].api.post(f"/generations/{streaming_ids[0]}/cancel")

    # then each node lists them by status
    expected = {
        "completed": completed,
        "failed": failed,
        "cancelled": streaming_ids[:1],
        "streaming": streaming_ids[1:],
        "queued": [id for id in ids if status[id] == "queued"],
        "interrupted": [],
    }
    for node in nodes:
        for name, wanted in expected.items():
            listed = (await node.api.get("/generations", status=name)).json()["generations"]
            assert sorted(generation["id"] for generation in listed) == sorted(wanted), name
            assert {generation["status"] for generation in listed} <= {name}


async def test_empty_list(node):
    page = (await node.api.get("/generations")).json()
    assert (page["generations"], page["next"]) == ([], None)


@pytest.mark.parametrize("query", [{"status": "unheard"}, {"limit": "x"}, {"limit": "0"}, {"before": "nonsense"}])
async def test_a_list_query_that_cannot_be_read_is_a_400_problem(service, query):
    assert_problem(await service.get("/generations", **query), 400)


# Events as lines and as pages.


async def test_ndjson_is_followed_live(service, upstream):
    id = (await service.start())["id"]
    call = await upstream.called()
    async with streaming(service.events_url(id), {"Accept": "application/x-ndjson"}) as stream:
        assert stream.status == 200
        assert stream.headers["content-type"].startswith("application/x-ndjson")
        await call.say("Hel")
        await stream.until(b"Hel")
        await call.finish()
        answer = await stream.to_end()
    assert answer.clean
    assert answer.body.endswith(b"\n")
    lines = [json.loads(line) for line in answer.body.splitlines()]
    log = [{"id": event.last_event_id, **event.json()} for event in await service.log(id)]
    assert [line for line in lines if line["type"] != "live"] == log
    assert [line["id"] for line in lines if line["type"] == "live"] == [log[0]["id"]]


async def test_ndjson_resumes_like_the_stream(service, upstream):
    upstream.script = say("a", "b")
    id = await service.run()
    log = [{"id": event.last_event_id, **event.json()} for event in await service.log(id)]
    ndjson = {"Accept": "application/x-ndjson"}
    for place, event in enumerate(log, start=1):
        by_query = await service.read(id, ndjson, after=event["id"])
        by_header = await service.read(id, ndjson | {"Last-Event-ID": event["id"]})
        assert by_query.status == by_header.status == 200
        assert by_query.body == by_header.body
        assert [json.loads(line) for line in by_query.body.splitlines()] == log[place:]


async def page(service, id, **query):
    answer = await service.get(f"/generations/{id}/events", {"Accept": "application/json"}, **query)
    assert answer.status == 200, answer
    assert answer.media_type == "application/json"
    assert set(answer.json()) == {"events", "next", "complete"}
    return answer.json()


@pytest.mark.parametrize("limit", [1, 2, 5, 8, 9, 1000])
async def test_pages_lead_through_the_whole_log(service, upstream, limit):
    # given a log of nine events
    upstream.script = say(*"abcdef")
    id = await service.run()
    log = [{"id": event.last_event_id, **event.json()} for event in await service.log(id)]
    assert len(log) == 9

    # when it is read in pages
    got, after = [], None
    while True:
        events = await page(service, id, limit=limit, after=after)
        assert len(events["events"]) <= limit
        got += events["events"]
        after = events["next"]
        assert (after is None) == events["complete"]
        if events["complete"]:
            break
        assert after == got[-1]["id"]

    # then they are the log
    assert got == log


async def test_page_of_a_running_log_is_not_complete_and_says_where_to_go_on(service, upstream):
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("a")
    last = (await service.has(id, 2))["last_event_id"]
    assert await page(service, id, after=last) == {"events": [], "next": last, "complete": False}
    so_far = await page(service, id)
    assert [event["type"] for event in so_far["events"]] == ["start", "token"]
    assert (so_far["next"], so_far["complete"]) == (last, False)
    await call.finish()
    await service.ended(id)
    rest = await page(service, id, after=last)
    assert [event["type"] for event in rest["events"]] == ["delta", "end"]
    assert (rest["next"], rest["complete"]) == (None, True)


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1.5"])
async def test_a_page_limit_that_cannot_be_is_a_400_problem(service, upstream, limit):
    upstream.script = say("a")
    id = await service.run()
    assert_problem(await service.get(f"/generations/{id}/events", {"Accept": "application/json"}, limit=limit), 400)


async def test_page_never_has_more_than_a_thousand_events(service, upstream):
    upstream.script = say(*["x"] * 1100)
    id = await service.run()
    answer = await service.get(f"/generations/{id}/events", {"Accept": "application/json"}, limit=1001)
    assert answer.status == 400 or len(answer.json()["events"]) <= 1000
    assert len((await page(service, id))["events"]) <= 1000
    assert len((await page(service, id, limit=1000))["events"]) == 1000


# Transcripts.


async def test_transcript_of_an_ended_generation(service, upstream):
    upstream.script = say("Val", "key", usage=USAGE)
    id = await service.run(CHAT, metadata={"k": "v"})
    generation = await service.generation(id)
    log = await service.log(id)
    transcript = await service.transcript(id)
    for name in ("id", "status", "model", "created", "finish_reason", "usage", "metadata"):
        assert transcript[name] == generation[name]
    assert transcript["status"] == "completed"
    assert transcript["text"] == "Valkey"
    assert transcript["message"]["role"] == "assistant"
    assert transcript["message"]["content"] == "Valkey"
    assert transcript["last_event_id"] == log[-1].last_event_id
    timing, end = transcript["timing"], log[-1].json()
    assert (timing["ttft_ms"], timing["duration_ms"]) == (end["ttft_ms"], end["duration_ms"])
    assert set(timing) >= {"tokens_per_second", "inter_token_ms"}
    assert set(timing["inter_token_ms"]) >= {"p50", "p95", "max"}


async def test_transcript_tells_the_pace_of_the_tokens(service, upstream):
    # given words that come 0.1 s apart, and once 0.3 s
    id = (await service.start())["id"]
    call = await upstream.called()
    for pause in (0.1, 0.1, 0.1, 0.3, 0.1, 0):
        await call.say("x")
        await asyncio.sleep(pause)
    await call.finish()
    await service.ended(id)
    stamps = [event_id(e.last_event_id)[0] for e in await service.log(id) if e.event == "token"]
    pauses = sorted(b - a for a, b in itertools.pairwise(stamps))

    # then its timing is that of the log
    timing = (await service.transcript(id))["timing"]
    assert timing["inter_token_ms"]["max"] == pytest.approx(pauses[-1], abs=1)
    assert timing["inter_token_ms"]["p50"] == pytest.approx(pauses[2], abs=15)
    assert 2 < timing["tokens_per_second"] < 15


async def test_transcript_is_json_by_default_and_text_or_markdown_by_accept(service, upstream):
    upstream.script = say("# Title\n\n", "text & <b>é</b>")
    id = await service.run()
    text = "# Title\n\ntext & <b>é</b>"
    path = f"/generations/{id}/transcript"
    for accept in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
        answer = await service.get(path, accept)
        assert (answer.media_type, answer.json()["text"]) == ("application/json", text)
    answer = await service.get(path, {"Accept": "text/plain"})
    assert (answer.media_type, answer.body.decode()) == ("text/plain", text)
    assert "utf-8" in answer.headers["content-type"].lower()
    answer = await service.get(path, {"Accept": "text/markdown"})
    assert answer.media_type == "text/markdown"
    assert text in answer.body.decode()
    answer = await service.get(path, {"Accept": "text/markdown;q=0.5, text/plain"})
    assert answer.media_type == "text/plain"


async def test_message_is_assembled_from_reasoning(service, upstream):
    upstream.script = play(SAMPLES["07-reasoning_content"])
    transcript = await service.transcript(await service.run())
    assert transcript["text"] == " the reader"
    assert transcript["message"]["content"] == " the reader"
    assert transcript["message"]["reasoning_content"] == " the reader is"


async def test_message_is_assembled_from_a_refusal(service, upstream):
    upstream.script = play(SAMPLES["47-empty-delta-and-null-delta"])
    message = (await service.transcript(await service.run()))["message"]
    assert (message["content"], message["refusal"]) == ("x", "No.")


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (
            "08-tool_calls",
            [("ciZ4iQvGw94UgyET1rnHM1gfXGGeQRTO", "get_weather", {"city": "Paris é"})],
        ),
        (
            "09-tool_calls-parallel",
            [
                ("call__Jpw_dlnOgeM7c9t", "get_weather", {"city": "Paris"}),
                ("call_H4UY_by5qR7nOFIY", "get_time", {"tz": "CET"}),
            ],
        ),
    ],
)
async def test_message_is_assembled_from_tool_calls(service, upstream, sample, expected):
    upstream.script = play(SAMPLES[sample])
    transcript = await service.transcript(await service.run())
    assert transcript["text"] == ""
    assert not transcript["message"].get("content")
    calls = transcript["message"]["tool_calls"]
    assert [(c["id"], c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls] == expected
    assert {call["type"] for call in calls} == {"function"}


async def test_message_has_only_what_was_sent(service, upstream):
    upstream.script = say("a")
    message = (await service.transcript(await service.run()))["message"]
    assert not {"reasoning_content", "refusal", "tool_calls"} & {name for name, value in message.items() if value}


async def test_transcript_works_while_streaming_on_every_node(service, other_service, upstream):
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("Hel")
    last = (await service.has(id, 2))["last_event_id"]
    await other_service.has(id, 2)
    for api in (service, other_service):
        transcript = await api.transcript(id)
        assert (transcript["status"], transcript["text"]) == ("streaming", "Hel")
        assert transcript["last_event_id"] == last


async def test_transcript_and_stream_join_without_a_gap(service, upstream):
    # the page of a reader: load the transcript, then subscribe from its last event
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("Hel")
    await service.has(id, 2)
    transcript = await service.transcript(id)
    async with service.source(id, after=transcript["last_event_id"]) as source:
        await call.say("lo")
        await call.finish()
        await source.event("end")
        assert transcript["text"] + text_of(source.received) == "Hello"


@pytest.mark.parametrize("accept", ["application/json", "text/plain", "text/markdown"])
async def test_transcript_has_an_etag_that_changes_with_the_log(service, upstream, accept):
    # given a transcript of a running generation
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("a")
    await service.has(id, 2)
    path = f"/generations/{id}/transcript"
    first = await service.get(path, {"Accept": accept})
    tag = first.headers["etag"]

    # then it is not sent again as long as nothing has changed
    same = await service.get(path, {"Accept": accept, "If-None-Match": tag})
    assert (same.status, same.body, same.headers["etag"]) == (304, b"", tag)
    listed = await service.get(path, {"Accept": accept, "If-None-Match": f'"x", {tag}'})
    assert listed.status == 304

    # and is, as soon as something has
    await call.say("b")
    await service.has(id, 3)
    changed = await service.get(path, {"Accept": accept, "If-None-Match": tag})
    assert changed.status == 200
    assert changed.headers["etag"] != tag


async def test_waiting_transcript_comes_as_soon_as_the_generation_ends(service, other_service, upstream):
    # given a request on each node that waits for the end
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("a")
    waiting = [asyncio.create_task(api.transcript(id, wait=9)) for api in (service, other_service)]
    done, _ = await asyncio.wait(waiting, timeout=0.3)
    assert not done

    # when it ends, then both are answered at once
    await call.finish()
    for task in waiting:
        transcript = await within("the waiting transcript", task, 3)
        assert (transcript["status"], transcript["text"]) == ("completed", "a")


async def test_waiting_transcript_comes_without_the_end_when_time_is_up(service, upstream):
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("a")
    await service.has(id, 2)
    begun = time.monotonic()
    transcript = await service.transcript(id, wait=0.5)
    assert 0.4 < time.monotonic() - begun < 2
    assert (transcript["status"], transcript["text"]) == ("streaming", "a")


async def test_waiting_for_an_ended_generation_takes_no_time(service, upstream):
    upstream.script = say("a")
    id = await service.run()
    begun = time.monotonic()
    await service.transcript(id, wait=60)
    assert time.monotonic() - begun < 1
