"""`python -m tests.walk`: both walks pass what the architecture turns on, in its order."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from walk.__main__ import printed
from walk.tracing import PACKAGE
from walk.walks import last_event_id, token, world

from replay.http.resuming import Resuming
from replay.http.streaming import Streaming
from replay.http.takeover import release
from replay.live.feed import Feed
from replay.live.follower import Follower
from replay.live.hub import Hub
from replay.live.stream_connection import StreamConnection
from replay.live.subscriber import Subscriber
from replay.live.writer import Writer
from replay.model.event import EventId
from replay.store.valkey import ValkeyStore
from replay.upstream.body import read_body
from replay.wire.recorder import Recorder
from replay.wire.sse import Decoder

SENT, SHOWN = "bytes leave for Valkey", "bytes leave for the reader"
WOKEN, REPLY = "wakes task produce <id>", "the event loop, with bytes from Valkey"
WAYS = {
    token: (
        *(read_body, Decoder.decode, Recorder.record, Writer.put, WOKEN, ValkeyStore.append, SENT, REPLY),
        *(Feed.extend, StreamConnection.write, SHOWN),
    ),
    last_event_id: (
        *(EventId.parse, Resuming.follow, Hub.open, ValkeyStore.last, SENT),
        *(Follower.load, ValkeyStore.listen, ValkeyStore.read, Feed.extend),
        *(Streaming.stream, release, Subscriber.take_over, SHOWN, Feed.segment, Feed.go_live, Follower.heard),
    ),
}


@pytest.fixture(params=WAYS, ids=lambda walk: walk.__name__)
async def walk(request, tmp_path):
    async with world(tmp_path) as made:
        return request.param, await request.param(made)


async def test_walk_passes_what_the_architecture_turns_on(walk):
    # given a walk, when it is told
    way, lines = walk
    told = [what for line in lines for what in ([call.code for call in line.calls] or [line.text])]
    # then it passes these, one after the other, and ends at the reader
    expected = [step if isinstance(step, str) else getattr(step, "__func__", step).__code__ for step in WAYS[way]]
    assert [step for step in expected if step not in told] == []
    assert all(told.index(one) < told.index(other) for one, other in pairwise(expected))
    assert told[-1] == SHOWN
    # and every line that names a file names a function in it
    places = [re.match(r"([\w/]+\.py):(\d+) +[\w.]*?(\w+)[, ]", f"{line} ") for line in printed(lines)]
    for file, number, name in (place.groups() for place in places if place):
        source = (PACKAGE / file).read_text().splitlines()
        assert f"def {name}(" in "".join(source[int(number) - 1 : int(number) + 3])
    assert sum(place is not None for place in places) == sum(bool(line.calls) for line in lines)
