"""A log as readers of OpenAI's Responses API see it: numbered events, of which one entry may give several or none."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from replay.model.event import Event, Kind
from replay.wire import json, sse
from replay.wire.events import Face, Recording, decode_end, no_notice
from replay.wire.openai import chunk_of
from replay.wire.responses import Responses, is_response_event


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
        self._told: list[int] = []  # by place in the log: how many blocks there are up to there

    @property
    def response(self) -> dict[str, Any]:
        """The response object."""
        return self._responses.response

    def between(self, start: int, stop: int) -> bytes:
        """What the entries from ``start`` to before ``stop`` give."""
        first, last = (self._told[place - 1] if place else 0 for place in (start, stop))
        return b"".join(self._blocks[first:last])

    def after(self, number: int) -> tuple[int, bytes] | None:
        """Where a reader goes on that has the event of that number: a place in the log, and what comes before it.

        None where there is no such event yet.
        """
        if number >= len(self._blocks):
            return None
        place = bisect_right(self._told, number) + 1
        return place, b"".join(self._blocks[number + 1 : self._told[place - 1]])

    def read(self, recording: Recording) -> None:
        """Take what the log has more."""
        for event in recording.log.events(len(self._told)):
            for told in self._events_of(event, recording):
                self._blocks.append(sse.block(told["type"].encode(), json.dumps(told)))
            self._told.append(len(self._blocks))

    def _events_of(self, event: Event, recording: Recording) -> list[dict[str, Any]]:
        if event.kind is Kind.START:
            return self._responses.start()
        if event.kind is Kind.END:
            end = decode_end(event.entry)
            return self._responses.end(end.status, end.error, event.id.ms // 1000)
        chunk = json.loads(chunk_of(event.entry, recording.template(event.id.seq)))
        if self.translated is None:
            self.translated = not is_response_event(chunk)
        return self._responses.add(chunk, event.id.ms // 1000)


def _encode(recording: Recording, start: int, stop: int) -> bytes:
    return recording.view(ResponseView).between(start, stop)


RESPONSES = Face("text/event-stream; charset=utf-8", _encode, no_notice, sse.KEEPALIVE, retry=False)
