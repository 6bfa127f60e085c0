"""The shipped proxy configurations, run by the real nginx, HAProxy and Caddy in front of real nodes.

Only addresses and paths are replaced in the shipped files, and each replacement must happen. Where a test has to see
what exactly reaches a node, or needs a node that breaks off in a certain way, a `Stub` of a few lines stands in for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import sseclient
from support.api import Api, event_id, text_of
from support.deadlines import eventually, within
from support.http1 import open_stream, request, reset_on_close
from support.node import Node
from support.ports import free_port
from support.processes import Process
from support.sse import EventSourceClient, Parser, read_stream, streaming
from support.upstream import Call, ScriptedUpstream, say

DEPLOY = Path(__file__).parents[2] / "deploy"
INSTALL = "apt-get update && apt-get install --yes --no-install-recommends nginx-light haproxy caddy"
EVENT_STREAM = {"Accept": "text/event-stream"}
EVENT_PATHS = ("/generations/gen_1/events", "/events?generation=gen_1", "/feed", "/v1/completions/stream")


class Shipped(NamedTuple):
    """A file in deploy/ and the program that reads it."""

    file: str
    listen: str  # what says where it listens
    listens: str  # the same on a port of loopback
    command: tuple[str, ...]
    check: tuple[str, ...]
    paths: tuple[str, ...] = ()  # what else is somewhere else in a test


PROXIES = {
    "nginx": Shipped(
        "nginx.conf",
        "listen 8080;",
        "listen 127.0.0.1:{};",
        ("nginx", "-e", "stderr", "-p", "{directory}", "-c", "{conf}", "-g", "daemon off;"),
        ("nginx", "-e", "stderr", "-p", "{directory}", "-c", "{conf}", "-t"),
        ("pid /run/", "access_log /var/log/nginx/"),
    ),
    "haproxy": Shipped(
        "haproxy.cfg",
        "bind :8080",
        "bind 127.0.0.1:{}",
        ("haproxy", "-db", "-f", "{conf}"),
        ("haproxy", "-c", "-f", "{conf}"),
    ),
    "caddy": Shipped(
        "Caddyfile",
        "\n:8080 {",
        "\n:{} {{\n\tbind 127.0.0.1",
        ("caddy", "run", "--adapter", "caddyfile", "--config", "{conf}"),
        ("caddy", "validate", "--adapter", "caddyfile", "--config", "{conf}"),
    ),
}


def program(name: str) -> str:
    """Where the program is; without it the test fails, since a skipped proxy is a proxy nobody has tried."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    assert found, f"{name} is not installed; on Debian and Ubuntu, as root: {INSTALL}"
    return found


def replaced(text: str, replacements: dict[str, str]) -> str:
    for shipped, here in replacements.items():
        assert shipped in text, f"the shipped file no longer says {shipped!r}"
        text = text.replace(shipped, here)
    return text


class Proxy(Process):
    """A proxy with its shipped configuration in front of two addresses."""

    def __init__(self, name: str, directory: Path, nodes: tuple[str, str]) -> None:
        super().__init__()
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.api = Api(self.url)
        self._directory = directory
        self._conf = directory / PROXIES[name].file
        directory.mkdir()
        self._conf.write_text(self._configuration(nodes))

    def _configuration(self, nodes: tuple[str, str]) -> str:
        shipped = PROXIES[self.name]
        here = {path: path.partition(" ")[0] + f" {self._directory}/" for path in shipped.paths}
        here |= {"node-1:8080": nodes[0], "node-2:8080": nodes[1], shipped.listen: shipped.listens.format(self.port)}
        if self.name == "nginx":
            here["127.0.0.1:8079"] = f"127.0.0.1:{free_port()}"
            here["server_tokens off;"] = "server_tokens off;" + self._nginx_temporary_paths()
        if self.name == "caddy":
            here["admin localhost:2019"] = f"admin 127.0.0.1:{free_port()}"
        return replaced((DEPLOY / shipped.file).read_text(), here)

    def _nginx_temporary_paths(self) -> str:
        """The default ones belong to root, who does not have to be who runs the tests."""
        built = subprocess.run([program("nginx"), "-V"], capture_output=True, text=True, check=True).stderr
        names = [name.replace("-", "_") for name in re.findall(r"--http-(\S+)-temp-path=", built)]
        return "".join(f" {name}_temp_path {self._directory}/{name};" for name in names)

    @property
    def output(self) -> str:
        return (self._directory / "output").read_text(errors="replace")

    def _spawn(self, command: Iterable[str]) -> None:
        name, *arguments = (word.format(directory=self._directory, conf=self._conf) for word in command)
        home = {"HOME": str(self._directory), "XDG_DATA_HOME": str(self._directory / "data")}
        with (self._directory / "output").open("ab") as output:
            self._popen = subprocess.Popen(
                [program(name), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **home, "XDG_CONFIG_HOME": str(self._directory / "config")},
                cwd=self._directory,
                start_new_session=True,
            )

    async def check(self) -> None:
        """Let the program read its configuration and say whether it would start with it."""
        self._spawn(PROXIES[self.name].check)
        assert await self.wait() == 0, self.output

    async def start(self) -> None:
        """Start, and wait until it accepts connections."""
        self._spawn(PROXIES[self.name].command)
        await eventually(f"{self.name} to listen", self._listens)

    async def _listens(self) -> bool:
        assert self.running, f"{self.name} did not start:\n{self.output}"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True


