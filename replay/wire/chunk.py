"""One chunk out of the data of a message."""

from __future__ import annotations

from typing import Any

from replay.errors import UpstreamInvalid
from replay.wire import json
from replay.wire.chat import as_index

_LONGEST_WORDS = 200  # characters


def read_chunk(raw: bytes) -> tuple[bytes, dict[str, Any]]:
    """One chunk, and as what it is kept: without numbers that JSON does not know; raises UpstreamInvalid."""
    try:
        return raw, parse_chunk(raw)
    except UpstreamInvalid:
        mended = json.mended(raw)
        return mended, parse_chunk(mended)


def parse_chunk(raw: bytes) -> dict[str, Any]:
    """One chunk; raises UpstreamInvalid when it is not one."""
    try:
        chunk = json.loads(raw)
    except (ValueError, RecursionError):
        chunk = None
    if not isinstance(chunk, dict):
        raise _no_chunk(f"expected a JSON object{words_of(raw.decode(errors='replace'))}", raw)
    if json.is_deep(raw, chunk):
        raise _no_chunk(f"expected at most {json.DEEPEST} levels of JSON", raw)
    choices = chunk.get("choices")
    if choices is None:
        return chunk
    if not isinstance(choices, list) or not all(isinstance(choice, dict | None) for choice in choices):
        raise _no_chunk("expected choices as a list of objects", raw)
    for choice in filter(None, choices):
        if choice.get("index") is not None and as_index(choice["index"]) is None:
            raise _no_chunk("expected an integer as a choice's index", raw)
        if not isinstance(choice.get("delta"), dict | str | None):
            raise _no_chunk("expected an object as delta", raw)
    return chunk


def _no_chunk(expected: str, raw: bytes) -> UpstreamInvalid:
    return UpstreamInvalid(f"the upstream sent what is no chunk: {expected}", aside=shown(raw.decode(errors="replace")))


def words_of(text: str) -> str:
    """What was said in plain words where something else was expected, for an error message; else nothing."""
    return f"; it says “{text[:_LONGEST_WORDS]}”" if text[:1].isalpha() else ""


def shown(text: str) -> str:
    """The beginning of what is no chunk, for the node's log."""
    return repr(text[:80])
