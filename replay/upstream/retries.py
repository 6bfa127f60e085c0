"""Whether a call of an upstream is made again, and when.

Only what surely was not begun is: no connection came about, or the answer said so itself (408, 409, 429 and 5xx). A
model that has been asked twice is paid for twice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import aiohttp

from replay.errors import UpstreamError

_NOT_BEGUN = frozenset((408, 409, 429))  # and 5xx
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
_LONGEST_WAIT_S = 60.0  # an upstream that asks for more is not tried again


def pause_before_next_s(error: UpstreamError, tries: int) -> float | None:
    """Seconds until the next try; None where the call may have been begun, or another try is not wanted."""
    refusal = error.refusal
    pause_s: float = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**tries) * random.uniform(0.75, 1.0)
    if refusal is None:
        never_sent = isinstance(error.__cause__, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        return pause_s if never_sent else None
    advice = refusal.headers.get("x-should-retry")
    if advice == "false" or (advice != "true" and refusal.status not in _NOT_BEGUN and refusal.status < 500):
        return None
    delay_s = _delay_s(refusal.headers)
    if delay_s is None:
        return pause_s
    return delay_s if delay_s <= _LONGEST_WAIT_S else None


def _delay_s(headers: Mapping[str, str]) -> float | None:
    """When to come back, in seconds from now, as the answer says; None where it does not."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit_s)
        except (KeyError, ValueError):
            continue
    try:
        when = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    left_s: float = when.timestamp() - time.time()
    return max(0.0, left_s)
