"""No secret leaves the process, to a client, into Valkey or into the node's log, however an upstream fails."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

import pytest
from support.api import Api
from support.http1 import open_stream, request
from support.raw_upstream import CHUNKED, END, OK, Asked, Play, RawUpstream, Reset, Silence, chunk, sized
from support.valkey import ValkeyServer


def secret(name: str) -> str:
    """A key of which no two have a piece in common, with what URLs spell otherwise."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"sk-{digest[:8]}/{digest[8:12]}+{digest[12:18]}"


# Everywhere that a secret can be.
SECRETS = {
    name: secret(name)
    for name in (
        "key",
        "user",
        "password",
        "query",
        "row",
        "valkey",
        "caller",
        "azure",
        "cookie",
        "idempotency",
        "tool",
    )
}
PIECE = 10  # characters
LOGIN = base64.b64encode(f"{SECRETS['user']}:{SECRETS['password']}".encode()).decode()

TEXT = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
STOP = (
    b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
)
NO_HTTP = "upstream_invalid"
GONE = "upstream_unreachable"
CUT = "upstream_truncated"
SAID = "upstream_error"


def spellings(secret: str) -> set[str]:
    """A secret as it is written here and elsewhere, in pieces of which one betrays most of it."""
    encoded = base64.b64encode(secret.encode()).decode().rstrip("=")
    whole = (secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1], encoded)
    return {text[start : start + PIECE] for text in whole for start in range(len(text) - PIECE + 1)}


def always(*writes: Any) -> Play:
    return lambda asked: writes


def repeated(asked: Asked) -> str:
    """All that a server knows of who calls it."""
    return asked.head.decode("latin-1").replace("\r\n", " ") + asked.body.decode(errors="replace")


def in_an_error(asked: Asked) -> list[bytes]:
    error = {"error": {"message": repeated(asked), "type": repeated(asked), "param": None, "code": repeated(asked)}}
    return [sized("401 Unauthorized", "application/json", json.dumps(error).encode())]


def in_a_stream(**around: Any) -> Play:
    def play(asked: Asked) -> list[bytes]:
        error = {"error": {"message": repeated(asked), repeated(asked): 1}, **around}
        return [CHUNKED, chunk(TEXT), chunk(b"data: %b\n\n" % json.dumps(error).encode()), END]

    return play


def in_an_error_twice(asked: Asked) -> list[bytes]:
    twice = b'{"error": {"message": %b}, "error": {"message": "x"}}' % json.dumps(repeated(asked)).encode()
    return [sized("401 Unauthorized", "application/json", twice)]


def all_in_headers(asked: Asked) -> list[bytes]:
    key = asked.header("authorization")
    further = f"Retry-After: {key}\r\nX-Should-Retry: {key}\r\nContent-Length: 2\r\n\r\n{{}}"
    return [f"HTTP/1.1 429 No\r\nContent-Type: application/json; key={key}\r\n{further}".encode()]


def in_a_choice(asked: Asked) -> list[bytes]:
    choice = {"index": 0, "delta": {}, "error": {"message": repeated(asked)}}
    return [CHUNKED, chunk(b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode()), END]


def in_a_response(asked: Asked) -> list[bytes]:
    """As a server of the Responses API repeats what it was asked, and fails with a tool."""
    if b"/responses" not in asked.head:
        return [CHUNKED, END]
    tools = json.loads(asked.body).get("tools")
    item = {"type": "mcp_list_tools", "id": "x", "error": repeated(asked)}
    events = [
        {"type": "response.created", "response": {"tools": tools, "output": []}},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.incomplete", "response": {"tools": tools, "error": {"message": repeated(asked)}}},
        {"type": "response.failed", "response": {"tools": tools, "error": None}},
    ]
    return [CHUNKED, *(chunk(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode()) for e in events), END]


def in_a_failed_response(asked: Asked) -> list[bytes]:
    if b"/responses" not in asked.head:
        return [CHUNKED, END]
    failed = {"type": "response.failed", "response": {"error": {"code": "x", "message": repeated(asked)}}}
    return [CHUNKED, chunk(b"event: response.failed\ndata: %b\n\n" % json.dumps(failed).encode()), END]


