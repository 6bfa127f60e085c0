"""What stands between the chunks of a stream and is none: heartbeats, other spellings of `[DONE]`, empty data.

Gateways mean it as a comment, which a client passes over. It says no more than that the upstream is alive.
"""

from __future__ import annotations

import re
from typing import Any

_JSON = (b"{", b"[", b'"')
_FIELDS = (b":", b"event:", b"id:", b"retry:")
_PADDING = rb"[\s\d:.,+\-/*#=>|TZ]*"  # with the time that some heartbeats name
_WORD = rb"(?:ping|pong|heart[ _-]?beat|keep[ _-]?alive|noop|(?:openrouter )?processing)\b"
_TIME = rb"\d{4}-\d\d-\d\d[T ][\d:.+\-Z]*"
_HEARTBEAT = re.compile(rb"%b%b%b|%b|[\s.*#=>|-]*" % (_PADDING, _WORD, _PADDING, _TIME), re.IGNORECASE)
_NAME = re.compile(rb"(?:[\w.]+[._])?%b" % _WORD, re.IGNORECASE)  # `chat.completion.heartbeat`
_NAMES = ("type", "event", "object", "status")
_EMPTY = re.compile(rb"null|true|false|\[\s*\]")
_END_MARK = re.compile(rb"[\"']?\[?\s*done\s*\]?[\"']?", re.IGNORECASE)


def unwrapped(data: bytes) -> bytes:
    """Data without the fields of a block that was taken for data once too often."""
    if data.lstrip().startswith(_JSON):
        return data
    lines = (line for line in data.strip().split(b"\n") if not line.startswith(_FIELDS))
    return b"\n".join(line.removeprefix(b"data:").strip() for line in lines).strip()


def is_end_mark(data: bytes) -> bool:
    """Whether this is `[DONE]`, however it is spelt."""
    return _END_MARK.fullmatch(data.strip()) is not None


def is_heartbeat(data: bytes, event: bytes) -> bool:
    """Whether data that is no object, or the name of its event, only says that there is somebody."""
    if data.lstrip().startswith(b"{"):
        return False
    data = data.strip()
    return bool(_EMPTY.fullmatch(data) or _HEARTBEAT.fullmatch(data.strip(b'"'))) or _is_name(event)


def is_heartbeat_object(chunk: dict[str, Any], event: bytes) -> bool:
    """Whether an object only says that there is somebody: it is empty, or called so."""
    if "choices" in chunk or "usage" in chunk:
        return False
    names = (*chunk, *(chunk[key] for key in _NAMES if isinstance(chunk.get(key), str)))
    return not chunk or _is_name(event) or any(_is_name(name.encode(errors="replace")) for name in names)


def _is_name(name: bytes) -> bool:
    return _NAME.fullmatch(name) is not None
