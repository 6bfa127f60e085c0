"""What the service tells of a generation."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Protocol, TypeVar

Status = Literal["queued", "streaming", "completed", "failed", "cancelled", "interrupted"]
TERMINAL: frozenset[Status] = frozenset(("completed", "failed", "cancelled", "interrupted"))


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T", bound=_Dataclass)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A generation as it is now. Times are unix seconds.

    `status` is `queued` (the upstream is not answering yet), `streaming`, or for good one of `completed`, `failed`,
    `cancelled` and `interrupted` (the node that produced it went away).
    """

    id: str
    status: Status
    model: str
    created: float
    last_event_id: str
    events: int  # in its log so far
    subscribers: int  # watching now, on all nodes
    metadata: dict[str, Any]
    expires_at: float | None
    finish_reason: str | None = None  # this and what follows are None until it has ended
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None  # {"code", "message"}; None where it completed or somebody cancelled it
    ended: float | None = None
    raw: dict[str, Any] = field(repr=False)  # all that the service sent

    @property
    def terminal(self) -> bool:
        """Whether it has ended: its status will not change any more."""
        return self.status in TERMINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """What a generation has said, whole or so far: `status` tells which. Times are unix seconds."""

    id: str
    status: Status
    model: str
    created: float
    text: str  # the visible answer
    message: dict[str, Any]  # OpenAI's assistant message, with reasoning, refusal and tool calls where sent
    finish_reason: str | None
    usage: dict[str, Any] | None
    last_event_id: str
    timing: dict[str, Any]  # "ttft_ms", "duration_ms", "tokens_per_second", "inter_token_ms": {"p50", "p95", "max"}
    metadata: dict[str, Any]
    raw: dict[str, Any] = field(repr=False)  # all that the service sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A piece of the list of generations."""

    generations: list[Generation]
    next: str | None  # where the next page begins; None: there is none


def read_generation(raw: dict[str, Any]) -> Generation:
    """A generation out of the service's JSON; raises KeyError or TypeError for what is none, as its siblings do."""
    return read(Generation, raw)


def read_transcript(raw: dict[str, Any]) -> Transcript:
    """A transcript out of the service's JSON."""
    return read(Transcript, raw)


def read_page(raw: dict[str, Any]) -> Page:
    """A page out of the service's JSON."""
    return Page(generations=[read_generation(each) for each in raw["generations"]], next=raw["next"])


def read(kind: type[T], raw: dict[str, Any], **derived: Any) -> T:
    """A dataclass out of an object with members of the same names; raises TypeError where one is missing.

    What a newer service sends besides stays in `raw`.
    """
    members = {field.name: raw[field.name] for field in fields(kind) if field.name in raw}
    return kind(**{**members, **derived, "raw": raw})
