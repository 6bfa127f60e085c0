"""Clients that others wrote read a generation through cuts, to the exact text, between one keep-alive and the next.

Each is used as its documentation says, with the loop around it that its users write. What a client does
with what the service relies on is told beside it; where it can be seen, `AT_THE_END` and the tests hold it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import sseclient
from aiohttp_sse_client2.client import EventSource
from httpx_sse import SSEError, aconnect_sse
from openai import APIConnectionError, AsyncOpenAI, AsyncStream, DefaultAsyncHttpxClient
from openai.types.chat import ChatCompletionChunk
from support.api import Api
from support.browser import chromium, open_tab
from support.deadlines import DEADLINE_S, eventually
from support.fault_proxy import FaultProxy, keep_alives
from support.node import Node
from support.programs import MODULES, node_js
from support.site import Site
from support.sse import Message, Parser
from support.upstream import say

HERE = Path(__file__).parent
PAUSE_S = 0.02  # of a hand-written loop, between two connections

TEXTS = ("one ", "👩‍👩‍👧‍👦 ", "\u2028\r\n\x85 ", "four ", "𝕗𝕚𝕧𝕖 ", "six ", "\n\n: seven", " eight ", "  nine", "[DONE]")

Report = Callable[[Message | str], None]  # an event that the client showed, or a word about how it ended
Client = Callable[[str, Report], Awaitable[None]]  # reads a URL until the client itself is through with it


# sseclient-py 1.9: a parser, no more. `:` lines are passed over, `retry` is handed on, nothing is reconnected; an
# abort is the HTTP library's exception, a 204 an answer without events. (Not on urllib's own iteration over a response:
# that takes a connection which is closed between two chunks for one that has ended.)


async def sseclient_py(url: str, report: Report) -> None:
    loop = asyncio.get_running_loop()

    def tell(what: Message | str) -> None:
        loop.call_soon_threadsafe(report, what)

    await asyncio.to_thread(_sseclient_py, url, tell)


def _sseclient_py(url: str, report: Report) -> None:
    headers, status = {"Accept": "text/event-stream"}, None
    with httpx.Client(timeout=DEADLINE_S, trust_env=False) as client:
        while status is None:
            with contextlib.suppress(httpx.TransportError), client.stream("GET", url, headers=headers) as answer:
                for event in sseclient.SSEClient(answer.iter_bytes()).events():
                    headers |= {"Last-Event-ID": event.id} if event.id else {}
                    report(Message(event.event, event.data, event.id or ""))
                status = answer.status_code
    report(f"status {status}")


# httpx-sse 0.4, on httpx: `:` lines are passed over; a blank line of its own would be an event as soon as there has
# been an id. `retry` is handed on, nothing is reconnected; an abort is httpx.TransportError, a 204 SSEError.


async def httpx_sse(url: str, report: Report) -> None:
    last_event_id, retry_s, ending = "", PAUSE_S, None
    async with httpx.AsyncClient(timeout=DEADLINE_S, trust_env=False) as client:
        while ending is None:
            cursor = {"Last-Event-ID": last_event_id} if last_event_id else {}
            try:
                async with aconnect_sse(client, "GET", url, headers=cursor) as source:
                    async for event in source.aiter_sse():
                        last_event_id = event.id
                        retry_s = retry_s if event.retry is None else event.retry / 1000
                        report(Message(event.event, event.data, event.id))
                ending = "ended cleanly"
            except SSEError as error:
                ending = str(error)
            except httpx.TransportError:
                await asyncio.sleep(retry_s)
    report(ending)


# aiohttp-sse-client2 0.3: `:` lines are passed over, `retry` is obeyed. After a clean end it comes back by itself,
# after twice the time. An abort is raised, as aiohttp.ClientPayloadError, which is no ConnectionError; what was half
# read stays in the object, so that a new one is needed. A 204 is ConnectionAbortedError.


async def aiohttp_sse_client2(url: str, report: Report) -> None:
    last_event_id = ""
    while True:
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        try:
            async with EventSource(
                url, headers=headers, reconnection_time=timedelta(seconds=PAUSE_S), timeout=aiohttp.ClientTimeout(None)
            ) as source:
                async for event in source:
                    last_event_id = event.last_event_id
                    report(Message(event.type, event.data, event.last_event_id))
        except ConnectionAbortedError as error:
            report(str(error.args[0]).rpartition("failed ")[2])
            return
        except aiohttp.ClientError:
            await asyncio.sleep(PAUSE_S)


# openai 3.52, on format=openai. Its decoder makes an event of a blank line after an `id:` or a `retry:`, and breaks on
# its empty data. It shows no ids, so a reader begins again and passes over what it has. An abort is
# APIConnectionError; a 204 is a stream without chunks.


async def openai_sdk(url: str, report: Report) -> None:
    known, ending = 0, None
    http_client = DefaultAsyncHttpxClient(trust_env=False)
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=http_client) as client:
        while ending is None:
            try:
                stream = await client.get(
                    url, cast_to=ChatCompletionChunk, stream=True, stream_cls=AsyncStream[ChatCompletionChunk]
                )
                seen = 0
                async for chunk in stream:
                    seen += 1
                    if seen > known:
                        known = seen
                        report(Message("message", json.dumps(chunk.to_dict(), sort_keys=True), ""))
                ending = "ended cleanly"
            except APIConnectionError:
                await asyncio.sleep(PAUSE_S)
    report(ending)


# curl 7.88: shows every byte as it comes. An abort is exit code 18 (or 56, a reset), a 204 is 0 and no bytes.


async def curl(url: str, report: Report) -> None:
    program = shutil.which("curl")
    assert program, "curl is not installed; on Debian, as root: apt-get install curl"
    cursor = ""
    while True:
        parser = Parser(cursor)
        arguments = ("-sN", "--noproxy", "*", "-H", "Accept: text/event-stream", "-H", f"Last-Event-ID: {cursor}", url)
        async with _running(program, *arguments) as process:
            assert process.stdout is not None
            while piece := await process.stdout.read(1000):
                for message in parser.parse(piece):
                    cursor = message.last_event_id
                    report(message)
            if await process.wait() == 0:
                report("exit code 0")
                return


# eventsource 4.1 (npm), in Node.js: native EventSource to the letter. `:` lines are passed over, `retry` is obeyed, it
# comes back after an abort or an end with Last-Event-ID, and a 204 closes it for good. An event without an id has
# lastEventId "" there, where browsers show the cursor.

_EVENTSOURCE = """
import { EventSource } from "eventsource";
const print = (value) => console.log(JSON.stringify(value));
const source = new EventSource(process.argv[1]);
for (const name of ["message", "start", "token", "delta", "live", "reset", "end"])
  source.addEventListener(name, (event) => print([event.type, event.data, event.lastEventId]));
