"""What every real process in the tests has in common: signals, a deadline, and no survivors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path

from support.deadlines import DEADLINE_S


class Process:
    """A child process in a process group of its own, so that its children go with it."""

    def __init__(self) -> None:
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._popen is not None, "not started"
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def open_files(self) -> int:
        """How many file descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    @property
    def memory(self) -> int:
        """Bytes of physical memory that it takes."""
        return self._status("VmRSS")

    @property
    def peak_memory(self) -> int:
        """The most that it has taken."""
        return self._status("VmHWM")

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name + ":"))

    def terminate(self) -> None:
        """SIGTERM: please stop."""
        os.kill(self.pid, signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: nothing moves, connections stay."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait for it; nothing if it is gone already. Its own children are left alone."""
        if self.running:
            os.kill(self.pid, signal.SIGKILL)
            self._join(DEADLINE_S)

    async def wait(self, seconds: float = DEADLINE_S) -> int:
        """The exit code."""
        return await asyncio.to_thread(self._join, seconds)

    def destroy(self) -> None:
        """Whatever is left of it and of its children."""
        if self._popen is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._join(DEADLINE_S)

    def _join(self, seconds: float) -> int:
        assert self._popen is not None, "not started"
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"process {self.pid} still runs after {seconds:g} s") from None
