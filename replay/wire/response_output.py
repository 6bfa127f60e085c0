"""The output of a response of OpenAI's Responses API, made of chat chunks.

It is a list of items, which begin in the order in which the chunks first tell of them:

    response.output_item.added                  some reasoning, a message, a call
        response.content_part.added             (a call has no parts)
            response.output_text.delta …
            response.output_text.done
        response.content_part.done
    response.output_item.done

Reasoning and messages end where another item begins. Calls stay open to the end, since the fragments of
parallel calls may come in turns. Ids are made of what every node knows: a reader may go on at another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from replay.model.growth import REASONING_NAMES, Pieces

Object = dict[str, Any]
Names = Mapping[str, Sequence[str]]  # of tools: by the name in the chat, the namespace and the name there


class Kind(NamedTuple):
    """A string that grows from chunk to chunk: where chat chunks have it, and where a response does."""

    said: str  # its key in a delta; for a call, the key of what holds it in a fragment
    item: str  # the type of the output item it is in
    part: str  # the type of the content part it is in; empty for a call, which has none
    field: str  # its name there, and for a call its name in a fragment too
    event: str  # what the types of its events begin with


TEXT = Kind("content", "message", "output_text", "text", "response.output_text")
REFUSAL = Kind("refusal", "message", "refusal", "refusal", "response.refusal")
REASONING = Kind("reasoning_content", "reasoning", "reasoning_text", "text", "response.reasoning_text")
FUNCTION = Kind("function", "function_call", "", "arguments", "response.function_call_arguments")
CUSTOM = Kind("custom", "custom_tool_call", "", "input", "response.custom_tool_call_input")

_ID_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "custom_tool_call": "ctc"}


def object_in(value: Any) -> Object:
    """What may be anything as an object; an empty one where it is none."""
    return value if isinstance(value, dict) else {}


def objects_in(value: Any) -> list[Object]:
    """The objects in what may be anything; none where it is no list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def count(holder: Object, key: str) -> int:
    """A number in what may hold anything; 0 where it holds none of that name."""
    return holder[key] if isinstance(holder.get(key), int) else 0


def usage_of(usage: Object) -> Object:
    """What a chat completion's usage is in the words of the Responses API."""
    read, written = count(usage, "prompt_tokens"), count(usage, "completion_tokens")
    read_details = object_in(usage.get("prompt_tokens_details"))
    written_details = object_in(usage.get("completion_tokens_details"))
    return {
        "input_tokens": read,
        "input_tokens_details": {key: count(read_details, key) for key in ("cached_tokens", "cache_write_tokens")},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": count(written_details, "reasoning_tokens")},
        "total_tokens": count(usage, "total_tokens") or read + written,
    }


_MOST_PARTS = 1000  # of an item; an upstream may number them as it likes


def with_said(item: Object, index: int, kind: Kind, said: str) -> Object:
    """An upstream's item with what was said in its part ``index`` since it was added."""
    if not kind.part:
        return item | {kind.field: said}
    parts = objects_in(item.get("content"))
    if not 0 <= index <= min(len(parts), _MOST_PARTS):
        return item
    part = parts[index] if index < len(parts) else {"type": kind.part}
    beside: Object = {"annotations": [], "logprobs": []} if kind is TEXT else {}
    return item | {"content": [*parts[:index], beside | part | {kind.field: said}, *parts[index + 1 :]]}


class Output:
    """The items of one response, and the events that tell of them."""

    def __init__(self, generation_id: str, names: Names | None = None) -> None:
        self._generation_id = generation_id
        self._names = names or {}
        self._items: list[_Item] = []
        self._calls: list[_Item] = []
        self._call_ids: set[str] = set()
        self._speaking: _Item | None = None  # the reasoning or the message that grows

    @property
    def shown(self) -> list[Object]:
        """The items as far as they are known."""
        return [item.shown for item in self._items]

    def add(self, choice: Object) -> list[Object]:
        """The events that a choice of a plain chat chunk makes."""
        delta = choice["delta"]
        events = []
        for kind, piece in _pieces(delta):
            events += self._say(kind, piece, _logprobs(choice) if kind is TEXT else [])
        for fragment in delta.get("tool_calls") or ():
            events += self._call(fragment)
        return events

    def close(self, status: str) -> list[Object]:
        """The events that end what is still open."""
        return [event for item in self._items if item.is_open for event in item.close(status)]

    def stop(self) -> None:
        """Leave what is still open as it is; nothing more will come."""
        for item in self._items:
            item.stop()

    def _say(self, kind: Kind, piece: str, logprobs: list[Object]) -> list[Object]:
        item, events = self._speaking, []
        if item is None or item.kind.item != kind.item:
            events = self._fall_silent()
            item = self._speaking = self._append(kind, {"summary": []} if kind is REASONING else {"role": "assistant"})
            events += item.open()
        return events + item.grow(kind, piece, logprobs)

    def _fall_silent(self) -> list[Object]:
        item, self._speaking = self._speaking, None
        return item.close("completed") if item else []

    def _call(self, fragment: Object) -> list[Object]:
        events = []
        if fragment["index"] == len(self._calls):
            call = self._append_call(fragment)
            self._calls.append(call)
            events = self._fall_silent() + call.open()
        call = self._calls[fragment["index"]]
        written = object_in(fragment.get(call.kind.said))
        call.rename(written.get("name"))
        piece = written.get(call.kind.field)
        return events + call.grow(call.kind, piece, []) if piece else events

    def _append_call(self, fragment: Object) -> _Item:
        kind = CUSTOM if CUSTOM.said in fragment else FUNCTION
        name = object_in(fragment.get(kind.said)).get("name")
        beside = {"call_id": self._call_id(fragment.get("id")), "name": name if isinstance(name, str) else ""}
        return self._append(kind, beside)

    def _call_id(self, given: Any) -> str:
        """The id a call came with, or one made for it: its output is found by it, so it must have its own."""
        is_own = isinstance(given, str) and given and given not in self._call_ids
        call_id: str = given if is_own else f"call_{self._generation_id}_{len(self._items)}"
        self._call_ids.add(call_id)
        return call_id

    def _append(self, kind: Kind, beside: Object) -> _Item:
        item = _Item(kind, self._generation_id, len(self._items), beside, self._names)
        self._items.append(item)
        return item


