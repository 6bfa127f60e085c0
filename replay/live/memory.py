"""Gives the memory of what was forgotten back to the system.

The C library keeps what is freed below anything that is in use: of 600 MB in events of 15 to 150 kB that were deleted,
590 stayed with the process. It gives whole pages back when it is asked to, which takes some 0.1 ms for a MB.
"""

from __future__ import annotations

import ctypes
from typing import Any

_WORTH_BYTES = 64 << 20  # less is soon used again


def _trim_of_libc() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # not glibc
        return None


_trim = _trim_of_libc()


class Memory:
    """How much was forgotten since some was last given back."""

    def __init__(self) -> None:
        self._forgotten = 0  # bytes

    def forget(self, size: int) -> None:
        """Count that something of so many bytes is not held here any more."""
        self._forgotten += size

    def give_back(self) -> None:
        """Give back what is free, if there is enough of it."""
        if self._forgotten >= _WORTH_BYTES and _trim is not None:
            self._forgotten = 0
            _trim(0)
