"""A whole completion where a stream was asked for: it is taken as the chunks of a stream that says the same.

Some servers and gateways know no streams, or not for every request (tools, a cache, a mock), and answer a call for one
with a completion of chat, a legacy one, or a response of the Responses API.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from replay.wire import json
from replay.wire.response_output import CUSTOM, FUNCTION, REASONING, REFUSAL, TEXT, Kind, Object, object_in, objects_in
from replay.wire.sse import Message

_PARTS = {kind.part: kind for kind in (TEXT, REFUSAL, REASONING)}
_CALLS = {kind.item: kind for kind in (FUNCTION, CUSTOM)}
_OUTCOMES = ("completed", "incomplete", "failed")
_MARKS = (b'"message"', b'"output"')  # no completion is without one of these
_END_MARK = b"data: [DONE]"  # glued to a completion by gateways that make a stream of everything


def unfolded(messages: list[Message]) -> list[Message]:
    """The messages of a stream; a completion that stands in it bare, as the chunks that say the same."""
    for message in messages:  # a third of what `any` takes, with every piece of a stream
        if message.bare:
            return [chunk for each in messages for chunk in (_unfolded(each) if each.bare else (each,))]
    return messages


def _unfolded(message: Message) -> Iterator[Message]:
    raw = message.data.strip().removesuffix(_END_MARK)
    if raw.startswith(b"{") and not any(mark in raw for mark in _MARKS):
        yield Message(message.event, raw)
        return
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        yield message
        return
    for each in value if isinstance(value, list) else [value]:
        for chunk in _chunks(each):
            yield Message(message.event, raw if chunk is value else json.dumps(chunk))


def _chunks(value: Any) -> Iterable[Any]:
    if not isinstance(value, dict):
        return (value,)
    if value.get("object") == "response" and isinstance(value.get("output"), list):
        return _response_events(value)
    choices = objects_in(value.get("choices"))
    if not any(isinstance(choice.get("message"), dict) for choice in choices):
        return (value,)
    numbered = [_chunk_choice(choice, index) for index, choice in enumerate(choices)]
    return (value | {"object": "chat.completion.chunk", "choices": numbered},)


def _chunk_choice(choice: Object, index: int) -> Object:
    """A choice with its message as a delta; whatever is numbered in a chunk, and in a completion need not be, is."""
    delta = object_in(choice.get("message"))
    beside = {key: value for key, value in choice.items() if key not in ("message", "delta")}
    if isinstance(delta.get("tool_calls"), list):
        calls = [{"index": index, **object_in(call)} for index, call in enumerate(delta["tool_calls"])]
        delta = delta | {"tool_calls": calls}
    return {"index": index, **beside, "delta": delta}


# The Responses API.


def _response_events(response: Object) -> Iterator[Object]:
    """The events that lead to a response."""
    yield {"type": "response.created", "response": response | {"status": "in_progress", "output": [], "usage": None}}
    for output_index, item in enumerate(objects_in(response["output"])):
        beside = {"output_index": output_index}
        yield {"type": "response.output_item.added", **beside, "item": _begun(item)}
        for event in _said(item):
            yield event | beside | {"item_id": item.get("id")}
        yield {"type": "response.output_item.done", **beside, "item": item}
    outcome = response.get("status") or "completed"
    if outcome in _OUTCOMES:
        yield {"type": f"response.{outcome}", "response": response}


def _begun(item: Object) -> Object:
    """An item before anything of it was said."""
    begun = item | {"status": "in_progress"}
    call = _CALLS.get(str(item.get("type")))
    if call is not None:
        return begun | {call.field: ""}
    return begun | {"content": []} if isinstance(item.get("content"), list) else begun


def _said(item: Object) -> Iterator[Object]:
    """The events of what an item says."""
    call = _CALLS.get(str(item.get("type")))
    if call is not None:
        yield from _string(call, item, {})
    for content_index, part in enumerate(objects_in(item.get("content"))):
        kind, address = _PARTS.get(str(part.get("type"))), {"content_index": content_index}
        begun = part if kind is None else part | {kind.field: ""}
        yield {"type": "response.content_part.added", "part": begun, **address}
        if kind is not None:
            yield from _string(kind, part, address)
        yield {"type": "response.content_part.done", "part": part, **address}


def _string(kind: Kind, holder: Object, address: Object) -> Iterator[Object]:
    """The events of a string: a piece, and the whole."""
    beside = address | ({"logprobs": holder.get("logprobs") or []} if kind is TEXT else {})
    yield {"type": f"{kind.event}.delta", "delta": holder.get(kind.field), **beside}
    yield {"type": f"{kind.event}.done", kind.field: holder.get(kind.field), **beside}