def _pieces(delta: Object) -> Iterator[tuple[Kind, str]]:
    """The strings of a delta that grow. A server that renames its reasoning says the same under both names."""
    reasoning = next((delta[name] for name in REASONING_NAMES if delta.get(name)), None)
    for kind, said in ((REASONING, reasoning), (TEXT, delta.get("content")), (REFUSAL, delta.get("refusal"))):
        piece = "".join(part for part in said if isinstance(part, str)) if isinstance(said, list) else said
        if isinstance(piece, str) and piece:
            yield kind, piece


def _logprobs(choice: Object) -> list[Object]:
    tokens = objects_in(object_in(choice.get("logprobs")).get("content"))
    return [
        _logprob(token) | {"top_logprobs": [_logprob(other) for other in objects_in(token.get("top_logprobs"))]}
        for token in tokens
    ]


def _logprob(token: Object) -> Object:
    return {"token": token.get("token"), "logprob": token.get("logprob"), "bytes": token.get("bytes") or []}


class _Item:
    """One item. Reasoning and messages consist of parts, of which the last one grows; a call is one string."""

    def __init__(self, kind: Kind, generation_id: str, output_index: int, beside: Object, names: Names) -> None:
        self.kind = kind
        self._names = names
        self.beside = beside  # its fields beside the strings
        self._status = "in_progress"
        self._output_index = output_index
        self._id = f"{_ID_PREFIXES[kind.item]}_{generation_id}_{output_index}"
        self._strings: list[_String] = []
        if not kind.part:
            self._append(kind)

    @property
    def is_open(self) -> bool:
        return self._status == "in_progress"

    @property
    def shown(self) -> Object:
        item = {"id": self._id, "type": self.kind.item, **self.beside, "status": self._status}
        if self.kind.part:
            return item | {"content": [string.part for string in self._strings]}
        return item | self._named | {self.kind.field: self._strings[0].part[self.kind.field]}

    @property
    def _named(self) -> Object:
        """The name of what is called, as the request has it."""
        name = self.beside["name"]
        if name not in self._names:
            return {"name": name}
        namespace, own = self._names[name]
        return {"namespace": namespace, "name": own}

    def rename(self, name: Any) -> None:
        """Take the name again, which some servers repeat with every fragment, or the next piece of it."""
        if isinstance(name, str) and name != self.beside["name"]:
            self.beside["name"] += name

    def open(self) -> list[Object]:
        return [self._event("added")]

    def grow(self, kind: Kind, piece: str, logprobs: list[Object]) -> list[Object]:
        events = []
        if not self._strings or self._strings[-1].kind is not kind:
            events = self._close_string() + self._append(kind).open()
        return [*events, self._strings[-1].grow(piece, logprobs)]

    def close(self, status: str) -> list[Object]:
        self._status = status
        return [*self._close_string(), self._event("done")]

    def stop(self) -> None:
        if self.is_open:
            self._status = "incomplete"

    def _append(self, kind: Kind) -> _String:
        address = {"item_id": self._id, "output_index": self._output_index}
        if kind.part:
            address["content_index"] = len(self._strings)
        self._strings.append(_String(kind, address))
        return self._strings[-1]

    def _close_string(self) -> list[Object]:
        events = self._strings[-1].close() if self._strings else []
        if self.kind is FUNCTION:
            events[0] |= self._named
        return events

    def _event(self, what: str) -> Object:
        return {"type": f"response.output_item.{what}", "output_index": self._output_index, "item": self.shown}


class _String:
    """A string that grows."""

    def __init__(self, kind: Kind, address: Object) -> None:
        self.kind = kind
        self._address = address
        self._pieces = Pieces()
        self._logprobs: list[Object] = []

    @property
    def part(self) -> Object:
        part: Object = {"type": self.kind.part, self.kind.field: self._pieces.shown}
        return part | {"annotations": [], "logprobs": [*self._logprobs]} if self.kind is TEXT else part

    def open(self) -> list[Object]:
        return [self._part_event("added")]

    def grow(self, piece: str, logprobs: list[Object]) -> Object:
        self._pieces.add(piece)
        self._logprobs += logprobs
        return self._event("delta", "delta", piece, logprobs)

    def close(self) -> list[Object]:
        done = self._event("done", self.kind.field, self._pieces.shown, [*self._logprobs])
        return [done, self._part_event("done")] if self.kind.part else [done]

    def _event(self, what: str, field: str, string: str, logprobs: list[Object]) -> Object:
        event = {"type": f"{self.kind.event}.{what}", **self._address, field: string}
        return event | {"logprobs": logprobs} if self.kind is TEXT else event

    def _part_event(self, what: str) -> Object:
        return {"type": f"response.content_part.{what}", **self._address, "part": self.part}