# How an upstream fails -> the code that it is told by.
FAILURES: Mapping[str, tuple[Play, str]] = {
    # What the HTTP client refuses.
    "a long header line": (always(OK + b"X-Long: " + b"x" * 9000 + b"\r\n\r\n"), NO_HTTP),
    "150 headers": (always(OK + b"".join(b"X-%d: y\r\n" % n for n in range(150)) + b"\r\n"), NO_HTTP),
    "a bad chunk size": (always(CHUNKED + b"zz\r\nabc\r\n"), NO_HTTP),
    "a bad chunk size after the head": (always(CHUNKED, b"zz\r\nabc\r\n", Silence), NO_HTTP),
    "a bad chunk size after a word": (always(CHUNKED, chunk(TEXT), b"zz\r\nabc\r\n", Silence), NO_HTTP),
    "both lengths": (always(OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + END), NO_HTTP),
    "two lengths": (always(OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"), NO_HTTP),
    "a negative length": (always(OK + b"Content-Length: -5\r\n\r\nhello"), NO_HTTP),
    "a 204 with a body": (always(b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello"), NO_HTTP),
    "HTTP/2": (always(b"\0\0\x12\4\0\0\0\0\0\0\3\0\0\0\x80"), NO_HTTP),
    "SSH": (always(b"SSH-2.0-OpenSSH_9.6\r\n"), NO_HTTP),
    "a bad status": (always(b"HTTP/1.1 2x0 OK\r\n\r\n"), NO_HTTP),
    "a bad header": (always(OK + b"Bad Header\r\n\r\n"), NO_HTTP),
    "a NUL in a header": (always(OK + b"X: a\0b\r\n\r\n"), NO_HTTP),
    "no gzip": (always(OK + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n", chunk(b"no")), NO_HTTP),
    "brotli": (always(OK + b"Content-Encoding: br\r\nTransfer-Encoding: chunked\r\n\r\n", chunk(b"no")), NO_HTTP),
    # What is cut.
    "nothing": (always(), GONE),
    "a reset": (always(Reset), GONE),
    "half a head": (always(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-"), GONE),
    "a cut": (always(CHUNKED, chunk(TEXT)), CUT),
    "a cut in a chunk": (always(CHUNKED, chunk(TEXT), b"50\r\ndata"), CUT),
    "a cut before its length": (always(OK + b"Content-Length: 500\r\n\r\n" + TEXT), CUT),
    "a reset after a word": (always(CHUNKED, chunk(TEXT), Reset), CUT),
    "silence": (always(Silence), "upstream_timeout"),
    "silence after a word": (always(CHUNKED, chunk(TEXT), Silence), "upstream_timeout"),
    # What is no answer to this.
    "a redirect": (lambda asked: [b"HTTP/1.1 302 Found\r\nLocation: %b\r\n\r\n" % asked.head.split()[1]], SAID),
    "another protocol": (always(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"), SAID),
    "status 999": (always(sized("999 No", "application/json", b"{}")), SAID),
    "a page": (always(sized("200 OK", "text/html", b"<html>")), NO_HTTP),
    "words": (always(CHUNKED, chunk(b"data: what is this\n\n"), END), NO_HTTP),
    # What repeats the credentials that came with the call.
    "all in an error": (in_an_error, SAID),
    "all in a page": (lambda asked: [sized("500 No", "text/html", repeated(asked).encode())], SAID),
    "all in words": (lambda asked: [sized("500 No", "text/plain", repeated(asked).encode())], SAID),
    "all in an error in the stream": (in_a_stream(), SAID),
    "all in an error beside text": (in_a_stream(choices=[{"index": 0, "delta": {"content": "b"}}]), SAID),
    "all in an event": (
        lambda asked: [CHUNKED, chunk(b"data: %b\n\n" % repeated(asked).encode()), END],
        NO_HTTP,
    ),
    "all in a failed response": (in_a_failed_response, ""),
    "all in headers that go on": (all_in_headers, SAID),
    "all in what is said twice": (in_an_error_twice, SAID),
    "all in the error of a choice": (in_a_choice, SAID),
    "all in an error that does not call itself so": (
        lambda asked: [CHUNKED, chunk(b"data: %b\n\n" % json.dumps({"detail": repeated(asked)}).encode()), END],
        SAID,
    ),
    "all behind many words": (
        lambda asked: [CHUNKED, chunk(b"data: %b %b\n\n" % (b"x" * 60, asked.header("authorization").encode())), END],
        NO_HTTP,
    ),
    "all in a response": (in_a_response, ""),
    "all in the status line": (lambda asked: [b"HTTP/1.1 500 %b\r\n\r\n" % repeated(asked).encode()[:200]], SAID),
    "all in a broken header": (lambda asked: [OK + b"Bad %b\r\n\r\n" % repeated(asked).encode()[:400]], NO_HTTP),
}

TOOLS = [
    {
        "type": "mcp",
        "server_label": "x",
        "server_url": "https://mcp.example",
        "authorization": SECRETS["tool"],
        "headers": {"Authorization": f"Bearer {SECRETS['tool']}"},
    }
]
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
CALLS: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("/generations", CHAT | {"api_key": SECRETS["tool"]}, {}),
    ("/generations", CHAT, {"Accept": "text/event-stream"}),
    ("/v1/chat/completions", CHAT | {"extra_headers": {"X": SECRETS["tool"]}}, {}),
    ("/v1/chat/completions", CHAT | {"stream": True}, {}),
    ("/v1/completions", {"model": "m", "prompt": "Hi", "stream": True}, {}),
    ("/v1/completions/stream", {"model": "m", "prompt": "Hi"}, {}),
    ("/v1/responses", {"model": "m", "input": "Hi", "tools": TOOLS}, {}),
    ("/v1/responses", {"model": "m", "input": "Hi", "tools": TOOLS, "stream": True}, {}),
    ("/v1/responses", {"model": "m", "input": "Hi", "tools": TOOLS, "background": True}, {}),
    ("/v1/responses", {"model": "row", "input": "Hi"}, {}),
]
READS = [
    "/generations/{id}",
    "/generations/{id}/events",
    "/generations/{id}/events?format=openai",
    "/generations/{id}/transcript",
    "/v1/chat/completions/{id}",
    "/v1/chat/completions/{id}/messages",
    "/v1/responses/{id}",
    "/v1/responses/{id}?stream=true",
    "/v1/responses/{id}/input_items",
]
EVERYWHERE = [
    "/generations?limit=1000",
    "/v1/models",
    "/v1/models/m",
    "/generations",
    "/metrics",
    "/v1/chat/completions",
]


class World:
    """A node that has been told every secret, and all that has come out of it."""

    def __init__(self, api: Api, upstream: RawUpstream) -> None:
        self.api = api
        self.upstream = upstream
        self.out: list[bytes] = []
        self.headers = {
            "Authorization": f"Bearer {SECRETS['caller']}",
            "api-key": SECRETS["azure"],
            "x-api-key": SECRETS["azure"],
            "Cookie": f"session={SECRETS['cookie']}",
        }

    async def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: Any = None) -> Any:
        answer = await request(method, self.api.at(path), headers=self.headers | dict(headers or {}), json_body=body)
        self.out += [repr(answer.headers).encode(), answer.body]
        return answer

    async def read_activity(self, until: str) -> None:
        """All that is told of the generations up to one."""
        stream = await open_stream(self.api.at("/feed", after="-1"), headers=self.headers)
        self.out.append(await stream.until(until.encode()))
        stream.hang_up()


@pytest.fixture(params=["own", "caller"])
async def world(request, tmp_path, start_node) -> AsyncIterator[World]:
    valkey = ValkeyServer(tmp_path / "valkey", requirepass=SECRETS["valkey"])
    valkey.start()
    try:
        async with RawUpstream() as upstream:
            where = f"127.0.0.1:{upstream.port}/v1?key={quote(SECRETS['query'], safe='')}"
            user, password = (quote(SECRETS[name], safe="") for name in ("user", "password"))
            login = f"{user}:{password}@" if request.param == "own" else ""
            node = await start_node(
                valkey_url=valkey.url,
                upstream_url=f"http://{login}{where}",
                upstreams=f"row* http://{where} ROW_KEY",
                upstream_credentials=request.param,
                upstream_idle_timeout_s=0.3,
                upstream_retries=0,
                log_level="DEBUG",
                env={"REPLAY_UPSTREAM_API_KEY": SECRETS["key"], "ROW_KEY": SECRETS["row"]},
            )
            world = World(node.api, upstream)
            yield world
            await node.stop()
            world.out += [node.stderr.encode(), "".join(node.stdout).encode()]
            world.out += [path.read_bytes() for path in (tmp_path / "valkey").rglob("*") if path.is_file()]
            secrets = {name: spellings(secret) for name, secret in (SECRETS | {"login": LOGIN}).items()}
            out = b"\n".join(world.out).lower()
            found = {name for name, spelt in secrets.items() for each in spelt if each.lower().encode() in out}
            assert found == set()
    finally:
        valkey.destroy()


async def test_no_secret_goes_out_however_the_upstream_fails(world):
    for failure, (play, code) in FAILURES.items():
        # given an upstream that fails like this
        world.upstream.play = play

        # when it is called in every way, and all is read that there is to read
        for number, (path, body, headers) in enumerate(CALLS):
            key = {"Idempotency-Key": f"{SECRETS['idempotency']}-{failure}-{number}"}
            answer = await world.ask("POST", path, headers | key, body)
            if answer.status >= 400:
                error = {"code": SAID, "message": ""} | answer.json().get(
                    "error", {}
                )  # the upstream's may have neither
            else:
                id = answer.headers.get("replay-generation-id") or answer.json()["id"]
                generation = await world.api.ended(id)
                assert generation["status"] == "failed", failure
                error = generation["error"]
                for read in READS:
                    await world.ask("GET", read.format(id=id))

            # then it is told by its code, in words of ours or of the upstream's, and by no library's
            assert error["code"] == code or code in ("", SAID), (failure, error)
            assert not re.search("aiohttp|Client|Error:|message=|<[A-Z]|0x|b'", error["message"]), error
    for path in EVERYWHERE:
        await world.ask("GET", path)
    await world.read_activity(id)
    # and (as the fixture looks for them) the secrets are in nothing that went out, which was all
    assert sum(map(len, world.out)) > 100_000


@pytest.mark.parametrize("before", [OK + b"Bad ", CHUNKED], ids=["header", "chunk"])
async def test_no_piece_of_a_secret_goes_out_wherever_what_cannot_be_read_is_cut(world, before):
    # given an upstream that repeats what it was asked where no HTTP client can read it, more of it each time
    for length in range(20, 800, 3):
        world.upstream.play = lambda asked, n=length: [before + repeated(asked).encode()[:n] + b"\r\n\r\n"]
        answer = await world.ask("POST", "/v1/chat/completions", {}, CHAT | {"extra_headers": {"X": SECRETS["tool"]}})
        assert answer.status >= 400
    # then (as the fixture looks for them) no piece is in anything that went out, though there was something to read
    assert len(world.upstream.asked) > 200


async def test_the_upstream_is_told_who_calls(world):
    """The secrets of the test above are those that are in use."""
    world.upstream.play = always(CHUNKED, chunk(TEXT + STOP), END)
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/chat/completions", CHAT | {"model": "row"})):
        assert (await world.ask("POST", path, body=body)).status == 200
    authorizations = [asked.header("authorization") for asked in world.upstream.asked]
    if world.upstream.asked[0].header("api-key"):
        assert authorizations == [f"Bearer {SECRETS['caller']}"] * 2
        assert [asked.header("api-key") for asked in world.upstream.asked] == [SECRETS["azure"]] * 2
    else:
        assert authorizations == [f"Basic {LOGIN}", f"Bearer {SECRETS['row']}"]
    assert all(b"?key=" + quote(SECRETS["query"]).encode() + b" HTTP" in asked.head for asked in world.upstream.asked)
    assert not any(asked.header("cookie") for asked in world.upstream.asked)
