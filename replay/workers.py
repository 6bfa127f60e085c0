"""Runs several processes that share a port and, where none is named, one Valkey: `replay serve --workers N`.

Each worker is a node like any other, so that whatever holds across nodes holds across workers: a generation may be
produced by one and be read, cancelled or listed by all. The kernel deals new connections out among those that listen.
This process serves nobody. It reserves the port, keeps Valkey, starts a worker again that has died, and passes
SIGTERM on; should it die itself, its workers go with it.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from replay import addresses
from replay.config import Settings
from replay.store.embedded import EmbeddedValkey

logger = logging.getLogger(__name__)

_STEADY_S = 60.0  # a worker that lived this long did not die at once
_PAUSE_S = 1.0  # before one that did is started again

# What a worker runs: its settings, the directory it shares with the others, its number, and what to call with the URL
# as soon as it is ready; the exit code. Another process has to be able to import it.
Work = Callable[[Settings, Path, int, Callable[[str], None]], int]


class _Failed(Exception):
    """A worker has ended before it was ready."""


class _Worker:
    """One process, and the pipe that tells it that this one is still here."""

    def __init__(self, process: SpawnProcess, control: Connection) -> None:
        self.process = process
        self._control = control
        self._loop = asyncio.get_running_loop()
        self.url: asyncio.Future[str | None] = self._loop.create_future()  # None when it ended before it was ready
        self.ended: asyncio.Future[int] = self._loop.create_future()  # its exit code
        self._loop.add_reader(control.fileno(), self._said)
        self._loop.add_reader(process.sentinel, self._end)

    def _said(self) -> None:
        self._loop.remove_reader(self._control.fileno())
        try:
            self.url.set_result(self._control.recv())
        except EOFError:
            self.url.set_result(None)

    def _end(self) -> None:
        self._loop.remove_reader(self.process.sentinel)
        self.process.join()
        if not self.url.done():
            self._said()
        self._control.close()
        assert self.process.exitcode is not None, "it was joined"
        self.ended.set_result(self.process.exitcode)

    def signal(self, number: int) -> None:
        """Pass a signal on."""
        if not self.ended.done():
            assert self.process.pid is not None, "it was started"
            os.kill(self.process.pid, number)


class Workers:
    """All workers of one service."""

    def __init__(self, settings: Settings, work: Work) -> None:
        self._settings = settings
        self._work = work
        self._parts = AsyncExitStack()
        self._workers: dict[int, _Worker] = {}
        self._keeping: list[asyncio.Task[int]] = []
        self._leaving = asyncio.Event()

    async def start(self) -> str | None:
        """Return when all are ready; the URL, or None when one could not start, which has told why.

        Raises ReplayError when there is no port or no Valkey.
        """
        settings = self._settings
        try:
            settings = replace(settings, port=self._reserve(settings.host, settings.port))
            if settings.valkey_url is None:
                embedded = EmbeddedValkey(settings.data_dir, fsync=settings.embedded_fsync)
                await embedded.start()
                self._parts.push_async_callback(embedded.stop)
                settings = replace(settings, valkey_url=embedded.url)
            self._settings = settings
            self._shared = Path(self._parts.enter_context(tempfile.TemporaryDirectory(prefix="replay-", dir="/tmp")))
            url = await self._begin(1)  # alone: what cannot work is said once
            await asyncio.gather(*map(self._begin, range(2, settings.workers + 1)))
        except _Failed:
            await self._stop()
            return None
        except BaseException:
            await self._stop()
            raise
        return url

    def _reserve(self, host: str, port: int) -> int:
        """Hold the port, so that it is this service's even while no worker listens; raises as `check` does."""
        try:
            for family, *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
                address = (address[0], port, *address[2:])
                socket.create_server(address, family=family).close()  # else another service could share it unnoticed
                listener = socket.socket(family, socket.SOCK_STREAM)
                self._parts.callback(listener.close)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                listener.bind(address)
                port = listener.getsockname()[1]
        except (OSError, UnicodeError) as error:
            raise addresses.refusal(host, port, error) from error
        return port

    async def _begin(self, number: int) -> str:
        """Start a worker and keep it; the URL. Raises _Failed."""
        worker = self._spawn(number)
        url = await worker.url
        if url is None:
            raise _Failed
        self._keeping.append(asyncio.create_task(self._keep(number, worker), name=f"keep worker {number}"))
        return url

    def _spawn(self, number: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_run, args=(self._work, self._settings, self._shared, number, theirs), name=f"worker {number}"
        )
        # Ctrl-C in a terminal is for this process, which passes it on; a signal mask is inherited. `start` would begin
        # with this tracker, and lift the mask then: the first worker would take Ctrl-C for a second signal.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            theirs.close()
        self._workers[number] = _Worker(process, ours)
        return self._workers[number]

    async def _keep(self, number: int, worker: _Worker) -> int:
        """Start a worker again whenever it dies; the exit code of the one that was told to leave, or 0 without one."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            code = await worker.ended
            if self._leaving.is_set():
                # One that dies of the signal does not listen to it yet, or no longer: it has nothing to lose.
                return 0 if code == -signal.SIGTERM else code
            logger.error("worker died", extra={"worker": number, "worker_pid": worker.process.pid, "exit_status": code})
            if loop.time() - began < _STEADY_S:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._leaving.wait(), _PAUSE_S)
                    return 0
            worker = self._spawn(number)

    def leave(self) -> None:
        """Let the workers drain; called again, stop them now."""
        self._leaving.set()
        for worker in self._workers.values():
            worker.signal(signal.SIGTERM)

    async def ended(self) -> int:
        """The exit code, once all have ended that were told to."""
        codes = await asyncio.gather(*self._keeping)
        await self._parts.aclose()
        return max(map(abs, codes))

    async def _stop(self) -> None:
        """Stop now what has started."""
        self._leaving.set()
        for worker in self._workers.values():
            worker.signal(signal.SIGKILL)
        await asyncio.gather(*(worker.ended for worker in self._workers.values()), *self._keeping)
        await self._parts.aclose()


def _run(work: Work, settings: Settings, shared: Path, number: int, control: Connection) -> None:
    """What a worker's process does."""
    threading.Thread(target=_leave_with, args=(control,), daemon=True).start()
    raise SystemExit(work(settings, shared, number, control.send))


def _leave_with(control: Connection) -> None:
    """End as if killed, too, when whoever started this process was."""
    with suppress(EOFError, OSError):
        control.recv()
    os._exit(1)
