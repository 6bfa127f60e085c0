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
from replay.wire.failures import cut, upstream_error
from replay.wire.sse import Decoder

LARGEST = 64 << 10  # bytes of a body; it stands in the log

_KIND = re.compile(r"[a-z]{1,20}/[\w.+-]{1,60}")
_JSON = re.compile(r"(?i)application/(?:problem\+)?json(?:; ?charset=[a-z0-9-]{1,12})?")
# Headers that go on, where they say what they are for and nothing else.
_PASSED_ON = {
    "retry-after": re.compile(
        r"[0-9]{1,9}(?:\.[0-9]{1,9})?|[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT"
    ),
    "retry-after-ms": re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?"),
    "x-should-retry": re.compile(r"true|false"),
}
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def refused(status: int, headers: Mapping[str, str], body: bytes, redaction: Redaction) -> UpstreamError:
    """The error for an answer whose status is not one of success; ``body`` may have been cut after `LARGEST`."""
    if not 400 <= status < 600:
        redirect = ", a redirect, which is not followed" if 300 <= status < 400 else ""
        return UpstreamError(f"the upstream answered HTTP {status}{redirect}")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    said = _json(body)
    public = redaction.value(said) if said is not None else _words(kind, body, redaction)
    error = upstream_error((public.get("error") or public) if isinstance(public, dict) else public)
    given = {name: headers[name] for name, form in _PASSED_ON.items() if form.fullmatch(headers.get(name, ""))}
    if said is None:
        kept = json.dumps({"error": _error_object(status, error)})
    else:
        kept = json.dumps(public) if redaction.hits(body) else body
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


def _words(kind: str, body: bytes, redaction: Redaction) -> Any:
    """What a body says that is not JSON, as far as it is meant for a reader: an error object, or a text."""
    if kind == "text/event-stream":
        decoder = Decoder(LARGEST)
        for message in (*decoder.decode(body), *decoder.finish()):
            said = _json(message.data)
            if isinstance(said, dict):
                return redaction.value(said.get("error") or said)
    # Cut where a secret can no longer be cut in two.
    words = cut(redaction.text(_text(body))) if kind == "text/plain" else ""
    printable = _UNPRINTABLE.sub(" ", words).strip()
    if printable:
        return printable
    what = kind if _KIND.fullmatch(kind) else "something unnamed"
    return f"the upstream answered with {redaction.text(what)}" if body else "the upstream answered without a word"


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
