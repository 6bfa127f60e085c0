"""What a generation says, assembled from its chunks."""

from __future__ import annotations

from typing import Any

# Strings that grow from chunk to chunk; every other field of a delta is said once and kept.
_INPUT = {"function": "arguments", "custom": "input"}  # where a call of a kind has what the model wrote for it
GROWING = ("content", "reasoning_content", "reasoning", "refusal")


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
        content = self.message["content"]
        return content if isinstance(content, str) else ""

    def add(self, chunk: dict[str, Any]) -> None:
        """Fold one chat or legacy completion chunk in."""
        if isinstance(chunk.get("usage"), dict):
            self.usage = chunk["usage"]
        for choice in chunk.get("choices") or ():
            if choice.get("index", 0) != 0:
                continue
            if choice.get("finish_reason"):
                self.finish_reason = choice["finish_reason"]
            delta = choice.get("delta")
            self._merge(delta if isinstance(delta, dict) else {"content": choice.get("text")})

    def _merge(self, delta: dict[str, Any]) -> None:
        message = self.message
        for key, value in delta.items():
            if value is None:
                continue
            if key in GROWING:
                message[key] = _grown(message.get(key), value)
            elif key == "tool_calls":
                calls = message.setdefault("tool_calls", [])
                for fragment in value if isinstance(value, list) else ():
                    _merge_call(calls, fragment)
            elif key == "function_call":
                _merge_function(message.setdefault("function_call", {}), value)
            else:
                message[key] = value


def _grown(said: Any, value: Any) -> Any:
    """A string with the next piece, or a list of parts with more; what was said is not undone by anything else."""
    if isinstance(said, list) and isinstance(value, list):
        return said + value
    if not isinstance(said, str):
        return value
    if not isinstance(value, str):
        return said
    whole = said + value
    if value and "\ud800" <= said[-1:] <= "\udbff" and "\udc00" <= value[0] <= "\udfff":
        # A character that was cut between its two UTF-16 halves.
        return whole.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return whole


def _merge_call(calls: list[dict[str, Any]], fragment: Any) -> None:
    """Add a fragment of a tool call; its index says to which call it belongs."""
    if not isinstance(fragment, dict):
        return
    index = fragment.get("index", len(calls))
    call = next((call for call in calls if call["index"] == index), None)
    if call is None:
        kind = "custom" if "custom" in fragment else "function"
        call = {"index": index, "id": None, "type": kind, kind: {"name": "", _INPUT[kind]: ""}}
        calls.append(call)
    for key, value in fragment.items():
        if key in _INPUT:
            _merge_function(call.setdefault(key, {}), value, _INPUT[key])
        elif key != "index" and value not in (None, ""):
            call[key] = value


def _merge_function(function: dict[str, Any], fragment: Any, input_key: str = "arguments") -> None:
    if not isinstance(fragment, dict):
        return
    name, arguments = fragment.get("name"), fragment.get(input_key)
    if isinstance(name, str) and name != function.get("name"):  # some servers repeat it with every fragment
        function["name"] = _grown(function.get("name"), name)
    if isinstance(arguments, str):
        function[input_key] = _grown(function.get(input_key), arguments)
