"""The calls that are answered at once, as generators: they yield what to send and when, and are sent the outcome.

They do no I/O, so that one of each serves both clients. Every one of them may be made twice without harm, and is made
again when the answer was lost: a start by its Idempotency-Key, the rest by what they are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from replay.client import requests
from replay.client.backoff import Backoff
from replay.client.exchange import Answer, Outcome, Request
from replay.client.generations import (
    TERMINAL,
    Generation,
    Page,
    Transcript,
    read_generation,
    read_page,
    read_transcript,
)
from replay.client.problems import UnexpectedAnswer, error_of, may_pass, retry_after_s
from replay.errors import GenerationNotFound

_STATUS = "Replay-Status"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Try:
    """Send this request, after so many seconds."""

    request: Request
    after_s: float = 0.0


Call = Generator[Try, Outcome, T]


def start(
    parameters: Mapping[str, Any],
    prompt: str | None,
    messages: Iterable[Mapping[str, Any]] | None,
    *,
    options: Mapping[str, Any],
    idempotency_key: str | None,
    backoff: Backoff,
) -> Call[Generation]:
    """Start a generation."""
    request = requests.start(parameters, prompt, messages, options=options, idempotency_key=idempotency_key)
    return _fetch(request, backoff, read_generation)


def generation(generation_id: str, backoff: Backoff) -> Call[Generation]:
    """Look a generation up."""
    return _fetch(requests.generation(generation_id), backoff, read_generation)


def transcript(generation_id: str, wait_s: float | None, backoff: Backoff) -> Call[Transcript]:
    """What it has said, as an object."""
    return _fetch(requests.transcript(generation_id, requests.JSON, wait_s), backoff, read_transcript)


def text(generation_id: str, wait_s: float | None, backoff: Backoff) -> Call[str]:
    """What it has said, as a plain text."""
    return _fetch_text(requests.transcript(generation_id, requests.TEXT, wait_s), backoff)


def markdown(generation_id: str, wait_s: float | None, backoff: Backoff) -> Call[str]:
    """What it has said, as Markdown."""
    return _fetch_text(requests.transcript(generation_id, requests.MARKDOWN, wait_s), backoff)


def cancel(generation_id: str, backoff: Backoff) -> Call[Generation]:
    """Stop a generation."""
    return _fetch(requests.cancel(generation_id), backoff, read_generation)


def delete(generation_id: str, backoff: Backoff) -> Call[None]:
    """Remove a generation; a 404 after an answer that was lost says that it is done."""
    try:
        yield from _ask(requests.delete(generation_id), backoff)
    except GenerationNotFound:
        if not backoff.failures:
            raise


def wait(generation_id: str, timeout_s: float | None, clock: Callable[[], float] = time.monotonic) -> Call[Generation]:
    """Ask until the generation has ended, through outages too; raises TimeoutError."""
    deadline = None if timeout_s is None else clock() + timeout_s
    while True:
        left_s = None if deadline is None else max(0.0, deadline - clock())
        wait_s = requests.LONGEST_WAIT_S if left_s is None else min(left_s, requests.LONGEST_WAIT_S)
        answer = yield from _ask_text(requests.transcript(generation_id, requests.TEXT, wait_s), Backoff(left_s))
        if answer.headers[_STATUS] in TERMINAL:
            return (yield from generation(generation_id, Backoff(left_s)))
        if left_s is not None and left_s <= wait_s:
            raise TimeoutError(f"generation {generation_id} has not ended within {timeout_s:g} s")


_PAGE = 100  # generations; the service sends at most 1,000 at once


class Listing:
    """Goes through the pages of the list."""

    def __init__(self, filters: Mapping[str, str], *, limit: int | None) -> None:
        self.complete = limit == 0
        self._filters = filters
        self._left = limit
        self._before: str | None = None

    def page(self, backoff: Backoff) -> Call[Page]:
        """Ask for the next page."""
        size = _PAGE if self._left is None else min(self._left, _PAGE)
        return _fetch(requests.page(self._filters, limit=size, before=self._before), backoff, read_page)

    def take(self, page: Page) -> list[Generation]:
        """The generations of a page; a page may be short, or empty, although there is more."""
        if self._left is not None:
            self._left -= len(page.generations)
        self._before = page.next
        self.complete = page.next is None or self._left == 0
        return page.generations


def _ask(request: Request, backoff: Backoff) -> Call[Answer]:
    """Send a request until it is answered; raises what the service refuses with, or Unreachable."""
    after_s = 0.0
    while True:
        outcome = yield Try(request, after_s)
        if isinstance(outcome, Answer) and 200 <= outcome.status < 300:
            return outcome
        pause_s = backoff.pause_s(retry_after_s(outcome)) if may_pass(outcome) else None
        if pause_s is None:
            raise error_of(outcome)
        after_s = pause_s


def _fetch(request: Request, backoff: Backoff, read: Callable[[dict[str, Any]], T]) -> Call[T]:
    """Ask for an object."""
    answer = yield from _ask(request, backoff)
    return read_answer(answer, read)


def _fetch_text(request: Request, backoff: Backoff) -> Call[str]:
    """Ask for a text."""
    answer = yield from _ask_text(request, backoff)
    return answer.body.decode(errors="replace")


def _ask_text(request: Request, backoff: Backoff) -> Call[Answer]:
    """Ask for what a generation has said; any page of any server is a text, so it has to say whose it is."""
    answer = yield from _ask(request, backoff)
    if _STATUS not in answer.headers:
        raise UnexpectedAnswer(f"expected a transcript with {_STATUS}, got {answer.body[:100]!r}")
    return answer


def read_answer(answer: Answer, read: Callable[[dict[str, Any]], T]) -> T:
    """What the body of an answer tells; raises UnexpectedAnswer."""
    try:
        return read(json.loads(answer.body))
    except (ValueError, KeyError, TypeError) as error:
        raise UnexpectedAnswer(f"expected an object of the service, got {answer.body[:100]!r}") from error
