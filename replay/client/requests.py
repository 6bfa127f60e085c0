"""Builds every request that the client sends."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from replay.client.exchange import Request
from replay.errors import GenerationNotFound, InvalidEventId, InvalidRequest

NDJSON = "application/x-ndjson"
TEXT = "text/plain"
MARKDOWN = "text/markdown"
JSON = "application/json"
LONGEST_WAIT_S = 60.0  # that the service allows

_GENERATION_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_EVENT_ID = re.compile(r"-1|[0-9]{1,20}-[0-9]{1,20}")
_LONGEST_KEY = 255


def start(
    parameters: Mapping[str, Any],
    prompt: str | None,
    messages: Iterable[Mapping[str, Any]] | None,
    *,
    options: Mapping[str, Any],
    idempotency_key: str | None,
) -> Request:
    """Start a generation. There always is a key: an answer that was lost can then be asked for again."""
    key = str(uuid.uuid4()) if idempotency_key is None else idempotency_key
    if not (key.isascii() and key.isprintable() and 0 < len(key) <= _LONGEST_KEY):
        raise InvalidRequest(f"Idempotency-Key {key[:100]!r}: expected 1 to {_LONGEST_KEY} printable ASCII characters")
    body = {
        **parameters,
        "prompt": prompt,
        "messages": None if messages is None else list(messages),
        "replay": _given(options),
    }
    return Request(
        "POST",
        "/generations",
        headers={"Content-Type": "application/json", "Idempotency-Key": key},
        body=json.dumps(_given(body), allow_nan=False).encode(),
    )


def generation(generation_id: str) -> Request:
    """Look a generation up."""
    return Request("GET", _path(generation_id))


def filters(
    *,
    status: str | Iterable[str] | None,
    model: str | None,
    metadata: Mapping[str, str] | None,
    q: str | None,
    since: float | datetime | None,
    until: float | datetime | None,
) -> dict[str, str]:
    """Which generations are wanted of the list."""
    members = {f"metadata.{key}": value for key, value in (metadata or {}).items()}
    statuses = status if status is None or isinstance(status, str) else ",".join(status)
    return members | _given({"status": statuses, "model": model, "q": q, "since": _ms(since), "until": _ms(until)})


def page(filters: Mapping[str, str], *, limit: int, before: str | None) -> Request:
    """A page of the list."""
    return Request("GET", "/generations", query={**filters, **_given({"limit": str(limit), "before": before})})


def events(generation_id: str, after: str | None) -> Request:
    """Follow a generation, from after an event or from its start."""
    cursor = {} if after is None else {"Last-Event-ID": _check_event_id(after)}
    return Request("GET", f"{_path(generation_id)}/events", headers={"Accept": NDJSON, **cursor})


def transcript(generation_id: str, media_type: str, wait_s: float | None) -> Request:
    """What it has said; with `wait_s`, when it has ended, but not later than that."""
    return Request(
        "GET",
        f"{_path(generation_id)}/transcript",
        query={} if wait_s is None else {"wait": format(wait_s, "f")},
        headers={"Accept": media_type},
        held_s=wait_s or 0.0,
    )


def cancel(generation_id: str) -> Request:
    """Stop a generation."""
    return Request("POST", f"{_path(generation_id)}/cancel")


def delete(generation_id: str) -> Request:
    """Remove a generation."""
    return Request("DELETE", _path(generation_id))


def _check_event_id(text: str) -> str:
    """A cursor, if it is one: it goes into a header. Raises InvalidEventId otherwise."""
    if _EVENT_ID.fullmatch(text):
        return text
    raise InvalidEventId(f"event id {text[:100]!r}: expected <ms>-<seq>, two integers, or -1")


def _path(generation_id: str) -> str:
    """The path of a generation; what can be no id is no generation, and must not lead to another path."""
    if not _GENERATION_ID.fullmatch(generation_id):
        raise GenerationNotFound(f"generation {generation_id[:150]!r} does not exist")
    return f"/generations/{generation_id}"


def _ms(time: float | datetime | None) -> str | None:
    """A time in unix seconds, or a datetime, in unix ms."""
    seconds = time.timestamp() if isinstance(time, datetime) else time
    return None if seconds is None else str(round(seconds * 1000))


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the caller has not left out."""
    return {name: value for name, value in values.items() if value is not None}
