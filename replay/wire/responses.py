"""OpenAI's Responses API as a view of a recorded log.

A log holds the events of an upstream that speaks the Responses API, and they pass through under the generation's id; or
it holds chat chunks, and the events are made of them: `response.created` and `response.in_progress`, the events of the
items (see `response_output`) in the order in which the items begin, and one of `response.completed`,
`response.incomplete` and `response.failed`.

Either way the events are numbered from 0, and the same log gives the same events on every node, so that a reader may go
on after any of them (`starting_after`). A cancelled generation just ends: OpenAI has no event for that.
"""

from __future__ import annotations

from typing import Any

from replay.wire.chat import ChatNormalizer
from replay.wire.repeated import repeated
from replay.wire.response_outcome import LAST, outcome_of
from replay.wire.response_output import (
    Kind,
    Names,
    Object,
    Output,
    count,
    object_in,
    objects_in,
    usage_of,
    with_said,
)
from replay.wire.responses_dialect import DONE, PIECES, RESPONSES, lookup, name_of

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}  # by the finish reason

_OURS = ("background", "metadata", "previous_response_id", "store")  # which this service sees to, not an upstream


class Responses:
    """All events of one generation in their order, and its response, as far as the log goes."""

    def __init__(
        self, generation_id: str, *, model: str, created_at: int, request: Object, names: Names | None = None
    ) -> None:
        self._names = names
        self._queued: Object = {
            "id": generation_id,
            "object": "response",
            "created_at": created_at,
            "completed_at": None,
            "status": "queued",
            "error": None,
            "incomplete_details": None,
            "model": model,
            "output": [],
            "usage": None,
            **repeated(request),
        }
        self._ours = {"id": generation_id} | {key: request[key] for key in _OURS if key in request}
        self._source: _FromChunks | _FromEvents | None = None  # the first entry of the log tells
        self._created = False  # which is told once: by us in the background, else before the first words
        self._next_number = 0

    @property
    def response(self) -> Object:
        """The response object, as far as it is known now."""
        return self._queued if self._source is None else self._source.response

    def start(self) -> list[Object]:
        """What is told before the upstream has said anything: in the background, that there is a response."""
        created = [{"type": "response.created", "response": self._queued}]
        return self._numbered(created) if self._queued["background"] else []

    def add(self, chunk: Object, at: int | None = None) -> list[Object]:
        """The events that a further entry of the log gives; none where it cannot be understood.

        ``at`` is when it came, unix seconds.
        """
        if self._source is None and _is_event(chunk):
            self._source = _FromEvents(self._queued, self._ours)
        elif self._source is None and "choices" in chunk:
            self._source = _FromChunks(self._queued, self._names)
        return self._numbered(self._source.add(chunk, at)) if self._source else []

    def end(self, status: str, error: Object | None, ended_at: int) -> list[Object]:
        """The events of the end: of what is still open, and the last one where the upstream sent none.

        ``status`` is the generation's; ``error`` has a code and a message.
        """
        self._source = self._source or _FromChunks(self._queued, self._names)
        return self._numbered(self._source.end(status, error, ended_at))

    def _numbered(self, events: list[Object]) -> list[Object]:
        fresh = [event for event in events if not (self._created and event["type"] == "response.created")]
        self._created = self._created or bool(fresh)
        first = self._next_number
        self._next_number += len(fresh)
        return [event | {"sequence_number": number} for number, event in enumerate(fresh, first)]


def _is_event(chunk: Object) -> bool:
    return RESPONSES.recognises(chunk) or chunk.get("type") == "error"


def _outcome(status: str, error: Object | None, ended_at: int) -> Object:
    """What the end of a generation says in its response object."""
    if status == "completed":
        return {"status": "completed", "completed_at": ended_at}
    if status == "cancelled" and error is None:
        return {"status": "cancelled"}
    error = error or {"code": "server_error", "message": f"The generation was {status}."}
    reported = {"code": error.get("code"), "message": error.get("message")}
    return {"status": "cancelled" if status == "cancelled" else "failed", "error": reported}


def _in_whole_seconds(response: Object) -> Object:
    """Times that a server sends with a fraction, which typed clients take for no times at all."""
    times = {name: response.get(name) for name in ("created_at", "completed_at")}
    return {name: int(time) for name, time in times.items() if isinstance(time, float)}


def _failure(response: Object) -> list[Object]:
    return [{"type": "response.failed", "response": response}] if response["status"] == "failed" else []


def _ended(item: Object, status: str) -> Object:
    return item | {"status": status} if item.get("status") == "in_progress" else item


