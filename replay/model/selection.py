"""What a list of generations is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from replay.model.generation import Generation, Status

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # made once: there may be many values
_LIVE = frozenset(status for status in Status if not status.terminal)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which generations are wanted: those that meet all of it."""

    statuses: frozenset[Status] = frozenset(Status)
    model: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()  # key and value, as text
    text: str | None = None  # somewhere in the id, the model or a value of the metadata, in any case
    since_ms: int | None = None  # created then or later
    until_ms: int | None = None  # created then or earlier

    @property
    def live_only(self) -> bool:
        """Whether nothing that has ended is wanted."""
        return self.statuses <= _LIVE

    def has(self, generation: Generation) -> bool:
        """Whether a generation is wanted."""
        start, created_ms = generation.start, generation.first_id.ms
        return (
            generation.status in self.statuses
            and self.model in (None, start.model)
            and (self.since_ms is None or created_ms >= self.since_ms)
            and (self.until_ms is None or created_ms <= self.until_ms)
            and all(_has_member(start.metadata, key, value) for key, value in self.metadata)
            and (self.text is None or _any_contains(_texts(generation), self.text.casefold()))
        )


def _has_member(metadata: dict[str, Any] | None, key: str, value: str) -> bool:
    return metadata is not None and key in metadata and _as_text(metadata[key]) == value


def _any_contains(texts: Iterable[str], part: str) -> bool:
    return any(part in text.casefold() for text in texts)


def _texts(generation: Generation) -> Iterator[str]:
    yield generation.start.generation_id
    yield generation.start.model
    yield from map(_as_text, (generation.start.metadata or {}).values())


def _as_text(value: Any) -> str:
    """A text as it is; anything else as its JSON."""
    return value if isinstance(value, str) else _encode(value)
