"""The contract's "Resuming": every row of the cursor table, how a response ends, and the query parameters."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from support.api import assert_problem, event_id, text_of
from support.deadlines import eventually
from support.sse import Message, messages, streaming
from support.upstream import Call, generate, say


@dataclass
class Recording:
    """A generation that has ended, and its whole log."""

    id: str
    log: list[Message]

    @property
    def ids(self) -> list[str]:
        return [event.last_event_id for event in self.log]


@dataclass
class Running:
    """A generation that has said "a" and "b" and is waiting for what the test says next."""

    id: str
    call: Call
    log: list[Message]


@pytest.fixture
async def recorded(service, upstream) -> Recording:
    upstream.script = say("a", "b", "c", "d")
    id = await service.run()
    return Recording(id, await service.log(id))


@pytest.fixture
async def running(service, upstream) -> Running:
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("a")
    await call.say("b")
    await service.has(id, 3)
    async with streaming(service.events_url(id)) as stream:
        body = await stream.until(b"event: live")
    return Running(id, call, messages(body))


def spelt(cursor: str, spelling: str) -> tuple[dict[str, str], dict[str, str]]:
    """Headers and query that carry a cursor."""
    return ({"Last-Event-ID": cursor}, {}) if spelling == "Last-Event-ID" else ({}, {spelling: cursor})


spellings = pytest.mark.parametrize("spelling", ["Last-Event-ID", "after", "last_event_id", "lastEventId"])


# No cursor; an event of this log.


async def test_without_a_cursor_everything_comes_and_then_live(service, running):
    async with service.source(running.id) as source:
        await source.event("live")
        assert text_of(source.received) == "ab"
        await running.call.say("c")
        await source.event("token")
        await running.call.finish()
        await source.event("end")
        assert text_of(source.received) == "abc"


@spellings
async def test_after_an_event_of_the_log_exactly_the_events_after_it_come(service, recorded, spelling):
    for place, cursor in enumerate(recorded.ids[:-1], start=1):
        headers, query = spelt(cursor, spelling)
        answer = await service.read(recorded.id, headers, **query)
        assert messages(answer.body) == recorded.log[place:]
        assert answer.clean


@spellings
async def test_after_an_event_of_a_running_log_the_rest_comes_and_then_live(service, other_service, running, spelling):
    headers, query = spelt(running.log[1].last_event_id, spelling)
    for api in (service, other_service):
        async with streaming(api.events_url(running.id, **query), headers) as stream:
            body = await stream.until(b"event: live")
            await stream.until(b"\n\n", after=body.index(b"event: live"))
            assert [event.event for event in messages(bytes(stream.body))] == ["token", "live"]
            assert messages(bytes(stream.body))[0] == running.log[2]


async def test_the_header_wins_over_the_query(service, recorded):
    # an EventSource that was opened with ?after= sends its own cursor when it comes back
    answer = await service.read(recorded.id, {"Last-Event-ID": recorded.ids[3]}, after=recorded.ids[1])
    assert messages(answer.body) == recorded.log[4:]
    answer = await service.read(recorded.id, {"Last-Event-ID": recorded.ids[1]}, after="malformed")
    assert messages(answer.body) == recorded.log[2:]


@spellings
async def test_minus_one_is_the_start(service, recorded, spelling):
    headers, query = spelt("-1", spelling)
    assert messages((await service.read(recorded.id, headers, **query)).body) == recorded.log


async def test_source_that_is_cut_anywhere_gets_every_event_once_and_in_order(service, other_service, upstream):
    # given a generation of some speed
    upstream.script = generate(400, per_second=400)
    id = (await service.start())["id"]
    chance = random.Random(5)
    async with service.source(id) as here, other_service.source(id) as there:
        # when its readers lose their connections again and again
        for source in (here, there):
            source.retry_ms = 1

        async def lose_connections(source):
            while not source.events or source.events[-1].event != "end":
                seen = len(source.events) + chance.randrange(1, 60)
                while len(source.events) < seen and (not source.events or source.events[-1].event != "end"):
                    await source.next()
                source.retry_ms = 1
                source.cut()

        async with asyncio.timeout(15):
            await asyncio.gather(lose_connections(here), lose_connections(there))

        # then what they got is the log: none lost, none twice, none reordered
        log = await service.log(id)
        for source in (here, there):
            assert source.received == log
            assert len(source.connections) > 3


# The end.


async def test_source_stops_by_itself_after_the_end(service, recorded):
    async with service.source(recorded.id) as source:
        await source.event("end")
        last = await source.closed()
        assert (last.asked_after, last.status) == (recorded.ids[-1], 204)
        assert [connection.status for connection in source.connections] == [200, 204]
        assert source.connections[0].clean
        assert source.received == recorded.log


@spellings
@pytest.mark.parametrize("query", [{}, {"format": "openai"}], ids=["events", "openai"])
async def test_after_the_end_there_is_204(service, other_service, recorded, spelling, query):
    headers, cursor = spelt(recorded.ids[-1], spelling)
    for api in (service, other_service):
        answer = await api.read(recorded.id, headers, **query, **cursor)
        assert (answer.status, answer.body) == (204, b"")


async def test_after_the_end_pages_and_ndjson_are_empty(service, recorded):
    lines = await service.read(recorded.id, {"Accept": "application/x-ndjson"}, after=recorded.ids[-1])
    assert (lines.status, lines.body) == (200, b"")
    page = await service.read(recorded.id, {"Accept": "application/json"}, after=recorded.ids[-1])
    assert page.status == 200
    assert page.json() == {"events": [], "next": None, "complete": True}


async def test_response_is_ended_cleanly_by_the_end_of_a_running_generation(service, running):
    async with streaming(service.events_url(running.id)) as stream:
        await stream.until(b"event: live")
        await running.call.finish()
        answer = await stream.to_end()
    assert answer.clean
    assert messages(answer.body)[-1].event == "end"


# Cursors of something else.


@pytest.mark.parametrize("unknown", ["0-0", "1-5", "0-1", "other", "other seq", "other ms", "99999999999999-3"])
async def test_an_unknown_cursor_is_answered_by_a_reset_and_the_whole_log(service, upstream, recorded, unknown):
    # given a cursor that is well formed and not of this log, be it ever so close
    ms, seq = event_id(recorded.ids[2])
    upstream.script = say("x")
    others = await service.log(await service.run())
    cursor = {
        "other": others[1].last_event_id,
        "other seq": f"{ms}-{seq + 40}",
        "other ms": f"{ms - 1}-{seq}",
    }.get(unknown, unknown)

    # when it is asked for, then `reset` comes first, has no id, and tells what was asked
    answer = await service.read(recorded.id, {"Last-Event-ID": cursor})
    assert answer.status == 200
    reset, *events = messages(answer.body)
    assert (reset.event, reset.last_event_id) == ("reset", "")
    assert reset.json() == {"type": "reset", "reason": "unknown_event_id", "asked": cursor}
    assert events == recorded.log
    assert answer.clean


async def test_an_unknown_cursor_into_a_running_log_is_reset_and_then_live(service, other_service, running):
    for api in (service, other_service):
        async with api.source(running.id, last_event_id="5-5") as source:
            await source.event("live")
            assert [event.event for event in source.events] == ["reset", "start", "token", "token", "live"]
            assert source.events[0].last_event_id == "5-5"  # the browser's cursor has not been moved
            assert source.last_event_id == running.log[2].last_event_id


async def test_a_cursor_ahead_of_a_running_log_is_unknown(service, running):
    ms, seq = event_id(running.log[-2].last_event_id)
    async with service.source(running.id, last_event_id=f"{ms}-{seq + 1}") as source:
        assert (await source.next()).event == "reset"


async def test_unknown_cursors_of_ndjson_are_told_too(service, recorded):
    answer = await service.read(recorded.id, {"Accept": "application/x-ndjson"}, after="1-1")
    assert answer.status == 200
    kinds = [json.loads(line)["type"] for line in answer.body.splitlines()]
    assert kinds == ["reset", *(event.event for event in recorded.log)]


@spellings
@pytest.mark.parametrize(
    "malformed",
    ["abc", "1", "1-", "-", "-2", "1-2-3", "1-a", "1.5-0", "0x1-0", "+1-0", "1-+0", "1_0-0", "$", "*", "1-1,2-2"],
)
async def test_a_malformed_cursor_is_a_400_problem(service, recorded, spelling, malformed):
    headers, query = spelt(malformed, spelling)
    assert_problem(await service.read(recorded.id, headers, **query), 400)


async def test_digits_of_other_scripts_are_malformed(service, recorded):
    assert_problem(await service.read(recorded.id, after="１７-０"), 400)


async def test_a_malformed_cursor_ends_an_event_source_for_good(service, recorded):
    async with service.source(recorded.id, last_event_id="nonsense") as source:
        assert (await source.closed()).status == 400


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson", "application/json"])
@pytest.mark.parametrize("headers", [{}, {"Last-Event-ID": "1-1"}], ids=["fresh", "resuming"])
async def test_an_unknown_generation_is_a_404_problem(service, accept, headers):
    assert_problem(await service.read("gen_nobody", {"Accept": accept, **headers}), 404)


async def test_an_expired_generation_is_a_404_problem(service, other_service, upstream):
    # given a generation that is kept for one second after its end, and has been read on both nodes
    upstream.script = say("a")
    id = await service.run(None, ttl=1)
    log = await service.log(id)
    assert await other_service.log(id) == log

    # when the second is over, then it is gone on both, with a cursor and without
    for api in (service, other_service):
        for headers in ({}, {"Last-Event-ID": log[1].last_event_id}, {"Last-Event-ID": log[-1].last_event_id}):
            answer = await eventually(
                "a 404", lambda api=api, headers=headers: api.read(id, headers), lambda a: a.status == 404
            )
            assert_problem(answer, 404)


# Snapshots.


async def test_snapshot_is_the_transcript_so_far_and_then_the_exact_tail(service, other_service, running):
    transcript = await service.transcript(running.id)
    for api in (service, other_service):
        async with api.source(running.id, mode="snapshot") as source:
            # when a running generation is opened as a snapshot
            snapshot = await source.next()

            # then it is the transcript, under the id of the last event folded into it
            assert snapshot.event == "snapshot"
            data = snapshot.json()
            assert data["type"] == "snapshot"
            for name in ("id", "status", "model", "created", "text", "message", "last_event_id"):
                assert data[name] == transcript[name]
            assert data["text"] == "ab"
            assert snapshot.last_event_id == data["last_event_id"] == running.log[2].last_event_id
            assert (await source.next()).event == "live"

    # and what follows is what comes after it
    async with service.source(running.id, mode="snapshot") as source:
        await source.event("live")
        await running.call.say("c")
        await running.call.finish()
        await source.event("end")
        log = await service.log(running.id)
        assert source.received[1:] == log[3:]


async def test_snapshot_of_an_ended_generation_leaves_the_end_to_the_tail(service, recorded):
    answer = await service.read(recorded.id, mode="snapshot")
    snapshot, *tail = messages(answer.body)
    assert snapshot.event == "snapshot"
    assert snapshot.json()["text"] == "abcd"
    assert snapshot.last_event_id == recorded.ids[-2]
    assert tail == recorded.log[-1:]
    assert answer.clean


async def test_snapshot_before_the_first_word_is_folded_from_start(service, upstream):
    id = (await service.start())["id"]
    call = await upstream.called()
    async with service.source(id, mode="snapshot") as source:
        snapshot = await source.next()
        assert snapshot.json()["text"] == ""
        assert event_id(snapshot.last_event_id)[1] == 0
        await call.say("a")
        assert (await source.event("token")).json()["content"] == "a"


@pytest.mark.parametrize("place", [0, 2, 4])
async def test_a_cursor_wins_over_a_snapshot(service, recorded, place):
    for headers, query in (spelt(recorded.ids[place], "Last-Event-ID"), spelt(recorded.ids[place], "after")):
        answer = await service.read(recorded.id, headers, mode="snapshot", **query)
        assert messages(answer.body) == recorded.log[place + 1 :]


async def test_minus_one_and_an_unknown_cursor_win_over_a_snapshot_too(service, recorded):
    assert messages((await service.read(recorded.id, mode="snapshot", after="-1")).body) == recorded.log
    reset, *events = messages((await service.read(recorded.id, mode="snapshot", after="1-1")).body)
    assert (reset.event, events) == ("reset", recorded.log)


async def test_source_on_a_snapshot_comes_back_to_the_tail(service, running):
    async with service.source(running.id, mode="snapshot") as source:
        source.retry_ms = 1
        await source.event("live")
        source.cut()
        await source.event("live")
        await running.call.say("c")
        await source.event("token")
        assert [event.event for event in source.events] == ["snapshot", "live", "live", "token"]


# Since, speed, batches.


@pytest.fixture
async def spread(service, upstream) -> Recording:
    """A generation whose three words are at least 0.2 s apart."""
    id = (await service.start())["id"]
    call = await upstream.called()
    for word in "abc":
        await call.say(word)
        await asyncio.sleep(0.2)
    await call.finish()
    await service.ended(id)
    return Recording(id, await service.log(id))


@pytest.mark.parametrize("spelling", ["ms", "iso", "iso with offset"])
async def test_since_starts_at_the_first_event_at_or_after_that_time(service, spread, spelling):
    for shift in (0, -50, 50):
        # given a time exactly at, shortly before, or shortly after the second word
        ms = event_id(spread.ids[2])[0] + shift
        moment = datetime.fromtimestamp(ms / 1000, UTC)
        iso = moment.isoformat(timespec="milliseconds")
        since = {"ms": str(ms), "iso": iso.replace("+00:00", "Z"), "iso with offset": iso}[spelling]

        # when the log is read since then
        answer = await service.read(spread.id, since=since)

        # then it starts at the first event that is not before
        expected = [event for event in spread.log if event_id(event.last_event_id)[0] >= ms]
        assert len(expected) == len(spread.log) - (2 if shift <= 0 else 3)
        assert messages(answer.body) == expected


async def test_since_before_the_start_is_everything(service, recorded):
    assert messages((await service.read(recorded.id, since=1)).body) == recorded.log


async def test_since_in_the_middle_of_a_running_generation_goes_on_live(service, running):
    ms = event_id(running.log[2].last_event_id)[0]
    async with service.source(running.id, since=ms) as source:
        await source.event("live")
        assert source.received == [
            event for event in running.log if event.event != "live" and event_id(event.last_event_id)[0] >= ms
        ]
        await running.call.say("c")
        assert (await source.event("token")).json()["content"] == "c"


def arrival_times(stream, log) -> list[float]:
    """When each event of the log was there, in seconds."""
    ends = [stream.body.index(b"\nid: " + event.last_event_id.encode() + b"\n") for event in log]
    return [next(at for at, length in stream.arrivals if length > end) for end in ends]


@pytest.mark.parametrize("speed", [1, 2])
async def test_speed_replays_the_recorded_pauses(service, spread, speed):
    async with streaming(service.events_url(spread.id, speed=speed)) as stream:
        answer = await stream.to_end()
    assert messages(answer.body) == spread.log
    times = arrival_times(stream, spread.log)
    recorded = [event_id(id)[0] / 1000 for id in spread.ids]
    for place in (2, 3):  # the second and the third word
        pause = (recorded[place] - recorded[1]) / speed
        assert times[place] - times[1] == pytest.approx(pause, abs=0.08)


async def test_without_speed_a_recording_comes_at_once(service, spread):
    async with streaming(service.events_url(spread.id)) as stream:
        await stream.to_end()
    times = arrival_times(stream, spread.log)
    assert times[-1] - times[0] < 0.2


async def test_live_events_are_never_delayed_behind_the_present(service, running):
    # given a recording that ends some time before the present, and a reader of it at the speed of what happened
    await asyncio.sleep(0.8)
    async with service.source(running.id, speed=1) as source:
        await source.event("live")

        # when the model speaks again, then the word comes now, and not after the pause that lies before it
        await running.call.say("c")
        assert (await source.event("token", 0.4)).json()["content"] == "c"


async def test_live_events_are_not_delayed_by_a_slow_replay_of_the_past(service, running):
    # given a recording with a pause, of which a reader at a tenth of its speed has seen the beginning
    await asyncio.sleep(0.5)
    await running.call.say("c")
    await service.has(running.id, 4)
    async with service.source(running.id, speed=0.1) as source:
        await source.event("start")

        # when the model speaks again, then what it says comes now, and with it all that lies before it
        await running.call.say("d")
        while (await source.event("token", 0.5)).json()["content"] != "d":
            pass
        assert text_of(source.received) == "abcd"


def writes(stream) -> int:
    """How often the service wrote, as far as a reader can tell: what comes within 2 ms is one write."""
    return 1 + sum(after - before > 0.002 for (before, _), (after, _) in itertools.pairwise(stream.arrivals))


async def test_batches_come_at_most_once_per_interval(service, upstream):
    # given a generation at 200 tokens a second for one second
    upstream.script = generate(200, per_second=200)
    id = (await service.start())["id"]

    # when it is read in batches of a quarter of a second
    async with streaming(service.events_url(id, batch_ms=250)) as stream:
        answer = await stream.to_end()

    # then all of it comes, in at most one write per interval (and one for each end)
    assert text_of(messages(answer.body)) == "".join(f"word{number} " for number in range(200))
    assert messages(answer.body)[-1].event == "end"
    assert writes(stream) <= 7


async def test_batches_of_a_replay_at_speed_come_at_most_once_per_interval(service, upstream):
    # given a recording of one second
    upstream.script = generate(100, per_second=100)
    id = await service.run()

    # when it is replayed as it happened, but in batches of a quarter of a second
    async with streaming(service.events_url(id, speed=1, batch_ms=250)) as stream:
        answer = await stream.to_end()

    # then both are kept
    assert messages(answer.body) == await service.log(id)
    assert stream.arrivals[-1][0] - stream.arrivals[0][0] > 0.8
    assert writes(stream) <= 7


@pytest.mark.parametrize("query", [{"since": "yesterday"}, {"speed": "fast"}, {"speed": "-1"}, {"batch_ms": "x"}])
async def test_a_parameter_that_cannot_be_read_is_a_400_problem(service, recorded, query):
    assert_problem(await service.read(recorded.id, **query), 400)


# Slow readers.


async def test_a_reader_that_stops_reading_is_aborted_and_can_resume(make_node, upstream):
    # given a reader that takes nothing, and one that does
    node = await make_node(write_deadline_s=0.3)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    async with (
        streaming(node.api.events_url(id), receive_buffer=4096) as slow,
        node.api.source(id) as quick,
    ):
        await slow.until(b"event: live")
        await quick.event("live")

        # when the model says more than fits in between
        for number in range(64):
            await call.say(f"{number} " + "x" * (200 << 10))
        await call.finish()

        # then the quick one is not held up, and the slow one, once it reads again, finds its connection aborted
        await quick.event("end")
        await asyncio.sleep(1)  # past the write deadline
        answer = await slow.to_end()
        assert not answer.clean
        got = [event for event in messages(answer.body) if event.event != "live"]
        assert got == quick.received[: len(got)]
        assert len(got) < len(quick.received)

        # and what it missed comes when it comes back
        rest = await node.api.read(id, {"Last-Event-ID": got[-1].last_event_id})
        assert got + messages(rest.body) == quick.received
