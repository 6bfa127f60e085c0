"""JSON that survives: what one side sent is what the other side reads.

orjson does the work. It refuses half a surrogate pair (a server that cuts a text between two
UTF-16 units sends one) and reads integers beyond 64 bits as floats; the standard library takes
over for those.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

_LONG_NUMBER = re.compile(rb"\d{19}")


def loads(raw: bytes) -> Any:
    """Parse one JSON text, UTF-8; raises ValueError when it is not one."""
    if _LONG_NUMBER.search(raw) is None:
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError:
            pass
    return json.loads(raw.decode(), parse_constant=_refuse)


def dumps(value: Any) -> bytes:
    """One line of compact JSON, UTF-8, without raw control characters."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def can_be_written(value: Any) -> bool:
    """Whether a value that was read can be written again: reading goes deeper than writing."""
    try:
        dumps(value)
    except (RecursionError, ValueError):
        return False
    return True


def canonical(value: Any) -> bytes:
    """Equal values give equal bytes, whatever the order of their keys was."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
