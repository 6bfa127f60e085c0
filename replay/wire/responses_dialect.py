"""The dialect of OpenAI's Responses API: events whose `type` begins with `response.`

An event is numbered; the number is left out, since it says no more than the event's `seq`, and every event would be of
a shape of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from replay.errors import UpstreamInvalid
from replay.wire import json
from replay.wire.chat import text_in
from replay.wire.chunk import read_chunk
from replay.wire.dialect import Object, Path, Translator
from replay.wire.response_outcome import LAST, error_of, outcome_of
from replay.wire.response_output import (
    CUSTOM,
    FUNCTION,
    REASONING,
    REFUSAL,
    TEXT,
    Kind,
    count,
    object_in,
    objects_in,
)

_V = TypeVar("_V")

PIECES = {f"{kind.event}.delta": kind for kind in (TEXT, REFUSAL, REASONING, FUNCTION, CUSTOM)}
DONE = {f"{kind.event}.done": kind for kind in PIECES.values()}
_DELTAS = PIECES | {"response.reasoning_summary_text.delta": REASONING}
_CALLS = {kind.item: kind for kind in (FUNCTION, CUSTOM)}
_DONE = DONE | {"response.reasoning_summary_text.done": REASONING}
_PARTS = {kind.part: kind for kind in (TEXT, REFUSAL, REASONING)} | {"summary_text": REASONING}
_ALL = -1  # parts
_JUDGED = frozenset(("type", "object", "error", "base_resp"))


def lookup(table: Mapping[str, _V], key: Any) -> _V | None:
    """What a table has under a key, which may be anything."""
    return table.get(key) if isinstance(key, str) else None


class ResponsesDialect:
    """See `Dialect`."""

    is_numbered = True

    def recognises(self, chunk: Object) -> bool:
        kind = chunk.get("type")
        return isinstance(kind, str) and kind.startswith("response.")

    def translator(self) -> Translator:
        return _EventTranslator()

    def unnumbered(self, raw: bytes) -> bytes:
        if b'"sequence_number"' not in raw:
            return raw
        try:
            raw, event = read_chunk(raw)
        except UpstreamInvalid:
            return raw  # whoever records it says so
        return raw if event.pop("sequence_number", None) is None else json.dumps(event)

    def template_string(self, event: Object) -> tuple[str, bool] | None:
        if not isinstance(event.get("delta"), str):
            return None
        return "delta", bool(self.visible_text({**event, "delta": "x"}))

    def growing_strings(self, event: Object) -> Iterator[str]:
        if isinstance(event.get("delta"), str):
            yield event["delta"]

    def may_repeat(self, event: Object) -> bool:
        return str(event["type"]).endswith(".delta")

    def may_be_joined(self, event: Object) -> bool:
        return True

    def is_judged(self, path: Path) -> bool:
        return path[0] in _JUDGED

    def is_replaced(self, path: Path) -> bool:
        return False

    def visible_text(self, event: Object) -> str:
        chunk = self.translator().read(event)
        return text_in({} if chunk is None else chunk)

    def is_plain(self, event: Object) -> bool:
        return str(event["type"]).endswith(".delta") and not event.get("logprobs")

    def carried(self, event: Object) -> Object:
        """What the event carries as chat, and the event itself."""
        return {"choices": (as_chunk(event) or {}).get("choices", []), "event": event}

    def error_in(self, event: Object, name: bytes) -> Any:
        return error_of(event)

    def is_kept(self, event: Object, name: bytes, *, is_error: bool) -> bool:
        return True

    def is_last(self, event: Object) -> bool:
        return event["type"] in ("response.completed", "response.incomplete")

    def is_of_protocol(self, event: Object) -> bool:
        return True


RESPONSES = ResponsesDialect()


def as_chunk(event: Object) -> Object | None:
    """A Responses event as the chat chunk that says the same, for readers that fold chat chunks.

    None where it says nothing new.
    """
    if event.get("type") in LAST:
        return _last_chunk(event)
    if event.get("type") == "response.output_item.added":
        return _call_chunk(event)
    if event.get("type") == "response.output_text.annotation.added":
        return _chunk({"annotations": [event["annotation"]]}) if isinstance(event.get("annotation"), dict) else None
    kind, piece = lookup(_DELTAS, event.get("type")), event.get("delta")
    if kind is None or not isinstance(piece, str):
        return None
    if kind.part:
        return _chunk({kind.said: piece})
    return _chunk({"tool_calls": [{"index": name_of(event), kind.said: {kind.field: piece}}]})


def _call_chunk(event: Object) -> Object | None:
    item = object_in(event.get("item"))
    kind = lookup(_CALLS, item.get("type"))
    if kind is None:
        return None
    call = {"name": item.get("name"), kind.field: ""}
    fragment = {"index": name_of(event), "id": item.get("call_id"), "type": kind.said, kind.said: call}
    return _chunk({"tool_calls": [fragment]})


def _last_chunk(event: Object) -> Object | None:
    response = object_in(event.get("response"))
    reason = _finish_reason(event, response)
    chunk = {"choices": []} if reason is None else _chunk({}, finish_reason=reason)
    if isinstance(response.get("usage"), dict):
        return chunk | {"usage": response["usage"]}
    return chunk if reason else None


def _finish_reason(event: Object, response: Object) -> str | None:
    outcome = outcome_of(event)
    if outcome == "failed":
        return None
    if outcome == "incomplete":
        filtered = object_in(response.get("incomplete_details")).get("reason") == "content_filter"
        return "content_filter" if filtered else "length"
    called = any(lookup(_CALLS, item.get("type")) for item in objects_in(response.get("output")))
    return "tool_calls" if called else "stop"


def _chunk(delta: Object, **beside: Any) -> Object:
    return {"choices": [{"index": 0, "delta": delta, **beside}]}


def names_of(event: Object) -> list[int | str]:
    """What the item is called that an event is about: by its index in the output, which some leave out, and by ids."""
    item = object_in(event.get("item"))
    names = (event.get("output_index"), event.get("item_id"), item.get("id"), item.get("call_id"))
    return [name for name in names if isinstance(name, int | str)]


def name_of(event: Object) -> int | str | None:
    """The first of those names; None where there is none."""
    return next(iter(names_of(event)), None)


class _EventTranslator:
    """Reads events of the Responses API as chat chunks.

    A string is sent up to four times: in pieces, when it is done, with its item, and with the whole response. Some
    servers leave out the pieces, others all but the last; so it is read where it is sent first.
    """

    __slots__ = ("_called", "_names", "_parts")

    def __init__(self) -> None:
        self._names: dict[int | str, int | str] = {}  # of an item -> that by which it is known
        self._parts: dict[tuple[int | str | None, Kind], set[int]] = {}  # of an item: those that were read
        self._called = False

    def read(self, event: Object) -> Object | None:
        """An event as a chunk; None where it says nothing new."""
        event = self._known(event)
        fresh = [piece for piece in map(self._known, _pieces_of(event)) if self._is_new(piece, event)]
        for each in (event, *fresh):
            self._mark(each, event)
        chunks = [chunk for chunk in map(as_chunk, (*fresh, event)) if chunk is not None]
        return self._joined(chunks) if chunks else None

    def _known(self, event: Object) -> Object:
        """The event under the one name of its item: some servers have two, or another one with each event."""
        names = names_of(event)
        if not names:
            return event | {"output_index": None}
        name = next((self._names[each] for each in names if each in self._names), names[0])
        self._names |= dict.fromkeys(names, name)
        return event | {"output_index": name}

    def _is_new(self, piece: Object, event: Object) -> bool:
        kind = _DELTAS.get(piece["type"])
        if kind is None:  # a call, with its names
            return event["type"] not in LAST or not self._called
        if event["type"] in LAST:
            return all(other is not kind for _, other in self._parts)
        parts = self._parts.get((piece.get("output_index"), kind), set())
        return not parts & {_ALL, _part(piece)} if event["type"] in _DONE else not parts

    def _mark(self, piece: Object, event: Object) -> None:
        kind = _DELTAS.get(piece["type"])
        if kind is not None:
            part = _part(piece) if event["type"] in _DONE else _ALL
            self._parts.setdefault((piece.get("output_index"), kind), set()).add(part)

    def _joined(self, chunks: list[Object]) -> Object:
        """Chunks as one; a response that has called something has finished for that."""
        delta: Object = {}
        for choice in (choice for chunk in chunks for choice in chunk["choices"]):
            for key, value in choice["delta"].items():
                delta[key] = delta[key] + value if key in delta else value
        self._called = self._called or "tool_calls" in delta
        last = chunks[-1]
        if not last["choices"] and not delta:
            return last
        choice = {"index": 0, **next(iter(last["choices"]), {}), "delta": delta}
        if self._called and choice.get("finish_reason") == "stop":
            choice["finish_reason"] = "tool_calls"
        return last | {"choices": [choice]}


def _pieces_of(event: Object) -> Iterator[Object]:
    """What an event has as a whole, as the events that have it in pieces."""
    kind = _DONE.get(event["type"])
    if kind is not None:
        yield from _pieces(kind, event, event)
    elif event["type"] == "response.output_item.done":
        yield from _pieces_of_item(object_in(event.get("item")), event)
    elif event["type"] in LAST:
        for item in objects_in(object_in(event.get("response")).get("output")):
            yield from _pieces_of_item(item, {"item": item})


def _pieces_of_item(item: Object, where: Object) -> Iterator[Object]:
    call = _CALLS.get(str(item.get("type")))
    if call is not None:
        yield where | {"type": "response.output_item.added", "item": item}
        yield from _pieces(call, item, where)
    for index, part in enumerate([*objects_in(item.get("content")), *objects_in(item.get("summary"))]):
        kind = _PARTS.get(str(part.get("type")))
        if kind is not None:
            yield from _pieces(kind, part, where | {"content_index": index})


def _pieces(kind: Kind, holder: Object, where: Object) -> Iterator[Object]:
    text = holder.get(kind.field)
    if isinstance(text, str) and text:
        yield where | {"type": f"{kind.event}.delta", "delta": text}


def _part(event: Object) -> int:
    return count(event, "content_index") or count(event, "summary_index")
