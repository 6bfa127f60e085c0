"""What may go to a terminal: a model's text must not move its cursor, set its title, answer for its user or change the
order in which what stands there is read."""

from __future__ import annotations

import os

_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))  # embeddings, overrides, isolates
_CONTROLS = {
    code: None for code in (*range(0x20), *range(0x7F, 0xA0), *_BIDI) if chr(code) not in "\n\t"
}  # C0, DEL, C1


def printable(text: str) -> str:
    """The text without control characters, but for newlines and tabs."""
    return text.translate(_CONTROLS)


def one_line(text: str) -> str:
    """The printable text as one line."""
    return " ".join(printable(text).split())


def dimmed(text: str) -> str:
    """The text in a fainter shade, where shades are wanted (https://no-color.org)."""
    return text if is_plain() else f"\x1b[2m{text}\x1b[0m"


def is_plain() -> bool:
    """Whether a terminal's user, or the terminal, wants nothing but text."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
