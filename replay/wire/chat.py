"""A chat chunk as OpenAI makes it, whatever its own server makes of it.

The text may stand in a list of parts, in `message`, or where legacy completions have it; an index may be missing, null
or a string. A chunk passes to its readers as it came. What it says is read here, once for the transcript, for the
Responses API and for the text of a token: as a *plain* chunk, of which each choice has an integer as its index and an
object as its delta, with strings as text, reasoning and finish reason, and with calls as `tool_calls.py` has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from replay.wire import json
from replay.wire.tool_calls import ToolCallNormalizer

Object = dict[str, Any]

_THOUGHTS = ("thinking", "reasoning", "reasoning_text")  # types of parts, and what they call their text


class ChatNormalizer:
    """Makes the chunks of one stream, in their order, plain ones."""

    __slots__ = ("_choices",)

    def __init__(self) -> None:
        self._choices: dict[int, _ChoiceNormalizer] = {}

    def normalize(self, chunk: Object, *, spoken: bool = False) -> Object:
        """A chunk as a plain one; ``spoken`` tells that chunks which were not read had text of choice 0."""
        choices = []
        for index, choice in numbered(chunk.get("choices")):
            if index not in self._choices:
                self._choices[index] = _ChoiceNormalizer()
            delta = self._choices[index].normalize(choice, spoken=spoken and index == 0)
            plain = choice | {"index": index, "delta": delta, "finish_reason": reason_of(choice)}
            if not _ELSEWHERE.isdisjoint(choice):
                plain = {key: value for key, value in plain.items() if key not in _ELSEWHERE}
            choices.append(plain)
        return chunk | {"choices": choices}


_ELSEWHERE = frozenset(("message", "text"))  # where a choice may say something


class _ChoiceNormalizer:
    """Makes the deltas of one choice plain ones."""

    __slots__ = ("_calls", "_said")

    def __init__(self) -> None:
        self._calls = ToolCallNormalizer()
        self._said: set[str] = set()  # what deltas have had something of

    def normalize(self, choice: Object, *, spoken: bool) -> Object:
        delta = plain_delta(choice)
        if spoken:
            self._said.add("content")
        if says_all(choice):
            # A whole message after deltas says what they have said.
            delta = {key: value for key, value in delta.items() if key not in self._said}
        else:
            self._said.update([key for key, value in delta.items() if value])
        if "tool_calls" in delta:
            delta = delta | {"tool_calls": self._calls.normalize(delta["tool_calls"]) or None}
        return delta


def numbered(choices: Any) -> Iterator[tuple[int, Object]]:
    """The choices of a chunk, each with its index: its position among them where it has none."""
    for position, choice in enumerate(choices if isinstance(choices, list) else ()):
        if isinstance(choice, dict):
            index = as_index(choice.get("index"))
            yield position if index is None else index, choice


def as_index(value: Any) -> int | None:
    """An index, which some servers send as a string; None for anything else."""
    if isinstance(value, int):
        return value
    return int(value[:20]) if isinstance(value, str) and value.isascii() and value.isdigit() else None


def reason_of(choice: Object) -> str | None:
    """A choice's finish reason, which is an object in an engine of SGLang's; None where it has none."""
    reason = choice.get("finish_reason")  # some servers send "" until there is one
    if isinstance(reason, dict):
        reason = reason.get("type") or reason
    if not reason:
        return None
    return reason if isinstance(reason, str) else json.dumps(reason).decode()


def text_in(chunk: Object) -> str:
    """The visible text of choice 0 in a chunk by itself."""
    contents = (plain_delta(choice).get("content") for index, choice in numbered(chunk.get("choices")) if index == 0)
    return "".join(part for content in contents for part in content or () if isinstance(part, str))


def plain_delta(choice: Object) -> Object:
    """What a choice says, with plain strings as text and reasoning; its calls are as they came."""
    delta = _delta(choice)
    content = delta.get("content")
    if content is None or isinstance(content, str):
        return delta
    return delta | _read_parts(content if isinstance(content, list) else [content], delta)


def _delta(choice: Object) -> Object:
    delta, text = choice.get("delta"), choice.get("text")
    if isinstance(text, str) and not delta:
        return {"content": text}
    if isinstance(delta, str):
        return {"content": delta}
    said = choice["message"] if says_all(choice) else delta
    return said if isinstance(said, dict) else {}


def says_all(choice: Object) -> bool:
    """Whether a choice has a whole message where a delta should be."""
    has_delta = choice.get("delta") is not None or isinstance(choice.get("text"), str)
    return not has_delta and isinstance(choice.get("message"), dict)


def _read_parts(parts: list[Any], delta: Object) -> Object:
    """A content that is a list: its text, with such parts between as are none, and its thoughts."""
    content: list[str | Object] = []
    thoughts = ""
    for part in parts:
        thoughts += _thought(part)
        if (text := _text(part)) and content and isinstance(content[-1], str):
            content[-1] += text
        elif text:
            content.append(text)
        elif isinstance(part, dict) and not _is_known(part):
            content.append(part)
    said: Object = {"content": content[0] if len(content) == 1 and isinstance(content[0], str) else content or None}
    if thoughts and not isinstance(delta.get("reasoning_content"), str):  # who tells it in both ways tells the same
        said["reasoning_content"] = thoughts
    return said


def strings_in_parts(content: Any) -> Iterator[tuple[str, str, bool]]:
    """The string of a content that is one part: its key, the string, and whether it is visible."""
    part = content[0] if isinstance(content, list) and len(content) == 1 else None
    if not isinstance(part, dict):
        return
    if part.get("type") not in _THOUGHTS:
        if isinstance(part.get("text"), str):
            yield "text", part["text"], True
    elif isinstance(part.get("thinking"), str):
        yield "thinking", part["thinking"], False
    else:
        yield from ((key, text, False) for key, text, _ in strings_in_parts(part.get("thinking")))


def _text(part: Any) -> str:
    if isinstance(part, dict) and part.get("type") not in _THOUGHTS:
        part = part.get("text")
    return part if isinstance(part, str) else ""


def _thought(part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") not in _THOUGHTS:
        return ""
    thought = next((part[key] for key in (*_THOUGHTS, "text") if part.get(key)), "")
    return "".join(map(_text, thought)) if isinstance(thought, list) else _text(thought)


def _is_known(part: Object) -> bool:
    """Whether a part is one of text, or of thoughts, if perhaps an empty one."""
    return part.get("type") in _THOUGHTS or isinstance(part.get("text"), str)
