"""The events of a generation, and what the service says beside them about the connection."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from replay.client.generations import Status, read


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event of a generation; of this very class only where a newer service sends a kind that is unknown here.

    `event_id` is the cursor to go on from (`follow(after=…)`): `<unix ms>-<seq>`, `seq` counted from 0 without
    holes. It is None for `Live` and `Reset`, which are not part of the log.
    """

    event_id: str | None
    raw: dict[str, Any] = field(repr=False)  # all that the service sent

    @property
    def time_ms(self) -> int | None:
        """When it was accepted, unix ms."""
        return None if self.event_id is None else int(self.event_id.partition("-")[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(Event):
    """The first event of every log."""

    generation_id: str
    model: str
    created: float  # unix seconds
    notice: str | None = None  # what a reader should be told, as that this is a demonstration


@dataclass(frozen=True, slots=True, kw_only=True)
class Token(Event):
    """A piece of the visible answer; all of them, joined, are the whole of it."""

    content: str  # never empty
    index: int  # the event's seq
    choices: list[dict[str, Any]] = field(default_factory=list)  # the upstream's, where it sent more than this text
    usage: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta(Event):
    """Anything else that the upstream sent: reasoning, tool calls, a finish reason, usage, further choices."""

    choices: list[dict[str, Any]] = field(default_factory=list)  # as in OpenAI's chunks
    usage: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class End(Event):
    """The last event of every log; nothing follows."""

    status: Status  # a terminal one
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None  # {"code", "message"}; None where it completed or somebody cancelled it
    tokens: int = 0  # `Token` events; what the upstream counted is in `usage`
    total_tokens: int = 0  # its name of old
    ttft_ms: int | None = None  # from the start to the first token; None without tokens
    duration_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Live(Event):
    """The past has been shown and the generation goes on. Comes again whenever the connection was lost."""

    last_event_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset(Event):
    """The log is not the one that the cursor was of: forget what came before; its events follow from `Start` on."""

    reason: str
    asked: str  # the cursor


_KINDS: dict[str, type[Event]] = {
    "start": Start,
    "token": Token,
    "delta": Delta,
    "end": End,
    "live": Live,
    "reset": Reset,
}


class NotAnEvent(Exception):
    """A line is no event, as half a line is none."""


def read_event(line: bytes) -> Event:
    """The event of one line; raises NotAnEvent."""
    try:
        raw = json.loads(line)
        kind = _KINDS.get(raw["type"], Event)
        own_id = None if kind is Live else raw.get("id")  # of `live` it is the cursor as it stands
        return read(kind, raw, event_id=own_id)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotAnEvent(f"expected an event, got {line[:100]!r}") from error
