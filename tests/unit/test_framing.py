"""How blocks stand on the wire: HTTP's chunks, what is escaped, and what goes into one write."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.chunk_streams import START, STARTED_MS

from replay.live.counters import Counters
from replay.live.encoding import Encoding
from replay.live.feed import Feed
from replay.live.stream_connection import Handover
from replay.live.subscriber import Delivery, Pace, Subscriber
from replay.model.event import number
from replay.wire.events import NDJSON, SSE, Format, encode_start
from replay.wire.framing import CHUNKED, UNTIL_CLOSE, Framing

CHUNK = 8 << 10
ENDS_OF_LINES = "\u0085\u2028\u2029"


def chunks_of(framed: bytes) -> list[bytes]:
    """What the chunks of a body that goes on hold."""
    found = []
    while framed:
        size, _, framed = framed.partition(b"\r\n")
        found.append(framed[: int(size, 16)])
        assert framed[int(size, 16) :].startswith(b"\r\n")
        framed = framed[int(size, 16) + 2 :]
    return found


@pytest.mark.parametrize("format", [SSE, NDJSON], ids=["sse", "ndjson"])
@given(sizes=st.lists(st.sampled_from([0, 30, 900, CHUNK - 1, CHUNK, 5 * CHUNK]), max_size=60))
def test_chunks_are_whole_blocks_as_many_as_they_hold(format: Format, sizes: list[int]) -> None:
    blocks = [format.notice("x", {"text": "x" * size}) for size in sizes]
    chunks = chunks_of(Encoding(format, CHUNKED).framed(b"".join(blocks)))
    # then a naive packing is the same
    expected: list[bytes] = []
    for block in blocks:
        if expected and len(expected[-1]) + len(block) <= CHUNK:
            expected[-1] += block
        else:
            expected.append(block)
    assert chunks == expected


@pytest.mark.parametrize("framing", [CHUNKED, UNTIL_CLOSE], ids=["chunked", "until close"])
@pytest.mark.parametrize("format", [SSE, NDJSON], ids=["sse", "ndjson"])
@given(text=st.text(st.sampled_from('a\\"\n\xc2\x85\xa8\u0084\u0086\u2027\u2028\u2029\u202a\u20a8😀')))
def test_ends_of_lines_are_escaped_and_all_else_is_left(format: Format, framing: Framing, text: str) -> None:
    notice = format.notice("x", {"text": text, "_" + text: 1})
    framed = Encoding(format, framing).framed(notice)
    body = b"".join(chunks_of(framed)) if framing is CHUNKED else framed
    assert not any(end in body.decode() for end in ENDS_OF_LINES)
    data = body if format is NDJSON else body.split(b"\n")[1].removeprefix(b"data: ")
    assert json.loads(data) == {"type": "x", "text": text, "_" + text: 1}
    escaped = notice.decode()
    for end in ENDS_OF_LINES:
        escaped = escaped.replace(end, json.dumps(end)[1:-1])
    assert body.decode() == escaped


class Connection(asyncio.Transport):
    """Notes each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))


@pytest.mark.parametrize("format", [SSE, NDJSON], ids=["sse", "ndjson"])
async def test_reset_has_no_id_and_is_written_together_with_the_block_behind_it(format: Format) -> None:
    feed = Feed(START.generation_id)
    feed.extend(number([encode_start(START)], after=None, now_ms=STARTED_MS))
    reset = format.notice("reset", {"reason": "unknown_event_id", "asked": "1-1"})
    delivery = Delivery(
        encoding=Encoding(format, UNTIL_CLOSE),
        head=b"head",
        preface=reset,
        next_seq=0,
        pace=Pace(),
        buffer_bytes=1 << 16,
        deadline_s=1.0,
    )
    connection = Connection()
    Subscriber(feed, delivery, Counters(), lambda _: None).take_over(Handover(connection, None), delivery)
    live = format.notice("live", {"last_event_id": f"{STARTED_MS}-0"}, f"{STARTED_MS}-0")
    assert connection.writes == [b"head", reset + format.encode(feed.recording, 0, 1), live]
    assert b"id" not in reset.replace(b"event_id", b"")
