"""What is the same for all peers: a directory, processes, and one connection over which events are published."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import ClassVar

from support.deadlines import DEADLINE_S, DeadlineMissed, eventually
from support.ports import free_port
from support.processes import Process
from support.valkey import ValkeyServer

from .publisher import Publisher, http_answer

_START_S = 30.0
_PIPELINED = 100  # requests on their way at once: enough to hide the round trip, few enough for any server's buffers


class Missing(Exception):
    """A peer cannot be installed or started here."""


class Peer(ABC):
    """One server with whatever it needs, in a temporary directory: an async context manager, used once.

    A stream's name is of `[A-Za-z0-9_-]`; an event's data is UTF-8 without a line break, and not empty.
    """

    name: ClassVar[str]  # in the table
    replays: ClassVar[bool]  # whether it can give a late subscriber everything from the first event
    resumes: ClassVar[bool]  # whether it can go on after an event that a subscriber names
    # Whether a subscriber from now on, once its answer has begun, misses nothing. Else it had better replay.
    subscribes_at_once: ClassVar[bool] = True

    def __init__(self) -> None:
        self.port = free_port()
        self.versions = ""  # of what it is made of; known once it runs
        self._pids: dict[str, int] = {}
        self._stack = AsyncExitStack()
        self._publisher: Publisher

    @classmethod
    @abstractmethod
    async def install(cls) -> None:
        """Install what is missing, at once if nothing is; raises Missing."""

    async def __aenter__(self) -> Peer:
        async with AsyncExitStack() as stack:
            self._stack = stack
            await self._start(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            self._publisher = await stack.enter_async_context(self._publishing())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def pids(self) -> dict[str, int]:
        """The processes whose CPU time is the peer's; the same as long as it runs."""
        return dict(self._pids)

    # Subscribing.

    def request(self, stream: str, *, replay: bool = False, after: str | None = None) -> bytes:
        """What a subscriber sends: for events from now on, for all from the first, or for those after one.

        `after` is what this peer resumes from, which see. Raises ValueError for what the peer cannot do.
        """
        if (replay and not self.replays) or (after is not None and not self.resumes):
            raise ValueError(f"{self.name} cannot {'replay' if replay else 'resume'}")
        path, headers = self._subscription(stream, replay, after)
        return http_request("GET", path, self.port, {"Accept": "text/event-stream", **headers})

    @abstractmethod
    def _subscription(self, stream: str, replay: bool, after: str | None) -> tuple[str, Mapping[str, str]]:
        """Path and headers."""

    # Publishing.

    async def open(self, stream: str) -> None:  # noqa: B027 # most need nothing
        """Make what must exist before the first subscriber or event of a stream."""

    async def publish(self, stream: str, data: bytes) -> None:
        """Publish one event; returns when the server has taken it. Calls may overlap, and keep their order."""
        await self._publisher.ask(self._publication(stream, data))

    async def publish_many(self, stream: str, datas: Iterable[bytes]) -> None:
        """Publish events in this order, many on their way at once; returns when the server has taken all."""
        requests = [self._publication(stream, data) for data in datas]
        for first in range(0, len(requests), _PIPELINED):
            batch = requests[first : first + _PIPELINED]
            await self._publisher.ask(b"".join(batch), answers=len(batch))

    @abstractmethod
    def _publication(self, stream: str, data: bytes) -> bytes:
        """The request that publishes one event."""

    def _publishing(self) -> Publisher:
        """The connection to publish over."""
        return Publisher(self.port, http_answer)

    # Starting, and stopping in reverse.

    @abstractmethod
    async def _start(self, directory: Path) -> None:
        """Start all processes and wait until they answer; raises Missing."""

    async def _run(self, name: str, command: Sequence[str | Path], directory: Path, **env: str) -> Program:
        """Start what listens on the peer's port, and wait until it does."""
        program = Program(command, directory, env)
        self._stack.callback(program.destroy)
        try:
            program.start()
            await eventually(name, program.listens_on(self.port), seconds=_START_S)
        except (OSError, DeadlineMissed, ProgramExited) as error:
            raise Missing(f"{name} did not start: {error}; {program.log[-500:]}") from error
        self._pids[name] = program.pid
        return program

    def _run_valkey(self, directory: Path) -> ValkeyServer:
        """The Valkey that the service is tested with, and with the same promise: on disk within a second."""
        valkey = ValkeyServer(directory / "valkey", maxclients=20_000)
        self._stack.callback(valkey.destroy)
        valkey.start()
        self._pids["valkey"] = valkey.pid
        return valkey


class ProgramExited(Exception):
    """A server ended before it listened."""


class Program(Process):
    """A server as a process, with its output in a file."""

    def __init__(self, command: Sequence[str | Path], directory: Path, env: Mapping[str, str]) -> None:
        super().__init__()
        self._command = command
        self._directory = directory
        self._env = {**os.environ, **env}
        self._log = directory / "log"

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._popen = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                cwd=self._directory,
                start_new_session=True,
            )

    def stop(self) -> None:
        """SIGTERM, and wait, so that it ends its own children."""
        if self.running:
            self.terminate()
            self._join(DEADLINE_S)

    def listens_on(self, port: int) -> Callable[[], Awaitable[bool]]:
        """Asks whether a connection is accepted; raises ProgramExited once nobody is left to accept one."""

        async def ask() -> bool:
            if not self.running:
                raise ProgramExited(f"it exited with {self._join(0)}")
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            writer.close()
            return True

        return ask

    def children(self) -> list[int]:
        """The processes that its main thread has started, and that still run."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]


def http_request(method: str, path: str, port: int, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """A request with its body, as it goes over the wire."""
    length = {"Content-Length": str(len(body))} if method != "GET" else {}
    lines = [f"{name}: {value}\r\n" for name, value in {"Host": f"127.0.0.1:{port}", **headers, **length}.items()]
    return f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + body
