"""What a generation says, assembled from its chunks."""

from __future__ import annotations

from typing import Any

# Strings that grow from chunk to chunk; every other field of a delta is said once and kept.
GROWING = ("content", "reasoning_content", "reasoning", "refusal")
_INPUT = {"function": "arguments", "custom": "input"}  # where a call of a kind has what the model wrote for it
_OWN_FIELDS = frozenset(("index", "delta", "text", "finish_reason", "logprobs"))
# What the chunks of one completion agree on; some servers leave them empty in the first one.
_SAID_ONCE = frozenset(("id", "object", "created", "model"))
_NOT_KEPT = frozenset(("choices", "usage", "obfuscation"))


class Choice:
    """One of the answers to a request, folded from its chunks."""

    __slots__ = ("finish_reason", "further", "logprobs", "message")

    def __init__(self) -> None:
        self.message: dict[str, Any] = {"role": "assistant", "content": None}
        self.finish_reason: str | None = None
        self.logprobs: dict[str, Any] | None = None
        self.further: dict[str, Any] = {}  # fields that some servers add

    def add(self, choice: dict[str, Any]) -> None:
        """Fold the choice of one chat or legacy completion chunk in."""
        if choice.get("finish_reason"):
            self.finish_reason = choice["finish_reason"]
        if isinstance(choice.get("logprobs"), dict):
            self.logprobs = _extended(self.logprobs or {}, choice["logprobs"])
        for key, value in choice.items():
            if key not in _OWN_FIELDS and value is not None:
                self.further[key] = value
        delta = choice.get("delta")
        self._merge(delta if isinstance(delta, dict) else {"content": choice.get("text")})

    def _merge(self, delta: dict[str, Any]) -> None:
        message = self.message
        for key, value in delta.items():
            if value is None:
                continue
            if key in GROWING:
                message[key] = grown(message.get(key), value)
            elif key == "tool_calls":
                calls = message.setdefault("tool_calls", [])
                for fragment in value if isinstance(value, list) else ():
                    _merge_call(calls, fragment)
            elif key == "function_call":
                _merge_function(message.setdefault("function_call", {}), value)
            else:
                message[key] = value


class Transcript:
    """Everything a stream of chunks has said, folded in their order.

    Adding one chunk whose string is the strings of several joined gives the same as adding each.
    """

    __slots__ = ("choices", "envelope", "legacy", "usage")

    def __init__(self) -> None:
        self.choices: dict[int, Choice] = {}
        self.envelope: dict[str, Any] = {}  # the chunks' own fields
        self.legacy = False  # chunks of /v1/completions
        self.usage: dict[str, Any] | None = None

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message of choice 0."""
        return self._first.message

    @property
    def finish_reason(self) -> str | None:
        """Choice 0's."""
        return self._first.finish_reason

    @property
    def text(self) -> str:
        """The whole visible answer."""
        content = self.message["content"]
        return content if isinstance(content, str) else ""

    @property
    def _first(self) -> Choice:
        return self.choices.get(0) or Choice()

    def add(self, chunk: dict[str, Any]) -> None:
        """Fold one chat or legacy completion chunk in."""
        for key, value in chunk.items():
            if value is not None and key not in _NOT_KEPT and not (key in _SAID_ONCE and self.envelope.get(key)):
                self.envelope[key] = value
        if isinstance(chunk.get("usage"), dict):
            self.usage = chunk["usage"]
        for choice in chunk.get("choices") or ():
            index = choice.get("index", 0)
            if index not in self.choices:
                self.choices[index] = Choice()
                self.legacy = self.legacy or ("text" in choice and "delta" not in choice)
            self.choices[index].add(choice)


def _extended(said: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Log probabilities: lists that grow, each under its name."""
    for key, value in more.items():
        if isinstance(value, list) and isinstance(said.get(key), list):
            said[key] += value
        elif value is not None or key not in said:
            said[key] = list(value) if isinstance(value, list) else value
    return said


def grown(said: Any, value: Any) -> Any:
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
        kind = "custom" if isinstance(fragment.get("custom"), dict) else "function"
        call = {"index": index, "id": None, "type": kind, kind: {"name": "", _INPUT[kind]: ""}}
        calls.append(call)
    for key, value in fragment.items():
        if key in _INPUT:
            if value is not None:  # some servers name the kinds of call that this is not
                _merge_function(call.setdefault(key, {}), value, _INPUT[key])
        elif key != "index" and value not in (None, ""):
            call[key] = value


def _merge_function(function: dict[str, Any], fragment: Any, input_key: str = "arguments") -> None:
    if not isinstance(fragment, dict):
        return
    name, arguments = fragment.get("name"), fragment.get(input_key)
    if isinstance(name, str) and name != function.get("name"):  # some servers repeat it with every fragment
        function["name"] = grown(function.get("name"), name)
    if isinstance(arguments, str):
        function[input_key] = grown(function.get(input_key), arguments)
