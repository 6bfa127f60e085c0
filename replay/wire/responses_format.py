"""A log as readers of OpenAI's Responses API see it: numbered events, of which one entry may give several or none."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from replay.model.event import Event, Kind
from replay.wire import json, sse
from replay.wire.dialects import dialect_of
from replay.wire.events import Format, Recording, decode_end, no_notice
from replay.wire.openai import chunk_of
from replay.wire.responses import Responses
from replay.wire.responses_dialect import RESPONSES


class ResponseView:
    """The events of a log, as far as it goes; made once for all who read it."""

    def __init__(self, recording: Recording) -> None:
        start = recording.start
        self._responses = Responses(
            start.generation_id,
            model=start.model,
            created_at=recording.log.times[0] // 1000,
            request=start.response or {},
            names=start.namespaced,
        )
        self.translated: bool | None = None  # whether the events are made of chat chunks; None before the first
        self._blocks: list[bytes] = []  # by sequence number
        self._counts: list[int] = []  # by seq: how many blocks there are up to there

    @property
    def response(self) -> dict[str, Any]:
        """The response object."""
        return self._responses.response

    def between(self, start: int, stop: int) -> bytes:
        """What the entries from ``start`` to before ``stop`` give."""
        first, last = (self._counts[seq - 1] if seq else 0 for seq in (start, stop))
        return b"".join(self._blocks[first:last])

    def after(self, number: int) -> tuple[int, bytes] | None:
        """Where a reader goes on that has the event of that number: the next `seq`, and what comes before it.

        None where there is no such event yet.
        """
        if number >= len(self._blocks):
            return None
        seq = bisect_right(self._counts, number) + 1
        return seq, b"".join(self._blocks[number + 1 : self._counts[seq - 1]])

    def read(self, recording: Recording) -> None:
        """Take what the log has more."""
        for event in recording.log.events(len(self._counts)):
            for each in self._events_of(event, recording):
                self._blocks.append(sse.block(each["type"].encode(), json.dumps(each)))
            self._counts.append(len(self._blocks))

    def _events_of(self, event: Event, recording: Recording) -> list[dict[str, Any]]:
        if event.kind is Kind.START:
            return self._responses.start()
        if event.kind is Kind.END:
            end = decode_end(event.entry)
            return self._responses.end(end.status, end.error, event.id.ms // 1000)
        chunk = json.loads(chunk_of(event.entry, recording.template(event.id.seq)))
        if self.translated is None:
            self.translated = dialect_of(chunk) is not RESPONSES
        return self._responses.add(chunk, event.id.ms // 1000)


def _encode(recording: Recording, start: int, stop: int) -> bytes:
    return recording.view(ResponseView).between(start, stop)


RESPONSE_EVENTS = Format("text/event-stream; charset=utf-8", _encode, no_notice, sse.KEEPALIVE, event_source=False)
