"""What a request asks of the list of generations."""

from __future__ import annotations

from typing import NamedTuple

from aiohttp import web

from replay.errors import InvalidRequest
from replay.http import negotiation
from replay.model.generation import Status, is_generation_id
from replay.model.selection import Selection
from replay.store import Row

_PARAMETERS = ("status", "model", "q", "since", "until", "limit", "before")
_METADATA = "metadata."
_DEFAULT_LIMIT = 50
_LARGEST_LIMIT = 1000


class Query(NamedTuple):
    """A page of the list."""

    selection: Selection
    before: Row | None
    limit: int


def read_query(request: web.Request) -> Query:
    """What a request wants; raises InvalidRequest, also for a parameter that is not known or comes twice."""
    _check_names(request)
    selection = Selection(
        statuses=_statuses(request),
        model=request.query.get("model"),
        metadata=tuple(
            (name.removeprefix(_METADATA), value) for name, value in request.query.items() if name.startswith(_METADATA)
        ),
        text=request.query.get("q"),
        since_ms=negotiation.time_ms(request, "since"),
        until_ms=negotiation.time_ms(request, "until", rounded_up=False),
    )
    limit = negotiation.integer(request, "limit", least=1, most=_LARGEST_LIMIT, default=_DEFAULT_LIMIT)
    return Query(selection, _before(request), limit)


def _check_names(request: web.Request) -> None:
    for name in request.query:
        if name not in _PARAMETERS and not name.startswith(_METADATA):
            raise InvalidRequest(f"{name[:100]}: expected {', '.join(_PARAMETERS)} or {_METADATA}<key>")
        if len(values := request.query.getall(name)) > 1:
            raise InvalidRequest(f"{name[:100]}: expected once, got {len(values)} of them")


def _statuses(request: web.Request) -> frozenset[Status]:
    """The statuses asked for: `status=failed`, `status=queued,streaming`, or all."""
    text = request.query.get("status")
    if text is None:
        return frozenset(Status)
    try:
        return frozenset(Status(name) for name in text.split(","))
    except ValueError:
        raise InvalidRequest(f"status={text[:100]!r}: expected {', '.join(Status)}") from None


def _before(request: web.Request) -> Row | None:
    """The row that the page before has ended with."""
    text = request.query.get("before")
    if text is None:
        return None
    created_ms, _, generation_id = text.partition("-")
    if not (
        created_ms.isdecimal() and created_ms.isascii() and len(created_ms) <= 16 and is_generation_id(generation_id)
    ):
        raise InvalidRequest(f"before={text[:150]!r}: expected the `next` of an earlier page")
    return Row(int(created_ms), generation_id)


def spell(row: Row | None) -> str | None:
    """A row as the `next` of a page, which `before` takes."""
    return None if row is None else f"{row.created_ms}-{row.generation_id}"
