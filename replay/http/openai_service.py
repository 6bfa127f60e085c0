"""What all faces of OpenAI's API share: what they are answered from, and how they fail."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aiohttp import web

from replay.config import Settings
from replay.errors import (
    Draining,
    GenerationNotFound,
    InvalidRequest,
    Refusal,
    StoreUnavailable,
    status_of,
)
from replay.http.bodies import Bodies, shown
from replay.http.headers import names_of
from replay.http.problems import openai_error, refused
from replay.http.streaming import Streaming
from replay.live.endings import Endings
from replay.live.feed import Feed
from replay.live.hub import Hub
from replay.live.producers import Producers
from replay.live.starter import Starter
from replay.model.generation import End
from replay.store import EventStore
from replay.upstream import Api, Upstream
from replay.wire import json
from replay.wire.completions import completion_of, sent_whole
from replay.wire.openai_formats import error_object


@dataclass(frozen=True, slots=True)
class OpenAIService:
    """What the faces of OpenAI's API have in common."""

    store: EventStore
    hub: Hub
    producers: Producers
    endings: Endings
    starter: Starter
    upstream: Upstream
    streaming: Streaming
    bodies: Bodies
    settings: Settings

    async def first_words(self, feed: Feed) -> None:
        """Wait a while for the upstream to say something, or to refuse; raises Draining, StoreUnavailable."""
        with feed.subscribed():
            await self.producers.answered(feed)
        self.check_open(feed)

    def check_open(self, feed: Feed) -> None:
        """Refuse to stream what cannot be streamed from here now; raises Draining, StoreUnavailable."""
        if self.streaming.closed:
            raise Draining("this node is shutting down")
        if feed.invalid:
            raise StoreUnavailable("the generation's log is not there just now")

    async def failure(self, feed: Feed, *, alone: bool) -> web.Response:
        """The answer for a generation that did not complete: what the upstream answered, or an error of ours.

        Of one that was refused before its first word nothing stays: who has sent the call knows, and nobody else can
        have seen anything of it. So a chosen id is free for another try. ``alone``: no other call is led to it.
        """
        if not feed.refused or not (alone or self._nobody_has_a_head(feed)):
            return _failure(feed)
        with suppress(GenerationNotFound, StoreUnavailable):
            await self.endings.clear(feed)
        response = _failure(feed)
        for name in link_headers(feed):
            del response.headers[name]
        return response

    @property
    def head_wait_s(self) -> float:
        """The least that a stream waits for something to show before it is answered with its head."""
        return min(self.settings.keepalive_s, self.settings.head_patience_s)

    def _nobody_has_a_head(self, feed: Feed) -> bool:
        """Whether it ended before any call that was led to it can have been answered with its id."""
        lasted_ms = feed.log.times[-1] - feed.log.times[0]
        background = (feed.start.response or {}).get("background")
        return not background and lasted_ms < self.head_wait_s * 1000

    async def whole_answer(self, feed: Feed) -> Feed:
        """Wait for the end, however long it takes; the feed that has it."""
        while True:
            with feed.subscribed():
                if await feed.wait_end(None):
                    return feed
            feed = await self.hub.open(feed.generation_id)


def link_headers(feed: Feed) -> dict[str, str]:
    """What every answer tells of its generation."""
    path = f"/generations/{feed.generation_id}/events"
    return names_of(feed.start) | {"Link": f'<{path}>; rel="monitor"'}


def answer_json(body: Any, feed: Feed | None = None, *, status: int = 200) -> web.Response:
    """An object of OpenAI's API."""
    headers = {"Cache-Control": "no-cache"} | (link_headers(feed) if feed is not None else {})
    return web.Response(body=json.dumps(body), status=status, content_type="application/json", headers=headers)


def _failure(feed: Feed) -> web.Response:
    end = feed.end
    assert end is not None, "only an end is a failure"
    response = refused(Refusal(**end.refusal)) if end.refusal is not None else _failed(end)
    response.headers.update(link_headers(feed))
    return response


def _failed(end: End) -> web.Response:
    status = HTTPStatus.CONFLICT if end.error is None else status_of(end.error["code"])  # without: it was cancelled
    return openai_error(status, **error_object(end))


async def kept_request(service: OpenAIService, feed: Feed) -> dict[str, Any]:
    """The body that the upstream was sent; raises GenerationNotFound when it was not kept."""
    raw = await service.store.request(feed.generation_id)
    if raw is None:
        raise GenerationNotFound(
            f"the request of {feed.generation_id!r} was not kept: `store` was false, or it is larger than "
            f"{service.settings.max_kept_request_bytes} bytes (--max-kept-request-bytes)"
        )
    body: dict[str, Any] = json.loads(raw)
    return body


def take_flag(body: dict[str, Any], name: str) -> bool:
    """Take a member that is true, false or null out of a body; raises InvalidRequest."""
    value = body.pop(name, None)
    if not isinstance(value, bool | None):
        raise InvalidRequest(f"{name}: expected true or false, got {shown(value)}")
    return bool(value)


def assembled(feed: Feed) -> dict[str, Any]:
    """The whole answer so far, as a call without streaming gives it."""
    log, start = feed.log, feed.start
    whole = sent_whole(feed.recording)
    if whole is not None:
        return whole
    return completion_of(
        feed.transcript(len(log)),
        legacy=start.api == Api.COMPLETIONS,
        generation_id=feed.generation_id,
        model=start.model,
        created=log.times[0] // 1000,
    )
