"""What a generation says, assembled from its chunks."""

from __future__ import annotations

from typing import Any

from replay.model.growth import IN_MESSAGE, REASONING_NAMES, Content, Fields

# Strings that grow from chunk to chunk.
GROWING = ("content", *REASONING_NAMES, "refusal")
_OWN_FIELDS = frozenset(("index", "delta", "finish_reason", "logprobs"))
# What the chunks of one completion agree on; some servers leave them empty in the first one.
_SAID_ONCE = frozenset(("id", "object", "created", "model"))
_NOT_KEPT = frozenset(("choices", "usage", "obfuscation"))


class Choice:
    """One of the answers to a request, folded from its chunks."""

    __slots__ = ("_message", "finish_reason", "further", "logprobs")

    def __init__(self) -> None:
        self._message = Fields(IN_MESSAGE)
        self.finish_reason: str | None = None
        self.logprobs: dict[str, Any] | None = None
        self.further: dict[str, Any] = {}  # fields that some servers add

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message."""
        return {"role": "assistant", "content": None} | self._message.shown

    @property
    def text(self) -> str:
        """The whole visible answer."""
        content: Content | None = self._message.growth("content")
        return "" if content is None else content.text

    def add(self, choice: dict[str, Any]) -> None:
        """Fold the choice of one chunk in."""
        if choice.get("finish_reason"):
            self.finish_reason = choice["finish_reason"]
        if isinstance(choice.get("logprobs"), dict):
            self.logprobs = _extended(self.logprobs or {}, choice["logprobs"])
        for key, value in choice.items():
            if key not in _OWN_FIELDS and value is not None:
                self.further[key] = value
        self._message.add(choice["delta"])


class Transcript:
    """Everything a stream of chunks has said, folded in their order.

    Adding one chunk whose string is the strings of several joined gives the same as adding each.
    """

    __slots__ = ("choices", "envelope", "usage")

    def __init__(self) -> None:
        self.choices: dict[int, Choice] = {}
        self.envelope: dict[str, Any] = {}  # the chunks' own fields
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
        """The whole visible answer, of choice 0."""
        return self._first.text

    @property
    def _first(self) -> Choice:
        return self.choices.get(0) or Choice()

    def add(self, chunk: dict[str, Any]) -> None:
        """Fold one plain chat chunk in."""
        for key, value in chunk.items():
            if value is not None and key not in _NOT_KEPT and not (key in _SAID_ONCE and self.envelope.get(key)):
                self.envelope[key] = value
        if isinstance(chunk.get("usage"), dict):
            self.usage = chunk["usage"]
        for choice in chunk["choices"]:
            if choice["index"] not in self.choices:
                self.choices[choice["index"]] = Choice()
            self.choices[choice["index"]].add(choice)


def _extended(lists: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Log probabilities: lists that grow, each under its name."""
    for key, value in more.items():
        if isinstance(value, list) and isinstance(lists.get(key), list):
            lists[key] += value
        elif value is not None or key not in lists:
            lists[key] = list(value) if isinstance(value, list) else value
    return lists