source.onerror = (error) => {
  if (source.readyState === EventSource.CLOSED) print(error.message);
};
"""

# eventsource-parser 3.1 (npm), in Node.js: a parser, no more. `:` lines go to onComment; `retry` is handed on.

_EVENTSOURCE_PARSER = """
import { createParser } from "eventsource-parser";
const print = (value) => console.log(JSON.stringify(value));
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
let cursor = "", retry = 20, status;
const parser = createParser({
  onEvent: ({ id, event, data }) => { cursor = id ?? cursor; print([event ?? "message", data, id ?? ""]); },
  onRetry: (ms) => { retry = ms; },
});
while (status === undefined)
  try {
    const headers = { Accept: "text/event-stream", ...(cursor && { "Last-Event-ID": cursor }) };
    const answer = await fetch(process.argv[1], { headers });
    for await (const text of answer.body?.pipeThrough(new TextDecoderStream()) ?? []) parser.feed(text);
    status = answer.status;
  } catch {
    parser.reset();
    await pause(retry);
  }
print(`status ${status}`);
"""


async def npm_eventsource(url: str, report: Report) -> None:
    await _node_js(_EVENTSOURCE, url, report)


async def npm_eventsource_parser(url: str, report: Report) -> None:
    await _node_js(_EVENTSOURCE_PARSER, url, report)


async def _node_js(script: str, url: str, report: Report) -> None:
    async with _running(node_js(), "--input-type=module", "--eval", script, url) as process:
        assert process.stdout is not None
        async for line in process.stdout:
            _report_json(json.loads(line), report)
        assert await process.wait() == 0


# @microsoft/fetch-event-source 2.0 (npm), in Chromium: `:` lines are passed over, a blank line of its own would be an
# event; `retry` is obeyed. It comes back after an abort, and not after a clean end. The cursor moves with the `id:`
# line, before its event is complete. A 204 is an error, after which it comes back for ever unless onerror throws.


async def fetch_event_source(url: str, report: Report) -> None:
    assert MODULES.is_dir(), "the npm clients are not installed: npm ci --prefix tests/acceptance"
    over = asyncio.Event()

    def tell(_: Any, what: Any) -> None:
        if what is None:
            over.set()
        else:
            _report_json(what, report)

    origin, path = url[: url.index("/generations")], url[url.index("/generations") :]
    async with chromium() as browser:
        await browser.expose_binding("report", tell)
        tab = await open_tab(browser, f"{origin}/pages/fetch-event-source.html#{path}")
        await over.wait()
        assert tab.complaints == []


def _report_json(what: Any, report: Report) -> None:
    report(what if isinstance(what, str) else Message(what[0] or "message", what[1], what[2]))


@contextlib.asynccontextmanager
async def _running(program: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(program, *arguments, stdout=pipe, cwd=HERE, limit=1 << 20)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


# What each does when it asks again after `end`, and is answered 204.
AT_THE_END: dict[Client, str] = {
    sseclient_py: "status 204",
    httpx_sse: "Expected response header Content-Type to contain 'text/event-stream', got ''",
    aiohttp_sse_client2: "with wrong response status: 204: b''",
    openai_sdk: "ended cleanly",
    curl: "exit code 0",
    npm_eventsource: "Server sent HTTP 204, not reconnecting",
    npm_eventsource_parser: "status 204",
    fetch_event_source: "Error: Expected content-type to be text/event-stream, Actual: null",
}

every_client = pytest.mark.parametrize("client", AT_THE_END, ids=lambda client: client.__name__)

# Bytes after which a connection ends: after an id, in the middle of data, before the blank line.
CUTS = range(10, 130, 20)
# What is cut between its `id:` line and its end is lost to these clients: they go on with what comes after it.
IMPATIENT = (fetch_event_source,)


# The world.


@dataclass
class Reading:
    """A client at work."""

    task: asyncio.Task[None]
    shown: list[Message] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def report(self, what: Message | str) -> None:
        if isinstance(what, str):
            self.words.append(what)
        else:
            self.shown.append(what)

    @property
    def received(self) -> list[Message]:
        """What it showed, without that about the connection."""
        return [message for message in self.shown if message.event != "live"]

    async def has(self, events: int) -> None:
        await eventually(f"{events} events; has {self.shown} {self.words}", self._count, lambda count: count >= events)

    async def said(self) -> str:
        """How it ended."""
        await eventually(f"an ending; has {self.shown}", self._words)
        return self.words[0]

    async def _count(self) -> int:
        if self.task.done():
            self.task.result()
        return len(self.received)

    async def _words(self) -> list[str]:
        if self.task.done():
            self.task.result()
        return self.words


@contextlib.asynccontextmanager
async def reading(client: Client, url: str) -> AsyncIterator[Reading]:
    """A client that reads."""
    started: Reading

    async def read() -> None:
        await client(url, started.report)

    started = Reading(asyncio.create_task(read(), name=client.__name__))
    try:
        yield started
    finally:
        started.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await started.task


def site(api: Api) -> Site:
    """A node, and the page of the client that needs a browser."""
    return Site(api.url, {"pages": HERE / "pages", "npm": MODULES})


@pytest.fixture
async def node(make_node: Callable[..., Awaitable[Node]]) -> Node:
    """A node that is never silent for long."""
    return await make_node(keepalive_s=0.05)


@pytest.fixture
async def network(node: Node) -> AsyncIterator[FaultProxy]:
    """The wire to the node."""
    async with site(node.api) as origin, FaultProxy(origin.url) as proxy:
        yield proxy


def url_of(origin: FaultProxy | Site, client: Client, id: str, **query: str) -> str:
    form = {"format": "openai"} if client is openai_sdk else {}
    return Api(origin.url).events_url(id, **query, **form)


async def expected_of(api: Api, client: Client, id: str) -> list[Message]:
    """What a client should have shown in the end."""
    if client is not openai_sdk:
        return await api.log(id)
    answer = await api.read(id, format="openai")
    payloads = [event.data for event in Parser().parse(answer.body)]
    assert payloads.pop() == "[DONE]"
    return [Message("message", json.dumps(json.loads(payload), sort_keys=True), "") for payload in payloads]


# What is claimed.


@every_client
async def test_client_is_cut_and_ends_with_the_exact_text(client, network, node, upstream):
    # given a client that has read three tokens, and then keep-alives
    id = (await node.api.start())["id"]
    call = await upstream.called()
    begun = 0 if client is openai_sdk else 1  # format=openai has no start
    async with reading(client, url_of(network, client, id)) as reader:
        for text in TEXTS[:3]:
            await call.say(text)
        await reader.has(begun + 3)
        await keep_alives(network)

        # when it is reset between two events, again and again, while the model goes on
        for events, text in enumerate(TEXTS[3:6], begun + 4):
            network.cut()
            await call.say(text)
            await reader.has(events)
            await keep_alives(network)

        # and connections end inside events
        for events, count in enumerate([] if client in IMPATIENT else CUTS, begun + 7):
            network.cut_replies_after(count)
            await call.say(f"cut {count} ")
            await network.reply_cut()
            await reader.has(events)
        network.cut()
        for text in TEXTS[6:]:
            await call.say(text)
        await call.finish()

        # then it has shown everything once and in order, and nothing that nobody sent
        await node.api.ended(id)
        expected = await expected_of(node.api, client, id)
        await reader.has(len(expected))
        assert reader.received == expected
        lives = [message for message in reader.shown if message.event == "live"]
        assert all(json.loads(message.data)["type"] == "live" for message in lives)


@every_client
async def test_client_that_asks_behind_the_end_shows_nothing(client, service, upstream):
    # given a generation that has ended
    upstream.script = say("Hello")
    id = await service.run()
    end = (await service.generation(id))["last_event_id"]

    # when a client asks for what comes after its `end`
    async with site(service) as origin, reading(client, url_of(origin, client, id, after=end)) as reader:
        # then the client says this about a 204, and shows no event
        assert await reader.said() == AT_THE_END[client]
        assert reader.shown == []
