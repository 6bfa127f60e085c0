"""`replay serve` as a real process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from support.api import Api
from support.deadlines import DEADLINE_S, within
from support.ports import free_port
from support.processes import Process

_DATA_DIR = "replay-data"  # of a node that is told no other
_READY = re.compile(r"replay is ready at (http://\S+)")
_FOREIGN = re.compile(r"REPLAY_|OPENAI_|.*_PROXY$", re.IGNORECASE)  # settings of whoever runs the tests


class Node(Process):
    """One node; settings are spelt as in config.py: `lease_s=2` is the flag `--lease-s 2`.

    It keeps its port over restarts. A setting of None is not passed. `env` is added to an environment
    without any setting of the service.
    """

    def __init__(
        self,
        directory: Path,
        *,
        env: Mapping[str, str] | None = None,
        most_open_files: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self._limits = ["sh", "-c", 'ulimit -n "$0" && exec "$@"', str(most_open_files)] if most_open_files else []
        self.settings: dict[str, Any] = {"port": free_port()} | settings
        self.env = dict(env or {})
        self.stdout: list[str] = []
        self.url = ""
        self._directory = directory
        self._log = directory / f"node-{self.settings['port']}.stderr"
        self._reader: threading.Thread | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def api(self) -> Api:
        return Api(self.url)

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None, "not started"
        return port

    @property
    def stderr(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    async def start(self, seconds: float = DEADLINE_S) -> None:
        """Start, and wait for the ready line, which is the first on stdout."""
        flags = [
            text
            for name, value in self.settings.items()
            if value is not None
            for text in (f"--{name.replace('_', '-')}", str(value))
        ]
        clean = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
        with self._log.open("ab") as log:
            self._popen = await asyncio.to_thread(
                subprocess.Popen,
                [*self._limits, sys.executable, "-m", "replay", "serve", *flags],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**clean, "PYTHONUNBUFFERED": "1", **self.env},
                cwd=self._directory,
                start_new_session=True,
            )
        first_line: Future[str] = Future()
        assert self._popen.stdout is not None
        self.stdout = []
        self._reader = threading.Thread(
            target=_collect, args=(self._popen.stdout, self.stdout, first_line), daemon=True
        )
        self._reader.start()
        line = await within(f"the ready line; stderr:\n{self.stderr}", asyncio.wrap_future(first_line), seconds)
        ready = _READY.fullmatch(line.rstrip("\n"))
        assert ready, f"the first line on stdout is {line!r}, expected {_READY.pattern!r}; stderr:\n{self.stderr}"
        self.url = ready[1].rstrip("/")

    async def restart(self) -> None:
        """Start again on the same port; killed first if it still runs."""
        self.kill()
        await self.start()

    async def stop(self, seconds: float = DEADLINE_S) -> int:
        """SIGTERM, and the exit code."""
        self.terminate()
        return await self.wait(seconds)

    def destroy(self) -> None:
        super().destroy()
        if self.settings.get("valkey_url") is None:
            _kill_its_valkey(self._directory / self.settings.get("data_dir", _DATA_DIR))  # it outlives a kill
        if self._reader is not None:
            self._reader.join(DEADLINE_S)


def _kill_its_valkey(data_dir: Path) -> None:
    """SIGKILL the server that a killed node has left running on this directory, and nothing else."""
    conf = f"{data_dir.resolve()}/valkey.conf"
    listing = subprocess.run(["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    for line in listing.splitlines():
        pid, _, arguments = line.strip().partition(" ")
        if conf in arguments.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def _collect(pipe: IO[bytes], lines: list[str], first: Future[str]) -> None:
    """Read stdout to its end, so that the node never waits for a reader."""
    with pipe:
        for line in pipe:
            lines.append(line.decode(errors="replace"))
            if len(lines) == 1:
                _tell(first, lines[0])
    _tell(first, "")


def _tell(future: Future[str], value: str) -> None:
    with contextlib.suppress(Exception):  # already told, or nobody waits any more
        future.set_result(value)
