"""Reads the body of a call that starts a generation."""

from __future__ import annotations

import hashlib
import math
import re
from typing import Any

from aiohttp import web

from replay.config import Settings
from replay.errors import InvalidRequest
from replay.http.bodies import SIZE, shown
from replay.live.start_request import StartRequest
from replay.model.generation import check_generation_id
from replay.upstream import CREDENTIALS, Api
from replay.wire import json

_OPTIONS = frozenset(("id", "ttl", "metadata", "abandon_after"))
_LONGEST_KEY = 255
_KNOWN_BY = (*CREDENTIALS, "x-api-key", "Proxy-Authorization", "Cookie", "X-Forwarded-User", "X-Auth-Request-User")
_LONGEST_MODEL = 512  # every list carries it


def read_start_request(request: web.Request, body: dict[str, Any], settings: Settings) -> StartRequest:
    """What the body and the headers of a request ask to start; raises InvalidRequest."""
    options = body.pop("replay", None)
    body.pop("stream", None)  # upstream calls always stream
    return start_request_of(request, chat_request(body), options, settings)


def start_request_of(
    request: web.Request,
    body: dict[str, Any],
    options: Any,
    settings: Settings,
    *,
    api: Api | None = None,
    response: dict[str, Any] | None = None,
) -> StartRequest:
    """The request to put ``body`` to the upstream, with the options of the member `replay`; raises InvalidRequest."""
    model = body.get("model")
    if model is not None and not (isinstance(model, str) and 0 < len(model) <= _LONGEST_MODEL):
        raise InvalidRequest(f"model: expected a name of at most {_LONGEST_MODEL} characters, got {shown(model)}")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise InvalidRequest(f"replay: expected an object, got {shown(options)}")
    unknown = options.keys() - _OPTIONS
    if unknown:
        raise InvalidRequest(f"replay: expected {', '.join(sorted(_OPTIONS))}, got {', '.join(sorted(unknown))[:200]}")
    ttl_s = _seconds(options, "ttl", least=1, most=settings.max_ttl_s)
    abandon_after_s = _seconds(options, "abandon_after", least=0.1, most=settings.max_ttl_s)
    generation_id = options.get("id")
    key, job = _key(request, "Idempotency-Key"), _key(request, "Replay-Job")
    if key is not None and job is not None:
        raise InvalidRequest("Idempotency-Key and Replay-Job: expected one of them")
    return StartRequest(
        request={key: value for key, value in body.items() if not (key == "model" and value is None)},
        api=api,
        credentials=credentials_of(request, settings),
        keep_request=body.get("store") is not False,
        response=response,
        generation_id=None if generation_id is None else check_generation_id(generation_id),
        ttl_ms=math.ceil((min(settings.ttl_s, settings.max_ttl_s) if ttl_s is None else ttl_s) * 1000),
        metadata=_metadata(options, body, settings),
        abandon_after_ms=None if abandon_after_s is None else math.ceil(abandon_after_s * 1000),
        idempotency_key=key,
        job=job,
        caller=_caller(request) if settings.attach_retries == "on" else None,
        retry=_is_retry(request),
        size=request.get(SIZE, 0),
    )


def chat_request(body: dict[str, Any]) -> dict[str, Any]:
    """The upstream's request: what was sent, with a bare prompt as one message of the user."""
    if "prompt" in body:
        prompt = body.pop("prompt")
        if not isinstance(prompt, str):
            raise InvalidRequest(f"prompt: expected a string, got {shown(prompt)}")
        if "messages" in body:
            raise InvalidRequest("prompt and messages: expected one of them")
        body["messages"] = [{"role": "user", "content": prompt}]
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise InvalidRequest(f"messages: expected a list of at least one message, or a prompt; got {shown(messages)}")
    return body


def credentials_of(request: web.Request, settings: Settings) -> dict[str, str] | None:
    """The caller's own credentials where those are passed on; None where the service has its own."""
    if settings.upstream_credentials == "own":
        return None
    credentials = {name: request.headers[name] for name in CREDENTIALS if name in request.headers}
    for name, value in credentials.items():
        if not (value.isascii() and value.isprintable()):
            raise InvalidRequest(f"{name}: expected printable ASCII")
    return credentials


def _seconds(options: dict[str, Any], name: str, *, least: float, most: float) -> float | None:
    value = options.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InvalidRequest(f"replay.{name}: expected seconds from {least:.15g} to {most:.15g}, got {shown(value)}")
    return value


def _metadata(options: dict[str, Any], body: dict[str, Any], settings: Settings) -> dict[str, Any] | None:
    """The generation's own, or else what the upstream is told."""
    value = options.get("metadata")
    if value is None:
        value = body["metadata"] if isinstance(body.get("metadata"), dict) else None
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidRequest(f"replay.metadata: expected an object, got {shown(value)}")
    size = len(json.dumps(value))
    if size > settings.max_metadata_bytes:
        raise InvalidRequest(f"replay.metadata: expected at most {settings.max_metadata_bytes} bytes, got {size}")
    return value


def _key(request: web.Request, name: str) -> str | None:
    key = request.headers.get(name)
    if key is not None and not (0 < len(key) <= _LONGEST_KEY and key.isascii() and key.isprintable()):
        raise InvalidRequest(f"{name}: expected 1 to {_LONGEST_KEY} characters of printable ASCII")
    return key


def _caller(request: web.Request) -> bytes:
    """A digest of all by which a caller may be known, to this service or to a proxy in front of it."""
    known_by = ([name, *request.headers.getall(name, ())] for name in _KNOWN_BY)
    return hashlib.sha256(json.dumps(list(known_by))).digest()


def _is_retry(request: web.Request) -> bool:
    """Whether it was tried before, as OpenAI's clients count."""
    return re.fullmatch("0*[1-9][0-9]*", request.headers.get("x-stainless-retry-count", "")) is not None
