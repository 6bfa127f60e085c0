"""A line about what is going on, beneath the text that is being written.

The text flows through the terminal as it is; the line is taken away before each piece of it, and put back after. To
put it there: `ESC D` makes room below, where the cursor stands on the last row, `ESC 7` and `ESC 8` remember the cursor
and go back to it. A cursor that has filled its row stands on the last column until the next character wraps it, which
it forgets when it moves: then there is no line until the text has gone on.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.cells import get_character_cell_size, set_cell_size

from replay.cli.printable import dimmed, one_line

_TICK_S = 0.25  # in silence, for the seconds that go by
_FRESH_S = 0.1  # a line is not made anew more often, however fast the tokens come
_BELOW = "\x1bD\x1b[A\x1b7\x1b[B\r"
_BACK = "\x1b8"
_ERASE = "\x1b7\x1b[B\r\x1b[J\x1b8"
_TAB = 8
_USUAL_WIDTH = 80  # of a terminal that does not know its own


class StatusLine:
    """Shows `line` beneath the text; a context manager, within which it is drawn from `show` on."""

    def __init__(self, stream: TextIO, line: Callable[[], str]) -> None:
        self._stream = stream
        self._line = line
        self._shown = self._drawn = False
        self._column = 0  # where the text has left the cursor; the width, where it has filled its row
        self._rendered, self._rendered_at = "", -_FRESH_S
        self._lock = threading.Lock()  # the text's thread and the clock's write to one terminal
        self._closing = threading.Event()
        self._clock = threading.Thread(target=self._tick, name="status line", daemon=True)

    def __enter__(self) -> StatusLine:
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._clock.join()
        self._erase()

    def show(self) -> None:
        """Draw it from now on."""
        with self._lock:
            self._shown = True
            self._draw()

    @contextlib.contextmanager
    def beneath(self, text: str) -> Iterator[None]:
        """Make way for a text, which is written meanwhile."""
        with self._lock:
            self._erase()
            yield
            self._column = column_after(text, self._column, self._width())
            self._draw()

    def _draw(self) -> None:
        width = self._width()
        if not self._shown or self._column >= width:
            return
        now = time.monotonic()
        if now - self._rendered_at >= _FRESH_S:
            self._rendered, self._rendered_at = self._render(width), now
        self._write(_BELOW + self._rendered + _BACK)
        self._drawn = True

    def _render(self, width: int) -> str:
        return dimmed(set_cell_size(one_line(self._line()), width - 1).rstrip())

    def _width(self) -> int:
        return os.get_terminal_size(self._stream.fileno()).columns or _USUAL_WIDTH

    def _erase(self) -> None:
        if self._drawn:
            self._write(_ERASE)
        self._drawn = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def _tick(self) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone; whoever writes the text will see
            while not self._closing.wait(_TICK_S):
                with self._lock:
                    self._erase()
                    self._draw()


def column_after(text: str, column: int, width: int) -> int:
    """Where a terminal of this width leaves its cursor when a printable text has been written at a column."""
    for character in text:
        if character == "\n":
            column = 0
        elif character == "\t":
            column = min(width - 1, (column // _TAB + 1) * _TAB)
        else:
            size = get_character_cell_size(character)
            column = size if column + size > width else column + size
    return column
