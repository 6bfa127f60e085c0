"""Work that takes long, beside the event loop: what others wait for goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

AT_ONCE = 64 << 10  # bytes, at most, that are looked at sooner than a thread begins


async def offload(size: int, work: Callable[[], T]) -> T:
    """The result of some work on so many bytes, which is done in a thread where they are many.

    Work that has begun is finished when its caller is cancelled.
    """
    return work() if size <= AT_ONCE else await asyncio.to_thread(work)
