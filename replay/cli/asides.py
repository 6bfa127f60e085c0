"""What a model says beside its answer: reasoning, tool calls, a refusal, as its chunks carry them."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple


class Aside(NamedTuple):
    """A piece of something beside the answer."""

    block: Hashable  # pieces of one block belong together
    heading: str  # of the block
    text: str


def asides(choices: Any) -> Iterator[Aside]:
    """The asides of a chunk's first choice. A chunk comes from outside: any part of it may be something else."""
    for choice in _objects(choices):
        if choice.get("index") not in (None, 0, "0"):
            continue
        for delta in _objects([choice.get("delta", choice.get("message"))]):
            yield from _spoken(delta)
            for call in _objects(delta.get("tool_calls")):
                yield from _called(call)


_THINKING = "(thinking) "
_HEADINGS = dict.fromkeys(("reasoning_content", "reasoning", "reasoning_text", "thinking"), _THINKING) | {
    "refusal": "(refusal) "
}


def _spoken(delta: dict[str, Any]) -> Iterator[Aside]:
    for member, heading in _HEADINGS.items():
        text = delta.get(member)
        if isinstance(text, str) and text:
            yield Aside(member, heading, text)
    for part in _objects(delta.get("content")):
        thought = part.get("thinking")
        texts = [each.get("text") for each in _objects(thought)] if isinstance(thought, list) else [thought]
        for text in texts:
            if isinstance(text, str) and text:
                yield Aside("thinking", _THINKING, text)


def _called(call: dict[str, Any]) -> Iterator[Aside]:
    for function in _objects([call.get("function"), call.get("custom")]):
        text = function.get("arguments") or function.get("input") or ""
        words = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
        yield Aside(("call", call.get("index")), f"-> {function.get('name')} ", words)


def _objects(values: Any) -> Iterator[dict[str, Any]]:
    if isinstance(values, list):
        yield from (value for value in values if isinstance(value, dict))
