"""The time of day, as logs and lists have it."""

from __future__ import annotations

import time


def now_ms() -> int:
    """The time, unix ms."""
    return time.time_ns() // 1_000_000
