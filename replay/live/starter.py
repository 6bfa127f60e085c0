"""Starts generations: decides on the id, creates the log, and hands it to a producer, each exactly once."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from dataclasses import dataclass
from typing import Any

from replay.config import Settings
from replay.errors import (
    Draining,
    GenerationExists,
    GenerationNotFound,
    IdempotencyKeyReused,
    StoreUnavailable,
    TooManyGenerations,
)
from replay.live.clock import now_ms
from replay.live.feed import Feed
from replay.live.first_tries import FirstTries
from replay.live.hub import Hub
from replay.live.producers import Producers
from replay.live.start_request import StartRequest
from replay.live.tasks import Tasks
from replay.model.event import Event, Kind, number
from replay.model.generation import End, Start, Status, new_generation_id
from replay.offload import offload
from replay.store import Claim, EventStore
from replay.upstream import Api, Call, Upstream
from replay.wire import json
from replay.wire.events import decode_start, encode_end, encode_start
from replay.wire.kept_request import without_keys

logger = logging.getLogger(__name__)


class _ClaimOver(Exception):
    """Nothing can be created under a claim any more."""


@dataclass(frozen=True, slots=True)
class _NewLog:
    """What a log is created with."""

    start: Start
    request: bytes  # empty where it is not kept


@dataclass(frozen=True, slots=True)
class Started:
    """What became of a request to start."""

    feed: Feed
    created: bool  # False: an earlier call had started it

    @property
    def alone(self) -> bool:
        """Whether no other call is led to it."""
        return self.created and self.feed.start.idempotency is None


class Starter:
    """Any number of nodes may start the same generation at once: the log decides who has."""

    def __init__(
        self,
        store: EventStore,
        hub: Hub,
        producers: Producers,
        upstream: Upstream,
        settings: Settings,
        tasks: Tasks,
        *,
        node: str,
    ) -> None:
        self._store = store
        self._hub = hub
        self._producers = producers
        self._upstream = upstream
        self._settings = settings
        self._tasks = tasks
        self._node = node
        self._first_tries = FirstTries(store, hub, producers, node=node)

    async def start(self, start_request: StartRequest) -> Started:
        """Start a generation, or attach to the one that the same key, or the first try of this call, has started.

        Goes on when its caller is cancelled: a client that hangs up cancels nothing. A retry that still looks for its
        first try is given up: the next one would find what that has started. Raises Draining, TooManyGenerations,
        GenerationExists, IdempotencyKeyReused, StoreUnavailable, UpstreamError.
        """
        self._check_open()
        digest = await offload(start_request.size, start_request.digest)
        if digest is not None and start_request.retry:
            feed = await self._first_tries.take(digest)
            if feed is not None:
                return Started(feed, created=False)
        self._check_open()  # that may have taken seconds
        return await asyncio.shield(self._tasks.run(self._start(start_request, digest), name="start"))

    def _check_open(self) -> None:
        """Raises Draining, TooManyGenerations."""
        producers = self._producers
        if producers.draining:
            raise Draining("this node is shutting down")
        if producers.full:
            raise TooManyGenerations(f"this node produces {len(producers)} generations already (--max-generations)")

    async def _start(self, start_request: StartRequest, digest: str | None) -> Started:
        if start_request.idempotency_key is not None or start_request.job is not None:
            return await self._start_once(start_request)
        chosen = start_request.generation_id
        if chosen is not None and (self._producers.live(chosen) or await self._store.last(chosen) is not None):
            raise GenerationExists(f"generation {chosen!r} exists")
        return await self._create(start_request, chosen or new_generation_id(), digest=digest)

    async def _start_once(self, start_request: StartRequest) -> Started:
        """Start or attach under a key: the claim decides on the id, and the log on the producer, so nodes may race."""
        fingerprint = await offload(start_request.size, start_request.fingerprint)
        key = (
            f"job\0{start_request.job}\0{fingerprint}"
            if start_request.idempotency_key is None
            else start_request.idempotency_key
        )
        key_hash = hashlib.sha256(key.encode()).hexdigest()
        if self._hub.healing and await self._store.claimed(key_hash) is None:
            raise StoreUnavailable("Valkey has just come back, and it is not sure that this key is new")
        offer = Claim(start_request.generation_id or new_generation_id(), fingerprint, _new_mark())
        while True:
            claim = await self._store.claim(key_hash, offer, ttl_ms=self._settings.idempotency_ttl_s * 1000)
            if claim.fingerprint != fingerprint:
                raise IdempotencyKeyReused("the same Idempotency-Key came with another request body before")
            started = await self._start_under(start_request, key_hash, claim, new=claim == offer)
            if not started.feed.in_vain or started.created:
                return started
            if self._hub.healing:
                raise StoreUnavailable("Valkey has just come back, and it is not sure that this key has failed")
            # Whoever is first with the next attempt starts it, and the others are led there.
            offer = Claim(
                new_generation_id(),
                fingerprint,
                _new_mark(),
                claim.attempts_before + 1,
                claim.generation_id,
                claim.mark,
            )

    async def _start_under(self, start_request: StartRequest, key_hash: str, claim: Claim, *, new: bool) -> Started:
        """Start what a claim leads to, unless that was done; raises GenerationExists where its id is not the key's."""
        generation_id = claim.generation_id
        running = self._producers.live(generation_id)
        if running is not None and running.start.idempotency == key_hash:
            return Started(running, created=False)
        last = await self._store.last(generation_id)
        if last is None and not new and self._hub.healing:
            raise StoreUnavailable("Valkey has just come back and the generation of this key is not there yet")
        if last is None:
            try:
                return await self._create(
                    start_request,
                    generation_id,
                    idempotency=key_hash,
                    claim=claim.mark,
                    after=claim.after,
                    fingerprint=claim.fingerprint,
                    attempt=claim.attempts_before or None,
                    previous=claim.previous,
                )
            except GenerationExists:
                pass  # another call with the same key was faster
            except _ClaimOver:
                # What was started under it was refused and has been cleared away, by somebody who may not have come to
                # this any more.
                await self._store.release(key_hash, claim.mark)
                return await self._start_once(start_request)
        try:
            feed = await self._hub.open(generation_id)
        except GenerationNotFound:  # it was refused, and has been cleared away since it was looked for
            return await self._start_once(start_request)
        if feed.start.idempotency == key_hash:
            return Started(feed, created=False)
        if new:
            await self._store.release(key_hash, claim.mark)
        raise GenerationExists(f"generation {generation_id!r} exists")

    async def _create(self, start_request: StartRequest, generation_id: str, **found_by: Any) -> Started:
        """Start a new one; ``found_by`` are the members of its `Start` by which other calls find it."""
        model = start_request.request.get("model") or await self._upstream.default_model(start_request.credentials)
        request = start_request.request
        if start_request.prepare is not None:
            request = await start_request.prepare(request)
        request = request | {"model": model}
        start = Start(
            generation_id=generation_id,
            model=model,
            node=self._node,
            run=_new_mark(),
            ttl_ms=start_request.ttl_ms,
            abandon_after_ms=start_request.abandon_after_ms,
            metadata=start_request.metadata,
            notice=self._notice(start_request, model),
            api=start_request.api,
            response=start_request.response,
            ignored=start_request.ignored,
            namespaced=start_request.namespaced,
            **found_by,
        )
        call, kept_request = await offload(start_request.size, lambda: self._written(start_request, request))
        new_log = _NewLog(start, kept_request)
        feed = Feed(generation_id)
        events = number([encode_start(start)], after=None, now_ms=now_ms())
        try:
            await self._append_start(feed, events, new_log)
        except StoreUnavailable:
            # The log may be there all the same, and its producer would never come.
            work = self._settle_start(feed, events, new_log, call)
            self._tasks.run(work, name=f"settle {generation_id}")
            raise
        self._producers.produce(feed, call)
        if start.digest is not None:
            # Not before it stands: what was not confirmed in time is taken back, and its caller will try again.
            note = self._store.note_try(start.digest, generation_id, created_ms=events[0].id.ms)
            self._tasks.run(note, name=f"note {generation_id}")
        return Started(feed, created=True)

    def _notice(self, start_request: StartRequest, model: str) -> str | None:
        """What a reader is told of the upstream, and of what it is not told."""
        notice = self._upstream.notice(model)
        speaks_responses = self._upstream.speaks_responses(model)
        if not start_request.ignored or speaks_responses:
            return notice
        reason = "since it" if speaks_responses is False else "if it turns out that it"
        ignored = (
            f"The upstream is not told of {', '.join(start_request.ignored)}, {reason} only knows chat completions."
        )
        return ignored if notice is None else f"{notice} {ignored}"

    def _written(self, start_request: StartRequest, request: dict[str, Any]) -> tuple[Call, bytes]:
        """The request as it is for the upstream, and as it is kept; empty where it is not."""
        public, keys = without_keys(request)
        call = Call(
            api=start_request.api or Api.CHAT,
            model=request["model"],
            body=json.dumps(request),
            keys=frozenset(keys),
            credentials=start_request.credentials,
            # OpenAI's clients try again by themselves.
            retries=self._settings.upstream_retries if start_request.api is None else 0,
            unstreamed=start_request.unstreamed,
        )
        raw = json.dumps(public) if start_request.keep_request else b""
        return call, raw if len(raw) <= self._settings.max_kept_request_bytes else b""

    async def _append_start(self, feed: Feed, events: list[Event], new_log: _NewLog) -> None:
        """Create the log; raises GenerationExists when somebody was faster, and _ClaimOver."""
        start = new_log.start
        refused = await self._store.create(
            feed.generation_id,
            events,
            node=self._node,
            ttl_ms=start.ttl_ms,
            request=new_log.request,
            claim=start.claim,
        )
        if refused is not None:
            await self._correct_owner(feed.generation_id)
            if refused.last is None:
                raise _ClaimOver
            raise GenerationExists(f"generation {feed.generation_id!r} exists")
        feed.extend(events)

    async def _settle_start(self, feed: Feed, events: list[Event], new_log: _NewLog, call: Call) -> None:
        """Bring a start to an end that was not confirmed in time, as soon as Valkey answers.

        Its caller was told that it failed. With an Idempotency-Key the next try attaches to it, so it is produced;
        otherwise nobody knows its id, and it is removed.
        """
        while True:
            try:
                if new_log.start.idempotency is not None:
                    await self._append_start(feed, events, new_log)
                    self._producers.produce(feed, call)
                else:
                    await self._take_back(new_log.start, events)
            except StoreUnavailable:
                await asyncio.sleep(0.25)
            except (GenerationExists, _ClaimOver):
                return
            else:
                return

    async def _take_back(self, start: Start, events: list[Event]) -> None:
        end = number([encode_end(End(status=Status.CANCELLED))], after=events[-1].id, now_ms=now_ms())
        if await self._store.append(start.generation_id, end, after=events[-1].id) is None:
            await self._store.delete(start.generation_id, run=start.run, idempotency=None)

    async def _correct_owner(self, generation_id: str) -> None:
        """Have the list name the node that has won: two have started the same id."""
        (bounds,) = await self._store.bounds([generation_id])
        if bounds is not None and bounds.last.kind is not Kind.END:
            owner = decode_start(bounds.first.entry).node
            await self._store.register(generation_id, node=owner, created_ms=bounds.first.id.ms)


def _new_mark() -> str:
    return secrets.token_hex(8)
