"""An upstream's answer that is an error, as an error of ours: its own words reach the user, its pages do not.

JSON goes on to a client of OpenAI's API as it came. Anything else (a proxy's HTML, a stream, nothing) would be taken
for a page of this origin, so it becomes an error object of ours under the same status.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from replay.errors import Refusal, UpstreamError
from replay.redaction import Redaction
from replay.wire import json
from replay.wire.recorder import cut, upstream_error
from replay.wire.sse import Decoder

LARGEST = 64 << 10  # bytes of a body; it stands in the log

_PASSED_ON = ("retry-after", "retry-after-ms", "x-should-retry")  # of the headers
_JSON = re.compile(r"(?i)application/(?:[\w.-]+\+)?json(?:\s*;[\x20-\x7e]{0,100})?")
_HEADER = re.compile(r"[\x20-\x7e]{1,100}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def refused(status: int, headers: Mapping[str, str], body: bytes, redaction: Redaction) -> UpstreamError:
    """The error for an answer whose status is not one of success; ``body`` may have been cut behind `LARGEST`."""
    if not 400 <= status < 600:
        redirect = ", a redirect, which is not followed" if 300 <= status < 400 else ""
        return UpstreamError(f"the upstream answered HTTP {status}{redirect}")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    said = _json(body)
    public = redaction.value(_words(kind, body) if said is None else said)
    error = upstream_error((public.get("error") or public) if isinstance(public, dict) else public)
    given = {name: headers[name] for name in _PASSED_ON if _HEADER.fullmatch(headers.get(name, ""))}
    if said is None:
        kept = json.dumps({"error": _error_object(status, error)})
    else:
        kept = body if public == said else json.dumps(public)
        if _JSON.fullmatch(headers.get("content-type", "")):
            given["content-type"] = headers["content-type"]
    refusal = Refusal(status=status, headers=given, body=kept.decode("latin-1"))
    return UpstreamError(f"HTTP {status}: {error}", details=error.details, refusal=refusal)


def _json(body: bytes) -> Any:
    """What a body says that is JSON; None for any other."""
    if len(body) > LARGEST:
        return None
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return None if json.is_deep(body, said) else said


def _words(kind: str, body: bytes) -> Any:
    """What a body says that is not JSON, as far as it is meant for a reader: an error object, or a text."""
    if kind == "text/event-stream":
        decoder = Decoder(LARGEST)
        for message in (*decoder.feed(body), decoder.finish()):
            said = _json(message.data) if message is not None else None
            if isinstance(said, dict):
                return said.get("error") or said
    text = _UNPRINTABLE.sub(" ", _text(body)).strip() if kind == "text/plain" else ""
    if text:
        return text
    return (
        f"the upstream answered with {kind or 'something unnamed'}" if body else "the upstream answered without a word"
    )


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body.decode("latin-1")


def _error_object(status: int, error: UpstreamError) -> dict[str, Any]:
    return {
        "message": cut(str(error)),
        "type": error.details.get("type") or openai_type(status),
        "param": error.details.get("param"),
        "code": error.details.get("code") or UpstreamError.code,
    }


def openai_type(status: int) -> str:
    """OpenAI's word for a kind of error."""
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
