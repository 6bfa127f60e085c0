"""Where the commands write: the text to stdout, and all that is about it to stderr.

On a terminal the text is stripped of control characters, and what the model thinks and calls is shown dimmed beside
it. Anywhere else stdout gets the text alone, untouched. What needs `rich` is loaded only for a terminal.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from replay.cli.printable import dimmed, printable

if TYPE_CHECKING:
    from replay.cli.status_line import StatusLine


class Terminal:
    """The two streams of a command."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.decorated = sys.stdout.isatty()
        self._quiet = quiet
        self._status: StatusLine | None = None
        self._mid_line = False  # the text on the terminal has not ended with a newline
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # half a surrogate pair must not cost the rest of the text

    # The text.

    def write(self, text: str) -> None:
        """Write a piece of the text."""
        if self.decorated:
            text = printable(text)
            self._put(text, text)
        else:
            _write_out(text)

    def aside(self, text: str) -> None:
        """Write what is beside the text, dimmed; nothing where there is no terminal."""
        if self.decorated:
            text = printable(text)
            self._put(text, dimmed(text))

    def fresh_line(self) -> None:
        """Begin a new line on the terminal, unless it is one."""
        if self._mid_line:
            self._put("\n", "\n")

    def _put(self, text: str, styled: str) -> None:
        if not text:
            return
        with self._beneath(text):
            _write_out(styled)
        self._mid_line = not text.endswith("\n")

    # About the text.

    def say(self, message: str) -> None:
        """Tell something to whoever wants to know."""
        if not self._quiet:
            self._tell(message)

    def report(self, message: str) -> None:
        """Tell what the status line tells, where there is none."""
        if self._status is None:
            self.say(message)

    def complain(self, message: str) -> None:
        """Tell something that everybody has to know."""
        self._tell(f"replay: {message}")

    def _tell(self, message: str, *, dim: bool = False) -> None:
        self.fresh_line()
        line = (printable(message) if sys.stderr.isatty() else message) + "\n"
        with self._beneath(line):
            sys.stderr.write(dimmed(line) if dim else line)
            sys.stderr.flush()

    @contextlib.contextmanager
    def status(self, line: Callable[[], str]) -> Iterator[None]:
        """Show a line about what is going on, from `go_live` on, and leave the last one where it is."""
        if self._quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            yield
            return
        from replay.cli.status_line import StatusLine

        try:
            with StatusLine(sys.stderr, line) as self._status:
                yield
        finally:
            self._status = None
        self._tell(line(), dim=True)

    def go_live(self) -> None:
        """What comes from now on comes as it happens."""
        if self._status is not None:
            self._status.show()

    def _beneath(self, text: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._status is None else self._status.beneath(text)


def _write_out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
