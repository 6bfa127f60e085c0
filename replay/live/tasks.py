"""The tasks of a node that belong to no request: each has a name, and is awaited when the node stops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from replay.errors import ReplayError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Tasks:
    """Starts what outlives the requests that caused it, and cancels it when the node stops."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def run(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start something that outlives whoever caused it; an error that nobody expects is logged."""
        task = asyncio.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._note_done)
        return task

    def _note_done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ReplayError):  # those are for whoever asked
            logger.error("task failed", extra={"task": task.get_name()}, exc_info=error)

    async def stop(self) -> None:
        """Cancel all that runs, and wait until it is over."""
        for task in tuple(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
