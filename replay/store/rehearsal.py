"""Everything that a node ever asks of Valkey, once, on names that nobody has; it is gone again at the end.

An ACL that lacks a right would otherwise show when that is needed, in the middle of a start or of a deletion.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence

from replay.errors import StoreUnavailable
from replay.model.event import Entry, Event, EventId, number
from replay.store import Claim, EventStore, Row
from replay.store.resp import NotPermitted

logger = logging.getLogger(__name__)

_TTL_MS = 10_000  # whatever is left of it where a right is missing


async def rehearse(store: EventStore) -> None:
    """Raises NotPermitted for the first thing that Valkey's ACL does not let this node do."""
    try:
        await _rehearse(store, f"rehearsal_{secrets.token_hex(8)}")
    except NotPermitted:
        raise
    except StoreUnavailable as error:  # it is full, or a replica: that may pass, and readiness tells of it
        logger.warning("valkey refuses what a node needs", extra={"reason": error.in_full})


async def _rehearse(store: EventStore, name: str) -> None:
    # The node, which has a lease before its name is on a list: the other nodes would take what is there for orphans.
    await store.renew_lease(name, _TTL_MS)
    await store.report_subscribers(name, {name: 1}, _TTL_MS)
    await store.report_subscribers(name, {name: 0}, _TTL_MS)
    await store.subscribers([name], beside="")
    await store.alive([name])
    await store.listens(name)
    # The lists, as long as no log is there: whoever reads a list passes over what is gone, but not over such a log.
    await store.register(name, node=name, created_ms=1)
    await store.live()
    await store.live_rows()
    await store.recent(before=None, limit=1)
    await store.unregister(name)
    await store.forget([Row(1, name)])
    # A log, from beginning to end.
    events = number([Entry.START, Entry.WHOLE_DELTA, Entry.END], after=None, now_ms=1)
    await store.listen(name, _Nobody())
    await store.append(name, events, after=None, ttl_ms=_TTL_MS)  # to `create` it would put it on the lists
    await store.append(name, [], after=None)
    await store.last(name)
    await store.read(name, after=EventId(0, 0), limit=1)
    await store.request(name)
    await store.bounds([name])
    await store.expire(name, _TTL_MS)
    await store.erase(name, [events[1].id])
    await store.trim(name, 1)
    await store.publish(name, [])
    await store.notify(name, name, [])
    for _ in range(2):  # the answer to the first comes before that to the second
        store.unlisten(name)
        await store.listen(name, _Nobody())
    store.unlisten(name)
    # The claims.
    await store.claim(name, Claim(name, "", name), ttl_ms=_TTL_MS)
    await store.claimed(name)
    await store.release(name, name)
    await store.note_try(name, name, created_ms=1)
    await store.tries(name)
    await store.take_try(name, hold_ms=1)
    await store.forget_try(name, name)
    await store.delete(name, run=name, idempotency=name, claim=name)
    await store.bury(name, name, ttl_ms=1)
    await store.was_buried(name, name)
    await store.end_lease(name)
    await store.probe()


class _Nobody:
    def heard(self, events: Sequence[Event]) -> None: ...

    def deleted(self) -> None: ...

    def reconnected(self) -> None: ...
