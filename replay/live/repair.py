"""Brings a log that Valkey has shortened (crash without fsync, failover) back to what this node knows of it.

With it come back the lists and the claim that lead to it.

Whatever is appended again keeps its id, so every reader's cursor stays valid. Any node may do it: who comes second
is told that the events stand there already.
"""

from __future__ import annotations

import logging

from replay.live.counters import Counters
from replay.live.feed import Feed
from replay.model.event import Event
from replay.store import Claim, EventStore

logger = logging.getLogger(__name__)

BATCH_EVENTS = 500
BATCH_BYTES = 512 << 10


async def append_again(store: EventStore, feed: Feed, last: Event | None, counters: Counters) -> bool:
    """Append what the feed has beyond ``last``, where the log ends now; False when it is not the feed's log any more.

    Raises StoreUnavailable.
    """
    log, start = feed.log, feed.start
    if last is None:
        if feed.expired or await store.was_buried(feed.generation_id, start.run):
            return False
    elif not (log.holds(last.id) and log.entries[last.id.seq] == last.entry):
        return False
    seq = 0 if last is None else last.id.seq + 1
    logger.warning(
        "log came back shorter",
        extra={"generation": feed.generation_id, "events": seq, "appending": len(log) - seq},
    )
    while seq < len(log):
        events = list(log.events(seq, seq + batch_length(log.entries[seq : seq + BATCH_EVENTS])))
        after = log.event_id(seq - 1) if seq else None
        refused = await store.append(feed.generation_id, events, after=after, ttl_ms=start.ttl_ms)
        if refused is not None:
            break  # it has changed again; the next append finds out how
        seq += len(events)
        counters.healed += len(events)
    await list_again(store, feed)
    return True


async def list_again(store: EventStore, feed: Feed) -> None:
    """Put back what leads to a log: what has taken a part of that may have taken this, too; raises StoreUnavailable."""
    start = feed.start
    await store.register(feed.generation_id, node=start.node, created_ms=feed.log.times[0])
    if start.idempotency is not None and start.fingerprint is not None:
        mark = start.claim or feed.generation_id
        claim = Claim(feed.generation_id, start.fingerprint, mark, start.attempt or 0, start.previous, start.after)
        await store.claim(start.idempotency, claim, ttl_ms=start.ttl_ms)
    if start.digest is not None and not feed.log.complete:
        await store.note_try(start.digest, feed.generation_id, created_ms=feed.log.times[0])


def batch_length(entries: list[bytes]) -> int:
    """How many of these go into one append; at least one."""
    size = 0
    for count, entry in enumerate(entries[:BATCH_EVENTS]):
        size += len(entry)
        if count and size > BATCH_BYTES:
            return count
    return min(len(entries), BATCH_EVENTS)
