"""`replay serve --workers N`: several processes on one port, and what holds across nodes holds across them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.api import text_of
from support.deadlines import eventually
from support.http1 import request
from support.node import Node
from support.sse import messages
from support.upstream import generate, say

WORKERS = 3


@pytest.fixture
async def workers(make_node):
    """A service of several workers, on the test's Valkey and upstream."""
    return await make_node(workers=WORKERS)


async def counted(node: Node, name: str) -> dict[str, float]:
    """A metric by worker."""
    text = (await node.api.get("/metrics")).body.decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.labels["worker"]: sample.value for sample in samples if sample.name == name}


def pids_of(node: Node) -> list[int]:
    """The processes of the workers, in order of age."""
    children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def gone(pids: list[int]) -> None:
    async def left() -> list[int]:
        return [pid for pid in pids if runs(pid)]

    await eventually("no worker to be left", left, lambda left: not left)


async def test_connections_are_dealt_out_and_every_worker_knows_every_generation(workers, upstream):
    upstream.script = say("one", " two")
    ids = [await workers.api.run() for _ in range(30)]  # each request on a connection of its own
    started = await counted(workers, "replay_generations_started_total")
    assert set(started) == {"1", "2", "3"}
    assert sum(started.values()) == 30
    assert sum(count > 0 for count in started.values()) > 1, started
    for id in ids:
        assert text_of(await workers.api.log(id)) == "one two"
    listed = (await workers.api.get("/generations", limit=100)).json()["generations"]
    assert {generation["id"] for generation in listed} == set(ids)


async def test_reader_that_is_cut_again_and_again_gets_everything_once_wherever_it_lands(workers, upstream):
    upstream.script = generate(200, per_second=200)
    id = (await workers.api.start())["id"]
    cuts = 0
    async with workers.api.source(id) as source:
        while (await source.next()).event != "end":
            if len(source.received) >= 20 * (cuts + 1):
                source.cut()
                cuts += 1
        received = list(source.received)
    assert cuts > 5
    told = [message for message in received if message.event != "live"]
    assert told == await workers.api.log(id)


async def test_cancel_reaches_the_worker_that_produces(workers, upstream):
    ids = [(await workers.api.start())["id"] for _ in range(8)]
    for id in ids:
        answer = await workers.api.post(f"/generations/{id}/cancel")
        assert (answer.status, answer.json()["status"]) == (200, "cancelled")


async def test_worker_that_is_killed_takes_only_its_own_along_and_is_started_again(workers, upstream):
    ids = [(await workers.api.start())["id"] for _ in range(24)]
    held = await counted(workers, "replay_generations_live")
    # when
    before = pids_of(workers)
    os.kill(before[-1], signal.SIGKILL)
    died = await eventually("its death to be noticed", lambda: said(workers, r"worker died worker=(\d)"))
    victim = died[1]
    assert 0 < held[victim] < len(ids), held
    # then
    statuses = await eventually(
        "the generations of the dead worker to end",
        lambda: statuses_of(workers, ids),
        lambda statuses: statuses.count("interrupted") == held[victim],
    )
    assert statuses.count("streaming") + statuses.count("queued") == len(ids) - held[victim]
    await eventually("a new worker", lambda: counted(workers, "replay_generations_live"), lambda now: len(now) == 3)
    assert len(set(pids_of(workers)) & set(before)) == WORKERS - 1


async def said(node: Node, pattern: str) -> re.Match[str] | None:
    return re.search(pattern, node.stderr)


async def draining(node: Node, workers: int) -> None:
    async def count() -> int:
        return node.stderr.count("draining")

    await eventually(f"{workers} workers to be draining", count, lambda count: count == workers)


async def statuses_of(node: Node, ids: list[str]) -> list[str]:
    return [(await node.api.generation(id))["status"] for id in ids]


