"""When to ask again: exponential backoff with full jitter, so that those who were cut together do not return so."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

_FIRST_S = 0.1
_LONGEST_S = 5.0
_MOST_DOUBLINGS = 6  # 0.1 s doubled so often is more than the longest


class Backoff:
    """The pauses between tries, and when there have been enough of them.

    `give_up_after_s` counts from the first failure since the service was last there; None is never.
    """

    def __init__(
        self,
        give_up_after_s: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.failures = 0  # since the last success
        self._give_up_after_s = give_up_after_s
        self._clock = clock
        self._jitter = jitter
        self._failing_since: float | None = None

    def pause_s(self, at_least_s: float = 0.0) -> float | None:
        """Note a failure; the seconds to wait until the next try, or None when it is time to give up."""
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        longest_s = min(_LONGEST_S, _FIRST_S * 2.0 ** min(self.failures, _MOST_DOUBLINGS))
        self.failures += 1
        pause_s = at_least_s + longest_s * self._jitter()
        if self._give_up_after_s is not None and now + pause_s > self._failing_since + self._give_up_after_s:
            return None
        return pause_s

    def reached(self) -> None:
        """The service is there; the time until giving up counts anew."""
        self._failing_since = None

    def succeeded(self) -> None:
        """It has brought something new; the next pause is a short one again."""
        self.reached()
        self.failures = 0
