"""An upstream's stream <-> the entries of a log, lossless, whichever dialect it is in.

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
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from replay.model.event import FORMS, WHOLES, Entry
from replay.model.transcript import GROWING
from replay.wire import json
from replay.wire.dialects import dialect_of

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
    """The template that a whole chunk is for those after it; None where it is none."""
    chunk = json.loads(raw) if chunk is None else chunk
    dialect = dialect_of(chunk)
    string = dialect.template_string(chunk)
    if string is None:
        return None
    key, visible = string
    return _around(key, raw, visible=visible, plain=visible and dialect.is_plain(chunk))


def _around(key: str, raw: bytes, *, visible: bool, plain: bool) -> Template | None:
    """What is around the one string of that name."""
    matches = list(_STRING_OF[key].finditer(raw))
    if len(matches) != 1:
        return None
    start, end = matches[0].span(1)
    return Template(raw[:start], raw[end:], visible, plain)


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
