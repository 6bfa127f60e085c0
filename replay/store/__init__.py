"""The store port: what the service needs of whatever keeps its logs.

`EventStore` is its contract in prose, and `tests/contract` holds every store against it. "Acknowledged"
means: in the primary's memory, unless the server is set to more (`appendfsync always`).

Every call raises StoreUnavailable when the store does not answer in time, and its subclass StoreRefused
when it answers but will not do it. After either, an append may or may not have happened; the same append
again tells.

    valkey.py         ValkeyStore: the port on one Valkey, and its logs
      lists.py, claims.py, leases.py, channels.py    the other parts of the port
      keys.py         the names of all keys, and what stands in them
      append.lua      the one way into a log; erase.lua, claim.lua, release.lua, forget.lua: what else has to be atomic
      connection.py   Link: a connection that is made again; resp.py: what is said on it
    rehearsal.py      whether Valkey lets this node do all that it needs
    embedded.py       the Valkey server that comes with the package, as embedded.conf has it
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

from replay.model.event import Event, EventId

ACTIVITY_LOG = ":feed"  # the log of what becomes of all generations; no generation can be called so
PROGRESS = ":progress"  # where nodes tell how far they are
BURIED_MS = 600_000  # a run that is over is remembered for this long after its log has expired


class Refused(NamedTuple):
    """An append that was not done, because the log does not end where the writer thought."""

    last: Event | None  # where it ends; None when there is no log


class Bounds(NamedTuple):
    """Both ends of a log, read in one go, and when it expires (unix ms)."""

    first: Event
    last: Event
    expires_at_ms: int | None

    @property
    def size(self) -> int:
        """Bytes of both entries."""
        return len(self.first.entry) + len(self.last.entry)


class Row(NamedTuple):
    """A generation on the list of recent ones, which is ordered by time and, within a millisecond, by id."""

    created_ms: int
    generation_id: str


class Page(NamedTuple):
    """A stretch of the list of recent generations."""

    rows: list[Row]
    next: Row | None  # what the next page comes after; None at the end

    @property
    def generation_ids(self) -> list[str]:
        """Whose rows these are."""
        return [row.generation_id for row in self.rows]


class Claim(NamedTuple):
    """What a key leads to. Once that has failed, the next attempt takes the key over; of several, the first."""

    generation_id: str  # it may be a chosen one, and that of several claims
    fingerprint: str  # of the request
    mark: str  # unlike that of any other claim
    attempts_before: int = 0  # how many were started under the key
    previous: str | None = None  # the id of the last of those
    after: str | None = None  # the mark of the claim that it takes over


class Renewed(NamedTuple):
    """What stood of a node when it renewed its lease."""

    stood: bool  # the lease
    subscribers_stood: bool  # what it said with `report_subscribers`


class Listener(Protocol):
    """Who follows a log on its channel; called from the event loop, and what it raises is logged and no more."""

    def heard(self, events: Sequence[Event]) -> None:
        """Take events that were appended, here or on another node; some may be known, some before them missing."""

    def deleted(self) -> None:
        """Take note that the log was deleted."""

    def reconnected(self) -> None:
        """Make up for what was not heard: the channel was cut, and is back."""


class Logs(Protocol):
    """Logs of events, each with its expiry, and the request that is kept with it."""

    async def create(
        self,
        generation_id: str,
        events: Sequence[Event],
        *,
        node: str,
        ttl_ms: int,
        request: bytes = b"",
        claim: str | None = None,
    ) -> Refused | None:
        """List a generation as recent and as live on a node, and create its log, unless there is one.

        It is listed first: a log that is on no list would never be found as an orphan. Where it is refused, and after
        StoreUnavailable, it may be listed all the same, and under the wrong node. A ``request`` is kept beside the log
        and expires with it. ``claim`` is the mark of one: a log is not created, although there is none, when that is
        over (see `delete`). None when the events are acknowledged, also when an earlier try has put them there.
        """

    async def append(
        self,
        generation_id: str,
        events: Sequence[Event],
        *,
        after: EventId | None,
        ttl_ms: int = 0,
    ) -> Refused | None:
        """Append ``events`` if the log ends with ``after`` (None: if there is no log), all or none.

        None when they are acknowledged, also when an earlier try with a lost answer put them there.
        ``ttl_ms`` > 0 lets the log expire that long from now. Without events it only compares.
        """

    async def request(self, generation_id: str) -> bytes | None:
        """Return the request that was kept with a log; None where there is none."""

    async def last(self, generation_id: str) -> Event | None:
        """Return the last event; None when there is no log."""

    async def read(self, generation_id: str, *, after: EventId | None, limit: int) -> list[Event]:
        """Return at most ``limit`` events after ``after``, in order; fewer only at the end of the log."""

    async def bounds(self, generation_ids: Sequence[str]) -> list[Bounds | None]:
        """Return both ends of each log, in the order asked; None for one that does not exist.

        However many are asked for, whoever else reads waits for a few of them at most.
        """

    async def trim(self, generation_id: str, keep: int) -> None:
        """Forget the beginning of a log but for about that many events."""

    async def erase(self, generation_id: str, event_ids: Sequence[EventId]) -> None:
        """Take events out of a log, but not its last one."""

    async def expire(self, generation_id: str, ttl_ms: int) -> None:
        """Let the log expire that long from now."""

    async def delete(
        self,
        generation_id: str,
        *,
        run: str,
        idempotency: str | None = None,
        claim: str | None = None,
        digest: str | None = None,
    ) -> bool:
        """Remove every trace, bury the run, and tell every node; whether there was a log.

        ``idempotency`` is the key, and ``digest`` that of the call, which may lead to it. ``claim`` is the mark of the
        claim on that key, which is over then: nothing can be created under it any more.
        """

    async def bury(self, generation_id: str, run: str, *, ttl_ms: int) -> None:
        """Note that a run is over: its log must not be put back when it is gone. Holds for the ttl and BURIED_MS."""

    async def was_buried(self, generation_id: str, run: str) -> bool:
        """Tell whether a log that is missing was deleted or has run out, and is not lost."""


class Lists(Protocol):
    """Which generations there are: the live ones with their nodes, and the recent ones by time."""

    async def register(self, generation_id: str, *, node: str, created_ms: int) -> None:
        """List a generation as recent and as live on a node."""

    async def unregister(self, generation_id: str) -> None:
        """List it as live no more."""

    async def live(self) -> dict[str, str]:
        """Return the producing node by generation id; may say too much, never too little."""

    async def live_rows(self) -> list[Row]:
        """Return the rows of those in `live`, in order; the time is 0 where one is not on the list of recent ones."""

    async def recent(
        self, *, before: Row | None, limit: int, since_ms: int | None = None, oldest_first: bool = False
    ) -> Page:
        """Return generations, newest first, after ``before``, which need not exist; none created before a time.

        May name some that are gone.
        """

    async def forget(self, rows: Sequence[Row]) -> None:
        """Take generations off the list of recent ones, but not those that have a log or were listed anew meanwhile."""


class Claims(Protocol):
    """What leads to a generation: the keys of callers, and the first tries of calls that come again."""

    async def claim(self, key: str, claim: Claim, *, ttl_ms: int) -> Claim:
        """Bind a key for some time, unless a claim has it that this one does not take over; what it is bound to."""

    async def claimed(self, key: str) -> Claim | None:
        """Return what a key is bound to; None where it is not."""

    async def release(self, key: str, mark: str) -> None:
        """Unbind a key, if it is bound by the claim with this mark."""

    async def note_try(self, digest: str, generation_id: str, *, created_ms: int) -> None:
        """Note what a call has started, for its retries; the digest stands for the call and its caller."""

    async def forget_try(self, digest: str, generation_id: str) -> None:
        """Note it no more."""

    async def tries(self, digest: str) -> list[str]:
        """Return what is noted under a digest, oldest first; may name what has ended or is gone."""

    async def take_try(self, generation_id: str, *, hold_ms: int) -> bool:
        """Take a generation for a retry, for some time; whether nobody else has."""


class Leases(Protocol):
    """What nodes say of themselves: that they live, and how many follow what there."""

    @property
    def leases_steady_for(self) -> float:
        """Seconds since Valkey was last away for leases; infinite when it never was."""

    async def renew_lease(self, node: str, lease_ms: int) -> Renewed:
        """Say that a node is alive for that long; whether what it has said before still stood."""

    async def end_lease(self, node: str) -> None:
        """Say that a node is gone."""

    async def alive(self, nodes: Collection[str]) -> set[str]:
        """Return which of these nodes are alive."""

    async def listens(self, node: str) -> bool:
        """Tell whether a node hears its notifications; one that was killed does not, long before its lease ends."""

    async def report_subscribers(self, node: str, counts: dict[str, int], lease_ms: int) -> None:
        """Say how many follow what on a node, where that has changed; it holds as long as the lease."""

    async def subscribers(self, generation_ids: Sequence[str], *, beside: str) -> dict[str, int]:
        """Return how many follow each generation on the nodes that are alive, leaving out the node ``beside``."""


class Channels(Protocol):
    """What is heard at once, if it is heard: appends, deletions, and what nodes notify each other of."""

    on_missed: list[Callable[[], None]]  # called when notifications are heard again after a cut

    @property
    def hears(self) -> bool:
        """Whether its channels are heard, as far as is known."""

    async def listen(self, generation_id: str, listener: Listener) -> None:
        """Hear of every append from now on; what was appended before this returns may be heard too."""

    def unlisten(self, generation_id: str) -> None:
        """Hear no more of it."""

    async def publish(self, channel: str, events: Sequence[Event]) -> int:
        """Tell whoever listens under that name something that is kept nowhere; how many nodes have heard it."""

    async def notify(self, node: str, generation_id: str, events: Sequence[Event]) -> None:
        """Tell a node that somebody else has appended to a generation which it produces."""

    async def attend(
        self, node: str, *, notified: Callable[[str, list[Event]], None], deleted: Callable[[str], None]
    ) -> None:
        """Receive a node's notifications, and hear which generations were deleted, as far as can be heard."""


class EventStore(Logs, Lists, Claims, Leases, Channels, Protocol):
    """All of it. Nothing is promised of the order of calls that do not wait for each other."""

    on_reconnect: list[Callable[[], None]]  # called when appends are possible again after a cut

    @property
    def connections(self) -> int:
        """How many connections to the server there are now."""

    @property
    def connects(self) -> int:
        """How many connections were made so far."""

    @property
    def steady_for(self) -> float:
        """Seconds since it was last away, for any of its connections; infinite when it never was."""

    async def probe(self) -> None:
        """Return if what is written is taken; raises StoreUnavailable."""

    async def wait_up(self, timeout: float) -> bool:
        """Wait until it answers again; whether it does."""
