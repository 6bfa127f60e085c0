"""The benchmarks' own programs, in C: many subscribers, a sender that is nothing but the kernel, a model server.

Each is compiled when it is first needed, and is a process that ends with its stdin. `program.h` says how they are
talked to; load.c, floor.c and upstream.c what each does. What is called `at_s` is on the clock of `time.monotonic`.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

HERE = Path(__file__).parent
INSTALL = "apt-get install --no-install-recommends gcc libc6-dev"
FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror")
STAMP = b"@0000000000000000000@"  # in Floor's event: is filled in with the time
_ANSWER_S = 30.0  # what an answer may take on a machine that is busy
_POLL_S = 0.02
DEADLINE_S = 60.0  # how long `until` waits, unless told otherwise

Mark = TypeVar("Mark")


class ProgramFailed(Exception):
    """One of the programs cannot be compiled, has given up, or does not answer."""


# Compiling.


@functools.cache
def compiled(name: str) -> Path:
    """The program's path; compiled once for each version of its source. Blocks for a second."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise ProgramFailed(f"there is no C compiler `cc`; on Debian, as root: {INSTALL}")
    source, header = HERE / f"{name}.c", HERE / "program.h"
    version = hashlib.sha256(source.read_bytes() + header.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    directory = Path(tempfile.gettempdir()) / f"replay-benchmarks-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise ProgramFailed(f"{directory} belongs to somebody else, who would choose what we run")
    program = directory / f"{name}-{version}"
    if not program.exists():
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            fresh = Path(scratch) / name
            run = subprocess.run([compiler, *FLAGS, "-o", fresh, source], capture_output=True, text=True, check=False)
            if run.returncode:
                raise ProgramFailed(f"{source} does not compile:\n{run.stderr}")
            fresh.replace(program)  # in one step: others may be compiling it, too
    return program


# What all of them are.


class Program(Generic[Mark]):
    """A process that is told a line, and answers with a line; to `mark` with its counters."""

    def __init__(self, name: str, mark: Callable[..., Mark], configuration: Iterable[bytes]) -> None:
        self._name = name
        self._mark = mark
        self._configuration = b"".join(configuration) + b"start"
        self._turn = asyncio.Lock()  # whose answer it is that comes next
        self._owed = 0  # answers; more than one where a caller was cancelled and did not wait for its own
        self._process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def __aenter__(self) -> Self:
        program = await asyncio.to_thread(compiled, self._name)
        self._process = await asyncio.create_subprocess_exec(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        try:
            self._started(await self._ask(self._configuration))
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def mark(self) -> Mark:
        """The counters."""
        return self._mark(**await self._ask(b"mark"))

    async def until(self, what: str, accept: Callable[[Mark], object], seconds: float = DEADLINE_S) -> Mark:
        """Wait for counters that are acceptable; raises ProgramFailed, which says what never came."""
        deadline = time.monotonic() + seconds
        while not accept(mark := await self.mark()):
            if time.monotonic() > deadline:
                raise ProgramFailed(f"not within {seconds:g} s: {what}; now {mark}")
            await asyncio.sleep(_POLL_S)
        return mark

    def _started(self, answer: dict[str, Any]) -> None:
        """What the program has said to its configuration."""

    async def _ask(self, line: bytes) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._turn:
            try:
                async with asyncio.timeout(_ANSWER_S):
                    self._process.stdin.write(line + b"\n")
                    self._owed += 1
                    while self._owed:
                        text = await self._process.stdout.readline()
                        self._owed -= 1
            except TimeoutError:
                raise ProgramFailed(f"{self._name} has not answered within {_ANSWER_S:g} s: {line[-50:]!r}") from None
        answer: dict[str, Any] = json.loads(text) if text else {"error": "it has ended"}
        if "error" in answer:
            raise ProgramFailed(f"{self._name}: {answer['error']}")
        return answer

    async def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_ANSWER_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            raise ProgramFailed(f"{self._name} has outlived its stdin") from None


# The subscribers.


@dataclass(frozen=True, slots=True)
class Subscribers:
    """Connections that ask the same."""

    request: bytes  # as it goes over the wire
    connections: int


def get(path: str, headers: Mapping[str, str] | None = None) -> bytes:
    """A request for an event stream."""
    return _request("GET", path, {"Accept": "text/event-stream"} | dict(headers or {}), b"")


def post(path: str, body: object, headers: Mapping[str, str] | None = None) -> bytes:
    """A request with JSON."""
    data = json.dumps(body).encode()
    mandatory = {"Content-Type": "application/json", "Content-Length": str(len(data))}
    return _request("POST", path, mandatory | dict(headers or {}), data)


def _request(method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(frozen=True, slots=True)
class LoadMark:
    """All connections up to now."""

    at_s: float
    cpu_s: float  # the load generator's own
    connections: int  # asked for
    connected: int
    refused: int
    answered: int  # by a 200
    wrong_status: int  # the connection is then closed
    ended: int  # by the body's last chunk
    closed: int  # by the other side, without that
    reset: int
    left: int  # by `close`
    stalled: int  # just now
    events: int
    bytes: int
    reads: int
    complete: int  # have had `target` events
    # When the last of all connections was that far; None before.
    connected_at_s: float | None
    answered_at_s: float | None
    first_event_at_s: float | None
    complete_at_s: float | None
    # From connect() to the first byte of the answer; None before there is one.
    first_byte_p50_s: float | None
    first_byte_p99_s: float | None
    first_byte_max_s: float | None


@dataclass(frozen=True, slots=True)
class LoadEnd(LoadMark):
    """And what is known in the end."""

    least: int  # events on a connection
    most: int
    # On those that were checked closely; all 0 if ids need not be contiguous, but for `ids`.
    holes: int  # ids that never came
    doubles: int
    reorders: int  # ids that came after a later one
    ids: int


@dataclass(frozen=True, slots=True)
class Latency:
    """From the stamp `@<ns of CLOCK_MONOTONIC>@` in an event to its arrival; zeros where there was none."""

    at_s: float
    cpu_s: float
    count: int
    p50_us: float
    p99_us: float
    max_us: float


class Load(Program[LoadMark]):
    """Subscribers of event streams, who begin to connect on entering.

    `sample` of them, spread over all, are checked closely: latency, and whether the last integers of their ids are
    1 apart, unless `contiguous` is false. With `target` events a connection is complete. `connect_per_second` 0 is as
    fast as it goes.
    """

    def __init__(
        self,
        port: int,
        subscribers: Sequence[Subscribers],
        *,
        host: str = "127.0.0.1",
        sample: int = 100,
        target: int = 0,
        connect_per_second: float = 0,
        contiguous: bool = True,
    ) -> None:
        settings = {
            "host": host,
            "port": port,
            "sample": min(sample, sum(each.connections for each in subscribers)),
            "target": target,
            "connect_per_second": connect_per_second,
            "contiguous": int(contiguous),
        }
        lines = [f"{name} {value}\n".encode() for name, value in settings.items()]
        lines += [
            b"subscribers %d %d\n%b" % (each.connections, len(each.request), each.request) for each in subscribers
        ]
        super().__init__("load", LoadMark, lines)

    async def latency(self) -> Latency:
        """Since this was last asked."""
        return Latency(**await self._ask(b"latency"))

    async def stall(self, connections: int) -> int:
        """Stop to read on so many that are not checked closely, the first; how many there were."""
        stalled: int = (await self._ask(b"stall %d" % connections))["connections"]
        return stalled

    async def close(self, connections: int) -> int:
        """Close so many that are not checked closely, the last; how many there were."""
        closed: int = (await self._ask(b"close %d" % connections))["connections"]
        return closed

    async def stop(self) -> LoadEnd:
        """The last word; the program then ends."""
        return LoadEnd(**await self._ask(b"stop"))


# The floor.


@dataclass(frozen=True, slots=True)
class FloorMark:
    """What has been sent up to now."""

    at_s: float
    cpu_s: float
    connections: int
    sends: int
    bytes: int  # of events
    events: int  # that were sent to all
    dropped: int  # connections that did not take all of an event
    done_at_s: float | None  # when the last event had been sent to all; None before


class Floor(Program[FloorMark]):
    """A server that sends the same event again and again to whoever has connected, `batch` of them in one send()."""

    def __init__(self, event: bytes, *, per_second: float, events: int, batch: int = 1) -> None:
        settings = {"per_second": per_second, "events": events, "batch": batch}
        lines = [f"{name} {value}\n".encode() for name, value in settings.items()]
        super().__init__("floor", FloorMark, [*lines, b"event %d\n%b" % (len(event), event)])

    def _started(self, answer: dict[str, Any]) -> None:
        self.port: int = answer["port"]

    async def go(self) -> None:
        """Begin to send."""
        await self._ask(b"go")


# The model server.


@dataclass(frozen=True, slots=True)
class UpstreamMark:
    """What has been said up to now."""

    at_s: float
    cpu_s: float
    chunks: int  # events, with those that begin and end a stream
    streams: int  # open
    held: int  # of those, waiting for `go`
    finished: int
    aborted: int  # by the reader


def paced(per_second: float, tokens: int, *, stamped: bool = False) -> str:
    """The name of a model that says so many tokens; 0 a second is as fast as they are taken."""
    return f"paced-{per_second:g}-{tokens}-{'stamped' if stamped else 'plain'}"


class Upstream(Program[UpstreamMark]):
    """An OpenAI-compatible server, whose models `paced` names."""

    def __init__(self, *, hold: bool = False) -> None:
        super().__init__("upstream", UpstreamMark, [f"hold {int(hold)}\n".encode()])

    def _started(self, answer: dict[str, Any]) -> None:
        self.port: int = answer["port"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def hold(self) -> None:
        """Let streams that begin from now on wait after their first chunk, which says the role and no more."""
        await self._ask(b"hold")

    async def go(self) -> None:
        """Let all go on, and those that begin from now on."""
        await self._ask(b"go")
