"""The dialects in which upstreams speak. A further one is a file like the two that are here, and a row."""

from __future__ import annotations

from replay.wire.chat_dialect import CHAT
from replay.wire.dialect import Dialect, Object
from replay.wire.responses_dialect import RESPONSES

_DIALECTS: tuple[Dialect, ...] = (RESPONSES, CHAT)  # the last one takes whatever no other recognises


def dialect_of(chunk: Object) -> Dialect:
    """The dialect of a chunk."""
    return next(dialect for dialect in _DIALECTS if dialect.recognises(chunk))


def visible_text(chunk: Object) -> str:
    """The text of choice 0 that a reader of the answer sees in a chunk by itself; empty where there is none."""
    return dialect_of(chunk).visible_text(chunk)


def is_plain(chunk: Object) -> bool:
    """Whether a chunk with visible text carries nothing beside it."""
    return dialect_of(chunk).is_plain(chunk)
