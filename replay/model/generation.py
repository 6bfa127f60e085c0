"""A generation: its status and facts, derived from the first and the last event of its log."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from replay.errors import InvalidRequest
from replay.model.event import EventId

_GENERATION_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)


class Status(StrEnum):
    """The life of a generation; a terminal status never changes."""

    QUEUED = "queued"  # accepted, the upstream has sent nothing yet
    STREAMING = "streaming"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"  # the producing node went away, by crash or by shutdown

    @property
    def terminal(self) -> bool:
        """Whether nothing follows."""
        return self not in (Status.QUEUED, Status.STREAMING)

    @property
    def in_vain(self) -> bool:
        """Whether whoever asks again should have another try."""
        return self in (Status.FAILED, Status.INTERRUPTED)


def new_generation_id() -> str:
    """`gen_` and 160 random bits."""
    return "gen_" + secrets.token_urlsafe(20)


def is_generation_id(text: str) -> bool:
    """Whether a text can be a generation's id."""
    return _GENERATION_ID.fullmatch(text) is not None


def check_generation_id(text: object) -> str:
    """A chosen id, if it is one; raises InvalidRequest otherwise."""
    if isinstance(text, str) and is_generation_id(text):
        return text
    raise InvalidRequest(f"generation id {str(text)[:150]!r}: expected 1 to 128 of A-Z, a-z, 0-9, _ and -")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What the `start` event holds: all that is known before the upstream is called."""

    generation_id: str
    model: str
    node: str  # who produces
    run: str  # unlike any other start, so that a retry after a lost reply knows its own
    ttl_ms: int
    abandon_after_ms: int | None = None
    metadata: dict[str, Any] | None = None
    notice: str | None = None  # what a reader should be told of the upstream, as that it is a demonstration
    idempotency: str | None = None  # the key this generation was started under
    claim: str | None = None  # the mark of the claim on that key; None: earlier versions had none
    after: str | None = None  # the mark of the claim that this one has taken over
    fingerprint: str | None = None  # of the request, where there is a claim: what the claim was for
    attempt: int | None = None  # how many were started under the claim before; None: it is the first
    previous: str | None = None  # the id of the last of those
    digest: str | None = None  # of the call and its caller, by which a retry finds it; none where there is a claim
    api: str | None = None  # the call of OpenAI's API that it answers; None: it was started at /generations
    response: dict[str, Any] | None = None  # what a response repeats of its request
    # Where a response's upstream only knows chat completions:
    ignored: list[str] | None = None  # the types of tools that it is not told of
    namespaced: dict[str, list[str]] | None = None  # the namespace and the name of a tool, by what it is told


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """What the `end` event holds. Times in ms, derived from the event ids."""

    status: Status
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None  # {"code", "message"}, and "upstream": what an error object said beside
    total_tokens: int = 0
    ttft_ms: int | None = None
    duration_ms: int = 0
    refusal: dict[str, Any] | None = None  # the upstream's answer where it was an HTTP error: status, headers, body


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation as its log's ends tell it."""

    start: Start
    first_id: EventId
    last_id: EventId
    end: End | None

    @property
    def status(self) -> Status:
        """The end's status; before that, whether the upstream has sent anything."""
        return status_of(self.end, last_seq=self.last_id.seq)


def status_of(end: End | None, *, last_seq: int) -> Status:
    """The end's status; before that, whether the upstream has sent anything."""
    if end is not None:
        return end.status
    return Status.STREAMING if last_seq > 0 else Status.QUEUED
