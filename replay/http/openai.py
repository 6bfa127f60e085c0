"""OpenAI's API in front of the log: `/v1/chat/completions`, `/v1/completions`, `/v1/models`.

A client changes its base URL, and what it starts is a generation like any other. The head of a streamed answer
waits for the upstream's, so that a refusal keeps its status.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

from aiohttp import web

from replay.config import Settings
from replay.errors import (
    Draining,
    GenerationNotFound,
    InvalidRequest,
    ModelNotFound,
    Refusal,
    StoreUnavailable,
    status_of,
)
from replay.http.bodies import Bodies, shown
from replay.http.headers import names_of
from replay.http.problems import openai_error, refused
from replay.http.start_requests import chat_request, credentials_of, start_request_of
from replay.http.streaming import Streaming
from replay.live.feed import Feed
from replay.live.hub import Hub
from replay.live.producers import Producers
from replay.live.starter import Started, Starter
from replay.model.generation import End
from replay.store import EventStore
from replay.upstream import Api, Upstream
from replay.wire import json
from replay.wire.completions import completion_of, sent_whole
from replay.wire.events import Format, decode_end
from replay.wire.openai import wants_usage
from replay.wire.openai_formats import COMPLETIONS, COMPLETIONS_BARE, error_object


@dataclass(frozen=True, slots=True)
class OpenAIService:
    """What the faces of OpenAI's API have in common."""

    store: EventStore
    hub: Hub
    producers: Producers
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
            await self.producers.clear(feed)
        response = _failure(feed)
        for name in link_headers(feed):
            del response.headers[name]
        return response

    @property
    def patience_s(self) -> float:
        """The least that a stream waits for something to show before it is answered with its head."""
        return min(self.settings.keepalive_s, self.settings.head_patience_s)

    def _nobody_has_a_head(self, feed: Feed) -> bool:
        """Whether it ended before any call that was led to it can have been answered with its id."""
        lasted_ms = feed.log.times[-1] - feed.log.times[0]
        background = (feed.start.response or {}).get("background")
        return not background and lasted_ms < self.patience_s * 1000

    async def whole(self, feed: Feed) -> Feed:
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


def said_nothing(feed: Feed) -> bool:
    """Whether it has ended without a word, so that its failure is the whole answer."""
    return len(feed.log) == 2 and feed.log.complete and not feed.completed


def _failure(feed: Feed) -> web.Response:
    end = decode_end(feed.log.entries[-1])
    response = refused(Refusal(**end.refusal)) if end.refusal is not None else _failed(end)
    response.headers.update(link_headers(feed))
    return response


def _failed(end: End) -> web.Response:
    status = HTTPStatus.CONFLICT if end.error is None else status_of(end.error["code"])  # without: it was cancelled
    return openai_error(status, **error_object(end))


class Completions:
    """`POST /v1/chat/completions`, `POST /v1/completions`, `GET /v1/models`."""

    def __init__(self, service: OpenAIService) -> None:
        self._service = service

    def routes(self) -> list[web.RouteDef]:
        """What this face answers."""
        return [
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/completions", self.complete),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{model:.+}", self.model),
        ]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """A chat completion, streamed or whole."""
        return await self._answer(request, *await self._start_chat(request))

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """A legacy completion, streamed or whole."""
        return await self._answer(request, *await self._start_completion(request))

    async def _start_chat(self, request: web.Request) -> tuple[Started, Format | None]:
        async with self._service.bodies.read_object(request) as body:
            return await self._start(request, chat_request(body), Api.CHAT)

    async def _start_completion(self, request: web.Request) -> tuple[Started, Format | None]:
        async with self._service.bodies.read_object(request) as body:
            if not isinstance(body.get("prompt"), str | list):
                raise InvalidRequest(f"prompt: expected a string or a list, got {shown(body.get('prompt'))}")
            return await self._start(request, body, Api.COMPLETIONS)

    async def _start(self, request: web.Request, body: dict[str, Any], api: Api) -> tuple[Started, Format | None]:
        """Start it; the format of its stream, None where the whole is wanted."""
        service = self._service
        options = body.pop("replay", None)
        stream = take_flag(body, "stream")
        format = COMPLETIONS if wants_usage(body) else COMPLETIONS_BARE
        start_request = start_request_of(request, body, options, service.settings, api=api)
        started = await service.starter.start(replace(start_request, whole=not stream))
        return started, format if stream else None

    async def _answer(self, request: web.Request, started: Started, format: Format | None) -> web.StreamResponse:
        service, feed = self._service, started.feed
        if format is None:
            feed = await service.whole(feed)
            if feed.completed:
                return answer_json(assembled(feed), feed)
            return await service.failure(feed, alone=started.alone)
        await service.first_words(feed)
        if said_nothing(feed):
            return await service.failure(feed, alone=started.alone)
        headers = link_headers(feed) | {"x-request-id": request["request_id"]}
        return service.streaming.stream(request, feed, format, headers=headers)

    async def models(self, request: web.Request) -> web.Response:
        """The upstream's models."""
        service = self._service
        return answer_json(await service.upstream.models(credentials_of(request, service.settings)))

    async def model(self, request: web.Request) -> web.Response:
        """One of them; raises ModelNotFound."""
        service = self._service
        name = request.match_info["model"]
        models = await service.upstream.models(credentials_of(request, service.settings))
        for model in models["data"]:
            if model["id"] == name:
                return answer_json(model)
        raise ModelNotFound(f"model {name[:100]!r} is not listed by the upstream")


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
