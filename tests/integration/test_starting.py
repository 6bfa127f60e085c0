"""A Valkey that cannot be used is said at once, by a message that tells which setting to look at."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fake_valkey import FakeValkey
from support.ports import free_port
from support.valkey import ValkeyServer


async def serve(valkey_url: str, seconds: float = 20) -> tuple[int, str, str, float]:
    """`replay serve` on this URL: exit code, stdout, stderr, and how long it took."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "replay", "serve", "--port", "0", "--valkey-url", valkey_url]
    result = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, timeout=seconds, check=False, text=True
    )
    return result.returncode, result.stdout, result.stderr, time.monotonic() - begun


@pytest.fixture
def make_valkey(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., ValkeyServer]:
    """Start servers with these options."""

    def make(**options: object) -> ValkeyServer:
        server = ValkeyServer(tmp_path / f"valkey-{free_port()}", **options)
        request.addfinalizer(server.destroy)
        server.start()
        return server

    return make


def assert_refused(outcome: tuple[int, str, str, float], *told: str) -> None:
    code, stdout, stderr, seconds = outcome
    assert code not in (0, None)
    assert stdout == ""
    assert "Traceback" not in stderr
    last = stderr.strip().splitlines()[-1]
    assert "--valkey-url" in last
    for word in told:
        assert word in last
    assert seconds < 5


async def test_a_wrong_password_is_refused(make_valkey):
    valkey = make_valkey(requirepass="secret")
    outcome = await serve(f"valkey://:wrong-word@127.0.0.1:{valkey.port}/0")
    assert_refused(outcome, "password")
    assert "wrong-word" not in outcome[2]


async def test_a_missing_password_is_refused(make_valkey):
    valkey = make_valkey(requirepass="secret")
    assert_refused(await serve(f"valkey://127.0.0.1:{valkey.port}/0"), "password")


async def test_the_right_password_is_accepted_and_not_logged(make_valkey, upstream, start_node):
    valkey = make_valkey(requirepass="secret-word")
    node = await start_node(valkey_url=valkey.url, upstream_url=upstream.url)
    assert (await node.api.get("/readyz")).status == 200
    assert "secret-word" not in node.stderr


async def test_a_user_without_rights_is_refused(make_valkey):
    valkey = make_valkey()
    async with valkey.client() as client:
        await client.execute_command("ACL", "SETUSER", "guest", "on", ">pw", "~*", "&*", "+@connection", "+info")
    assert_refused(await serve(f"valkey://guest:pw@127.0.0.1:{valkey.port}/0"), "ACL")


async def test_a_read_only_replica_is_refused(make_valkey):
    primary = make_valkey()
    replica = make_valkey(replicaof=f"127.0.0.1 {primary.port}")
    assert_refused(await serve(replica.url), "replica", "primary")


@pytest.mark.parametrize(
    ("info", "found"),
    [
        (("redis_version:7.2.4", "valkey_version:7.2.5", "role:master"), "Valkey 7.2.5"),
        (("redis_version:7.4.1", "role:master"), "Redis 7.4.1"),
        (("role:master",), "8.0"),
    ],
    ids=["old Valkey", "Redis", "something else"],
)
async def test_a_server_that_is_too_old_is_refused(info, found):
    async with FakeValkey(*info) as server:
        assert_refused(await serve(server.url), found, "8.0")


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:1/", "valkey://127.0.0.1:notaport/0"])
async def test_a_url_that_cannot_be_read_is_refused(url):
    assert_refused(await serve(url))


@pytest.mark.slow
async def test_a_valkey_that_cannot_be_reached_is_given_up_after_a_moment(tmp_path):
    # given nothing at the address, no socket file, and something that accepts and says nothing
    server = await asyncio.start_server(lambda reader, writer: asyncio.sleep(60), "127.0.0.1", 0)
    silent = f"valkey://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    urls = (f"valkey://127.0.0.1:{free_port()}/0", f"unix://{tmp_path}/none.sock", silent)

    # then it is tried for some seconds, since it may be starting beside the node, and then said
    for code, stdout, stderr, seconds in await asyncio.gather(*map(serve, urls)):
        assert (code, stdout) == (1, "")
        assert "--valkey-url" in stderr.strip().splitlines()[-1]
        assert "Traceback" not in stderr
        assert 5 < seconds < 15
    server.close()


async def test_a_valkey_that_starts_after_the_node_is_waited_for(tmp_path, start_node, upstream):
    server = ValkeyServer(tmp_path / "late")
    starting = asyncio.create_task(start_node(valkey_url=server.url, upstream_url=upstream.url))
    try:
        await asyncio.sleep(1.5)  # how much later it starts
        assert not starting.done()
        server.start()
        node = await starting
        assert (await node.api.get("/readyz")).status == 200
    finally:
        server.destroy()
