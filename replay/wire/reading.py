"""What the chunks of a stream say, whichever of OpenAI's APIs its server speaks."""

from __future__ import annotations

from collections.abc import Iterator

from replay.wire.chat import ChatReader
from replay.wire.response_outcome import LAST
from replay.wire.response_output import REASONING, REFUSAL, TEXT, Kind, Object, count, object_in, objects_in
from replay.wire.responses import CALLS, DELTAS, DONE, as_chunk, is_response_event, names_of


class Reader:
    """Reads the chunks of one stream, in their order, as plain chat chunks (see `chat.py`)."""

    __slots__ = ("_chat", "_events")

    def __init__(self) -> None:
        self._chat = ChatReader()
        self._events = _EventReader()

    def read(self, chunk: Object, *, spoken: bool = False) -> Object | None:
        """A chunk as a plain one; None where it is an event of the Responses API that says nothing new.

        ``spoken`` tells that chunks before it, which were not read, had visible text.
        """
        chat = self._events.read(chunk) if is_response_event(chunk) else chunk
        return None if chat is None else self._chat.read(chat, spoken=spoken)


_DONE = DONE | {"response.reasoning_summary_text.done": REASONING}
_PARTS = {kind.part: kind for kind in (TEXT, REFUSAL, REASONING)} | {"summary_text": REASONING}
_ALL = -1  # parts


class _EventReader:
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
        kind = DELTAS.get(piece["type"])
        if kind is None:  # a call, with its names
            return event["type"] not in LAST or not self._called
        if event["type"] in LAST:
            return all(other is not kind for _, other in self._parts)
        parts = self._parts.get((piece.get("output_index"), kind), set())
        return not parts & {_ALL, _part(piece)} if event["type"] in _DONE else not parts

    def _mark(self, piece: Object, event: Object) -> None:
        kind = DELTAS.get(piece["type"])
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
    call = CALLS.get(str(item.get("type")))
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
