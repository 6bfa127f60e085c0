"""The exit codes of the commands, for scripts."""

from __future__ import annotations

from enum import IntEnum

from replay.client import Status, Unreachable
from replay.errors import Draining, GenerationNotFound, InvalidSetting, ReplayError, StoreUnavailable


class Exit(IntEnum):
    """How a command went."""

    DONE = 0
    FAILED = 1
    USAGE = 2  # argparse's
    CANCELLED = 3
    NOT_FOUND = 4
    UNREACHABLE = 5
    INTERRUPTED = 130  # as shells have it: 128 and the number of the signal
    BROKEN_PIPE = 141


EPILOG = """\
exit codes:
  0    done; the generation that was shown has completed
  1    the generation failed or was interrupted, or the command did
  2    wrong usage
  3    the generation was cancelled
  4    there is no such generation: never started, deleted, or expired
  5    the service, or its Valkey, cannot be reached
  130  Ctrl-C; the generation goes on
  141  whoever read the output has stopped reading; the generation goes on
"""

_OF_STATUS: dict[Status, Exit] = {
    "failed": Exit.FAILED,
    "interrupted": Exit.FAILED,
    "cancelled": Exit.CANCELLED,
}

_OF_ERROR: tuple[tuple[type[ReplayError], Exit], ...] = (
    (GenerationNotFound, Exit.NOT_FOUND),
    (Unreachable, Exit.UNREACHABLE),
    (StoreUnavailable, Exit.UNREACHABLE),
    (Draining, Exit.UNREACHABLE),
    (InvalidSetting, Exit.USAGE),
)


def exit_of_status(status: Status) -> Exit:
    """How a command went that showed a generation with this status."""
    return _OF_STATUS.get(status, Exit.DONE)


def exit_of_error(error: ReplayError) -> Exit:
    """How a command went that raised this."""
    return next((code for kind, code in _OF_ERROR if isinstance(error, kind)), Exit.FAILED)
