"""What a node counts, in plain integers; `http/ops.py` publishes them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field


class Histogram:
    """Observations by upper bound, in seconds. Adding one costs a bisection and two additions."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, *bounds: float) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last one is beyond all bounds
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


def _latency() -> Histogram:
    return Histogram(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)


def _pace() -> Histogram:
    return Histogram(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


@dataclass(slots=True)
class Counters:
    """What has happened on this node since it started."""

    started: int = 0
    ended: dict[str, int] = field(default_factory=dict)  # by status
    tokens: int = 0
    events: int = 0
    catch_ups: int = 0  # subscribers that had been behind and had caught up
    slow_aborts: int = 0
    healed: int = 0  # events appended again, because Valkey had lost them
    orphans_ended: int = 0
    append_seconds: Histogram = field(default_factory=_latency)
    first_token_seconds: Histogram = field(default_factory=_pace)
    inter_token_seconds: Histogram = field(default_factory=_pace)

    def count_end(self, status: str) -> None:
        """Count a generation that was ended from here."""
        self.ended[status] = self.ended.get(status, 0) + 1
