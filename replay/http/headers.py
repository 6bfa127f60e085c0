"""The headers that every answer has, whoever writes it."""

from __future__ import annotations

from aiohttp import web
from multidict import CIMultiDict

from replay.model.generation import Start

# What a request holds: the headers that let the page which sent it read the answer, and its id under `/v1/`.
CORS = web.RequestKey("CORS", dict[str, str])
REQUEST_ID = web.RequestKey("REQUEST_ID", str)

# A model's words and a caller's are in the answers: no browser may take them for a script or a page.
STANDING = {"Server": "replay", "X-Content-Type-Options": "nosniff"}


def names_of(start: Start) -> dict[str, str]:
    """Which generation it is, and which one its key led to before, where that was in vain."""
    names = {"Replay-Generation-Id": start.generation_id}
    return names if start.previous is None else names | {"Replay-Previous-Generation-Id": start.previous}


def complete(headers: CIMultiDict[str], request: web.BaseRequest) -> None:
    """Add what every answer has to the headers of one."""
    headers.update(STANDING)
    headers.setdefault("Cache-Control", "no-store")  # a proxy may keep even a 404 that says nothing of it
    for name, value in request.get(CORS, {}).items():
        headers[name] = f"{headers[name]}, {value}" if name == "Vary" and name in headers else value


async def complete_response(request: web.Request, response: web.StreamResponse) -> None:
    """Do the same for responses that the server writes: a signal of the application."""
    complete(response.headers, request)
