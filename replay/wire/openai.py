"""An OpenAI-compatible stream <-> the entries of a log, lossless: chat, legacy and Responses alike.

Most chunks of a stream differ from the one before in a single string: the next piece of text, of
reasoning, of a call's arguments. So a chunk is stored whole (`T`, `D`) when it is the first of its
shape, and the chunks that follow in that shape are stored as the new string alone (`t`, `d`): 21
bytes in Valkey instead of 299 for a 250-byte chunk. The shape, a `Template`, is everything around
the string, byte for byte, so decoding gives back the very bytes that came; an entry's template is
the last whole chunk before it. Recognising the shape is a comparison of bytes, which spares the
parsing of JSON on the hot path (0.5 against 3 µs a chunk). `forms.py` has the chunks that differ
in more than one value.

The string is kept as the inside of a JSON literal, as it came: a frame needs no encoding, and
joining the strings of many tokens gives one literal that is parsed once.

`recorder.py` makes the entries of a stream; here is what they are made of, and how they are read.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from replay.model.event import FORMS, WHOLES, Entry
from replay.model.transcript import GROWING
from replay.wire import json
from replay.wire.chat import as_index, says_all, strings_in_parts, text_in
from replay.wire.reading import Reader
from replay.wire.responses import is_response_event

# What all chunks of a stream share, or, as obfuscation, means nothing.
ENVELOPE = frozenset(
    ("id", "object", "created", "model", "system_fingerprint", "service_tier", "provider", "obfuscation")
)

# Possessive (`*+`): a loop that may give back what it took keeps 100 bytes for every escape.
LITERAL = re.compile(rb'[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+')
_STRING_OF = {
    key: re.compile(rb'"%b"\s*:\s*"([^"\\]*+(?:\\.[^"\\]*+)*+)"' % key.encode())
    for key in (*GROWING, "text", "thinking", "arguments", "delta")
}
_PROBE = secrets.token_hex(16).encode()  # stands for a template's string where JSON is made of it


class Shape(Protocol):
    """What an entry that is no whole chunk is read by: a Template, or a Form (`forms.py`)."""

    @property
    def plain(self) -> bool:
        """Whether a chunk with visible text carries nothing beside it."""

    @property
    def grows(self) -> bool:
        """Whether what an entry stands for depends on those before it."""

    def chunk(self, payload: bytes, /) -> bytes:
        """The chunk that an entry stands for."""

    def with_id(self, generation_id: str) -> Shape:
        """The same shape under another chunk id."""


@dataclass(frozen=True, slots=True)
class Template:
    """A chunk but for one string."""

    grows: ClassVar[bool] = False
    counts: ClassVar[bool] = False  # no chunk that counts usage is one
    prefix: bytes  # up to and with the quote that opens the string
    suffix: bytes  # from the quote that closes it
    visible: bool  # the string is visible text of choice 0
    plain: bool  # and the chunk carries nothing beside it

    def chunk(self, text: bytes) -> bytes:
        """The chunk with ``text``, the inside of a JSON literal, in its place."""
        return self.prefix + text + self.suffix

    def entry(self, raw: bytes) -> bytes | None:
        """The entry of a chunk of this shape; None when the chunk has another."""
        prefix, suffix = self.prefix, self.suffix
        if not (raw.startswith(prefix) and raw.endswith(suffix) and len(raw) >= len(prefix) + len(suffix)):
            return None
        text = raw[len(prefix) : len(raw) - len(suffix)]
        if LITERAL.fullmatch(text) is None or not is_utf8(text):
            return None
        return (Entry.TOKEN if text and self.visible else Entry.DELTA) + text

    def with_id(self, generation_id: str) -> Template:
        """The same shape under another chunk id."""
        prefix, suffix = with_id(self.chunk(_PROBE), generation_id).split(_PROBE)
        return Template(prefix, suffix, self.visible, self.plain)


def template_of(raw: bytes, chunk: dict[str, Any] | None = None) -> Template | None:
    """The template that a whole chunk is for those after it; None where it is none.

    A chunk that counts usage is none: those after it would count as much.
    """
    chunk = json.loads(raw) if chunk is None else chunk
    if is_response_event(chunk):
        return _delta_template(raw, chunk)
    if not may_repeat(chunk) or chunk.get("usage"):
        return None
    strings = list(growing_strings(chunk))
    found = [string for string in strings if string[1]] or strings
    if len(found) != 1:
        return None
    key, _, shown = found[0]
    visible = shown and as_index(chunk["choices"][0].get("index")) in (None, 0)
    return _around(key, raw, visible=visible, plain=visible and is_plain(chunk))


def may_repeat(chunk: dict[str, Any]) -> bool:
    """Whether a chunk is one of many: it says a piece of one text, finishes no choice and tells of no error."""
    if is_response_event(chunk):
        return str(chunk["type"]).endswith(".delta")
    choices = chunk.get("choices")
    if chunk.get("error") or not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        return False
    (choice,) = choices
    return not says_all(choice) and not choice.get("finish_reason") and choice.get("logprobs") is None


def may_be_joined(chunk: dict[str, Any]) -> bool:
    """Whether a chunk with the strings of several joined says what each of them says in turn.

    It does not where something else grows beside the string, or where each has a call of its own.
    """
    if is_response_event(chunk):
        return True
    delta = chunk["choices"][0].get("delta")
    if not isinstance(delta, dict):
        return True
    return all(
        not isinstance(value, list | dict)
        or not value
        or (key == "content" and any(strings_in_parts(value)))
        or (key == "tool_calls" and all(map(_names_its_call, value)))
        or key == "function_call"
        for key, value in delta.items()
    )


def _names_its_call(fragment: Any) -> bool:
    """Whether fragments like this one are all of one call."""
    function = fragment.get("function") if isinstance(fragment, dict) else None
    return isinstance(function, dict) and bool(fragment.get("id") or not function.get("name"))


def _delta_template(raw: bytes, event: dict[str, Any]) -> Template | None:
    if not isinstance(event.get("delta"), str):
        return None
    visible = bool(visible_text({**event, "delta": "x"}))
    return _around("delta", raw, visible=visible, plain=visible and is_plain(event))


def _around(key: str, raw: bytes, *, visible: bool, plain: bool) -> Template | None:
    """What is around the one string of that name."""
    matches = list(_STRING_OF[key].finditer(raw))
    if len(matches) != 1:
        return None
    start, end = matches[0].span(1)
    return Template(raw[:start], raw[end:], visible, plain)


def growing_strings(chunk: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """The strings of a chunk that may repeat that grow from one to the next: key, string, and whether it is visible."""
    if is_response_event(chunk):
        if isinstance(chunk.get("delta"), str):
            yield "delta", chunk["delta"], bool(visible_text(chunk))
        return
    choice = chunk["choices"][0]
    delta = choice.get("delta")
    if not delta and isinstance(choice.get("text"), str):
        yield "text", choice["text"], True
    if isinstance(delta, str) and delta:
        yield "delta", delta, True
    if not isinstance(delta, dict):
        return
    for key in GROWING:
        if isinstance(delta.get(key), str):
            yield key, delta[key], key == "content"
    yield from strings_in_parts(delta.get("content"))
    calls = delta.get("tool_calls")
    # Without its index a fragment does not say which call grows.
    if isinstance(calls, list) and len(calls) == 1 and isinstance(calls[0], dict) and "index" in calls[0]:
        function = calls[0].get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            yield "arguments", function["arguments"], False


def visible_text(chunk: dict[str, Any]) -> str:
    """The text of choice 0 that a reader of the answer sees in a chunk by itself; empty where there is none."""
    return text_in(chunk if not is_response_event(chunk) else Reader().read(chunk) or {})


def further_fields(chunk: dict[str, Any]) -> dict[str, Any]:
    """What a chunk carries beside the envelope and the choices."""
    return {key: value for key, value in chunk.items() if key not in ENVELOPE and key != "choices"}


def is_plain(chunk: dict[str, Any]) -> bool:
    """Whether a chunk with visible text carries nothing beside it."""
    if is_response_event(chunk):
        return str(chunk["type"]).endswith(".delta") and not chunk.get("logprobs")
    choices = chunk["choices"]
    if len(choices) != 1 or any(value is not None for value in further_fields(chunk).values()):
        return False
    choice = choices[0]
    delta = choice.get("delta")
    if isinstance(delta, dict):
        beside = [value for key, value in choice.items() if key not in ("index", "delta")]
        beside += [value for key, value in delta.items() if key != "content" or not isinstance(value, str)]
    else:
        beside = [value for key, value in choice.items() if key not in ("index", "text")]
    return all(value is None for value in beside)


def wants_usage(request: dict[str, Any]) -> bool:
    """Whether a request asks for a chunk with the usage."""
    return bool(_stream_options(request).get("include_usage"))


def with_usage(request: dict[str, Any]) -> dict[str, Any]:
    """The request, asking for a chunk with the usage."""
    return request | {"stream_options": _stream_options(request) | {"include_usage": True}}


def without_obfuscation(request: dict[str, Any]) -> dict[str, Any]:
    """The request, asking for chunks without random `obfuscation` where it does not say whether it wants that."""
    return request | {"stream_options": {"include_obfuscation": False} | _stream_options(request)}


def _stream_options(request: dict[str, Any]) -> dict[str, Any]:
    options = request.get("stream_options")
    return options if isinstance(options, dict) else {}


def with_id(raw: bytes, generation_id: str) -> bytes:
    """The chunk as JSON under the generation's id."""
    chunk = json.loads(raw)
    chunk["id"] = generation_id
    return json.dumps(chunk)


def whole_chunk(entry: bytes) -> bytes:
    """The chunk that stands in an entry."""
    return entry[entry.index(b"\n") + 1 :] if entry[0] in FORMS else entry[1:]


def chunk_of(entry: bytes, template: Shape | None) -> bytes:
    """The upstream's chunk that a token or delta entry stands for."""
    if entry[0] in WHOLES:
        return whole_chunk(entry)
    assert template is not None, "a piece always follows a whole chunk"
    return template.chunk(entry[1:])


def is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
