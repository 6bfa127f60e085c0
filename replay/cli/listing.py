"""Shows a list of generations: a table on a terminal, lines with tabs for programs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime

from replay.cli.printable import is_plain, one_line
from replay.client import Generation

_STYLES = {"completed": "green", "failed": "red", "interrupted": "red", "cancelled": "yellow", "streaming": "cyan"}
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

    now = time.time()
    rows = list(generations)
    with_reasons = any(map(reason, rows))  # a column of nothing would take the place of ids
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("id", overflow="fold")
    table.add_column("status", no_wrap=True)
    table.add_column("model", overflow="fold")
    table.add_column("age", justify="right", no_wrap=True)
    table.add_column("events", justify="right", no_wrap=True)
    table.add_column("watching", justify="right", no_wrap=True)
    if with_reasons:
        table.add_column("reason", overflow="fold")
    for generation in rows:
        table.add_row(
            generation.id,
            Text(generation.status, style=_STYLES.get(generation.status, "")),
            Text(one_line(generation.model)),
            age(now - generation.created),
            f"{generation.events:,}",
            f"{generation.subscribers:,}",
            *([Text(one_line(reason(generation)))] if with_reasons else []),
        )
    Console(color_system=None if is_plain() else "auto").print(table)


def age(seconds: float) -> str:
    """A span of time in the largest unit of which there is one, as `5 min`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
