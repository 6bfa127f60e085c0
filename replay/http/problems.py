"""Errors on the wire, answered once, at the edge: RFC 9457 problem documents, under `/v1/` in OpenAI's shape."""

from __future__ import annotations

import logging
import secrets
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Handler

from replay.errors import (
    Abandoned,
    BodyTooLarge,
    GenerationExists,
    LimitExceeded,
    Refusal,
    ReplayError,
    StoreRefused,
    UpstreamError,
    unexpected,
)
from replay.http.headers import REQUEST_ID
from replay.wire import json
from replay.wire.refusals import openai_type

logger = logging.getLogger(__name__)

# OpenAI's clients try again after these; after some of ours it cannot help.
_RETRIED = frozenset((408, 409, 429, *range(500, 600)))
_PERMANENT = frozenset((GenerationExists.code, LimitExceeded.code, Abandoned.code, "cancelled"))


def problem(status: int, title: str, detail: str, code: str) -> web.Response:
    """A problem document; `code` is one of those that README.md, beside this, lists."""
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code}
    return web.Response(status=status, body=json.dumps(document), content_type="application/problem+json")


def openai_error(status: int, message: str, type: str, code: object, param: object = None) -> web.Response:
    """An error in OpenAI's shape, which tells its clients when they need not try again."""
    error = {"message": message, "type": type, "param": param, "code": code}
    response = web.Response(status=status, body=json.dumps({"error": error}), content_type="application/json")
    if status in _RETRIED and code in _PERMANENT:
        response.headers["x-should-retry"] = "false"
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = "1"
    return response


def _answer_to(request: web.BaseRequest, status: int, title: str, detail: str, code: str) -> web.Response:
    """The error in the shape that the caller of this path expects."""
    if not _is_openai(request):
        return problem(status, title, detail, code)
    return openai_error(status, detail, openai_type(status), code)


def _is_openai(request: web.BaseRequest) -> bool:
    return request.path.startswith("/v1/")


@web.middleware
async def answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into an error document; name every request of OpenAI's API."""
    if not _is_openai(request):
        return await _answer(request, handler)
    request[REQUEST_ID] = "req_" + secrets.token_hex(16)
    response = await _answer(request, handler)
    if not response.prepared:
        response.headers.setdefault("x-request-id", request[REQUEST_ID])
    return response


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ReplayError as error:
        return _answer_to_error(request, error)
    except web.HTTPRequestEntityTooLarge:
        return _answer_to_error(request, BodyTooLarge("body: expected less (--max-body-bytes)"))
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        return answer_to_http(request, error)
    except ConnectionResetError:
        raise
    except Exception as bug:
        return _answer_to_error(request, unexpected(logger, bug, method=request.method, path=request.path))


def refused(refusal: Refusal) -> web.Response:
    """The upstream's own answer."""
    headers = {"Content-Type": "application/json"} | {
        # OpenAI's own spelling of that one is in lower case.
        name if name.startswith("x-") else name.title(): value
        for name, value in refusal.headers.items()
    }
    return web.Response(status=refusal.status, body=refusal.body.encode("latin-1"), headers=headers)


def _answer_to_error(request: web.Request, error: ReplayError) -> web.Response:
    if isinstance(error, UpstreamError | StoreRefused):
        logger.info("request refused", extra={"path": request.path, "reason": error.in_full})
    if isinstance(error, UpstreamError) and error.refusal is not None and _is_openai(request):
        return refused(error.refusal)
    response = _answer_to(request, error.status, error.title, str(error) or error.title, error.code)
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = "1"
    return response


def answer_to_http(request: web.BaseRequest, error: web.HTTPException) -> web.Response:
    """An error of aiohttp's as one of ours."""
    phrase = HTTPStatus(error.status).phrase
    code = phrase.lower().replace(" ", "_")
    answer = _answer_to(request, error.status, phrase, _detail(request, error), code)
    if isinstance(error, web.HTTPMethodNotAllowed):
        answer.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
    return answer


def _detail(request: web.BaseRequest, error: web.HTTPException) -> str:
    """What was expected, and what came."""
    if isinstance(error, web.HTTPExpectationFailed):
        return "Expect: expected 100-continue, or no such header"
    call = f"{request.method} {request.path[:200]}"
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"{call}: expected {', '.join(sorted(error.allowed_methods))}"
    return f"{call}: there is no such path" if isinstance(error, web.HTTPNotFound) else call
