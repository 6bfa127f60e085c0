"""JSON that survives: what one side sent is what the other side reads.

orjson does the work. It refuses half a surrogate pair (a server that cuts a text between two
UTF-16 units sends one) and reads integers beyond 64 bits as floats; the standard library takes
over for those.
"""

from __future__ import annotations

import json
import math
import re
from itertools import islice
from typing import Any

import orjson

DEEPEST = 200  # levels; orjson writes 254, and a chat request has about ten
# A string, to the end of the text where it is not closed; or what stands before a value, but for the first.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|([,\[{])', re.DOTALL)
# What orjson would read as another number: more than 64 bits, or beyond a double.
_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
_LONG, _EXPONENT = b"0" * 19, b"e000"
_LONGEST_INTEGER = 4300  # digits; Python reads no longer ones


def loads(raw: bytes) -> Any:
    """Parse one JSON text, UTF-8; raises ValueError when it is not one."""
    if not _has_long_number(raw):
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError:
            pass
    return json.loads(raw.decode(), parse_constant=_refuse, parse_float=_finite)


def dumps(value: Any) -> bytes:
    """One line of compact JSON, UTF-8, without raw control characters."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def mended(raw: bytes) -> bytes:
    """What is not JSON, but would be without numbers that it does not know, with null for those; else as it is.

    These are `NaN` and `Infinity`, which Python writes, and numbers that no reader could hold.
    """
    try:
        value = json.loads(raw.decode(), parse_constant=_null, parse_float=_float_or_null, parse_int=_int_or_null)
        return dumps(value)
    except (ValueError, RecursionError):
        return raw


def _null(constant: str) -> None:
    return None


def _float_or_null(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _int_or_null(text: str) -> int | None:
    return int(text) if len(text) < _LONGEST_INTEGER else None


def _has_long_number(raw: bytes) -> bool:
    """Whether there may be a number that orjson would read as another one; eight times as fast as an expression."""
    digits = raw.translate(_DIGITS, b"+")
    return _LONG in digits or _EXPONENT in digits


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is beyond what a reader could hold")
    return number


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def is_deep(raw: bytes, value: Any) -> bool:
    """Whether what was read is nested too deeply to be written again: reading goes further than writing."""
    if raw.count(b"[") + raw.count(b"{") <= DEEPEST:
        return False
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
        ]
    return bool(level)


def has_more_values(raw: bytes, most: int) -> bool:
    """Whether a JSON text has more values than ``most``; told before any of them takes memory."""
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") < most:  # with those that stand inside of strings
        return False
    separators = (1 for token in _TOKEN.finditer(raw) if token.lastindex)
    return sum(islice(separators, most)) == most


def canonical(value: Any) -> bytes:
    """Equal values give equal bytes, whatever the order of their keys was."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
