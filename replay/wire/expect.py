"""Reads members of a request, which may be anything; raises InvalidRequest, which names the path and what came.

A path is written as people write it: `input[0].content`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from replay.errors import InvalidRequest

Object = dict[str, Any]
_V = TypeVar("_V")


def unexpected(path: str, expected: str, value: Any) -> InvalidRequest:
    """The error of a value that is not what was expected there."""
    return InvalidRequest(f"{path}: expected {expected}, got {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else repr(value)[:80]


def at(path: str, key: str) -> str:
    """The path of a member."""
    return f"{path}.{key}" if path else key


def string_in(holder: Object, key: str, path: str = "") -> str:
    """The string under a key, which must be there."""
    value = holder.get(key)
    if not isinstance(value, str):
        raise unexpected(at(path, key), "a string", value)
    return value


def object_in(holder: Object, key: str, path: str = "") -> Object:
    """The object under a key; empty where there is none."""
    value = holder.get(key)
    if not isinstance(value, dict | None):
        raise unexpected(at(path, key), "an object", value)
    return value or {}


def objects_in(holder: Object, key: str, path: str = "") -> Iterator[tuple[Object, str]]:
    """The objects listed under a key, each with its path; none where there is no list."""
    values = holder.get(key)
    if not isinstance(values, list | None):
        raise unexpected(at(path, key), "a list", values)
    for number, value in enumerate(values or ()):
        each = f"{at(path, key)}[{number}]"
        if not isinstance(value, dict):
            raise unexpected(each, "an object", value)
        yield value, each


def one_of(table: Mapping[str, _V], name: Any, path: str) -> _V:
    """What a table has under a name."""
    if not isinstance(name, str) or name not in table:
        raise unexpected(path, "one of " + ", ".join(table), name)
    return table[name]


def given(holder: Object, *keys: str) -> Object:
    """Those of the members that say something."""
    return {key: holder[key] for key in keys if holder.get(key) is not None}
