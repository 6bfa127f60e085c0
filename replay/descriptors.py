"""Who may have the process's file descriptors: clients and upstreams those below a mark, Valkey all of them.

The system gives out the lowest number that is free. So a socket whose number reaches the mark is one too many for
whoever opened it, and there are always some left for Valkey, without which neither clients nor upstreams are served.
"""

from __future__ import annotations

import math
import resource

_LEAST_RESERVE = 32


def mark() -> float:
    """The number from which on they are Valkey's: an eighth of all, and 32 at least, where there is a limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft - max(_LEAST_RESERVE, soft // 8)
