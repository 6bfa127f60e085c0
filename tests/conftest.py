"""Fixtures: real processes on loopback, gone when the test is.

A test about faults asks for `node` (and `valkey`, `valkey_proxy`, `make_node`): all of them are its own.
A test that only asks questions takes `service`, one node that such tests share, since starting one
costs more than they do; `other_service` is a second node on the same Valkey. `speaking` and `other_speaking` are such
nodes whose upstream speaks the Responses API.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.api import Api
from support.fault_proxy import FaultProxy
from support.node import Node
from support.upstream import ScriptedUpstream
from support.valkey import ValkeyServer

MakeNode = Callable[..., Awaitable[Node]]

# Settings that make a test quick and change nothing of what is tested.
QUICK = {
    "upstream_retries": 0,
    "upstream_connect_timeout_s": 2,
    "lease_s": 1,
    "store_timeout_s": 1,
    "drain_grace_s": 0.2,
    "drain_spread_s": 0.1,
    "retry_ms": 50,
}

_alive: dict[Node, int] = {}  # node -> how much of its stderr belongs to earlier tests


# The world of one test.


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A Valkey server of the test's own."""
    server = ValkeyServer(tmp_path / "valkey")
    server.start()
    yield server
    server.destroy()


@pytest.fixture
async def valkey_proxy(valkey: ValkeyServer) -> AsyncIterator[FaultProxy]:
    """The wire between the test's nodes and Valkey."""
    async with FaultProxy(valkey.url) as proxy:
        yield proxy


@pytest.fixture
async def upstream(request: pytest.FixtureRequest) -> AsyncIterator[ScriptedUpstream]:
    """The upstream of the test's nodes; with `service`, of the shared ones."""
    shared = "service" in request.fixturenames
    listener = request.getfixturevalue("_shared_listener").dup() if shared else None
    # A shared node outlives this server: it must not keep a connection to it for the next test.
    async with ScriptedUpstream(listener=listener, keep_alive=not shared) as server:
        yield server


@pytest.fixture
def valkey_url(request: pytest.FixtureRequest, valkey: ValkeyServer) -> str:
    """Where the test's nodes find Valkey: behind the proxy, if the test asks for one."""
    through_proxy = "valkey_proxy" in request.fixturenames
    return request.getfixturevalue("valkey_proxy").url if through_proxy else valkey.url


@pytest.fixture
async def start_node(tmp_path: Path) -> AsyncIterator[MakeNode]:
    """Start nodes with no settings but those given."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**options: Any) -> Node:
            node = Node(tmp_path / "nodes", **options)
            stack.callback(_forget, node)
            _alive[node] = 0
            await node.start()
            return node

        yield start


@pytest.fixture
async def make_node(valkey_url: str, upstream: ScriptedUpstream, start_node: MakeNode) -> MakeNode:
    """Start nodes on the test's Valkey and upstream: `await make_node(lease_s=2)`."""

    async def make(**options: Any) -> Node:
        world = {"valkey_url": valkey_url, "upstream_url": upstream.url}
        return await start_node(**(QUICK | world | options))

    return make


@pytest.fixture
async def node(make_node: MakeNode) -> Node:
    """A node on the test's Valkey and upstream."""
    return await make_node()


# The world that tests share.


@pytest.fixture(scope="session")
def _shared_listener() -> Iterator[socket.socket]:
    """The port of the shared nodes' upstream; every test serves it anew, in its own event loop."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture(scope="session")
def _shared_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path_factory.mktemp("shared-valkey"))
    server.start()
    yield server
    server.destroy()


def pytest_configure() -> None:
    # A shell starts what it runs in the background with Ctrl-C ignored, which every process started from here inherits.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--workers", type=int, default=1, help="processes of each node that tests share")


@pytest.fixture(scope="session")
def _shared_nodes(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    _shared_listener: socket.socket,
    _shared_valkey: ValkeyServer,
) -> Iterator[list[Node]]:
    directory = tmp_path_factory.mktemp("shared-nodes")
    workers = request.config.getoption("--workers")
    yield from _two_nodes(directory, _shared_listener, _shared_valkey, workers=workers)


def _two_nodes(directory: Path, listener: socket.socket, valkey: ValkeyServer, **settings: Any) -> Iterator[list[Node]]:
    """Two nodes on one Valkey, started by the first test that wants them, gone when their fixture is."""
    world = {"valkey_url": valkey.url, "upstream_url": f"http://127.0.0.1:{listener.getsockname()[1]}/v1"}
    nodes = [Node(directory, **(QUICK | world | {"retry_ms": None} | settings)) for _ in range(2)]
    yield nodes
    for node in nodes:
        _forget(node)


async def _ready(node: Node) -> Node:
    if not node.running:
        _alive[node] = 0
        await node.start()
    return node


@pytest.fixture
async def service(_shared_nodes: list[Node], upstream: ScriptedUpstream) -> AsyncIterator[Api]:
    """The API of the node that tests without faults share; what a test starts on it ends with the test."""
    api = (await _ready(_shared_nodes[0])).api
    yield api
    for id in api.started:
        await api.post(f"/generations/{id}/cancel")


@pytest.fixture
async def other_service(_shared_nodes: list[Node], service: Api) -> Api:
    """The API of a second node beside `service`."""
    return (await _ready(_shared_nodes[1])).api


# Not for the whole session: there, every other test would have them beside its own nodes.
@pytest.fixture(scope="module")
def _speaking_nodes(
    tmp_path_factory: pytest.TempPathFactory, _shared_listener: socket.socket, _shared_valkey: ValkeyServer
) -> Iterator[list[Node]]:
    directory = tmp_path_factory.mktemp("speaking-nodes")
    yield from _two_nodes(directory, _shared_listener, _shared_valkey, upstream_responses="yes")


@pytest.fixture
async def speaking(_speaking_nodes: list[Node], service: Api, upstream: ScriptedUpstream) -> AsyncIterator[Api]:
    """The API of a shared node that knows that its upstream speaks the Responses API."""
    upstream.speaks_responses = True
    api = (await _ready(_speaking_nodes[0])).api
    yield api
    for id in api.started:
        await api.post(f"/generations/{id}/cancel")


@pytest.fixture
async def other_speaking(_speaking_nodes: list[Node], speaking: Api) -> Api:
    """The API of a second node beside `speaking`."""
    return (await _ready(_speaking_nodes[1])).api


@pytest.fixture
def key() -> dict[str, str]:
    """The header of a key that no other test uses."""
    return {"Idempotency-Key": f"key-{uuid.uuid4()}"}


# What the nodes said, where a test failed.


def _forget(node: Node) -> None:
    node.destroy()
    _alive.pop(node, None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    for node, seen in _alive.items():
        text = node.stderr
        if report.failed and text[seen:]:
            report.sections.append((f"stderr of the node at {node.url}", text[seen:][-20_000:]))
        if call.when == "call":
            _alive[node] = len(text)
    return report
