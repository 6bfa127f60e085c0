"""The names of all keys, and what stands in them. `replay:` is the default prefix.

| key | type | meaning |
|---|---|---|
| `replay:{<id>}:events` | stream | the generation, whole; one field `e` per entry |
| `replay:{<id>}:request` | string, JSON | what the upstream was asked; expires with the log |
| `replay:{<id>}` | sharded channel | each acknowledged batch: id NUL entry NUL id NUL entry …; empty: deleted |
| `replay:{:feed}:events` | stream | what becomes of all generations: created, spoke first, ended; one field `e` |
| `replay:{:progress}` | sharded channel | how far each node's live generations are, and who follows them there |
| `replay:live` | hash id -> node | where to look for orphans; may say too much, never too little |
| `replay:recent` | sorted set id by ms | what lists show; may lag, the log decides |
| `replay:nodes` | sorted set node by unix ms of its last lease | who to ask about |
| `replay:node:<node>` | string with the lease as ttl | this node is alive |
| `replay:node:<node>:watching` | hash id -> subscribers, same ttl | how many follow what on that node |
| `replay:node:<node>` | sharded channel | id NUL and a batch: somebody else appended to what this node produces |
| `replay:idempotency:<hash>` | string, JSON | what a key was used for |
| `replay:tries:<digest>` | sorted set id by ms | what a call has started and is live, for its retries |
| `replay:taken:<hash>` | string, a second | a retry was given this generation |
| `replay:over:<hash>` | string, ttl + 10 min | this run, or claim, is over: if its log is missing it is not lost |
| `replay:probe` | string, a minute | whether Valkey takes what is written |
| `replay:deleted` | sharded channel | ids of deleted generations, for the nodes' memories |
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import repeat
from typing import Any

from replay.model.event import Event, EventId
from replay.store import Row

NUL = b"\0"
LISTS_MS = 31 * 86_400_000  # the lists are kept this long after they were last written: the longest ttl by default


class Keys:
    """The names under one prefix in one database.

    Valkey's channels are those of all its databases, so the name of one has its database's number, where that is not 0.
    """

    def __init__(self, prefix: str, database: int) -> None:
        self._prefix = prefix
        self._suffix = f":{database}" if database else ""
        self.live = f"{prefix}live"
        self.recent = f"{prefix}recent"
        self.nodes = f"{prefix}nodes"
        self.probe = f"{prefix}probe"
        self.deleted = f"{prefix}deleted{self._suffix}".encode()

    def events(self, generation_id: str) -> str:
        """A generation's log."""
        return f"{self._prefix}{{{generation_id}}}:events"

    def request(self, generation_id: str) -> str:
        """What the upstream was asked."""
        return f"{self._prefix}{{{generation_id}}}:request"

    def channel(self, generation_id: str) -> bytes:
        """Where a generation's batches are published."""
        return f"{self._prefix}{{{generation_id}}}{self._suffix}".encode()

    def node(self, node: str) -> str:
        """A node's lease."""
        return f"{self._prefix}node:{node}"

    def subscribers(self, node: str) -> str:
        """How many follow what on a node; it keeps the name that it had before they were called subscribers."""
        return f"{self._prefix}node:{node}:watching"

    def node_channel(self, node: str) -> bytes:
        """Where a node is notified."""
        return f"{self._prefix}node:{node}{self._suffix}".encode()

    def claim(self, key: str) -> str:
        """What an idempotency key, which is a hash here, was used for."""
        return f"{self._prefix}idempotency:{key}"

    def tries(self, digest: str) -> str:
        """What a call has started."""
        return f"{self._prefix}tries:{digest}"

    def taken(self, generation_id: str) -> str:
        """The note that a retry was given a generation; hashed, since it may outlive that."""
        return f"{self._prefix}taken:" + hashlib.sha256(generation_id.encode()).hexdigest()

    def over(self, generation_id: str, mark: str) -> str:
        """The note that a run, or a claim, is over; hashed, so that nothing names the generation any more."""
        return f"{self._prefix}over:" + hashlib.sha256(f"{generation_id} {mark}".encode()).hexdigest()


def parse_event_id(raw: bytes) -> EventId:
    """An event id as Valkey spells it."""
    ms, _, seq = raw.partition(b"-")
    return EventId(int(ms), int(seq))


def parse_event(entry: list[Any]) -> Event:
    """A stream's entry as Valkey answers it: id, and field and value."""
    return Event(parse_event_id(entry[0]), entry[1][1])


def parse_events(entries: list[Any]) -> list[Event]:
    """A page of entries. There may be thousands: column by column, and without a call of ours for each, that takes a
    quarter of the time.
    """
    if not entries:
        return []
    parts = b"-".join([entry[0] for entry in entries]).split(b"-")
    ids = map(tuple.__new__, repeat(EventId), zip(map(int, parts[::2]), map(int, parts[1::2]), strict=True))
    values = [entry[1][1] for entry in entries]
    return list(map(tuple.__new__, repeat(Event), zip(ids, values, strict=True)))


def pack(events: Sequence[Event]) -> bytes:
    """Events as a message; an entry holds no NUL."""
    return NUL.join(part for event in events for part in (b"%d-%d" % event.id, event.entry))


def unpack(batch: bytes) -> list[Event]:
    """The events of a message; none in an empty one."""
    parts = batch.split(NUL) if batch else []
    return [Event(parse_event_id(parts[i]), parts[i + 1]) for i in range(0, len(parts), 2)]


def parse_rows(members: list[bytes], scores: list[bytes | None]) -> list[Row]:
    """Rows of the list of recent generations; where there is no score, the time is 0."""
    return [Row(int(score or 0), member.decode()) for member, score in zip(members, scores, strict=True)]
