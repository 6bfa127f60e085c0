"""A generation's transcript: what it has said, whole or so far."""

from __future__ import annotations

from itertools import pairwise
from statistics import quantiles
from typing import Any

from aiohttp import web

from replay.http import negotiation
from replay.http.negotiation import generation_id_of
from replay.live.feed import Feed
from replay.live.hub import Hub
from replay.model.generation import Status, status_of
from replay.model.growth import REASONING_NAMES
from replay.wire import json

_JSON = "application/json"
_TEXT = "text/plain"
_MARKDOWN = "text/markdown"
_LONGEST_WAIT_S = 60


class Transcripts:
    """`GET /generations/{id}/transcript`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def routes(self) -> list[web.RouteDef]:
        """What this face answers."""
        return [web.get("/generations/{id}/transcript", self.transcript)]

    async def transcript(self, request: web.Request) -> web.StreamResponse:
        """Answer with the transcript so far or, with `wait`, as soon as the generation has ended."""
        media_type = negotiation.accepted(request, (_JSON, _TEXT, _MARKDOWN))
        wait_s = negotiation.number(request, "wait", least=0, most=_LONGEST_WAIT_S)
        feed = await self._hub.open(generation_id_of(request))
        if wait_s and not await feed.wait_end(wait_s) and feed.invalid:
            feed = await self._hub.open(feed.generation_id)
        etag = _etag(feed, media_type)
        headers = {"Cache-Control": "no-cache", "Vary": "Accept", "ETag": f'"{etag}"'}
        if any(known.value in (etag, "*") for known in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        document = transcript_of(feed, len(feed.log))
        headers["Replay-Status"] = document["status"]
        if media_type == _JSON:
            return web.Response(body=json.dumps(document), content_type=_JSON, headers=headers)
        text = document["text"] if media_type == _TEXT else _as_markdown(document)
        return web.Response(
            body=text.encode(errors="replace"), content_type=media_type, charset="utf-8", headers=headers
        )


def _etag(feed: Feed, media_type: str) -> str:
    """The last event's id, told apart by media type as a strong validator must be."""
    last_id = str(feed.log.last_id)
    return last_id if media_type == _JSON else f"{last_id}-{media_type.rpartition('/')[2]}"


def transcript_of(feed: Feed, stop: int) -> dict[str, Any]:
    """The transcript of the events before ``stop`` as a JSON object."""
    log = feed.log
    start = feed.start
    transcript = feed.transcript(stop)
    status = status_of(feed.end if stop == len(log) else None, last_seq=stop - 1)
    return {
        "id": feed.generation_id,
        "status": status.value,
        "model": start.model,
        "created": log.times[0] / 1000,
        "text": transcript.text,
        "message": transcript.message,
        "finish_reason": transcript.finish_reason,
        "usage": transcript.usage,
        "last_event_id": str(log.event_id(stop - 1)),
        "timing": _timing(log.times[0], log.times[stop - 1], log.token_times(stop)),
        "metadata": start.metadata or {},
    }


def _timing(started_ms: int, last_ms: int, token_times: list[int]) -> dict[str, Any]:
    """How fast it went. The rate is that between the first and the last token; null where there are too few."""
    gaps = sorted(later - earlier for earlier, later in pairwise(token_times))
    lasted_ms = token_times[-1] - token_times[0] if token_times else 0
    return {
        "ttft_ms": token_times[0] - started_ms if token_times else None,
        "duration_ms": last_ms - started_ms,
        "tokens_per_second": round(len(gaps) * 1000 / lasted_ms, 3) if lasted_ms else None,
        "inter_token_ms": {
            "p50": _percentile(gaps, 50),
            "p95": _percentile(gaps, 95),
            "max": gaps[-1] if gaps else None,
        },
    }


def _percentile(ordered: list[int], percent: int) -> float | None:
    if len(ordered) < 2:
        return ordered[0] if ordered else None
    return round(quantiles(ordered, n=100, method="inclusive")[percent - 1], 3)


def _as_markdown(document: dict[str, Any]) -> str:
    """The answer, which usually is Markdown, with what else was said and with how it ended if it broke."""
    message = document["message"]
    parts = []
    reasoning = next((message[name] for name in REASONING_NAMES if message.get(name)), None)
    if isinstance(reasoning, str):
        parts.append("\n".join(f"> {line}" for line in reasoning.split("\n")))
    parts += [text for text in (document["text"], message.get("refusal")) if text and isinstance(text, str)]
    for call in message.get("tool_calls", ()):
        called = call.get("function") or call.get("custom") or {}
        parts.append(f"**{called.get('name')}**\n\n```\n{called.get('arguments', called.get('input', ''))}\n```")
    if document["status"] != Status.COMPLETED:
        parts.append(f"*({document['status']})*")
    return "\n\n".join(parts) + "\n"
