"""OpenAI's Responses API in front of the log: `/v1/responses`.

A response is a generation as any other, so all of them run in the background; `background` decides only whether
the call waits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aiohttp import web

from replay.errors import GenerationNotFound, InvalidRequest, PreviousResponseNotFound
from replay.http import negotiation
from replay.http.bodies import shown
from replay.http.headers import REQUEST_ID
from replay.http.negotiation import generation_id_of
from replay.http.openai_lists import page_of
from replay.http.openai_service import OpenAIService, answer_json, kept_request, link_headers, take_flag
from replay.http.problems import openai_error
from replay.http.start_requests import start_request_of
from replay.live.feed import Feed
from replay.live.starter import Started
from replay.model.generation import is_generation_id
from replay.offload import offload
from replay.upstream import Api
from replay.wire import json
from replay.wire.kept_request import without_keys
from replay.wire.repeated import REPEATED
from replay.wire.responses_format import RESPONSE_EVENTS, ResponseView
from replay.wire.responses_tools import Tools, tools_of

_LARGEST_NUMBER = 2**31
_BULKY = ("tools", "instructions", "text")


class ResponseCalls:
    """`/v1/responses` and what is below it."""

    def __init__(self, service: OpenAIService) -> None:
        self._service = service

    def routes(self) -> list[web.RouteDef]:
        """What this face answers."""
        return [
            web.post("/v1/responses", self.create),
            web.get("/v1/responses", self.upgrade, allow_head=False),
            web.get("/v1/responses/{id}", self.get),
            web.delete("/v1/responses/{id}", self.delete),
            web.post("/v1/responses/{id}/cancel", self.cancel),
            web.get("/v1/responses/{id}/input_items", self.input_items),
        ]

    async def upgrade(self, request: web.Request) -> web.StreamResponse:
        """Refuse a WebSocket so that a client which would rather have one goes on without at once."""
        if request.headers.get("Upgrade", "").lower() != "websocket":
            raise web.HTTPMethodNotAllowed(request.method, ["POST"])
        refused = openai_error(
            426, "there is no WebSocket here; POST instead", "invalid_request_error", "upgrade_required"
        )
        refused.headers["Upgrade"] = "HTTP/1.1"
        return refused

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Start a response; answer with its events, with the whole, or, in the background, with what there is."""
        service = self._service
        started, stream, background = await self._start(request)
        feed = started.feed
        if not background:
            if stream:
                await service.first_words(feed)
            else:
                feed = await service.whole_answer(feed)
            if feed.unanswered:
                return await service.failure(feed, alone=started.alone)
        return self._stream(request, feed) if stream else self._answer(feed)

    async def _start(self, request: web.Request) -> tuple[Started, bool, bool]:
        """Start it; whether its events are wanted, and whether in the background."""
        service = self._service
        async with service.bodies.read_object(request) as body:
            options = body.pop("replay", None)
            stream, background = take_flag(body, "stream"), take_flag(body, "background")
            repeated = self._repeated(body | {"background": background})
            _check(body)
            start_request = start_request_of(
                request, body, options, service.settings, api=Api.RESPONSES, response=repeated
            )
            tools = await offload(start_request.size, lambda: _tools(body))
            start_request = replace(
                start_request,
                prepare=self._continued,
                unstreamed=not (stream or background),
                ignored=tools.ignored or None,
                namespaced=tools.namespaced or None,
            )
            return await service.starter.start(start_request), stream, background

    def _repeated(self, body: dict[str, Any]) -> dict[str, Any]:
        """What the response repeats of its request; it stands in the log, so what is bulky or not to be kept is not."""
        repeated, _ = without_keys({name: body[name] for name in REPEATED if name in body})
        if body.get("store") is False or len(json.dumps(repeated)) > self._service.settings.max_metadata_bytes:
            return {name: value for name, value in repeated.items() if name not in _BULKY}
        return repeated

    async def _continued(self, body: dict[str, Any]) -> dict[str, Any]:
        """The request with all that was said before in its own input: the upstream need not remember it."""
        body = dict(body)
        previous = body.pop("previous_response_id", None)
        if previous is None:
            return body
        return body | {"input": [*await self._said(previous), *_items(body["input"])]}

    async def _said(self, previous: str) -> list[Any]:
        try:
            feed = await self._service.hub.open(previous)
            request = await kept_request(self._service, feed)
        except GenerationNotFound as error:
            raise PreviousResponseNotFound(f"previous_response_id: {error}") from error
        if not feed.completed or "input" not in request:
            raise PreviousResponseNotFound(f"previous_response_id: {previous!r} is no response that has completed")
        return [*_items(request["input"]), *map(_as_input, filter(_is_said, _response(feed)["output"]))]

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Answer with a response as it is now; with `stream=true` its events, all or those after `starting_after`."""
        feed = await self._service.hub.open(generation_id_of(request))
        if request.query.get("stream", "false").lower() != "true":
            return self._answer(feed)
        number = negotiation.integer(request, "starting_after", least=0, most=_LARGEST_NUMBER, default=-1)
        return self._stream(request, feed, after=number)

    def _stream(self, request: web.Request, feed: Feed, *, after: int = -1) -> web.StreamResponse:
        service = self._service
        service.check_open(feed)
        resumption = (0, b"") if after < 0 else feed.recording.view(ResponseView).after(after)
        if resumption is None and not feed.log.complete:
            raise InvalidRequest(f"starting_after={after}: expected the sequence_number of an event of this response")
        next_seq, with_head = resumption or (len(feed.log), b"")
        headers = link_headers(feed) | self._ignored(feed) | {"x-request-id": request[REQUEST_ID]}
        return service.streaming.stream(
            request, feed, RESPONSE_EVENTS, next_seq=next_seq, with_head=with_head, headers=headers
        )

    def _answer(self, feed: Feed) -> web.Response:
        answer = answer_json(_response(feed), feed)
        answer.headers.update(self._ignored(feed))
        return answer

    def _ignored(self, feed: Feed) -> dict[str, str]:
        """The header that names the tools which the upstream was not told of; none while that is not known."""
        start, translated = feed.start, feed.recording.view(ResponseView).translated
        if translated is None and start.ignored:
            translated = self._service.upstream.speaks_responses(start.model) is False
        return {"Replay-Ignored": ", ".join(start.ignored)} if translated and start.ignored else {}

    async def cancel(self, request: web.Request) -> web.Response:
        """Stop a response, on whichever node it runs; what it has said stays."""
        feed = await self._service.endings.cancel(generation_id_of(request))
        return self._answer(feed)

    async def delete(self, request: web.Request) -> web.Response:
        """Cancel if live, and remove every trace."""
        generation_id = generation_id_of(request)
        await self._service.endings.delete(generation_id)
        return answer_json({"id": generation_id, "object": "response", "deleted": True})

    async def input_items(self, request: web.Request) -> web.Response:
        """Answer with the items of the request, and those of the responses it continues."""
        feed = await self._service.hub.open(generation_id_of(request))
        items = _items((await kept_request(self._service, feed)).get("input", []))
        listed = [{"id": f"{feed.generation_id}-{index}", **_spelt_out(item)} for index, item in enumerate(items)]
        return answer_json(page_of(request, listed, order="desc"), feed)


def _check(body: dict[str, Any]) -> None:
    """Raises InvalidRequest for what no upstream need be asked about."""
    if not isinstance(body.get("input"), str | list):
        raise InvalidRequest(f"input: expected a string or a list of items, got {shown(body.get('input'))}")
    previous = body.get("previous_response_id")
    if previous is not None and not (isinstance(previous, str) and is_generation_id(previous)):
        raise InvalidRequest(f"previous_response_id: expected the id of a response, got {shown(previous)}")


def _tools(body: dict[str, Any]) -> Tools:
    """The tools of a request; none where it is wrong, which is for its upstream to say."""
    try:
        return tools_of(body)
    except InvalidRequest:
        return Tools([], [], {})


def _response(feed: Feed) -> dict[str, Any]:
    return feed.recording.view(ResponseView).response


def _items(given: Any) -> list[Any]:
    return [{"role": "user", "content": given}] if isinstance(given, str) else list(given)


def _is_said(item: dict[str, Any]) -> bool:
    """Whether an output item means something to an upstream that does not remember it."""
    return item.get("type") != "reasoning" or bool(item.get("encrypted_content"))


def _as_input(item: dict[str, Any]) -> dict[str, Any]:
    """An output item without what only the server that made it knows."""
    return {name: value for name, value in item.items() if name not in ("id", "status")}


def _spelt_out(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict) or "role" not in item:
        return item if isinstance(item, dict) else {"type": "unknown"}
    if not isinstance(item.get("content"), str):
        return {"type": "message", **item}
    kind = "output_text" if item["role"] == "assistant" else "input_text"
    return {"type": "message", **item, "content": [{"type": kind, "text": item["content"]}]}
