"""`/v1/chat/completions`, `/v1/completions` and `/v1/models`: OpenAI's API in front of the log.

A client changes its base URL, and what it starts is a generation like any other. The head of a streamed answer
waits for the upstream's, so that a refusal keeps its status.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aiohttp import web

from replay.errors import InvalidRequest, ModelNotFound
from replay.http.bodies import shown
from replay.http.headers import REQUEST_ID
from replay.http.openai_service import OpenAIService, answer_json, assembled, link_headers, take_flag
from replay.http.start_requests import chat_request, credentials_of, start_request_of
from replay.live.starter import Started
from replay.upstream import Api
from replay.wire.events import Format
from replay.wire.openai import wants_usage
from replay.wire.openai_formats import COMPLETIONS, COMPLETIONS_BARE


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
        """Answer with a chat completion, streamed or whole."""
        return await self._answer(request, *await self._start_chat(request))

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer with a legacy completion, streamed or whole."""
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
        started = await service.starter.start(replace(start_request, unstreamed=not stream))
        return started, format if stream else None

    async def _answer(self, request: web.Request, started: Started, format: Format | None) -> web.StreamResponse:
        service, feed = self._service, started.feed
        if format is None:
            feed = await service.whole_answer(feed)
            if feed.completed:
                return answer_json(assembled(feed), feed)
            return await service.failure(feed, alone=started.alone)
        await service.first_words(feed)
        if feed.unanswered:
            return await service.failure(feed, alone=started.alone)
        headers = link_headers(feed) | {"x-request-id": request[REQUEST_ID]}
        return service.streaming.stream(request, feed, format, headers=headers)

    async def models(self, request: web.Request) -> web.Response:
        """Answer with the upstream's models."""
        service = self._service
        return answer_json(await service.upstream.models(credentials_of(request, service.settings)))

    async def model(self, request: web.Request) -> web.Response:
        """Answer with one of them; raises ModelNotFound."""
        service = self._service
        name = request.match_info["model"]
        models = await service.upstream.models(credentials_of(request, service.settings))
        for model in models["data"]:
            if model["id"] == name:
                return answer_json(model)
        raise ModelNotFound(f"model {name[:100]!r} is not listed by the upstream")
