"""Tells the tool calls of a message apart, whose fragments servers mark in their own ways.

OpenAI numbers the calls, and sends the id and the name of one with its first fragment. Others leave the index out, or
give all calls one; repeat id and name with every fragment, or send another id with each; leave the id empty; send the
arguments as an object. What comes out here is as OpenAI sends it: the index of a fragment is that of its call,
the id comes once, and what the model wrote is a string.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from replay.wire import json

Object = dict[str, Any]

_INPUT = {"function": "arguments", "custom": "input"}  # where a call of a kind has what the model wrote for it
_MARK = re.compile(r'\\(?:.|\Z)|["{}\[\]]', re.DOTALL)  # what tells where a JSON text ends


class ToolCallNormalizer:
    """Makes the fragments of one message's calls, in their order, what OpenAI sends."""

    __slots__ = ("_count", "_known", "_latest")

    def __init__(self) -> None:
        self._count = 0
        self._known: dict[tuple[Any, Any], _Call] = {}  # by index and id; under None as index by the id alone
        self._latest: dict[Any, _Call] = {}  # by index; under None the one that was told of last

    def normalize(self, fragments: Any) -> list[Object]:
        """Fragments as OpenAI sends them; what says nothing of a call is left out."""
        fragments = fragments if isinstance(fragments, list) else [fragments]
        return [
            self._normalize(_marks(each), each)
            for each in fragments
            if isinstance(each, dict) and _says_something(each)
        ]

    def _normalize(self, marks: _Marks, fragment: Object) -> Object:
        call = self._call(marks)
        read = {key: value for key, value in fragment.items() if key not in _MARKED and value not in (None, "")}
        if call.id is None and marks.id is not None:
            call.id = marks.id
            read["id"] = fragment["id"]
        return {"index": call.index, **read, marks.kind: call.take(marks, fragment.get(marks.kind))}

    def _call(self, marks: _Marks) -> _Call:
        """The call that a fragment is of, which it may begin."""
        call = self._known.get((marks.number, marks.id)) if marks.id is not None else None
        if call is None and (marks.id is None or marks.number is not None):
            call = self._latest.get(marks.number)
        if call is None or call.ends_before(marks):
            call = _Call(self._count)
            self._count += 1
        self._latest[marks.number] = self._latest[None] = call
        if marks.id is not None:
            self._known[marks.number, marks.id] = self._known[None, marks.id] = call
        return call


class _Marks(NamedTuple):
    """What a fragment says of whose it is."""

    kind: str
    number: int | str | None
    id: int | str | None
    name: str
    written: Any


_MARKED = ("index", "id", *_INPUT)


def _marks(fragment: Object) -> _Marks:
    kind = next((kind for kind in _INPUT if isinstance(fragment.get(kind), dict)), None)
    kind = kind or ("custom" if fragment.get("type") == "custom" else "function")
    called = fragment[kind] if isinstance(fragment.get(kind), dict) else {}
    name = called.get("name")
    return _Marks(
        kind,
        _key(fragment.get("index")),
        _key(fragment.get("id")),
        name if isinstance(name, str) else "",
        called.get(_INPUT[kind]),
    )


def _says_something(fragment: Object) -> bool:
    """Whether a fragment is more than an index and a type."""
    return any(
        isinstance(value, dict) if key in _INPUT else value not in (None, "")
        for key, value in fragment.items()
        if key not in ("index", "type")
    )


def _key(value: Any) -> int | str | None:
    """An index or an id; None where it is none. Some servers send numbers as strings."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return value if isinstance(value, int | str) and value != "" else None


class _Call:
    """One call: what tells whether a fragment goes on with it."""

    __slots__ = ("_depth", "_escapes", "_first_character", "_is_quoted", "_name", "id", "index")

    def __init__(self, index: int) -> None:
        self.index = index
        self.id: int | str | None = None
        self._name = ""
        self._first_character = ""  # of what the model has written for it
        # Where in its JSON that stands: in how many objects and lists, and whether in a string.
        self._depth, self._is_quoted, self._escapes = 0, False, ""

    def ends_before(self, marks: _Marks) -> bool:
        """Whether a fragment that could be of this call begins another: only one with a name does."""
        if not marks.name:
            return False  # some servers send another id with every fragment
        if marks.id is not None and self.id is not None:
            return marks.id != self.id
        if self._name and marks.name != self._name:  # a name may come in pieces too, but not after arguments
            return bool(self._first_character) or marks.number is None
        # Without an index and an id that is all there is to tell; with one, what goes on after the end of an object.
        goes_on = marks.number is not None and (self._first_character, _first_character(marks.written)) != ("{", "{")
        return bool(_first_character(marks.written)) and not goes_on and self._is_whole

    def take(self, marks: _Marks, called: Any) -> Object:
        """What a fragment says of what is called, with strings."""
        said = {key: value for key, value in called.items() if value is not None} if isinstance(called, dict) else {}
        if marks.name and marks.name != self._name:
            self._name += marks.name
        written = marks.written
        if written is None:
            return said
        if not isinstance(written, str):  # it came whole
            written = "" if self._first_character else json.dumps(written).decode()
        self._first_character = self._first_character or _first_character(written)
        self._go_on(written)
        return said | {_INPUT[marks.kind]: written}

    def _go_on(self, written: str) -> None:
        marks, self._escapes = _MARK.findall(self._escapes + written), ""
        for mark in marks:
            if mark == "\\":  # what it escapes is still to come
                self._escapes = mark
            elif mark == '"':
                self._is_quoted = not self._is_quoted
            elif not self._is_quoted and mark[0] != "\\":
                self._depth += 1 if mark in "{[" else -1

    @property
    def _is_whole(self) -> bool:
        """Whether what was written for it is a whole JSON text."""
        return bool(self._first_character) and self._depth <= 0 and not self._is_quoted


def _first_character(written: Any) -> str:
    """The first character of what was written; empty where nothing was."""
    if not isinstance(written, str):
        return "" if written is None else json.dumps(written).decode()[:1]
    return written.lstrip()[:1]
