"""Reads members of a request, which may be anything; raises InvalidRequest, which names the place and what came.

A place is written as people write it: `input[0].content`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from replay.errors import InvalidRequest

Object = dict[str, Any]
_V = TypeVar("_V")


def unexpected(place: str, expected: str, value: Any) -> InvalidRequest:
    """The error of a value that is not what was expected there."""
    return InvalidRequest(f"{place}: expected {expected}, got {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else repr(value)[:80]


def at(place: str, key: str) -> str:
    """The place of a member."""
    return f"{place}.{key}" if place else key


def string_in(holder: Object, key: str, place: str = "") -> str:
    """The string under a key, which must be there."""
    value = holder.get(key)
    if not isinstance(value, str):
        raise unexpected(at(place, key), "a string", value)
    return value


def object_in(holder: Object, key: str, place: str = "") -> Object:
    """The object under a key; empty where there is none."""
    value = holder.get(key)
    if not isinstance(value, dict | None):
        raise unexpected(at(place, key), "an object", value)
    return value or {}


def objects_in(holder: Object, key: str, place: str = "") -> Iterator[tuple[Object, str]]:
    """The objects listed under a key, each with its place; none where there is no list."""
    values = holder.get(key)
    if not isinstance(values, list | None):
        raise unexpected(at(place, key), "a list", values)
    for number, value in enumerate(values or ()):
        each = f"{at(place, key)}[{number}]"
        if not isinstance(value, dict):
            raise unexpected(each, "an object", value)
        yield value, each


def one_of(table: Mapping[str, _V], name: Any, place: str) -> _V:
    """What a table has under a name."""
    if not isinstance(name, str) or name not in table:
        raise unexpected(place, "one of " + ", ".join(table), name)
    return table[name]


def given(holder: Object, *keys: str) -> Object:
    """Those of the members that say something."""
    return {key: holder[key] for key in keys if holder.get(key) is not None}
