"""Shows a list of generations: a table on a terminal, lines with tabs for programs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal

from replay.cli.printable import is_plain, one_line
from replay.client import Generation

_STYLES = {"completed": "green", "failed": "red", "interrupted": "red", "cancelled": "yellow", "streaming": "cyan"}
_NUMBERS = ("age", "events", "watching")
_DISPENSABLE = ("watching", "events", "age", "model", "reason", "status")  # in a narrow terminal, from the first on
_ROOM = {"model": 12}  # characters
_USUAL_ROOM = 32  # ids that the service makes have 31
_WHOLE = (None, "stop", "tool_calls", "function_call")  # reasons for which a model ends by itself


def plain_line(generation: Generation) -> str:
    """One line: id, status, model, when it was created (ISO 8601, UTC), events, subscribers, reason, between tabs."""
    created = datetime.fromtimestamp(generation.created, UTC).isoformat(timespec="seconds")
    numbers = (generation.events, generation.subscribers)
    fields = (generation.id, generation.status, generation.model, created, *numbers, reason(generation))
    return "\t".join(one_line(str(field)) for field in fields)


def reason(generation: Generation) -> str:
    """Why it did not complete, as the code of its error, or why its answer is not whole; else nothing."""
    if generation.error:
        return str(generation.error.get("code"))
    return "" if generation.finish_reason in _WHOLE else str(generation.finish_reason)


def print_table(generations: Iterable[Generation]) -> None:
    """Print a table. What does not fit is folded, and never cut short: it is there to be copied."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(color_system=None if is_plain() else "auto")
    columns = _fitting(_columns(list(generations)), console.width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, values in columns.items():
        justify: Literal["right", "left"] = "right" if name in _NUMBERS else "left"
        whole = len(columns) > 1 and _longest(name, values) == _room(name, values)
        table.add_column(name, justify=justify, overflow="fold", no_wrap=whole)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*(Text(value, style=_style(name, value)) for name, value in zip(columns, row, strict=True)))
    console.print(table)


def _style(name: str, value: str) -> str:
    return _STYLES.get(value, "") if name == "status" else ""


def _columns(generations: Sequence[Generation]) -> dict[str, list[str]]:
    now = time.time()
    columns = {
        "id": [each.id for each in generations],
        "status": [str(each.status) for each in generations],
        "model": [one_line(each.model) for each in generations],
        "age": [age(now - each.created) for each in generations],
        "events": [f"{each.events:,}" for each in generations],
        "watching": [f"{each.subscribers:,}" for each in generations],
        "reason": [one_line(reason(each)) for each in generations],
    }
    if not any(columns["reason"]):
        del columns["reason"]
    return columns


def _fitting(columns: dict[str, list[str]], width: int) -> dict[str, list[str]]:
    """Those of the columns for which a terminal has room: an id that is folded cannot be copied in one go."""
    for name in _DISPENSABLE:
        if sum(_room(other, values) + 2 for other, values in columns.items()) - 2 <= width:
            break
        columns = {other: values for other, values in columns.items() if other != name}
    return columns


def _room(name: str, values: list[str]) -> int:
    """How wide a column is at least, where it may be folded."""
    return min(_longest(name, values), _ROOM.get(name, _USUAL_ROOM))


def _longest(name: str, values: list[str]) -> int:
    return max(map(len, (name, *values)))


def age(seconds: float) -> str:
    """A span of time in the largest unit of which there is one, as `5 min`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