StartProxy = Callable[..., Awaitable[Proxy]]
MakeNode = Callable[..., Awaitable[Node]]


@pytest.fixture
def start_proxy(tmp_path: Path) -> Iterator[StartProxy]:
    """Start a proxy in front of two nodes, or of the same one twice; without any, nobody listens where they should."""
    started: list[Proxy] = []

    async def start(name: str, *nodes: Node | Stub) -> Proxy:
        ports = [node.port for node in nodes] or [free_port(), free_port()]
        first, second = (f"127.0.0.1:{port}" for port in ports)
        proxy = Proxy(name, tmp_path / f"proxy-{len(started)}", (first, second))
        started.append(proxy)
        await proxy.start()
        return proxy

    yield start
    for proxy in started:
        proxy.destroy()
        print(f"--- {proxy.name} said:\n{proxy.output[-5000:]}")


@pytest.fixture(params=PROXIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


# Stand-ins for a node.


class Stub:
    """A server that counts what reaches it and gives one answer to all of it; its /readyz is always fine.

    The answer is the bytes to send and how to leave: `close` or `reset` the connection.
    """

    def __init__(self, answer: bytes, leave: str = "close") -> None:
        self.port = free_port()
        self.requests: list[str] = []
        self._answer, self._leave = answer, leave

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"(?i)\r\ncontent-length: *(\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            method, path, _ = head.split(" ", 2)
            if path == "/readyz":
                writer.write(plain("200 OK"))
            else:
                self.requests.append(f"{method} {path}")
                writer.write(self._answer)
                await writer.drain()
                if self._leave == "reset":
                    # A reset overtakes what is still on its way; a node's own aborts are the same.
                    reset_on_close(writer.get_extra_info("socket"))
        writer.close()

    async def __aenter__(self) -> Stub:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()


def plain(status: str, body: bytes = b"{}", content_type: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


def stream(*events: bytes, end: bytes = b"") -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events) + end


EVENT = b'event: start\ndata: {"type":"start"}\nid: 1763701200123-0\n\n'
FINAL_CHUNK = b"0\r\n\r\n"


# The programs accept what is shipped.


async def test_the_program_accepts_the_shipped_file_without_a_warning(name: str, tmp_path: Path) -> None:
    proxy = Proxy(name, tmp_path / name, ("127.0.0.1:1", "127.0.0.1:2"))

    await proxy.check()

    complaints = [line for line in proxy.output.splitlines() if re.search(r"warn|alert|deprecat", line, re.IGNORECASE)]
    # What the test puts into the Caddyfile is not indented as Caddy likes it; the shipped one is.
    assert [line for line in complaints if "not formatted" not in line] == []


def test_the_caddyfile_is_formatted_as_caddy_does_it() -> None:
    shipped = DEPLOY / "Caddyfile"

    formatted = subprocess.run([program("caddy"), "fmt", str(shipped)], capture_output=True, text=True, check=False)

    assert formatted.stdout == shipped.read_text()


# Everything is at hand: events flow at once.


async def test_each_event_arrives_before_the_next_is_produced(
    name: str, start_proxy: StartProxy, make_node: MakeNode, upstream: ScriptedUpstream
) -> None:
    proxy = await start_proxy(name, await make_node(), await make_node())
    generation = await proxy.api.start()
    call = await upstream.called()

    async with proxy.api.source(generation["id"]) as source:

        async def step() -> None:
            for n in range(100):
                await call.say(f"{n} ")
                assert (await source.event("token")).json()["content"] == f"{n} "

        # Held back for some 200 ms each, as some do with what is small, they would not all get through in time.
        await within("100 events, one after the other", step())
        await call.finish()
        last = await source.closed()

    assert_whole(source, tokens=100, status="completed")
    assert last.status == 204, "after the end the source is told not to come back"
    assert len(source.connections) == 2


@pytest.mark.parametrize(
    ("path", "last"), [("/generations", b"event: end\n"), ("/v1/chat/completions", b"data: [DONE]\n")]
)
async def test_what_a_post_streams_arrives_before_the_next_is_produced(
    path: str, last: bytes, name: str, start_proxy: StartProxy, make_node: MakeNode, upstream: ScriptedUpstream
) -> None:
    proxy = await start_proxy(name, await make_node(), await make_node())
    body = b'{"model": "test-model", "stream": true, "messages": [{"role": "user", "content": "Hi"}]}'
    headers = {"Content-Type": "application/json", "Accept-Encoding": "gzip, deflate, br, zstd"} | EVENT_STREAM

    async def step() -> None:
        call = await upstream.called()
        await call.say("first ")
        answer = await asking
        for n in range(100):
            await call.say(f"token {n};")
            await answer.until(b"token %d;" % n)
        await call.finish()

    url = proxy.api.at(path)
    asking = asyncio.create_task(open_stream(url, method="POST", body=body, headers=headers))
    await within("100 chunks, one after the other", step())
    whole = await (await asking).to_end()

    assert whole.clean
    assert "content-encoding" not in whole.headers
    assert last in whole.body


async def test_an_event_stream_is_never_compressed(
    name: str, start_proxy: StartProxy, make_node: MakeNode, upstream: ScriptedUpstream
) -> None:
    upstream.script = say(*(["the same again "] * 500))
    node = await make_node()
    proxy = await start_proxy(name, node, node)
    id = await proxy.api.run()

    answer = await proxy.api.read(id, {"Accept-Encoding": "gzip, deflate, br, zstd"})

    assert (answer.status, answer.media_type, answer.clean) == (200, "text/event-stream", True)
    assert "content-encoding" not in answer.headers
    assert answer.body.count(b"the same again") == 500
    assert "no-transform" in answer.headers["cache-control"], "for proxies further on"


@pytest.mark.slow
async def test_a_model_that_thinks_longer_than_any_timeout_is_followed_on_one_connection(
    start_proxy: StartProxy, start_node: MakeNode, valkey_url: str, upstream: ScriptedUpstream
) -> None:
    # With the node's own keep-alive, and all proxies at once: it takes more than a minute.
    node = await start_node(valkey_url=valkey_url, upstream_url=upstream.url)
    generation = await node.api.start()
    call = await upstream.called()
    async with contextlib.AsyncExitStack() as stack:
        sources = {}
        for name in PROXIES:
            proxy = await start_proxy(name, node, node)
            sources[name] = await stack.enter_async_context(proxy.api.source(generation["id"]))
            await sources[name].event("start")

        await asyncio.sleep(65)  # every proxy cuts a silent event stream after 60
        await call.say("Well.")

        for name, source in sources.items():
            assert (await source.event("token")).json()["content"] == "Well."
            assert len(source.connections) == 1, f"{name} cut the stream: {source.connections}"


# A node restarts.


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["SIGTERM", "SIGKILL"])
async def test_readers_follow_a_generation_while_one_of_two_nodes_restarts(
    name: str, stop: str, start_proxy: StartProxy, make_node: MakeNode, upstream: ScriptedUpstream
) -> None:
    producer, other = await make_node(), await make_node()
    proxy = await start_proxy(name, producer, other)
    generation = await producer.api.start()
    call = await upstream.called()
    async with contextlib.AsyncExitStack() as stack:
        # Some of them are on each node, since the proxy evens them out.
        readers = [await stack.enter_async_context(proxy.api.source(generation["id"])) for _ in range(6)]
        spoken = await speak(call, range(10))
        for reader in readers:
            await until_token(reader, spoken - 1)

        await stopped(other, stop)
        spoken = await speak(call, range(spoken, spoken + 30), every_s=0.1)
        await other.start()
        spoken = await speak(call, range(spoken, spoken + 10), every_s=0.1)
        await call.finish()

        for reader in readers:
            last = await reader.closed()
            assert last.status == 204
            assert_whole(reader, tokens=spoken, status="completed")
    cut = [reader for reader in readers if len(reader.connections) > 2]
    assert 0 < len(cut) < len(readers), "readers of both nodes"


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["SIGTERM", "SIGKILL"])
async def test_a_reader_follows_a_generation_while_the_only_node_behind_the_proxy_restarts(
    name: str, stop: str, start_proxy: StartProxy, make_node: MakeNode, upstream: ScriptedUpstream
) -> None:
    producer, behind = await make_node(), await make_node()
    proxy = await start_proxy(name, behind, behind)
    generation = await producer.api.start()
    call = await upstream.called()
    async with proxy.api.source(generation["id"]) as reader:
        spoken = await speak(call, range(10))
        await until_token(reader, spoken - 1)

        await stopped(behind, stop)
        before = len(reader.connections)
        spoken = await speak(call, range(spoken, spoken + 30), every_s=0.1)
        await reader.connected(before + 2)
        meanwhile = reader.connections[before : before + 1]
        await behind.start()
        spoken = await speak(call, range(spoken, spoken + 10), every_s=0.1)
        await call.finish()
        last = await reader.closed()

    assert last.status == 204
    assert_whole(reader, tokens=spoken, status="completed")
    assert [(each.status, each.content_type, each.clean) for each in meanwhile] == [(200, "text/event-stream", False)]


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["SIGTERM", "SIGKILL"])
async def test_a_reader_learns_how_it_ended_when_the_only_node_of_all_restarts(
    name: str, stop: str, start_proxy: StartProxy, make_node: MakeNode, upstream: ScriptedUpstream
) -> None:
    node = await make_node()
    proxy = await start_proxy(name, node, node)
    generation = await proxy.api.start()
    call = await upstream.called()
    async with proxy.api.source(generation["id"]) as reader:
        spoken = await speak(call, range(10))
        await until_token(reader, spoken - 1)

        await stopped(node, stop)
        await reader.connected(3)
        await node.start()
        last = await reader.closed()

    assert last.status == 204
    assert_whole(reader, tokens=spoken, status="interrupted")


