"""Errors on the wire: RFC 9457 problem documents, answered once, at the edge."""

from __future__ import annotations

import logging
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Handler

from replay.errors import BodyTooLarge, CrossSiteRequest, ReplayError
from replay.wire import json

log = logging.getLogger(__name__)

_READING = frozenset(("GET", "HEAD", "OPTIONS"))


def problem(status: int, title: str, detail: str, code: str) -> web.Response:
    """A problem document; `code` is one of those the README lists."""
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code}
    return web.Response(status=status, body=json.dumps(document), content_type="application/problem+json")


def problem_of(error: ReplayError) -> web.Response:
    """The answer to an error of our own."""
    response = problem(error.status, error.title, str(error) or error.title, error.code)
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = "1"
    return response


@web.middleware
async def answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into a problem document."""
    try:
        _refuse_cross_site(request)
        return await handler(request)
    except ReplayError as error:
        return problem_of(error)
    except web.HTTPRequestEntityTooLarge as error:
        return problem_of(BodyTooLarge(error.text or "the body is too large"))
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        return _http_problem(request, error)
    except ConnectionResetError:
        raise
    except Exception:
        log.exception("request failed", extra={"method": request.method, "path": request.path})
        return problem(500, "Something went wrong inside the service.", "see the log", ReplayError.code)


def _http_problem(request: web.Request, error: web.HTTPException) -> web.Response:
    phrase = HTTPStatus(error.status).phrase
    answer = problem(error.status, phrase, f"{request.method} {request.path}", phrase.lower().replace(" ", "_"))
    if isinstance(error, web.HTTPMethodNotAllowed):
        answer.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
    return answer


def _refuse_cross_site(request: web.Request) -> None:
    """A page of another site may make a browser send a POST with the user's network position."""
    if request.method not in _READING and request.headers.get("Sec-Fetch-Site") == "cross-site":
        raise CrossSiteRequest("this page belongs to another site; call from your own origin, or from a server")
