"""Prints both walks, as a run of them was: `python -m tests.walk`."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

from walk.tracing import Line
from walk.walks import last_event_id, token, world

_COLUMNS = 120
_HEAD = """\
What stands further right is called by the line above it that stands further left. A task, or the event loop,
begins at the margin, from its outermost function in, or goes on there with what it calls next. What wakes it stands
above, as far as it is of this package. What was told once is not told again: what it does then stands under its caller.
"""


def printed(lines: list[Line]) -> Iterator[str]:
    """A walk, a line of it on a line."""
    for line in lines:
        indent = "  " * line.depth
        if not line.calls:
            yield f"{'':<30}{indent}{line.text}" if line.depth else line.text
            continue
        first, *others = (call.code.co_qualname.replace(".<locals>", "") for call in line.calls)
        owner = first.rpartition(".")[0] + "."
        names = ", ".join([first, *(name.removeprefix(owner) for name in others)])
        at = f"{line.calls[0].file}:{line.calls[0].code.co_firstlineno}"
        yield _shortened(f"{at:<30}{indent}{names}{_summary(line)}")


def _summary(line: Line) -> str:
    """The first sentence of the first docstring among a line's functions."""
    texts = (" ".join((call.named.__doc__ or "").split()) for call in line.calls if call.named is not None)
    return next((" — " + text.split(". ")[0].rstrip(".") for text in texts if text), "")


def _shortened(text: str) -> str:
    return text if len(text) <= _COLUMNS else text[: _COLUMNS - 1] + "…"


async def main() -> None:
    """Take both walks."""
    with tempfile.TemporaryDirectory() as directory:
        async with world(Path(directory)) as made:
            print(_HEAD)
            for title, walk in (("The way of a token", token), ("The way of a Last-Event-ID", last_event_id)):
                print(f"{title}: {walk.__doc__}\n", *printed(await walk(made)), "", sep="\n")


if __name__ == "__main__":
    asyncio.run(main())
