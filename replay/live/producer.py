"""One generation: upstream -> entries -> append -> acknowledged -> feed.

It belongs to the node, not to the request that started it: a client hanging up changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from replay.config import Settings
from replay.errors import (
    LimitExceeded,
    ReplayError,
    StoreUnavailable,
    UpstreamError,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamTruncated,
    unexpected,
)
from replay.live.counters import Counters
from replay.live.feed import Feed
from replay.live.writer import Fenced, Writer
from replay.model.event import TOKENS, Event
from replay.model.generation import End, Status
from replay.redaction import Redaction
from replay.store import EventStore
from replay.upstream import Call, Upstream
from replay.wire.events import encode_end
from replay.wire.recorder import Recorder
from replay.wire.sse import Decoder
from replay.wire.unfolding import unfolded

logger = logging.getLogger(__name__)

# How long a stream may stay open when everything was said: [DONE] proves nothing, and usage comes last.
_AFTER_DONE_S = 1.0
_AFTER_FINISH_S = 15.0
_NEWS_S = 2.0
_SHOWN = 200  # characters, of what is no chunk


class Producer:
    """Runs one generation whose `start` is acknowledged."""

    def __init__(
        self,
        call: Call,
        *,
        feed: Feed,
        store: EventStore,
        upstream: Upstream,
        settings: Settings,
        counters: Counters,
        redaction: Redaction,
    ) -> None:
        self.feed = feed
        self.last_subscribed = asyncio.get_running_loop().time()
        self.subscribed_elsewhere = False
        self._start = feed.start
        self.answered = asyncio.Event()  # the upstream has accepted the call, or never will
        self._call: Call | None = call
        self._store = store
        self._upstream = upstream
        self._settings = settings
        self._counters = counters
        self._redaction = redaction
        self._recorder = Recorder(call.api.dialect, redaction=redaction)
        self.tokens = 0
        self.ttft_ms: int | None = None
        self._last_token_ms = 0
        self._ending = False  # the end is put; nothing may follow
        self._foreign: list[Event] = []  # what somebody else appended, as far as we were told
        self._notified = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._writer = Writer(
            store,
            feed,
            counters,
            ttl_ms=self._start.ttl_ms,
            max_pending_bytes=settings.max_pending_bytes,
            heal_window_s=settings.heal_window_s,
            outage_s=settings.store_outage_s,
        )

    @property
    def generation_id(self) -> str:
        """Whose producer this is."""
        return self.feed.generation_id

    @property
    def abandon_after_ms(self) -> int | None:
        """How long nobody need watch before it is given up."""
        return None if self._ending else self._start.abandon_after_ms

    async def run(self) -> None:
        """Call the upstream and record it, until the end stands and needs no repair."""
        self._reading = asyncio.create_task(self._read(), name=f"read {self.generation_id}")
        try:
            await self._write()
        finally:
            self._reading.cancel()
            await asyncio.wait([self._reading])
            with contextlib.suppress(asyncio.CancelledError):
                self._reading.exception()  # takes it out of the task; what it has passed through leads back to the task
            self._reading = None

    async def _write(self) -> None:
        try:
            await self._writer.run(self._outlast)
        except Fenced:
            self._ending = True
            self.answered.set()
            if self._reading is not None:
                self._reading.cancel()
            await self._adopt()
        if not self.feed.log.complete:
            return
        try:
            await self._writer.keep()
        except Fenced:
            logger.info("log is gone", extra={"generation": self.generation_id})

    async def _read(self) -> None:
        """Record what the upstream says, and end the generation as that was."""
        error: ReplayError | None
        decoder = Decoder(self._settings.max_chunk_bytes)
        try:
            await self._record_stream(decoder)
            error = self._recorder.verdict(foreign=decoder.foreign)
        except (UpstreamTruncated, UpstreamTimeout, UpstreamInvalid, TimeoutError) as cut:
            error = self._recorder.failure or (None if self._recorder.whole else self._broken(cut))
        except ReplayError as failure:
            error = failure
        except Exception as bug:
            error = unexpected(logger, bug, generation=self.generation_id)
        if self._recorder.noise:
            noise = self._redaction.text(self._recorder.noise.decode(errors="replace"))
            logger.info(
                "upstream sent what is no chunk", extra={"generation": self.generation_id, "first": noise[:_SHOWN]}
            )
        if error is not None:
            logger.info("generation failed", extra={"generation": self.generation_id, "reason": error.in_full})
        self.finish(Status.COMPLETED if error is None else Status.FAILED, error)

    def _broken(self, cut: Exception) -> ReplayError:
        """The error of a stream that broke, with how far it came where it was cut."""
        if not isinstance(cut, UpstreamTruncated):
            return cut if isinstance(cut, ReplayError) else UpstreamTruncated("the upstream's stream did not end")
        came = f"after {self.tokens} token{'s' * (self.tokens != 1)}" if self.tokens else "before the first token"
        return UpstreamTruncated(f"{cut} {came}", aside=cut.aside)

    async def _record_stream(self, decoder: Decoder) -> None:
        loop = asyncio.get_running_loop()
        recorder = self._recorder
        async with self._upstream.stream(self._take_call()) as pieces, asyncio.timeout(None) as deadline:
            self.answered.set()
            try:
                granted_s: float | None = None  # for what may follow the last word; None before that
                async for piece in pieces:
                    for message in unfolded(decoder.decode(piece)):
                        self._take(recorder.record(message))
                        if recorder.error is not None:
                            return
                    if decoder.foreign.lstrip().startswith(b"<") and not recorder.chunks:  # a page may have no end
                        raise recorder.not_a_stream(decoder.foreign)
                    if decoder.overflow:
                        if recorder.whole:
                            return
                        raise LimitExceeded(f"chunk: more than {self._settings.max_chunk_bytes} bytes")
                    allowed_s = _AFTER_DONE_S if recorder.done else _AFTER_FINISH_S if recorder.finished else None
                    if allowed_s != granted_s:  # and not with each piece: comments may go on for ever
                        granted_s = allowed_s
                        deadline.reschedule(None if allowed_s is None else loop.time() + allowed_s)
                    await self._writer.room()
            finally:
                # A stream that is cut inside its last event may still have said it whole.
                if not decoder.overflow and not recorder.broken:
                    self._take_rest(decoder)

    def _take_call(self) -> Call:
        """The call, which is the upstream's to let go of: it may be megabytes, and the answer takes minutes."""
        call, self._call = self._call, None
        assert call is not None, "it is taken once"
        return call

    def _take_rest(self, decoder: Decoder) -> None:
        try:
            for message in unfolded(decoder.finish()):
                self._take(self._recorder.record(message))
        except UpstreamError:
            logger.info("upstream cut inside an event", extra={"generation": self.generation_id})

    def _take(self, entry: bytes | None) -> None:
        if entry is None or self._ending:
            return
        if self._writer.size + len(entry) > self._settings.max_generation_bytes:
            raise LimitExceeded(f"the generation is larger than {self._settings.max_generation_bytes} bytes")
        event_id = self._writer.put(entry)
        self._counters.events += 1
        if entry[0] in TOKENS:
            self._count_token(event_id.ms)

    def _count_token(self, ms: int) -> None:
        self.tokens += 1
        self._counters.tokens += 1
        if self.ttft_ms is None:
            self.ttft_ms = ms - self.feed.log.times[0]
            self._counters.first_token_seconds.add(self.ttft_ms / 1000)
        else:
            self._counters.inter_token_seconds.add((ms - self._last_token_ms) / 1000)
        self._last_token_ms = ms

    def finish(self, status: Status, error: ReplayError | None = None) -> None:
        """End it, after what is pending; nothing happens when it is ending already."""
        if self._ending:
            return
        self._ending = True
        self.answered.set()
        last_id = self._writer.last_id
        started_ms = self.feed.log.times[0]
        ended_ms = max(self._writer.now_ms(), last_id.ms if last_id is not None else started_ms)
        end = End(
            status=status,
            finish_reason=self._recorder.finish_reason,
            usage=self._recorder.usage,
            error=self._described(error),
            total_tokens=self.tokens,
            ttft_ms=self.ttft_ms,
            duration_ms=ended_ms - started_ms,
            refusal=asdict(error.refusal) if isinstance(error, UpstreamError) and error.refusal else None,
        )
        self._writer.put(encode_end(end), ms=ended_ms)
        if self._reading is not asyncio.current_task() and self._reading is not None:
            self._reading.cancel()

    def _described(self, error: ReplayError | None) -> dict[str, Any] | None:
        if error is None:
            return None
        description: dict[str, Any] = {"code": error.code, "message": self._redaction.text(str(error))}
        if isinstance(error, UpstreamError) and error.details:
            description["upstream"] = self._redaction.value(error.details)
        return description

    def _outlast(self) -> None:
        outage_s = self._settings.store_outage_s
        self.finish(Status.FAILED, StoreUnavailable(f"Valkey took nothing for more than {outage_s:g} s"))

    async def _adopt(self) -> None:
        """Show how somebody else ended it."""
        feed = self.feed
        if not feed.log.complete and not self._fits(self._foreign):
            with contextlib.suppress(StoreUnavailable):
                read = await self._store.read(self.generation_id, after=feed.log.last_id, limit=1000)
                self._foreign = read or self._foreign  # we may have been told meanwhile
        if not feed.log.complete and not self._foreign:
            # A log that was deleted was ended before that, and the news is on its way.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_NEWS_S):
                    await self._notified.wait()
        if self._fits(self._foreign):
            feed.extend(self._foreign)
        if feed.log.complete:
            logger.info("generation was ended by somebody else", extra={"generation": self.generation_id})
        else:
            logger.warning("log is not ours any more", extra={"generation": self.generation_id})
            feed.invalidate()

    def _fits(self, events: Sequence[Event]) -> bool:
        return bool(events) and events[0].id.seq == len(self.feed.log)

    def notified(self, events: list[Event]) -> None:
        """Let the writer find out what somebody else has appended; without events, cancel, as is asked."""
        if not events:
            self.finish(Status.CANCELLED)
            return
        self._foreign = events
        self._notified.set()
        self._writer.check()

    @property
    def quiet_for_s(self) -> float:
        """Seconds since the log was last seen as it should be."""
        return self._writer.quiet_for_s

    def check(self) -> None:
        """Compare the log with what was acknowledged, after Valkey was away."""
        self._writer.check()

    @property
    def renewal_due(self) -> bool:
        """Whether a silent generation's log has to be kept from expiring."""
        return self._writer.renewal_due

    async def renew(self) -> None:
        """Keep a silent generation's log from expiring."""
        await self._writer.renew()