@pytest.mark.slow
async def test_a_recording_is_read_to_its_end_while_the_only_node_of_all_restarts(
    name: str, start_proxy: StartProxy, make_node: MakeNode, upstream: ScriptedUpstream
) -> None:
    node = await make_node()
    proxy = await start_proxy(name, node, node)
    generation = await proxy.api.start()
    call = await upstream.called()
    spoken = await speak(call, range(25), every_s=0.1)  # and as long with speed=1
    await call.finish()
    await proxy.api.ended(generation["id"])
    async with proxy.api.source(generation["id"], speed=1) as reader:
        await until_token(reader, 5)

        node.kill()
        await reader.connected(3)
        await node.start()
        last = await reader.closed()

    assert last.status == 204
    assert_whole(reader, tokens=spoken, status="completed")


@pytest.mark.parametrize("name", ["haproxy", "caddy"])  # the open nginx asks no node how it is
async def test_what_is_new_goes_to_another_node_while_one_drains(
    name: str, start_proxy: StartProxy, make_node: MakeNode, upstream: ScriptedUpstream
) -> None:
    draining, other = await make_node(drain_grace_s=30), await make_node()
    proxy = await start_proxy(name, draining, other)
    generation = await draining.api.start()
    call = await upstream.called()
    upstream.script = say("Hi")

    draining.terminate()

    async def start_ten() -> list[int]:
        return [(await proxy.api.post("/generations", {"prompt": "Hi"})).status for _ in range(10)]

    await eventually("ten starts in a row", start_ten, lambda statuses: set(statuses) == {201})
    assert draining.running, "it still waits for its own generation"
    await call.finish()
    assert (await other.api.ended(generation["id"]))["status"] == "completed"


