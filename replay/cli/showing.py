"""Shows a generation as it goes on, and tells how it ended."""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Any

from replay.cli.asides import asides
from replay.cli.exits import Exit, exit_of_status
from replay.cli.progress import Progress, span
from replay.cli.terminal import Terminal
from replay.client import Client, Delta, End, Event, Generation, Live, Reset, Token
from replay.errors import ReplayError

_GIVE_UP_AFTER_S = 300.0  # a machine may take minutes to start again; a script must not wait for ever
_TOLD_AT = 2  # failures one after the other: a cut is over with the next try
_SENTENCES = {
    "queued": "the generation has not said anything yet",
    "streaming": "the generation goes on",
    "failed": "the generation failed",
    "cancelled": "the generation was cancelled",
    "interrupted": "the generation was interrupted",
}


def show(client: Client, terminal: Terminal, generation: Generation, *, after: str | None, come_back: str) -> Exit:
    """Show a generation from its start, or from after an event, until it ends; Ctrl-C says how to come back."""
    progress, page = Progress(generation), _Page(terminal)
    ending: Generation | End = generation

    def lost(error: ReplayError, pause_s: float) -> None:
        progress.lost(error, pause_s)
        if progress.failures == _TOLD_AT:
            terminal.report(f"connection lost ({error}), trying again for up to {span(_GIVE_UP_AFTER_S)}")

    try:
        with terminal.status(lambda: progress.line(time.time() * 1000)):
            for event in client.follow(generation.id, after=after, give_up_after=_GIVE_UP_AFTER_S, on_lost=lost):
                progress.take(event)
                page.take(event)
                ending = event if isinstance(event, End) else ending
    except KeyboardInterrupt:
        terminal.complain(f"the generation goes on; come back with: {come_back}")
        raise
    return tell_end(terminal, ending)


def tell_end(terminal: Terminal, ending: Generation | End) -> Exit:
    """Tell if a generation did not complete; how a command went that has shown it."""
    terminal.fresh_line()
    if ending.status in _SENTENCES:
        error = ending.error
        why = f": {error.get('message')} ({error.get('code')})" if error else ""
        terminal.complain(_SENTENCES[ending.status] + why)
    return exit_of_status(ending.status)


class _Page:
    """The text as it grows, with what the model says beside it."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._empty = True
        self._block: Hashable = None  # what the last piece belonged to

    def take(self, event: Event) -> None:
        match event:
            case Live():
                self._terminal.go_live()
            case Reset():
                self._begin_again()
            case Delta():
                self._write_asides(event.choices)
            case Token():
                self._write_asides(event.choices)
                self._enter("text")
                self._terminal.write(event.content)
                self._empty = False

    def _write_asides(self, choices: list[dict[str, Any]]) -> None:
        for aside in asides(choices):
            self._enter(aside.block, aside.heading)
            self._terminal.aside(aside.text)

    def _enter(self, block: Hashable, heading: str = "") -> None:
        """Set a block off against the one before; only a terminal shows more than the text."""
        if block == self._block:
            return
        if self._block is not None:
            self._terminal.fresh_line()
            self._terminal.aside("\n")
        self._terminal.aside(heading)
        self._block = block

    def _begin_again(self) -> None:
        """What has been written is of a log that was lost: a terminal can say so, in a file it would pass for more."""
        if not self._terminal.decorated and not self._empty:
            raise ReplayError("the log was lost and has begun again: what was written is not the whole answer")
        self._terminal.complain("the log was lost and has begun again: this is the answer from its start")
        self._block = None
