"""The one time unit of the tests, and the two ways of waiting: for a gate, and for a fact that one has to ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")

DEADLINE_S = 10.0  # what a wait may take on a loaded machine before it counts as "never"
POLL_S = 0.02  # how often `eventually` asks


class DeadlineMissed(AssertionError):
    """Something that had to happen did not."""


async def within(what: str, awaitable: Awaitable[T], seconds: float = DEADLINE_S) -> T:
    """Await, but not for ever; `what` says in the failure what never came."""
    try:
        return await asyncio.wait_for(awaitable, seconds)
    except TimeoutError:
        raise DeadlineMissed(f"not within {seconds:g} s: {what}") from None


async def eventually(
    what: str,
    ask: Callable[[], Awaitable[T]],
    accept: Callable[[T], Any] = bool,
    seconds: float = DEADLINE_S,
) -> T:
    """Ask until the answer is acceptable: for facts that have no gate, such as a generation's status."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        answer = await ask()
        if accept(answer):
            return answer
        if loop.time() > deadline:
            raise DeadlineMissed(f"not within {seconds:g} s: {what}; last answer: {answer!r}")
        await asyncio.sleep(POLL_S)


async def stays_silent(task: asyncio.Task[Any], seconds: float = 0.3) -> bool:
    """Whether nothing has come of a task in so long."""
    done, _ = await asyncio.wait([task], timeout=seconds)
    return not done
