"""Whom a browser may call for: other origins' pages, pages that have rebound their name, and those that are allowed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Page
from support.api import Api, assert_problem
from support.browser import chromium
from support.http1 import Answer, open_stream
from support.tcp_server import TcpServer
from support.upstream import say
from support.v1 import CHAT
from support.wire import connected

EVIL = "https://evil.example"
OURS = "https://app.example.com"
BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
TEXT = "text/plain;charset=UTF-8"  # what a page may send without being asked first


def host(api: Api) -> str:
    return urlsplit(api.url).netloc


async def ask(api: Api, method: str, path: str, headers: dict[str, str], body: Any = None) -> Answer:
    raw = b"" if body is None else json.dumps(body).encode()
    typed = {"Content-Type": TEXT} if raw else {}
    stream = await open_stream(api.at(path), method=method, headers={"Host": host(api), **typed, **headers}, body=raw)
    return await stream.to_end()


# What each of them would change, and the status when it may.
CHANGES = {
    "start": ("POST", "/generations", CHAT, 201),
    "start at /v1": ("POST", "/v1/chat/completions", CHAT, 200),
    "start at /v1/completions": ("POST", "/v1/completions", {"model": "m", "prompt": "Hi"}, 200),
    "start a response": ("POST", "/v1/responses", {"model": "m", "input": "Hi"}, 200),
    "start by a POST of a prompt": ("POST", "/v1/completions/stream", {"model": "m", "prompt": "Hi"}, 200),
    "start by a GET": ("GET", "/v1/completions/stream?model=m&prompt=Hi", None, 200),
    "cancel": ("POST", "/generations/{id}/cancel", None, 200),
    "delete": ("DELETE", "/generations/{id}", None, 204),
}


@pytest.fixture
async def ended(service, upstream) -> str:
    upstream.script = say("a", "b")
    return await service.run()


def is_refused(answer: Answer, path: str) -> bool:
    if not path.startswith("/v1/"):
        assert_problem(answer, 403, "cross_site_request")
    return (answer.status, b'"cross_site_request"' in answer.body) == (403, True)


FOREIGN = {
    "another site": {"Sec-Fetch-Site": "cross-site", "Origin": EVIL},
    "another site without an origin": {"Sec-Fetch-Site": "cross-site"},
    "another origin of this site": {"Sec-Fetch-Site": "same-site"},
    "an old browser": {"Origin": EVIL, "User-Agent": BROWSER},
    "no name": {"Origin": "null"},
    "a page that hides where it is": {"Sec-Fetch-Site": "cross-site", "Origin": "null"},
    "another port": {"Origin": "http://127.0.0.1:1"},
    "another scheme": {"Origin": "https://127.0.0.1"},
    "a name that begins like ours": {"Origin": "http://{host}.evil.example"},
    "nonsense": {"Origin": "http://["},
    "nonsense in letters that look like ours": {"Origin": "http://\u212aocalhost"},
    "a link in a mail, or a page that it leads over": {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},
    "a page that it was linked from": {"Referer": EVIL + "/page", "User-Agent": BROWSER},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("who", FOREIGN)
async def test_a_page_of_another_origin_changes_nothing(service, upstream, ended, change, who):
    # given what such a page makes a browser send
    method, path, body, _ = CHANGES[change]
    path = path.format(id=ended)
    calls = len(upstream.calls)
    headers = {name: value.format(host=host(service)) for name, value in FOREIGN[who].items()}

    # then it is refused, whatever its content type, and nothing has happened
    answer = await ask(service, method, path, headers, body)
    assert is_refused(answer, path)
    assert len(upstream.calls) == calls
    assert (await service.generation(ended))["status"] == "completed"


OWN = {
    "a program": {},
    "our own page": {"Sec-Fetch-Site": "same-origin", "Origin": "http://{host}"},
    "our own page behind a proxy that changes the host": {
        "Sec-Fetch-Site": "same-origin",
        "Origin": "http://localhost:5173",
    },
    "our own page in an old browser": {"Origin": "http://{host}", "User-Agent": BROWSER},
    "our own page that was named in capitals": {"Origin": "HTTP://{host}"},
    "what its user typed": {"Sec-Fetch-Site": "none"},
    "our own page in an old browser, behind a proxy that changes the host": {
        "Origin": "http://dev.example:5173",
        "X-Forwarded-Host": "dev.example:5173, localhost",
        "User-Agent": BROWSER,
    },
    "our own page in an old browser, by a GET": {"Referer": "http://{host}/page", "User-Agent": BROWSER},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("who", OWN)
async def test_our_own_pages_and_programs_may(service, upstream, ended, change, who):
    method, path, body, status = CHANGES[change]
    headers = {name: value.format(host=host(service)) for name, value in OWN[who].items()}
    assert (await ask(service, method, path.format(id=ended), headers, body)).status == status


async def test_a_browser_that_says_nothing_of_the_page_starts_nothing_by_a_get(service, upstream):
    """An image of a page that hides its address, in a browser that does not tell http where it asks from."""
    answer = await ask(service, "GET", "/v1/completions/stream?prompt=Hi&model=m", {"User-Agent": BROWSER})
    assert is_refused(answer, "/v1/completions/stream")
    assert upstream.calls == []


@pytest.mark.parametrize("who", FOREIGN)
async def test_any_page_may_ask_for_what_it_cannot_read(service, ended, who):
    headers = {name: value.format(host=host(service)) for name, value in FOREIGN[who].items()}
    answer = await ask(service, "GET", f"/generations/{ended}", headers)
    assert answer.status == 200
    assert not any(name.startswith("access-control") for name in answer.headers)


# A page whose name means this machine.


@pytest.mark.parametrize("path", ["/", "/generations", "/healthz", "/v1/models", "/feed", "/nothing"])
@pytest.mark.parametrize(
    "name",
    ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.nip.example", "10.0.0.1", "0.0.0.0"],
)
async def test_a_host_that_is_not_this_one_is_refused(service, path, name):
    answer = await ask(service, "GET", path, {"Host": name})
    assert (answer.status, b'"misdirected_request"' in answer.body) == (421, True)


@pytest.mark.parametrize(
    "name",
    ["localhost", "localhost:1", "LOCALHOST.", "a.localhost:80", "127.0.0.1", "127.9.9.9:80", "[::1]", "[::1]:80"],
)
async def test_every_name_of_loopback_is_answered(service, name):
    assert (await ask(service, "GET", "/healthz", {"Host": name})).status == 200


@pytest.mark.parametrize("name", ["", "a b", "a/b", "user@localhost", "localhost:port", "localhost:80:80"])
async def test_a_host_that_is_none_is_refused(service, name):
    assert_problem(await ask(service, "GET", "/generations", {"Host": name}), 400, "invalid_request")


async def test_http_1_0_may_leave_the_host_out(service):
    async with connected(service.url) as wire:
        await wire.send("GET /healthz HTTP/1.0\r\n\r\n")
        assert (await wire.answer())[0] == 200


@pytest.mark.parametrize(
    ("allowed", "name", "status"),
    [
        ("replay.example", "replay.example", 200),
        ("replay.example", "Replay.Example:443", 200),
        ("replay.example", "localhost", 200),
        ("replay.example", "a.replay.example", 421),
        ("*.replay.example, b.example", "a.b.replay.example", 200),
        ("*.replay.example, b.example", "b.example", 200),
        ("*.replay.example, b.example", "replay.example", 421),
        ("*.replay.example, b.example", "evilreplay.example", 421),
        ("*", "evil.example", 200),
    ],
)
async def test_hosts_that_are_allowed_are_answered(start_node, allowed, name, status):
    node = await start_node(allowed_hosts=allowed)
    assert (await ask(node.api, "GET", "/healthz", {"Host": name})).status == status


async def test_off_loopback_hosts_matter_once_some_are_named(start_node):
    everywhere = await start_node(host="0.0.0.0")
    api = Api(everywhere.url.replace("0.0.0.0", "127.0.0.1"))
    assert (await ask(api, "GET", "/healthz", {"Host": "evil.example"})).status == 200
    named = await start_node(host="0.0.0.0", allowed_hosts="replay.example", data_dir="named")
    api = Api(named.url.replace("0.0.0.0", "127.0.0.1"))
    assert (await ask(api, "GET", "/healthz", {"Host": "evil.example"})).status == 421
    assert (await ask(api, "GET", "/healthz", {"Host": "replay.example"})).status == 200
    for address in ("10.2.3.4:8080", "[fd00::1]:8080"):  # as probes and scrapers do
        assert (await ask(api, "GET", "/readyz", {"Host": address})).status == 200


# Pages that are allowed to call.


@pytest.fixture
async def open_node(make_node) -> Api:
    return (await make_node(cors_origins=f"{OURS}, http://localhost:3000")).api


PREFLIGHT = {
    "Sec-Fetch-Site": "cross-site",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,idempotency-key,x-stainless-lang",
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_page_of_an_allowed_origin_may_do_everything_and_read_it(open_node, upstream, change):
    upstream.script = say("a", "b")
    id = await open_node.run()
    method, path, body, status = CHANGES[change]
    headers = {"Origin": OURS, "Sec-Fetch-Site": "cross-site"}

    # when a browser asks first, then it is told yes
    answer = await ask(open_node, "OPTIONS", path.format(id=id), PREFLIGHT | headers)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, OURS)
    assert method in answer.headers["access-control-allow-methods"].split(", ")
    assert answer.headers["access-control-allow-headers"] == PREFLIGHT["Access-Control-Request-Headers"]
    assert int(answer.headers["access-control-max-age"]) > 0

    # then it may, and may read the answer
    answer = await ask(open_node, method, path.format(id=id), headers, body)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, OURS)
    assert answer.headers["access-control-allow-credentials"] == "true"
    exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
    assert exposed >= {"replay-generation-id", "replay-status", "etag", "location", "link", "x-request-id"}
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/generations/{id}/events", {}),
        ("/generations/{id}/events", {"Accept": "application/x-ndjson"}),
        ("/generations/{id}/events", {"Accept": "application/json"}),
        ("/generations/{id}/events?format=openai", {}),
        ("/generations/{id}/events?after=nonsense", {}),
        ("/generations/{id}/transcript", {}),
        ("/generations/unknown", {}),
        ("/generations", {}),
        ("/events?generation={id}", {}),
        ("/v1/models", {}),
        ("/nothing", {}),
    ],
)
@pytest.mark.parametrize("origin", [OURS, "http://localhost:3000", EVIL, "null", None])
async def test_every_answer_says_whose_pages_may_read_it(open_node, upstream, path, headers, origin):
    upstream.script = say("a", "b")
    id = await open_node.run()
    answer = await ask(open_node, "GET", path.format(id=id), headers | ({"Origin": origin} if origin else {}))
    allowed = origin if origin in (OURS, "http://localhost:3000") else None
    assert answer.headers.get("access-control-allow-origin") == allowed
    assert "Origin" in answer.headers["vary"], "a cache may give one page's answer to another"


@pytest.mark.parametrize(
    "origin", [EVIL, "null", "https://app.example.com.evil.example", "https://app.example.com:444"]
)
async def test_a_page_of_an_origin_that_is_not_allowed_may_not(open_node, upstream, origin):
    headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
    answer = await ask(open_node, "OPTIONS", "/generations", PREFLIGHT | headers)
    assert not any(name.startswith("access-control") for name in answer.headers)
    assert is_refused(await ask(open_node, "POST", "/generations", headers, CHAT), "/generations")
    assert upstream.calls == []


async def test_an_origin_in_other_letters_is_no_allowed_one(make_node):
    api = (await make_node(cors_origins="https://k.example")).api
    answer = await ask(api, "GET", "/healthz", {"Origin": "https://\u212a.example"})
    assert (answer.status, answer.headers.get("access-control-allow-origin")) == (200, None)


async def test_where_every_origin_may_none_gets_credentials(make_node, upstream):
    upstream.script = say("a")
    api = (await make_node(cors_origins="*")).api
    for origin in (EVIL, "null"):
        answer = await ask(api, "POST", "/generations", {"Origin": origin, "Sec-Fetch-Site": "cross-site"}, CHAT)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (201, "*")
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/generations", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("/generations/x", {"GET", "HEAD", "DELETE", "OPTIONS"}),
        ("/generations/x/cancel", {"POST", "OPTIONS"}),
        ("/v1/completions", {"POST", "OPTIONS"}),
    ],
)
async def test_options_says_what_a_path_takes(service, path, allowed):
    answer = await ask(service, "OPTIONS", path, {})
    assert (answer.status, set(answer.headers["allow"].split(", "))) == (204, allowed)
    assert_problem(await ask(service, "OPTIONS", "/nothing", {}), 404, "not_found")


# What Chromium makes of it.


class Pages(TcpServer):
    """Another origin: every path is an empty page."""

    async def answer(self, reader: Any, writer: Any) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


@asynccontextmanager
async def page_at(port: int, host: str) -> AsyncIterator[Page]:
    """A page of an origin; names under `.example` mean this machine."""
    async with chromium("--host-resolver-rules=MAP *.example 127.0.0.1", watch=False) as context:
        page = await context.new_page()
        await page.goto(f"http://{host}:{port}/")
        yield page


START = """async (url) => {
    const options = {method: "POST", body: JSON.stringify({model: "m", prompt: "Hi"})};
    const sent = [];
    for (const mode of ["cors", "no-cors"]) {
        try { sent.push((await fetch(url + "/generations", {...options, mode})).status); }
        catch (error) { sent.push(error.name); }
    }
    return sent;
}"""
IMAGE = """(url) => new Promise((resolve) => {
    const image = new Image();
    image.referrerPolicy = "no-referrer";
    image.onload = image.onerror = () => resolve("over");
    image.src = url + "/v1/completions/stream?model=m&prompt=Hi";
})"""
READ = """(url) => new Promise((resolve) => {
    const source = new EventSource(url);
    let text = "";
    source.addEventListener("token", (event) => { text += JSON.parse(event.data).content; });
    source.addEventListener("end", () => { source.close(); resolve(text); });
    source.onerror = () => { if (source.readyState == 2) resolve("closed"); };
})"""


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "evil.example"])
async def test_a_page_of_another_origin_in_chromium_neither_starts_nor_reads(service, upstream, ended, name):
    async with Pages() as pages, page_at(pages.port, name) as page:
        assert await page.evaluate(START, service.url) == ["TypeError", 0]
        assert await page.evaluate(IMAGE, service.url) == "over"
        assert await page.evaluate(READ, service.events_url(ended)) == "closed"
    assert len(upstream.calls) == 1, "what the test itself has started"


async def test_a_page_that_has_rebound_its_name_in_chromium_reads_nothing(service, upstream, ended):
    async with page_at(urlsplit(service.url).port or 0, "evil.example") as page:
        assert await page.evaluate(START, "") == [421, 421]
        assert await page.evaluate(f"fetch('/generations/{ended}').then((answer) => answer.status)") == 421
    assert len(upstream.calls) == 1, "what the test itself has started"


async def test_a_page_of_an_allowed_origin_in_chromium_starts_and_reads(make_node, upstream):
    upstream.script = say("a", "b")
    async with Pages() as pages, page_at(pages.port, "app.example") as page:
        node = await make_node(cors_origins=f"http://app.example:{pages.port}")
        assert await page.evaluate(START, node.url) == [201, 0]
        started = """async (url) => (await fetch(url + "/generations", {
            method: "POST", headers: {"Content-Type": "application/json", "Idempotency-Key": "k", "X-Own": "1"},
            credentials: "include", body: JSON.stringify({model: "m", prompt: "Hi"}),
        })).headers.get("Location")"""
        location = await page.evaluate(started, node.url)
        assert await page.evaluate(READ, f"{node.url}{location}/events") == "ab"
        assert await page.evaluate(IMAGE, node.url) == "over"

    assert len(upstream.calls) == 3, "an image, of which the browser does not say whose page it is on, starts nothing"
