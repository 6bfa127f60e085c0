"""OpenAI's lists: `order`, `after`, `limit`, and the object that says whether there is more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from aiohttp import web

from replay.errors import InvalidRequest
from replay.http import negotiation

_LARGEST_LIMIT = 100
_DEFAULT_LIMIT = 20


class Paging(NamedTuple):
    """What a request wants of a list."""

    oldest_first: bool
    after: str | None  # the id of the last one that the caller has
    limit: int


def read_paging(request: web.Request, *, order: str = "asc") -> Paging:
    """What a request wants; ``order`` where it does not say. Raises InvalidRequest."""
    order = request.query.get("order") or order
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"order={order[:100]!r}: expected asc or desc")
    limit = negotiation.integer(request, "limit", least=1, most=_LARGEST_LIMIT, default=_DEFAULT_LIMIT)
    return Paging(order == "asc", request.query.get("after") or None, limit)


def listing(data: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """The list object of one page."""
    return {
        "object": "list",
        "data": list(data),
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


def page_of(request: web.Request, items: Sequence[dict[str, Any]], *, order: str = "asc") -> dict[str, Any]:
    """The page that a request wants of a list, oldest first, that is all here; raises InvalidRequest."""
    paging = read_paging(request, order=order)
    ordered = list(items) if paging.oldest_first else list(reversed(items))
    ids = [item["id"] for item in ordered]
    if paging.after is not None and paging.after not in ids:
        raise InvalidRequest(f"after={paging.after[:150]!r}: expected the id of one of them")
    start = 0 if paging.after is None else ids.index(paging.after) + 1
    stop = start + paging.limit
    return listing(ordered[start:stop], has_more=len(ordered) > stop)
