"""How a generation ends."""

from __future__ import annotations

import logging

from replay.errors import StoreUnavailable
from replay.live.clock import now_ms
from replay.live.counters import Counters
from replay.live.feed import Feed
from replay.live.hub import Hub
from replay.live.repair import append_again
from replay.model.event import Event, number
from replay.model.generation import End, Status
from replay.store import EventStore
from replay.wire.events import encode_end

logger = logging.getLogger(__name__)

_MOST_TRIES = 100  # against a producer that appends all the time; each try is a round trip
_TRIES_ALONE = 5  # then it is asked to end itself
_OWNER_ANSWERS_S = 0.5


def end_of(feed: Feed, status: Status, *, ended_ms: int, error: dict[str, str] | None) -> End:
    """The end of a generation that somebody other than its producer ends."""
    events = feed.log
    tokens = events.token_times()
    transcript = feed.transcript(len(events))
    return End(
        status=status,
        finish_reason=transcript.finish_reason,
        usage=transcript.usage,
        error=error,
        total_tokens=len(tokens),
        ttft_ms=tokens[0] - events.times[0] if tokens else None,
        duration_ms=ended_ms - events.times[0],
    )


async def close_from_outside(
    store: EventStore,
    hub: Hub,
    counters: Counters,
    generation_id: str,
    status: Status,
    error: dict[str, str] | None = None,
) -> tuple[Feed, bool]:
    """End a generation that another node produces, or produced until it died.

    Returns its feed, complete, and whether it was ended by this call. Appends like everybody else: the log is the
    lock. Raises GenerationNotFound, StoreUnavailable.
    """
    for tries in range(1, _MOST_TRIES + 1):
        feed = await hub.open(generation_id)
        start, after = feed.start, feed.log.last_id
        ended = feed.log.complete
        # What has ended is compared all the same: Valkey may have lost the end that this node knows.
        events = [] if ended else [_end_event(feed, status, error)]
        refused = await store.append(generation_id, events, after=after, ttl_ms=0 if ended else start.ttl_ms)
        if refused is None:
            if not feed.log.complete:
                feed.extend(events)
            await _tell(store, feed)
            return feed, not ended
        if len(feed.log) > (0 if refused.last is None else refused.last.id.seq + 1):
            await append_again(store, feed, refused.last, counters)
        elif tries % _TRIES_ALONE == 0 and status is Status.CANCELLED:
            await store.notify(start.node, generation_id, [])  # it writes too fast to be overtaken: let it end itself
            await feed.wait_end(_OWNER_ANSWERS_S)
    raise StoreUnavailable(f"generation {generation_id!r} could not be ended: its log never stood still")


def _end_event(feed: Feed, status: Status, error: dict[str, str] | None) -> Event:
    ended_ms = max(now_ms(), feed.log.times[-1])
    entry = encode_end(end_of(feed, status, ended_ms=ended_ms, error=error))
    return number([entry], after=feed.log.last_id, now_ms=ended_ms)[0]


async def _tell(store: EventStore, feed: Feed) -> None:
    """Make an end known to its producer, should it live, also when it comes back after the log has expired."""
    start = feed.start
    await store.bury(feed.generation_id, start.run, ttl_ms=start.ttl_ms)
    await store.notify(start.node, feed.generation_id, list(feed.log.events(len(feed.log) - 1)))
    logger.info("generation ended from outside", extra={"generation": feed.generation_id})
