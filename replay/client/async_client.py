"""The client for asyncio: `replay.AsyncClient`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import httpx2

from replay.client import calls, requests
from replay.client.backoff import Backoff
from replay.client.connection import LOST, Connection, answer_of
from replay.client.events import Event
from replay.client.exchange import Outcome, Request
from replay.client.following import Following, OnLost
from replay.client.generations import Generation, Transcript

T = TypeVar("T")


class AsyncClient:
    """A client of the service for asyncio: `replay.Client` with `await`, for what it takes, does and raises see there.

    One event loop uses it; close it with `await client.close()`, or use it in an `async with` statement.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        retry_for: float = 10.0,
        silence_timeout: float = 60.0,
    ) -> None:
        self._connection = Connection(url, headers=headers, timeout_s=timeout, silence_timeout_s=silence_timeout)
        self._http = httpx2.AsyncClient(**self._connection.options())
        self._retry_for_s = retry_for

    @property
    def url(self) -> str:
        """Where the service is."""
        return self._connection.url

    async def start(
        self,
        prompt: str | None = None,
        *,
        messages: Iterable[Mapping[str, Any]] | None = None,
        model: str | None = None,
        id: str | None = None,
        ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        abandon_after: float | None = None,
        idempotency_key: str | None = None,
        **parameters: Any,
    ) -> Generation:
        """Start a generation; it goes on whether or not anybody follows it. See `Client.start`."""
        options = {"id": id, "ttl": ttl, "metadata": metadata, "abandon_after": abandon_after}
        call = calls.start(
            {**parameters, "model": model},
            prompt,
            messages,
            options=options,
            idempotency_key=idempotency_key,
            backoff=self._backoff(),
        )
        return await self._run(call)

    def follow(
        self,
        generation_id: str,
        *,
        after: str | None = None,
        give_up_after: float | None = None,
        on_lost: OnLost | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Yield every event of a generation exactly once, through any number of cuts. See `Client.follow`.

        Whoever leaves the loop early and wants the connection closed then uses `contextlib.aclosing`.
        """
        following = Following(generation_id, after=after, backoff=Backoff(give_up_after), on_lost=on_lost)
        return self._follow(following)

    async def generation(self, generation_id: str) -> Generation:
        """A generation as it is now; raises GenerationNotFound."""
        return await self._run(calls.generation(generation_id, self._backoff()))

    async def list(
        self,
        *,
        status: str | Iterable[str] | None = None,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        q: str | None = None,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Generation]:
        """Yield generations, newest first. See `Client.list`."""
        filters = requests.filters(status=status, model=model, metadata=metadata, q=q, since=since, until=until)
        listing = calls.Listing(filters, limit=limit)
        while not listing.complete:
            page = await self._run(listing.page(self._backoff()))
            for generation in listing.take(page):
                yield generation

    async def transcript(self, generation_id: str, *, wait: float | None = None) -> Transcript:
        """What a generation has said. See `Client.transcript`."""
        return await self._run(calls.transcript(generation_id, wait, self._backoff()))

    async def text(self, generation_id: str, *, wait: float | None = None) -> str:
        """The visible answer so far. See `Client.text`."""
        return await self._run(calls.text(generation_id, wait, self._backoff()))

    async def markdown(self, generation_id: str, *, wait: float | None = None) -> str:
        """The answer so far with its reasoning and tool calls, as Markdown. See `Client.markdown`."""
        return await self._run(calls.markdown(generation_id, wait, self._backoff()))

    async def wait(self, generation_id: str, timeout: float | None = None) -> Generation:
        """The generation when it has ended. See `Client.wait`."""
        return await self._run(calls.wait(generation_id, timeout))

    async def cancel(self, generation_id: str) -> Generation:
        """Stop a generation; what it has said stays. See `Client.cancel`."""
        return await self._run(calls.cancel(generation_id, self._backoff()))

    async def delete(self, generation_id: str) -> None:
        """Remove a generation and every trace of it. See `Client.delete`."""
        await self._run(calls.delete(generation_id, self._backoff()))

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _backoff(self) -> Backoff:
        return Backoff(self._retry_for_s)

    async def _run(self, call: calls.Call[T]) -> T:
        try:
            step = next(call)
            while True:
                await asyncio.sleep(step.after_s)
                step = call.send(await self._send(step.request))
        except StopIteration as done:
            result: T = done.value
            return result

    async def _send(self, request: Request) -> Outcome:
        try:
            return answer_of(await self._http.request(**self._connection.arguments(request)))
        except LOST as error:
            return self._connection.lost(error)

    async def _follow(self, following: Following) -> AsyncGenerator[Event, None]:
        while not following.complete:
            try:
                async with self._http.stream(**self._connection.stream_arguments(following.connect())) as response:
                    if following.accepts(response.status_code, response.headers):
                        async for piece in response.aiter_raw():
                            for event in following.take(piece):
                                yield event
                            if following.complete:
                                return
                        outcome = following.ended()
                    else:
                        await response.aread()
                        outcome = answer_of(response)
            except LOST as error:
                outcome = self._connection.lost(error)
            if (question := following.question()) is not None:
                following.settle(await self._send(question))
            if not following.complete:
                await asyncio.sleep(following.pause_s(outcome))
