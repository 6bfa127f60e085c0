"""How the events of a Responses stream say that the response has ended, and how.

An event's name alone does not tell: a server that has only one name for the last event says in the response's status
how it went, and a gateway puts the error beside the response.
"""

from __future__ import annotations

from typing import Any

from replay.wire.response_output import object_in

_WORST_FIRST = ("failed", "incomplete", "completed")
_NO_ERROR = ("type", "response", "sequence_number", "error")
LAST = tuple(f"response.{outcome}" for outcome in _WORST_FIRST)


def outcome_of(event: dict[str, Any]) -> str:
    """How a last event says that it went: the worse of what its name says and what its response does."""
    outcomes = (event["type"].removeprefix("response."), object_in(event.get("response")).get("status"))
    return next((outcome for outcome in _WORST_FIRST if outcome in outcomes), outcomes[0])


def error_of(event: dict[str, Any]) -> Any:
    """The error that an event tells of, wherever it stands; None where it tells of none."""
    if event["type"] != "response.error" and outcome_of(event) != "failed":
        return None
    beside = {key: value for key, value in event.items() if key not in _NO_ERROR}
    return object_in(event.get("response")).get("error") or event.get("error") or beside
