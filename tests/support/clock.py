"""The wall clock of a node, which a test can set while the node runs.

The node's Python is given a module that adds to `time.time` what stands in a file; everything else that measures time,
the event loop's clock among it, goes on as it was.
"""

from __future__ import annotations

import os
from pathlib import Path

_MODULE = """
import os, time

def _ahead_s(path=os.environ["CLOCK_AHEAD"]):
    with open(path) as file:
        return int(file.read())

_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + _ahead_s()
time.time_ns = lambda: _time_ns() + _ahead_s() * 1_000_000_000
"""


class Clock:
    """A clock that is right until it is set; `env` is for the node that goes by it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._ahead = directory / "ahead"
        (directory / "sitecustomize.py").write_text(_MODULE)
        path = os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH")]))
        self.env = {"CLOCK_AHEAD": str(self._ahead), "PYTHONPATH": path}
        self.set(0)

    def set(self, ahead_s: int) -> None:
        """Let it be that many seconds ahead of the right time."""
        temporary = self._ahead.with_suffix(".new")
        temporary.write_text(str(ahead_s))
        temporary.replace(self._ahead)
