"""A server that stalls, goes away, refuses, or is something else: what a store says, and how it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable
from typing import Any

import libvalkey
import pytest
from support.deadlines import eventually, within
from support.fault_proxy import FaultProxy
from support.ports import free_port
from support.stores import QUICK_S, Ear, batch, grow, ignore, log_of, until_told
from support.valkey import ValkeyServer

from replay.errors import StoreRefused, StoreUnavailable
from replay.model.event import Event, EventId
from replay.store import Refused
from replay.store.valkey import ValkeyStore

# A server in trouble.


async def test_append_works_after_the_scripts_were_flushed(store, valkey):
    events = await grow(store, "g", "s")
    for place in range(3):
        async with valkey.client() as client:
            await client.script_flush()
        more = batch(f"t{place}", after=events[-1])
        assert await store.append("g", more, after=events[-1].id) is None
        events += more
        assert await store.append("g", more, after=EventId(1, 1)) is None  # already there
    assert await log_of(store, "g") == events


@pytest.mark.parametrize("stall", ["server", "network"])
async def test_stalled_server_is_unavailable_within_the_timeout(valkey, valkey_proxy, start_store, stall):
    # given
    store = await start_store(valkey_proxy.url, timeout_s=QUICK_S)
    events = await grow(store, "g", "s")
    (valkey.pause if stall == "server" else valkey_proxy.stall)()
    began = asyncio.get_running_loop().time()
    # when
    calls: tuple[Awaitable[Any], ...] = (
        store.append("g", batch("ta", after=events[-1]), after=events[-1].id),
        store.read("g", after=None, limit=5),
        store.bounds(["g"]),
        store.listen("g", Ear()),
        store.live(),
        store.renew_lease("node_1", 1000),
        store.delete("h", run="1", idempotency=None),
        store.probe(),
    )
    results = await asyncio.gather(*calls, return_exceptions=True)
    # then
    took = asyncio.get_running_loop().time() - began
    assert [type(result) for result in results] == [StoreUnavailable] * len(calls)
    assert took < 2 * QUICK_S + 1.5  # a second may be spent waiting for the connection to be made anew
    (valkey.resume if stall == "server" else valkey_proxy.release)()
    assert await store.wait_up(10)
    assert (await log_of(store, "g"))[0] == events[0]


async def test_server_that_went_away_is_unavailable_and_back_without_help(start_store, valkey):
    store = await start_store(timeout_s=QUICK_S)
    events = await grow(store, "g", "s")
    valkey.kill()
    with pytest.raises(StoreUnavailable):
        await store.append("g", batch("ta", after=events[-1]), after=events[-1].id)
    assert not await store.wait_up(0.05)
    valkey.start()
    assert await store.wait_up(10)
    more = batch("tb", after=events[-1])
    assert await store.append("g", more, after=events[-1].id) in (None, Refused(None))  # everysec may lose the start


async def test_call_just_after_a_connection_was_lost_waits_for_the_next(proxied, valkey_proxy):
    valkey_proxy.hold_replies()
    lost = asyncio.create_task(proxied.append("g", batch("s"), after=None, ttl_ms=1000))
    await valkey_proxy.reply_held()
    valkey_proxy.cut()
    valkey_proxy.release()
    with pytest.raises(StoreUnavailable):
        await lost
    assert await proxied.append("h", batch("s"), after=None, ttl_ms=1000) is None


# A server that answers, but will not do it.


async def test_full_server_refuses_and_nothing_is_half_done(store, valkey):
    # given a server with little room
    events = await grow(store, "g", "s")
    async with valkey.client() as client:
        used = (await client.info("memory"))["used_memory"]
        await client.config_set("maxmemory-policy", "noeviction")
        await client.config_set("maxmemory", used + 300_000)

    # when
    async def fill() -> list[Event]:
        while True:
            more = batch(*["t" + "x" * 1000] * 20, after=events[-1])
            try:
                await store.append("g", more, after=events[-1].id)
            except StoreRefused as refused:
                assert re.search(r"maxmemory.*--ttl-s.*OOM", refused.in_full)  # noqa: PT017 - the loop ends with it
                return more
            events.extend(more)

    more = await within("the server to be full", fill())
    # then
    assert await log_of(store, "g") == events
    async with valkey.client() as client:
        await client.config_set("maxmemory", 0)
    assert await store.append("g", more, after=events[-1].id) is None
    assert await log_of(store, "g") == events + more


async def test_primary_that_became_a_replica_refuses_until_it_is_the_primary_again(store, valkey):
    events = await grow(store, "g", "s")
    more = batch("ta", after=events[-1])

    async def refusal() -> str:
        try:
            await store.append("g", more, after=events[-1].id)
        except StoreRefused as refused:
            return str(refused)
        except StoreUnavailable:  # the connection is made anew: another server may be the primary now
            return ""
        return "appended"

    async with valkey.client() as client:
        await client.execute_command("REPLICAOF", "127.0.0.1", free_port())
        assert re.search(r"read-only replica.*--valkey-url", await refusal())
        await eventually("the new connection to be refused", refusal, lambda text: "names a read-only replica" in text)
        await client.execute_command("REPLICAOF", "NO", "ONE")
    assert await until_told(lambda: store.append("g", more, after=events[-1].id)) is None
    assert await log_of(store, "g") == events + more


async def test_replica_is_refused_at_the_start(start_store, valkey):
    async with valkey.client() as client:
        await client.execute_command("REPLICAOF", "127.0.0.1", free_port())
    with pytest.raises(StoreRefused, match=r"--valkey-url.*replica"):
        await start_store()


@pytest.mark.parametrize("last_slot", [16_383, 8_191, 0])
async def test_server_in_cluster_mode_is_refused_at_the_start_whichever_slots_it_holds(
    start_store, tmp_path, last_slot
):
    server = ValkeyServer(tmp_path / "cluster", cluster_enabled="yes", cluster_port=free_port())
    server.start()
    try:
        async with server.client() as client:
            await client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, last_slot)
        with pytest.raises(StoreRefused, match="--valkey-url names a server in cluster mode"):
            await start_store(server.url)
    finally:
        server.destroy()


@pytest.mark.parametrize(
    ("user", "says"),
    [
        ("", "asks for a password: put it into --valkey-url"),
        (":wrong@", "refuses the user or the password in --valkey-url"),
        ("nobody:secret@", "refuses the user or the password in --valkey-url"),
    ],
)
async def test_server_that_does_not_let_us_in_is_refused_at_the_start(start_store, tmp_path, user, says):
    server = ValkeyServer(tmp_path / "closed", requirepass="secret")
    server.start()
    try:
        with pytest.raises(StoreRefused, match=says):
            await start_store(f"valkey://{user}127.0.0.1:{server.port}/0")
        await start_store(server.url)
    finally:
        server.destroy()


async def limited_user(valkey: ValkeyServer, *rules: str) -> str:
    """The URL of a user with these rights."""
    async with valkey.client() as client:
        await client.execute_command("ACL", "SETUSER", "limited", "on", ">secret", *rules)
    return f"valkey://limited:secret@127.0.0.1:{valkey.port}/0"


async def test_user_without_the_rights_is_refused(start_store, valkey):
    store = await start_store(await limited_user(valkey, "+@all", "~elsewhere:*", "&*"))
    with pytest.raises(StoreRefused, match=r"ACL|permission"):
        await store.append("g", batch("s"), after=None, ttl_ms=1000)
    with pytest.raises(StoreRefused, match=r"ACL .*--valkey-url"):
        await store.last("g")


async def test_user_without_channels_is_refused(start_store, valkey):
    # No channels is what a new user has, unless somebody says &*.
    store = await start_store(await limited_user(valkey, "+@all", "~*"), timeout_s=1.0)
    with pytest.raises(StoreRefused, match=r"ACL .*--valkey-url"):
        await store.listen("g", Ear())
    with pytest.raises(StoreRefused, match=r"ACL .*--valkey-url"):
        await store.attend("node_1", notified=ignore, deleted=ignore)


class FakeServer:
    """A server that says it is something else, or refuses whatever it is asked."""

    def __init__(self, info: str = "valkey_version:9.1.0\r\nrole:master", refusal: str = "") -> None:
        self._info = info
        self._refusal = refusal
        self.port = free_port()

    async def __aenter__(self) -> FakeServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands = libvalkey.Reader()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                commands.feed(data)
                while (command := commands.gets()) is not False:
                    writer.write(self._answer(command[0]))
        writer.close()

    def _answer(self, command: bytes) -> bytes:
        if command == b"INFO":
            return f"${len(self._info)}\r\n{self._info}\r\n".encode()
        greeting = command in (b"CLIENT", b"SCRIPT", b"PING", b"SELECT")
        return b"+OK\r\n" if greeting or not self._refusal else f"-{self._refusal}\r\n".encode()


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ("redis_version:7.2.4\r\nvalkey_version:7.2.0\r\nrole:master", r"--valkey-url names Valkey 7\.2\.0: .*8\.0"),
        ("redis_version:7.4.1\r\nrole:master", r"--valkey-url names Redis 7\.4\.1: expected Valkey 8\.0"),
        ("role:master", "--valkey-url names Redis"),
        ("valkey_version:8.0.0\r\nrole:slave", "--valkey-url names a read-only replica"),
    ],
)
async def test_server_that_cannot_keep_logs_is_refused_at_the_start(start_store, info, says):
    async with FakeServer(info) as server:
        with pytest.raises(StoreRefused, match=says):
            await within("a refusal", start_store(server.url))


@pytest.mark.parametrize("version", ["8.0.0", "8.1.3", "9.1.0", "10.0.0", "255.255.255"])
async def test_server_of_a_new_enough_version_is_taken(start_store, version):
    async with FakeServer(f"valkey_version:{version}\r\nrole:master") as server:
        assert (await start_store(server.url)).connections == 3


@pytest.mark.parametrize(
    ("refusal", "kind", "says"),
    [
        ("OOM command not allowed", StoreRefused, r"maxmemory.*--ttl-s"),
        ("MISCONF Valkey is configured to save", StoreRefused, r"disk.*--data-dir"),
        ("READONLY You can't write", StoreRefused, r"--valkey-url has to name the primary"),
        ("NOAUTH Authentication required.", StoreRefused, r"password.*--valkey-url"),
        ("NOPERM this user has no permissions", StoreRefused, r"ACL.*--valkey-url"),
        ("MOVED 1234 127.0.0.1:7001", StoreRefused, r"--valkey-url has to name a server with cluster-enabled no"),
        ("ERR something nobody has thought of", StoreRefused, r"log says why"),
        ("LOADING Valkey is loading the dataset in memory", StoreUnavailable, "still reading its file"),
        ("CLUSTERDOWN The cluster is down", StoreUnavailable, "cluster is down"),
        ("BUSY Valkey is busy running a script", StoreUnavailable, "busy with a script"),
    ],
)
async def test_refusal_of_a_server_says_what_to_do(start_store, refusal, kind, says):
    async with FakeServer(refusal=refusal) as server:
        store = await start_store(server.url)
        for ask in (lambda: store.append("g", batch("s"), after=None), lambda: store.last("g")):
            with pytest.raises(kind, match=says) as caught:
                await ask()
            assert isinstance(caught.value, StoreRefused) == (kind is StoreRefused)
            # and what it says itself is for the operator alone: it may name a user, a key or an address
            assert refusal not in str(caught.value)
            assert caught.value.in_full.endswith(f"({refusal})")


@pytest.mark.parametrize(
    "nonsense",
    [
        b":1\r\n",
        b"$-1\r\n",
        b"*0\r\n",
        b"*1\r\n*1\r\n:1\r\n",
        b"$3\r\n\xff\xfe\xfd\r\n",
        b"HTTP/1.1 400 No\r\n\r\n",
        b"+OK\r\n" * 20,
    ],
    ids=["a number", "nothing", "an empty list", "a nested list", "no UTF-8", "HTTP", "more replies than commands"],
)
async def test_what_answers_nonsense_in_a_servers_place_is_asked_again(start_store, valkey, nonsense):
    # given a store whose server is replaced by something else for a while
    async with FaultProxy(valkey.url) as proxy:
        store = await start_store(proxy.url)
        await grow(store, "g", "s")
        proxy.nonsense = nonsense
        proxy.cut()
        with pytest.raises(StoreUnavailable):
            await within("a refusal", _refused(store))

        # when it is back, then so is the store
        proxy.nonsense = None
        proxy.cut()
        await within("the store", _answering(store))


async def _refused(store: ValkeyStore) -> None:
    while True:
        await store.last("g")
        await asyncio.sleep(0.02)


async def _answering(store: ValkeyStore) -> None:
    while True:
        with contextlib.suppress(StoreUnavailable):
            if await store.last("g") is not None and await store.wait_up(0):
                return
        await asyncio.sleep(0.02)


async def test_server_that_is_not_there_is_unavailable_and_named():
    port = free_port()
    store = ValkeyStore(f"valkey://user:secret@127.0.0.1:{port}/0", timeout_s=QUICK_S)
    with pytest.raises(StoreUnavailable) as caught:
        await store.start(0.2)
    assert f"--valkey-url, at 127.0.0.1:{port}: " in caught.value.in_full
    assert str(port) not in str(caught.value)
    assert "secret" not in caught.value.in_full


# What is told and not kept.


@pytest.mark.parametrize("call", ["trim", "erase", "publish"])
async def test_stalled_server_takes_no_trim_no_erasure_and_no_message(valkey_proxy, start_store, call):
    store = await start_store(valkey_proxy.url, QUICK_S)
    events = await grow(store, "g", "s", "ta")
    calls = {
        "trim": lambda: store.trim("g", 1),
        "erase": lambda: store.erase("g", [events[0].id]),
        "publish": lambda: store.publish("g", events),
    }
    valkey_proxy.stall()
    with pytest.raises(StoreUnavailable):
        await within("an answer", calls[call]())
