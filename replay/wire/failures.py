"""How upstreams say that they have failed: errors under many names, and finish reasons that mean one.

An error has to reach its reader in the upstream's own words, wherever they stand: in an object or a text under `error`,
beside a `code`, in the `detail` of a web framework, in the envelope of a gateway.
"""

from __future__ import annotations

import re
from typing import Any

from replay.errors import UpstreamError
from replay.wire import json
from replay.wire.chat import numbered

_LONGEST_MESSAGE = 2000  # an upstream's error may be a whole page of HTML
_WORDS = ("message", "detail", "msg", "error_msg", "errmsg", "error_message", "status_msg", "title")
_CODES = ("code", "error_code", "errcode", "status_code", "statusCode", "status")
_SUCCESS = frozenset(("", "0", "200", "ok", "success", "none"))
_NOTHING_ELSE = frozenset(("message", "detail", "success", "request_id", "requestId"))  # beside the words of an error
_WITHOUT_A_WORD = "the upstream sent an error without a word"

_NAME = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
# By vLLM, SGLang, DeepSeek, Zhipu, Mistral, Cohere, Gemini and its compatibility layer, OpenRouter and other gateways.
_FAILURE = re.compile(
    r"\b(?:abort(?:ed)?|error(?:ed)?|fail(?:ed|ure)?|time ?out|timed out|cancel(?:l?ed)?|interrupted|preempted"
    r"|overload(?:ed)?|unavailable|insufficient|resource exhausted|rate limit(?:ed)?"
    r"|malformed|unexpected tool call|too many tool calls|missing thought signature)\b"
)


def is_failure(reason: str) -> bool:
    """Whether a finish reason says that the answer is not what the model had to say.

    A limit that was reached and a filter are ends of their own (`length`, `content_filter`, `sensitive`), and so is
    whatever is not known to mean a failure.
    """
    return _FAILURE.search(" ".join(_NAME.findall(reason)).lower()) is not None


def reason_error(reason: str) -> UpstreamError:
    """The error of an answer that ended with a finish reason which means one."""
    reason = cut(reason)
    return UpstreamError(f"the upstream ended its answer with the finish reason {reason}", details={"code": reason})


def error_in(chunk: dict[str, Any], event: bytes = b"") -> Any:
    """The error that a message of a stream tells of, as `upstream_error` takes it; None where it tells of none.

    ``event`` is the name that the stream gave it.
    """
    if error := chunk.get("error"):
        in_short = not isinstance(error, dict | list) and isinstance(chunk.get("message"), str)
        return {**chunk, "error": None} if in_short else error
    if "error" in (event.decode("latin-1"), chunk.get("type"), chunk.get("object")):
        return chunk
    envelope = chunk.get("base_resp")  # MiniMax's
    if isinstance(envelope, dict) and not _is_success(envelope.get("status_code")):
        return envelope
    choices = chunk.get("choices") or ()
    for _, choice in numbered(choices):
        if choice.get("error"):
            return choice["error"]
    if choices or chunk.get("usage") or not _sounds_like_one(chunk):
        return None
    return chunk


def _sounds_like_one(chunk: dict[str, Any]) -> bool:
    """Whether an object without choices is an error that does not call itself one."""
    if chunk.get("errors") or chunk.get("detail"):
        return True
    if not any(isinstance(chunk.get(key), str) and chunk[key] for key in _WORDS):
        return False
    return chunk.keys() <= _NOTHING_ELSE or any(_tells_of_failure(key, chunk.get(key)) for key in _CODES)


def _tells_of_failure(key: str, code: Any) -> bool:
    if key == "status" and isinstance(code, str) and not code.isdigit():  # as `queued`
        return is_failure(code)
    return not _is_success(code)


def _is_success(code: Any) -> bool:
    return code is None or str(code).lower() in _SUCCESS


def upstream_error(error: Any) -> UpstreamError:
    """An upstream's error, which may be a string, an OpenAI error object, a list of them, or anything else."""
    if isinstance(error, list) and error and isinstance(error[0], dict):
        error = error[0]
    if not isinstance(error, dict):
        return UpstreamError(cut(_text(error) or _WITHOUT_A_WORD))
    inner = error.get("error") or error.get("errors")
    if isinstance(inner, dict | list):
        return upstream_error(inner)
    message = (
        next((_text(error[key]) for key in _WORDS if error.get(key)), "") or _text(inner or error) or _WITHOUT_A_WORD
    )
    details = {key: error[key] for key in ("type", "param", "code") if isinstance(error.get(key), str | int)}
    code = next((error[key] for key in _CODES if isinstance(error.get(key), str | int)), None)
    if code is not None:
        details.setdefault("code", code)
    return UpstreamError(
        cut(message), details={key: cut(value) if isinstance(value, str) else value for key, value in details.items()}
    )


def error_in_words(text: str) -> UpstreamError:
    """The error that an upstream tells of in plain words, or in JSON that is no object."""
    try:
        return upstream_error(json.loads(text.encode(errors="replace")))
    except (ValueError, RecursionError):
        return upstream_error(text)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    return json.dumps(value).decode(errors="replace") if value else ""


def cut(text: str) -> str:
    """An error message of a length that can be kept: it stands in the log, and in every list."""
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "…"
