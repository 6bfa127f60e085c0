"""What a generation says, assembled from its chunks."""

from __future__ import annotations

from typing import Any

# Strings that grow from chunk to chunk; every other field of a delta is said once and kept.
_GROWING = ("content", "reasoning_content", "reasoning", "refusal")


class Transcript:
    """The assistant's message of choice 0, folded from chunks in their order.

    Adding one chunk whose string is the strings of several joined gives the same as adding each.
    """

    __slots__ = ("finish_reason", "message", "usage")

    def __init__(self) -> None:
        self.message: dict[str, Any] = {"role": "assistant", "content": None}
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """The whole visible answer."""
        return self.message["content"] or ""

    def add(self, chunk: dict[str, Any]) -> None:
        """Fold one chat or legacy completion chunk in."""
        if isinstance(chunk.get("usage"), dict):
            self.usage = chunk["usage"]
        for choice in chunk.get("choices") or ():
            if choice.get("index", 0) != 0:
                continue
            if choice.get("finish_reason") is not None:
                self.finish_reason = choice["finish_reason"]
            delta = choice.get("delta")
            self._merge(delta if isinstance(delta, dict) else {"content": choice.get("text")})

    def _merge(self, delta: dict[str, Any]) -> None:
        message = self.message
        for key, value in delta.items():
            if value is None:
                continue
            if key in _GROWING and isinstance(value, str):
                message[key] = (message.get(key) or "") + value
            elif key == "tool_calls" and isinstance(value, list):
                calls = message.setdefault("tool_calls", [])
                for fragment in value:
                    _merge_call(calls, fragment)
            elif key == "function_call" and isinstance(value, dict):
                _merge_function(message.setdefault("function_call", {}), value)
            else:
                message[key] = value


def _merge_call(calls: list[dict[str, Any]], fragment: Any) -> None:
    """Add a fragment of a tool call; its index says to which call it belongs."""
    if not isinstance(fragment, dict):
        return
    index = fragment.get("index", len(calls))
    call = next((call for call in calls if call["index"] == index), None)
    if call is None:
        call = {"index": index, "id": None, "type": "function", "function": {"name": "", "arguments": ""}}
        calls.append(call)
    for key, value in fragment.items():
        if key == "function" and isinstance(value, dict):
            _merge_function(call["function"], value)
        elif key != "index" and value not in (None, ""):
            call[key] = value


def _merge_function(function: dict[str, Any], fragment: dict[str, Any]) -> None:
    name, arguments = fragment.get("name"), fragment.get("arguments")
    if isinstance(name, str) and name != function.get("name"):  # some servers repeat it with every fragment
        function["name"] = (function.get("name") or "") + name
    if isinstance(arguments, str):
        function["arguments"] = (function.get("arguments") or "") + arguments
