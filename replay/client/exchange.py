"""What goes between the client and the service, as values: a request, an answer, or that there was none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; the path stands after the service's URL."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    held_s: float = 0.0  # the service may hold the answer back so long, on purpose


@dataclass(frozen=True, slots=True)
class Answer:
    """A response that came whole, whatever its status."""

    status: int
    headers: Mapping[str, str]  # found whatever the case of their names
    body: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """No response, or one that was cut; whether the request was executed is not known."""

    reason: str


Outcome = Answer | Lost
