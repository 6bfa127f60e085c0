"""The client for programs that block: `replay.Client`."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
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


class Client:
    """A client of the service. Threads may share one; `close` it, or use it in a `with` statement.

    `url` is the service's, else that in `REPLAY_URL`, else `http://127.0.0.1:8080`; `headers` go with every request.
    A call waits `timeout` seconds for its answer. Where the service cannot be reached, or answers 503, it is made again
    for up to `retry_for` seconds; no call does anything twice. A follower that has heard nothing for `silence_timeout`
    seconds connects anew; the service sends a keep-alive every 15 s.

    Every error is a `replay.errors.ReplayError`. What the service refuses is raised as the class with its code there,
    as `GenerationNotFound`, or as `UnknownProblem` where this client does not know the code; no answer is
    `Unreachable`, and one of something else than the service `UnexpectedAnswer`. A URL that is none is
    `InvalidSetting`.
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
        self._http = httpx2.Client(**self._connection.options())
        self._retry_for_s = retry_for

    @property
    def url(self) -> str:
        """Where the service is."""
        return self._connection.url

    def start(
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
        """Start a generation; it goes on whether or not anybody follows it.

        Give a `prompt`, or `messages` as OpenAI's API takes them; all further `parameters` (`temperature`,
        `max_tokens`, `tools`, …) go to the upstream. Without a `model` its first is taken. `id` is 1 to 128 of
        `A-Z a-z 0-9 _ -`; `ttl` is for how many seconds it is kept after its end; `metadata` comes back with it;
        `abandon_after` cancels it when nobody has watched for so many seconds.

        The same `idempotency_key` gives the generation that the first call started, unless that has failed. Without one
        each call makes its own, so that an answer which was lost is asked for again and nothing runs twice. Raises
        InvalidRequest, GenerationExists for an `id` that is taken, IdempotencyKeyReused for a key with another request,
        TooManyGenerations.
        """
        options = {"id": id, "ttl": ttl, "metadata": metadata, "abandon_after": abandon_after}
        call = calls.start(
            {**parameters, "model": model},
            prompt,
            messages,
            options=options,
            idempotency_key=idempotency_key,
            backoff=self._backoff(),
        )
        return self._run(call)

    def follow(
        self,
        generation_id: str,
        *,
        after: str | None = None,
        give_up_after: float | None = None,
        on_lost: OnLost | None = None,
    ) -> Generator[Event, None, None]:
        """Yield every event of a generation exactly once, the past at once and then live; ends after its `End`.

        Begins after the event `after` (an `event_id`), else with `Start`. A connection that is lost, also by a node
        that restarts, is made again after 0 to 5 s, for ever or until the service has not been reached for
        `give_up_after` seconds. `on_lost` is called each time with the error and the seconds until the next try.
        `Live` says that the past has been shown; `Reset` that what was shown is not of this log, which follows from
        its `Start`. Raises GenerationNotFound, also for one that is deleted meanwhile, InvalidEventId, Unreachable.
        """
        following = Following(generation_id, after=after, backoff=Backoff(give_up_after), on_lost=on_lost)
        return self._follow(following)

    def generation(self, generation_id: str) -> Generation:
        """A generation as it is now; raises GenerationNotFound."""
        return self._run(calls.generation(generation_id, self._backoff()))

    def list(
        self,
        *,
        status: str | Iterable[str] | None = None,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        q: str | None = None,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
        limit: int | None = None,
    ) -> Iterator[Generation]:
        """Yield generations, newest first; all that meet every filter, or at most `limit`.

        `status` is one or several, `metadata` the members it has to have, each value as text, `q` a part of the id, the
        model or a value of the metadata in any case; `since` and `until`, both included, are when it was created, as
        unix seconds or a datetime. Pages are asked for as they are needed; raises InvalidRequest for a status that is
        none.
        """
        filters = requests.filters(status=status, model=model, metadata=metadata, q=q, since=since, until=until)
        listing = calls.Listing(filters, limit=limit)
        while not listing.complete:
            page = self._run(listing.page(self._backoff()))
            yield from listing.take(page)

    def transcript(self, generation_id: str, *, wait: float | None = None) -> Transcript:
        """What a generation has said so far; with `wait` (seconds, 0 to 60), when it has ended or they are over.

        `status` tells whether it is the whole. Raises GenerationNotFound, InvalidRequest.
        """
        return self._run(calls.transcript(generation_id, wait, self._backoff()))

    def text(self, generation_id: str, *, wait: float | None = None) -> str:
        """The visible answer so far; as `transcript`."""
        return self._run(calls.text(generation_id, wait, self._backoff()))

    def markdown(self, generation_id: str, *, wait: float | None = None) -> str:
        """The answer so far with its reasoning and tool calls, as Markdown; as `transcript`."""
        return self._run(calls.markdown(generation_id, wait, self._backoff()))

    def wait(self, generation_id: str, timeout: float | None = None) -> Generation:
        """The generation when it has ended, however: look at its `status`.

        Waits through outages, for ever or for `timeout` seconds; then raises TimeoutError, or Unreachable where the
        service cannot be reached. Raises GenerationNotFound.
        """
        return self._run(calls.wait(generation_id, timeout))

    def cancel(self, generation_id: str) -> Generation:
        """Stop a generation; what it has said stays. One that has ended stays as it is. Raises GenerationNotFound."""
        return self._run(calls.cancel(generation_id, self._backoff()))

    def delete(self, generation_id: str) -> None:
        """Remove a generation and every trace of it, cancelled first if it goes on; raises GenerationNotFound."""
        self._run(calls.delete(generation_id, self._backoff()))

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _backoff(self) -> Backoff:
        return Backoff(self._retry_for_s)

    def _run(self, call: calls.Call[T]) -> T:
        try:
            step = next(call)
            while True:
                time.sleep(step.after_s)
                step = call.send(self._send(step.request))
        except StopIteration as done:
            result: T = done.value
            return result

    def _send(self, request: Request) -> Outcome:
        try:
            return answer_of(self._http.request(**self._connection.arguments(request)))
        except LOST as error:
            return self._connection.lost(error)

    def _follow(self, following: Following) -> Generator[Event, None, None]:
        while not following.complete:
            try:
                with self._http.stream(**self._connection.stream_arguments(following.connect())) as response:
                    if following.accepts(response.status_code, response.headers):
                        for piece in response.iter_raw():
                            yield from following.take(piece)
                            if following.complete:
                                return
                        outcome = following.ended()
                    else:
                        response.read()
                        outcome = answer_of(response)
            except LOST as error:
                outcome = self._connection.lost(error)
            if (question := following.question()) is not None:
                following.settle(self._send(question))
            if not following.complete:
                time.sleep(following.pause_s(outcome))