async def test_sigterm_drains_all_workers(workers, upstream):
    ids = [(await workers.api.start())["id"] for _ in range(9)]
    sources = [asyncio.create_task(workers.api.read(id)) for id in ids]
    await eventually(
        "all to be read",
        lambda: counted(workers, "replay_subscribers"),
        lambda readers: sum(readers.values()) == len(ids),
    )
    pids = pids_of(workers)
    assert await workers.stop() == 0
    assert not [pid for pid in pids if runs(pid)]
    for read in sources:
        answer = await read
        end = messages(answer.body)[-1]
        assert (end.event, end.json()["status"]) == ("end", "interrupted")


@pytest.mark.parametrize("after_s", [0, 1.0, 1.2, 1.4, 1.6])
async def test_sigterm_while_a_worker_is_started_again_is_as_clean_as_ever(workers, after_s):
    os.kill(pids_of(workers)[-1], signal.SIGKILL)
    await eventually("its death to be noticed", lambda: said(workers, r"worker died worker=(\d)"))
    await asyncio.sleep(after_s)  # in its pause, and in several stages of its start
    assert await workers.stop() == 0


async def test_ctrl_c_reaches_every_process_of_a_terminal_and_is_one_signal(make_node, upstream):
    # given answers that go on, on both workers
    node = await make_node(workers=2, drain_grace_s=60)
    calls, ids = [], []
    while not all((await counted(node, "replay_generations_live")).values()):
        ids.append((await node.api.start())["id"])
        calls.append(await upstream.called())
    sources = [asyncio.create_task(node.api.read(id)) for id in ids]
    await eventually(
        "all to be read", lambda: counted(node, "replay_subscribers"), lambda readers: sum(readers.values()) == len(ids)
    )

    # when
    os.killpg(node.pid, signal.SIGINT)

    # then they may finish
    await draining(node, 2)
    for call in calls:
        await call.say("done")
        await call.finish()
    assert await node.wait() == 0
    for read in sources:
        assert messages((await read).body)[-1].json()["status"] == "completed"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_second_signal_stops_at_once(make_node, upstream, number):
    node = await make_node(workers=2, drain_grace_s=60)
    for _ in range(4):
        await node.api.start()
    pids = pids_of(node)
    os.kill(node.pid, number)
    await draining(node, 2)
    os.kill(node.pid, number)
    assert await node.wait() == 1
    await gone(pids)


async def test_workers_go_with_the_process_that_keeps_them_and_the_next_start_has_everything(
    start_node, upstream, tmp_path
):
    settings = {"workers": 2, "data_dir": tmp_path / "data", "upstream_url": upstream.url, "lease_s": 1}
    node = await start_node(**settings)
    upstream.script = say("kept")
    id = await node.api.run()
    pids = pids_of(node)
    # when
    node.kill()
    await gone(pids)
    await node.restart()
    # then
    assert text_of(await node.api.log(id)) == "kept"
    pids = pids_of(node)
    assert await node.stop() == 0
    await gone(pids)
    assert not (tmp_path / "data" / "valkey.sock").exists()


async def test_port_that_is_taken_is_said_once(make_node, workers):
    other = Node(Path(workers._directory) / "other", **{**workers.settings, "port": workers.port})
    try:
        with pytest.raises(AssertionError, match="the first line on stdout is ''"):
            await other.start()
        assert await other.wait() == 1
        assert other.stderr.count("cannot listen on 127.0.0.1") == 1
        assert "Traceback" not in other.stderr
    finally:
        other.destroy()


async def test_what_cannot_work_is_said_once(valkey, tmp_path):
    node = Node(tmp_path / "node", workers=3, valkey_url=valkey.url.replace("//", "//nobody:wrong@"))
    try:
        with pytest.raises(AssertionError, match="the first line on stdout is ''"):
            await node.start()
        assert await node.wait() == 1
        assert node.stderr.count("replay: ") == 1
        assert "Traceback" not in node.stderr
    finally:
        node.destroy()


async def test_a_free_port_is_the_same_for_all(start_node, tmp_path):
    node = await start_node(workers=2, port=0, data_dir=tmp_path / "data")
    assert node.port != 0
    assert (await request("GET", f"{node.url}/healthz")).status == 200
