"""Answers that are over, as OpenAI's clients ask for them: one, its messages, the list of all."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from aiohttp import web

from replay.errors import GenerationNotFound, InvalidRequest
from replay.http.negotiation import generation_id_of
from replay.http.openai_lists import listing, page_of, read_paging
from replay.http.openai_service import OpenAIService, answer_json, assembled, kept_request
from replay.live.feed import Feed
from replay.model.event import Kind
from replay.model.generation import Start, Status
from replay.store import Bounds, Row
from replay.upstream import Api
from replay.wire.events import decode_end, decode_start
from replay.wire.responses_request import chat_request

_PAGE = 100
_MOST_PAGES = 100  # looked through for one answer
_METADATA = re.compile(r"metadata\[(.+)\]")


class Stored:
    """`GET /v1/chat/completions` and what is below it."""

    def __init__(self, service: OpenAIService) -> None:
        self._service = service

    def routes(self) -> list[web.RouteDef]:
        """What this face answers."""
        return [
            web.get("/v1/chat/completions", self.list_completions),
            web.get("/v1/chat/completions/{id}", self.get),
            web.delete("/v1/chat/completions/{id}", self.delete),
            web.get("/v1/chat/completions/{id}/messages", self.messages),
        ]

    async def get(self, request: web.Request) -> web.Response:
        """Answer with the assembled `chat.completion`; one that did not complete says so in a member `replay`."""
        feed = await self._service.hub.open(generation_id_of(request))
        return answer_json(_shown(feed), feed)

    async def delete(self, request: web.Request) -> web.Response:
        """Cancel if live, and remove every trace."""
        generation_id = generation_id_of(request)
        await self._service.endings.delete(generation_id)
        return answer_json({"id": generation_id, "object": "chat.completion.deleted", "deleted": True})

    async def messages(self, request: web.Request) -> web.Response:
        """Answer with the messages of the request."""
        feed = await self._service.hub.open(generation_id_of(request))
        body = await kept_request(self._service, feed)
        if feed.start.api == Api.RESPONSES:
            body = chat_request(body)
        messages = [
            {"id": f"{feed.generation_id}-{index}", **message} for index, message in enumerate(body.get("messages", ()))
        ]
        return answer_json(page_of(request, messages), feed)

    async def list_completions(self, request: web.Request) -> web.Response:
        """Answer with completed chat completions, oldest first or, with `order=desc`, newest first."""
        paging, chosen = read_paging(request), _Filter(request)
        row = None if paging.after is None else await self._row(paging.after)
        ids: list[str] = []
        for _ in range(_MOST_PAGES):
            page = await self._service.store.recent(before=row, limit=_PAGE, oldest_first=paging.oldest_first)
            all_bounds = await self._service.store.bounds(page.generation_ids)
            ids += [bounds_id(bounds) for bounds in all_bounds if bounds is not None and chosen.has(bounds)]
            row = page.next
            if len(ids) > paging.limit or row is None:
                break
        completions = [completion async for completion in self._shown(ids[: paging.limit])]
        return answer_json(listing(completions, has_more=len(ids) > paging.limit or row is not None))

    async def _shown(self, generation_ids: Sequence[str]) -> AsyncIterator[dict[str, Any]]:
        for generation_id in generation_ids:
            with contextlib.suppress(GenerationNotFound):  # it has expired since it was listed
                yield _shown(await self._service.hub.open(generation_id))

    async def _row(self, generation_id: str) -> Row:
        (bounds,) = await self._service.store.bounds([generation_id])
        if bounds is None:
            raise InvalidRequest(f"after={generation_id[:150]!r}: expected the id of a completion that is still here")
        return Row(bounds.first.id.ms, generation_id)


class _Filter:
    """What a list is asked for."""

    def __init__(self, request: web.Request) -> None:
        self._model = request.query.get("model")
        self._metadata = dict(_metadata(request))

    def has(self, bounds: Bounds) -> bool:
        """Whether a generation belongs on the list."""
        if bounds.first.kind is not Kind.START or bounds.last.kind is not Kind.END:
            return False
        if decode_end(bounds.last.entry).status is not Status.COMPLETED:
            return False
        start = decode_start(bounds.first.entry)
        if start.api not in (None, Api.CHAT) or self._model not in (None, start.model):
            return False
        metadata = start.metadata or {}
        return all(metadata.get(key) == value for key, value in self._metadata.items())


def _metadata(request: web.Request) -> Iterator[tuple[str, str]]:
    for name, value in request.query.items():
        match = _METADATA.fullmatch(name)
        if match is not None:
            yield match[1], value


def bounds_id(bounds: Bounds) -> str:
    """Whose ends these are."""
    return decode_start(bounds.first.entry).generation_id


def _shown(feed: Feed) -> dict[str, Any]:
    start: Start = feed.start
    completion = assembled(feed) | {"metadata": start.metadata or {}}
    if feed.completed:
        return completion
    error = None if feed.end is None else feed.end.error
    return completion | {"replay": {"status": feed.recording.status, "error": error}}
