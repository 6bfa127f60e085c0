"""The user that a node is in Valkey: the documented rights are enough, and a node that lacks one says so."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.deadlines import eventually
from support.logs import assert_whole, expiries
from support.pages import read
from support.upstream import say
from support.valkey import ValkeyServer

from replay.errors import StoreRefused
from replay.store.rehearsal import rehearse
from replay.store.valkey import ValkeyStore

_, RULES = re.search(r"ACL SETUSER replay on >(\w+) ([^`]+)\n```", read("deploy/README.md")).groups()  # type: ignore[union-attr]
RIGHTS = RULES.split()
COMMANDS = [right for right in RIGHTS if right.startswith("+")]
# Without these there is no connection at all; and none is asked for where the URL names no database.
BEFORE = {"+auth", "+select", "+info", "+client|setname", "+script|load", "+ping"}


async def user(valkey: ValkeyServer, *rights: str) -> str:
    """The URL of a user with these rights alone."""
    async with valkey.client() as client:
        await client.execute_command("ACL", "SETUSER", "node", "reset", "on", ">secret", *rights)
    return f"valkey://node:secret@127.0.0.1:{valkey.port}/0"


@pytest.fixture
async def connect(valkey) -> AsyncIterator:
    stores = []

    async def start(url: str) -> ValkeyStore:
        store = ValkeyStore(url, timeout_s=1.0)
        await store.start(5.0)
        stores.append(store)
        return store

    yield start
    for store in stores:
        await store.stop()


async def test_the_rights_that_are_documented_are_enough(make_node, valkey, upstream):
    # given two nodes with no other rights
    url = await user(valkey, *RIGHTS)
    here, there = await make_node(valkey_url=url), await make_node(valkey_url=url)

    # when everything is done with them that there is to do
    id = (await here.api.start(headers={"Idempotency-Key": "k"}, abandon_after=60))["id"]
    call = await upstream.called()
    async with there.api.source(id) as source:
        await call.say("a")
        await source.event("token")
        assert (await there.api.get("/generations", status="streaming")).json()["generations"][0]["id"] == id
        assert (await there.api.post(f"/generations/{id}/cancel")).status == 200
        assert (await source.event("end")).json()["status"] == "cancelled"
        assert_whole(source.received)
    upstream.script = say("b")
    other = await there.api.run()
    assert (await here.api.delete(f"/generations/{other}")).status == 204
    here.kill()
    assert (await there.api.get("/readyz")).status == 200

    # then nothing was refused
    async with valkey.client() as client:
        refused = [entry for entry in await client.acl_log() if entry["username"] == "node"]
    assert refused == []


@pytest.mark.parametrize("right", [command for command in COMMANDS if command not in BEFORE])
async def test_a_right_that_is_missing_is_found_before_it_is_needed(connect, valkey, right):
    store = await connect(await user(valkey, *(each for each in RIGHTS if each != right)))
    with pytest.raises(StoreRefused, match="ACL") as refused:
        await rehearse(store)
    assert right.removeprefix("+") in refused.value.aside


@pytest.mark.parametrize("right", ["~replay:*", "&replay:*"])
async def test_keys_and_channels_that_are_missing_are_found(connect, valkey, right):
    store = await connect(await user(valkey, *(each for each in RIGHTS if each != right)))
    with pytest.raises(StoreRefused, match="ACL"):
        await rehearse(store)


async def test_it_leaves_nothing(connect, valkey):
    await rehearse(await connect(valkey.url))
    assert [key for key, ms in (await expiries(valkey)).items() if ms < 0] == []
    async with valkey.client() as client:
        assert await client.hgetall("replay:live") == {}
        assert await client.zrange("replay:recent", 0, -1) == []
        assert await client.zrange("replay:nodes", 0, -1) == []


class Watched:
    """A store that is looked at after each of its calls, as the other nodes may look."""

    def __init__(self, store: ValkeyStore) -> None:
        self._store = store
        self.seen: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)
        if not inspect.iscoroutinefunction(call):
            return call

        async def called(*arguments: Any, **options: Any) -> Any:
            answer = await call(*arguments, **options)
            await self._look()
            return answer

        return called

    async def _look(self) -> None:
        live = await self._store.live()
        recent = await self._store.recent(before=None, limit=10)
        listed = live.keys() | {row.generation_id for row in recent.rows}
        self.seen |= listed
        assert await self._store.alive(live.values()) == {*live.values()}
        assert [bounds for bounds in await self._store.bounds([*listed]) if bounds is not None] == []


async def test_other_nodes_find_no_orphan_and_no_generation_in_it(connect, valkey):
    # given nodes that look for orphans and list generations whenever they like
    store = Watched(await connect(valkey.url))
    # when another one starts
    await rehearse(store)
    # then what stands on the lists meanwhile has a node, and no log that they could not read
    assert len(store.seen) == 1


async def test_a_node_whose_user_lacks_a_right_does_not_start(valkey, upstream, start_node):
    url = await user(valkey, *(each for each in RIGHTS if each != "+zadd"))
    with pytest.raises(AssertionError, match=r"(?s)ACL.*zadd"):
        await start_node(valkey_url=url, upstream_url=upstream.url)


FULL = {"full": ("maxmemory", "1", "0"), "without a replica": ("min-replicas-to-write", "1", "0")}


@pytest.mark.parametrize("name", FULL)
async def test_a_node_whose_valkey_takes_nothing_is_not_ready_and_a_start_leaves_nothing(node, valkey, upstream, name):
    # given a Valkey that answers, and refuses every write
    setting, bad, good = FULL[name]
    async with valkey.client() as client:
        await client.config_set(setting, bad)
        assert (await node.api.get("/readyz")).status == 503
        assert (await node.api.get("/healthz")).status == 200
        answer = await node.api.post("/generations", {"model": "m", "prompt": "Hi"})
        assert (answer.status, answer.json()["code"]) == (503, "store_unavailable")

        # when it takes them again, then nothing stands of what was refused
        await client.config_set(setting, good)
        await eventually("readiness", lambda: node.api.get("/readyz"), lambda answer: answer.status == 200)
        assert (await node.api.get("/generations")).json()["generations"] == []
    assert upstream.calls == []