class _FromEvents:
    """The events of an upstream that speaks the Responses API, under the generation's id."""

    def __init__(self, queued: Object, ours: Object) -> None:
        self._response = queued | {"status": "in_progress"}
        self._ours = ours
        self._items: dict[int | str | None, Object] = {}  # in any order; those that have an index, by it
        # In items that are not done, by their parts.
        self._said: dict[int | str | None, dict[tuple[int, Kind], list[str]]] = {}
        self._last: str | None = None  # the event that ended it

    @property
    def response(self) -> Object:
        return self._response | {"output": objects_in(self._response["output"]) or self._output()}

    def _output(self) -> list[Object]:
        items = dict(self._items)
        for whose in items.keys() & self._said.keys():
            for (index, kind), pieces in self._said[whose].items():
                items[whose] = with_said(items[whose], index, kind, "".join(pieces))
        in_order = sorted(items, key=lambda whose: whose if isinstance(whose, int) else len(items))
        return [items[whose] for whose in in_order]

    def add(self, event: Object, at: int | None) -> list[Object]:
        if not _is_event(event):
            return []
        if isinstance(event.get("response"), dict):
            event = event | {"response": event["response"] | _in_whole_seconds(event["response"]) | self._ours}
            if self._last not in LAST:  # one that comes out of order tells how it was before
                self._response |= event["response"]
        self._keep(event)
        if event["type"] in LAST:
            self._response["status"] = outcome_of(event)
            self._complete(at)
            event = self._with_output(event)
        if event["type"] in (*LAST, "error"):
            self._last = event["type"]
        return [event]

    def _complete(self, at: int | None) -> None:
        """Say when it was completed, where its server has not: some leave that out."""
        if self._response["status"] == "completed" and not self._response["completed_at"]:
            self._response["completed_at"] = at

    def _with_output(self, event: Object) -> Object:
        """The last event with the items that were told, where a server has left them out there."""
        status = "completed" if self._response["status"] == "completed" else "incomplete"
        self._items = {whose: _ended(item, status) for whose, item in self._items.items()}
        response = object_in(event.get("response"))
        is_listed = self._response["status"] == "failed" or objects_in(response.get("output"))
        if not response or is_listed or not self._items:
            return event
        return event | {"response": response | {"output": self._output()}}

    def _keep(self, event: Object) -> None:
        """Note what an event says of an item."""
        whose, index = name_of(event), count(event, "content_index")
        if event["type"] in ("response.output_item.added", "response.output_item.done"):
            self._items[whose] = object_in(event.get("item"))
            self._said.pop(whose, None)
        kind = lookup(PIECES, event["type"])
        if kind is not None and isinstance(event.get("delta"), str):
            self._said.setdefault(whose, {}).setdefault((index, kind), []).append(event["delta"])
        kind = lookup(DONE, event["type"])
        if kind is not None and isinstance(event.get(kind.field), str):
            self._said.setdefault(whose, {})[index, kind] = [event[kind.field]]

    def end(self, status: str, error: Object | None, ended_at: int) -> list[Object]:
        outcome = _outcome(status, error, ended_at)
        if self._last in LAST:
            self._response["error"] = self._response["error"] or outcome.get("error")  # it may stand beside it
            self._complete(ended_at)
            return []
        self._response |= outcome
        self._items = {whose: _ended(item, "incomplete") for whose, item in self._items.items()}
        return [] if self._last else _failure(self.response)


class _FromChunks:
    """The events that chat chunks make."""

    def __init__(self, queued: Object, names: Names | None) -> None:
        self._response = {**queued}
        self._output = Output(queued["id"], names)
        self._normalizer = ChatNormalizer()
        self._finish_reason: Any = None

    @property
    def response(self) -> Object:
        return self._response | {"output": self._output.shown}

    def add(self, chunk: Object, at: int | None) -> list[Object]:
        if isinstance(chunk.get("model"), str) and chunk["model"]:  # some servers leave it empty at first
            self._response["model"] = chunk["model"]
        events = self._begin()
        if isinstance(chunk.get("usage"), dict):
            self._response["usage"] = usage_of(chunk["usage"])
        for choice in self._normalizer.normalize(chunk)["choices"]:
            if choice["index"] == 0:
                self._finish_reason = choice.get("finish_reason") or self._finish_reason
                events += self._output.add(choice)
        return events

    def end(self, status: str, error: Object | None, ended_at: int) -> list[Object]:
        if status == "completed":
            return self._begin() + self._complete(ended_at)
        begun = [] if status == "cancelled" else self._begin()
        self._output.stop()
        self._response |= _outcome(status, error, ended_at)
        return begun + _failure(self.response)

    def _begin(self) -> list[Object]:
        if self._response["status"] != "queued":
            return []
        self._response["status"] = "in_progress"
        return [{"type": f"response.{what}", "response": self.response} for what in ("created", "in_progress")]

    def _complete(self, ended_at: int) -> list[Object]:
        reason = lookup(_INCOMPLETE, self._finish_reason)
        if reason is None:
            events = self._output.close("completed")
            self._response |= _outcome("completed", None, ended_at)
        else:
            events = self._output.close("incomplete")
            self._response |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
        return [*events, {"type": f"response.{self._response['status']}", "response": self.response}]
