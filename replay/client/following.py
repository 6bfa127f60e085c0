"""Follows a generation through any number of connections, and shows every event exactly once.

A connection is one response of NDJSON. A line is an event only with its newline: half a line, at a cut, is
forgotten and comes again, because the next connection asks for what follows the last whole one (`Last-Event-ID`).
Spaces before a line are keep-alives. Only `end` ends it; whatever else ends a response is a reason to come back.

There is one exception. Asked for what follows the `end`, the service answers with nothing and ends cleanly, and some
proxies make the same of a connection that was cut. So after such an answer the generation is looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from replay.client import requests
from replay.client.backoff import Backoff
from replay.client.calls import read_answer
from replay.client.events import End, Event, read_event
from replay.client.exchange import Answer, Lost, Outcome, Request
from replay.client.generations import read_generation
from replay.client.problems import UnexpectedAnswer, error_of, may_pass, retry_after_s
from replay.errors import ReplayError

OnLost = Callable[[ReplayError, float], None]  # why the connection was lost, and the seconds until the next try


class Following:
    """One reader of one generation: what to ask next, and what an answer means."""

    def __init__(
        self,
        generation_id: str,
        *,
        after: str | None = None,
        backoff: Backoff | None = None,
        on_lost: OnLost | None = None,
    ) -> None:
        self.complete = False  # the `end` has been seen, now or by whoever gave the cursor
        self._generation_id = generation_id
        self._cursor = after
        self._backoff = backoff or Backoff(None)
        self._on_lost = on_lost
        self._half_line: list[bytes] = []
        self._empty, self._ended = True, False  # the response on this connection
        requests.events(generation_id, after)  # what cannot be asked is refused now

    def connect(self) -> Request:
        """What to ask on a new connection."""
        self._half_line = []
        self._empty, self._ended = True, False
        return requests.events(self._generation_id, self._cursor)

    def accepts(self, status: int, headers: Mapping[str, str]) -> bool:
        """Whether a response is a stream of events; raises UnexpectedAnswer for a success that is something else."""
        if not 200 <= status < 300:
            return False
        media_type = headers.get("Content-Type", "")
        if not media_type.startswith(requests.NDJSON):
            raise UnexpectedAnswer(f"expected events as {requests.NDJSON}, got status {status} with {media_type!r}")
        return True

    def take(self, piece: bytes) -> Iterator[Event]:
        """The events that are whole with this piece of the body; raises NotAnEvent."""
        self._empty = False
        *ends, half_line = piece.split(b"\n")
        for end in ends:
            line = b"".join((*self._half_line, end))
            self._half_line = []
            if not self.complete and line.strip():
                yield self._note(read_event(line))
        self._half_line.append(half_line)

    def _note(self, event: Event) -> Event:
        self._backoff.reached()
        if event.event_id is not None:
            self._cursor = event.event_id
            self._backoff.succeeded()
        self.complete = isinstance(event, End)
        return event

    def ended(self) -> Outcome:
        """The response has ended cleanly, as it should only after `end`."""
        self._ended = True
        return Lost("the response ended before the generation did")

    def question(self) -> Request | None:
        """What to ask after a response that ended cleanly and was empty: the cursor may be that of the `end`."""
        doubtful = self._ended and self._empty and self._cursor is not None
        return requests.generation(self._generation_id) if doubtful else None

    def settle(self, outcome: Outcome) -> None:
        """Take the answer to the question; where it is none, the next connection will tell."""
        if isinstance(outcome, Answer) and outcome.status == 200:
            generation = read_answer(outcome, read_generation)
            self.complete = generation.terminal and generation.last_event_id == self._cursor

    def pause_s(self, outcome: Outcome) -> float:
        """The seconds to wait before the next connection; raises the outcome's error if there should be none."""
        error = error_of(outcome)
        passes = may_pass(outcome) or (isinstance(outcome, Answer) and outcome.status >= 500)
        pause_s = self._backoff.pause_s(retry_after_s(outcome)) if passes else None
        if pause_s is None:
            raise error
        if self._on_lost is not None:
            self._on_lost(error, pause_s)
        return pause_s