async def speak(call: Call, numbers: range, every_s: float = 0) -> int:
    """Say these numbers, one a token; how many there were up to here. The pace makes the length of an outage."""
    for n in numbers:
        await call.say(f"{n} ")
        await asyncio.sleep(every_s)
    return numbers.stop


async def until_token(reader: EventSourceClient, number: int) -> None:
    while (await reader.event("token")).json()["content"] != f"{number} ":
        pass


async def stopped(node: Node, how: str) -> None:
    if how == "SIGTERM":
        assert await node.stop() == 0
    else:
        node.kill()


def assert_whole(reader: EventSourceClient, *, tokens: int, status: str) -> None:
    """Nothing is missing, doubled or out of order."""
    assert [event_id(event.last_event_id)[1] for event in reader.received] == list(range(len(reader.received)))
    assert text_of(reader.received) == "".join(f"{n} " for n in range(tokens))
    assert reader.received[-1].json()["status"] == status


# No node is there.


@pytest.mark.parametrize("path", EVENT_PATHS)
async def test_without_a_node_an_event_source_is_told_to_try_again(
    name: str, path: str, start_proxy: StartProxy
) -> None:
    proxy = await start_proxy(name)

    answer = await read_stream(proxy.api.at(path))

    assert (answer.status, answer.media_type) == (200, "text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    parser = Parser("1763701200123-0")
    assert parser.feed(answer.body) == [], "nothing that was not in the log"
    assert (parser.retry_ms, parser.last_event_id) == (1000, "1763701200123-0")
    # Several client libraries make an empty event of a `retry:` block; without a blank line there is no block.
    assert answer.body == b"retry: 1000\n"
    assert list(sseclient.SSEClient(iter([answer.body])).events()) == []
    assert not answer.clean, "some clients take a clean end for the end of the generation"


@pytest.mark.parametrize(
    ("method", "path", "accept"),
    [
        ("POST", "/generations", "*/*"),
        ("POST", "/generations", "text/event-stream"),
        ("POST", "/v1/chat/completions", "text/event-stream"),
        ("DELETE", "/generations/gen_1", "*/*"),
        ("GET", "/generations", "application/json"),
        ("GET", "/generations/gen_1/transcript", "text/event-stream"),
        ("GET", "/generations/gen_1/events", "application/json"),
        ("GET", "/generations/gen_1/events", "application/x-ndjson"),
    ],
)
async def test_without_a_node_everybody_else_gets_an_honest_error(
    name: str, method: str, path: str, accept: str, start_proxy: StartProxy
) -> None:
    proxy = await start_proxy(name)

    answer = await request(method, proxy.api.at(path), headers={"Accept": accept})

    assert answer.status in (502, 503, 504)
    assert answer.clean
    assert answer.media_type != "text/event-stream"


# What a node says is passed on as it is, and what it may have seen is not sent twice.


async def test_a_get_is_not_lost_on_a_node_that_refuses_the_connection(name: str, start_proxy: StartProxy) -> None:
    async with Stub(plain("200 OK")) as node:
        async with Stub(plain("200 OK")) as leaving:
            proxy = await start_proxy(name, leaving, node)
        paths = ("/generations/gen_1", "/generations/gen_1/events")

        answers = [await request("GET", proxy.api.at(path), headers=EVENT_STREAM) for path in paths * 3]

        assert [(answer.status, answer.body) for answer in answers] == [(200, b"{}")] * 6
        assert len(node.requests) == 6


async def test_a_post_is_not_lost_on_a_node_that_refuses_the_connection(name: str, start_proxy: StartProxy) -> None:
    async with Stub(plain("201 Created")) as node:
        async with Stub(plain("201 Created")) as leaving:
            proxy = await start_proxy(name, leaving, node)

        answers = [await request("POST", proxy.api.at("/generations"), json_body={"n": n}) for n in range(6)]

        statuses = [answer.status for answer in answers]
        assert len(node.requests) == statuses.count(201)
        if name == "caddy" and caddy_version() < (2, 11, 2):
            assert set(statuses) <= {201, 502, 503}  # caddy#7546; the Caddyfile says so
        else:
            assert statuses == [201] * 6


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize(("path", "body"), [("/generations", {"prompt": "Hi"}), ("/generations/gen_1/cancel", None)])
async def test_a_post_that_a_node_may_have_seen_is_not_sent_again(
    name: str, path: str, body: dict[str, str] | None, leave: str, start_proxy: StartProxy
) -> None:
    async with Stub(b"", leave) as first, Stub(b"", leave) as second:
        proxy = await start_proxy(name, first, second)

        answer = await request("POST", proxy.api.at(path), json_body=body, headers=EVENT_STREAM)

        assert answer.status in (502, 503, 504)
        assert first.requests + second.requests == [f"POST {path}"]


async def test_a_get_that_one_node_drops_is_asked_of_the_other(name: str, start_proxy: StartProxy) -> None:
    async with Stub(b"") as silent, Stub(plain("200 OK", b'{"id":"gen_1"}')) as node:
        proxy = await start_proxy(name, silent, node)

        answers = [await request("GET", proxy.api.at("/generations/gen_1")) for _ in range(4)]

        assert [(answer.status, answer.body) for answer in answers] == [(200, b'{"id":"gen_1"}')] * 4
        assert silent.requests, "it was asked"


@pytest.mark.parametrize("status", ["204 No Content", "404 Not Found", "503 Service Unavailable"])
async def test_what_a_node_answers_to_an_event_source_is_passed_on(
    name: str, status: str, start_proxy: StartProxy
) -> None:
    problem = b"" if status.startswith("204") else b'{"code":"whatever"}'
    async with Stub(plain(status, problem, "application/problem+json")) as node:
        proxy = await start_proxy(name, node, node)

        answer = await request("GET", proxy.api.at("/generations/gen_1/events"), headers=EVENT_STREAM)

        assert (f"{answer.status}", answer.body) == (status[:3], problem)


@pytest.mark.parametrize("path", ["/generations/gen_1/events", "/generations/gen_1"])
async def test_a_clean_end_is_passed_on_as_a_clean_end(name: str, path: str, start_proxy: StartProxy) -> None:
    async with Stub(stream(EVENT, end=FINAL_CHUNK)) as node:
        proxy = await start_proxy(name, node, node)

        answer = await read_stream(proxy.api.at(path))

        assert (answer.status, answer.body, answer.clean) == (200, EVENT, True)


@pytest.fixture
def passes_on_cuts(name: str, request: pytest.FixtureRequest) -> None:
    if name == "caddy" and caddy_version() < (2, 8):
        too_old = "Caddy before 2.8 ends it cleanly (caddy#5951); the Caddyfile says so"
        request.applymarker(pytest.mark.xfail(reason=too_old, strict=True))


@pytest.mark.usefixtures("passes_on_cuts")
@pytest.mark.parametrize("path", ["/generations/gen_1/events", "/generations/gen_1"])
async def test_a_response_that_a_node_cuts_short_is_passed_on_cut_short(
    name: str, path: str, start_proxy: StartProxy
) -> None:
    async with Stub(stream(EVENT)) as node:
        proxy = await start_proxy(name, node, node)

        answer = await read_stream(proxy.api.at(path))

        assert (answer.status, answer.body, answer.clean) == (200, EVENT, False)


@pytest.mark.usefixtures("passes_on_cuts")
async def test_the_stream_of_a_killed_node_is_cut_short(
    name: str, start_proxy: StartProxy, make_node: MakeNode, upstream: ScriptedUpstream
) -> None:
    node = await make_node()
    proxy = await start_proxy(name, node, node)
    generation = await proxy.api.start()
    await upstream.called()

    async with streaming(proxy.api.events_url(generation["id"])) as reader:
        await reader.until(b"event: live")
        node.kill()
        answer = await reader.to_end()

    assert not answer.clean


async def test_a_node_learns_at_once_that_a_reader_has_left(
    name: str, start_proxy: StartProxy, make_node: MakeNode, upstream: ScriptedUpstream
) -> None:
    node = await make_node()  # whose next word, a keep-alive, would come too late for this test
    proxy = await start_proxy(name, node, node)
    generation = await proxy.api.start()
    await upstream.called()

    async with streaming(proxy.api.events_url(generation["id"])) as reader:
        await reader.until(b"event: live")
        assert (await node.api.generation(generation["id"]))["subscribers"] == 1

    async def watched() -> int:
        return (await node.api.generation(generation["id"]))["subscribers"]

    await eventually("nobody to watch", watched, lambda subscribers: subscribers == 0)


def caddy_version() -> tuple[int, ...]:
    output = subprocess.run([program("caddy"), "version"], capture_output=True, text=True, check=True).stdout
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", output)
    return tuple(map(int, found.groups())) if found else (999,)  # built from source: as new as can be


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    for name in PROXIES:
        program(name)
