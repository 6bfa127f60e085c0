"""How often an upstream is called, and over what: a model that is asked twice is paid for twice."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import time

import pytest
from support.deadlines import eventually
from support.ports import free_port
from support.raw_upstream import CHUNKED, END, Kept, RawUpstream, Reset, Silence, chunk, sized
from support.upstream import ScriptedUpstream, say

TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
WHOLE = (CHUNKED, chunk(TEXT + STOP), END)


@pytest.fixture
async def raw():
    async with RawUpstream() as upstream:
        yield upstream


@pytest.fixture
async def node_of(make_node, raw):
    """A node in front of the raw upstream, which tries again as often as it may."""

    async def start(**settings):
        return await make_node(upstream_url=f"http://127.0.0.1:{raw.port}/v1", upstream_retries=2, **settings)

    return start


@pytest.mark.parametrize(
    ("writes", "code"),
    [
        ((Silence,), "upstream_timeout"),
        ((), "upstream_unreachable"),
        ((Reset,), "upstream_unreachable"),
        ((b"HTTP/1.1 200 OK\r\nContent-",), "upstream_unreachable"),
        ((b"HTTP/1.1 banana\r\n\r\n",), "upstream_invalid"),
        ((CHUNKED, Silence), "upstream_timeout"),
        ((CHUNKED, chunk(TEXT)), "upstream_truncated"),
        ((sized("200 OK", "text/html", b"<p>"),), "upstream_invalid"),
    ],
    ids=["silent", "closed", "reset", "half a head", "no HTTP", "silent after its head", "cut", "a page"],
)
async def test_a_call_that_may_have_been_begun_is_not_made_again(node_of, raw, writes, code):
    node = await node_of(upstream_idle_timeout_s=0.3)
    raw.play = lambda asked: writes
    generation = await node.api.ended(await node.api.run())
    assert (generation["status"], generation["error"]["code"]) == ("failed", code)
    assert len(raw.asked) == 1


OK_SO_FAR = CHUNKED.removesuffix(b"\r\n")


@pytest.mark.parametrize(
    ("writes", "drips"),
    [
        ((), b"HTTP/1.1 102 Processing\r\n\r\n"),
        ((OK_SO_FAR,), b"X: y\r\n"),
        ((OK_SO_FAR, b"X: "), b"y"),
        ((CHUNKED, chunk(TEXT), b"0\r\n"), b"X: y\r\n"),
        ((CHUNKED, chunk(TEXT), b"5"), b";a=b"),
    ],
    ids=["interim answers", "header lines", "a header", "trailers", "chunk extensions"],
)
async def test_bytes_that_are_no_answer_are_no_sign_of_life(node_of, raw, writes, drips):
    node = await node_of(upstream_idle_timeout_s=0.4)
    raw.play = lambda asked: itertools.chain(writes, itertools.repeat(drips))
    generation = await node.api.ended(await node.api.run(), seconds=5)
    assert (generation["status"], generation["error"]["code"]) == ("failed", "upstream_timeout")


@pytest.mark.parametrize("said", [TEXT + STOP + b"data: [DONE]\n\n", pytest.param(TEXT + STOP, marks=pytest.mark.slow)])
async def test_comments_behind_the_last_word_keep_nothing_open(node_of, raw, said):
    node = await node_of()
    raw.play = lambda asked: itertools.chain((CHUNKED, chunk(said)), itertools.repeat(chunk(b": c\n\n")))
    id = (await node.api.start())["id"]
    assert (await node.api.ended(id, seconds=20))["status"] == "completed"


async def test_what_the_node_takes_for_itself_is_not_the_upstreams_silence(make_node, valkey_proxy, upstream):
    # given a node that takes little of the upstream's ahead of Valkey, and has little patience with the upstream
    node = await make_node(upstream_idle_timeout_s=0.5, max_pending_bytes=1024, store_timeout_s=5)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    await call.say("a")
    await node.api.has(id, events=2)

    # when Valkey does not answer for longer than that, while the upstream has more to say
    valkey_proxy.hold_replies()
    for _ in range(4):
        await call.say("b" * 600)
    await asyncio.sleep(1.2)
    valkey_proxy.release()

    # then nothing is the upstream's fault
    await call.finish()
    assert (await node.api.ended(id))["status"] == "completed"


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
async def test_an_upstream_that_says_that_it_did_not_begin_is_asked_again(make_node, upstream, status):
    node = await make_node(upstream_retries=2)

    async def busy_twice(call):
        if len(upstream.calls) < 3:
            await call.respond(status, {}, {"content-type": "application/json", "retry-after-ms": "1"})
        else:
            await say("a")(call)

    upstream.script = busy_twice
    assert (await node.api.ended(await node.api.run()))["status"] == "completed"
    assert len(upstream.calls) == 3


@pytest.mark.parametrize(
    ("status", "headers"),
    [(400, {}), (401, {}), (404, {}), (429, {"x-should-retry": "false"}), (503, {"retry-after": "3600"})],
)
async def test_an_upstream_that_does_not_want_to_be_asked_again_is_not(make_node, upstream, status, headers):
    node = await make_node(upstream_retries=2)
    upstream.script = lambda call: call.respond(status, {}, {"content-type": "application/json"} | headers)
    assert (await node.api.ended(await node.api.run()))["status"] == "failed"
    assert len(upstream.calls) == 1


async def test_an_upstream_says_when_to_come_back(make_node, upstream):
    node = await make_node(upstream_retries=1)
    times: list[float] = []

    async def busy_once(call):
        times.append(time.monotonic())
        if len(times) == 1:
            await call.respond(503, {}, {"content-type": "application/json", "retry-after": "1"})
        else:
            await say("a")(call)

    upstream.script = busy_once
    await node.api.run()
    assert times[1] - times[0] >= 0.9


async def test_an_upstream_that_is_not_there_yet_is_tried_again(make_node):
    # given a node whose upstream is only being started
    port = free_port()
    node = await make_node(upstream_url=f"http://127.0.0.1:{port}/v1", upstream_retries=5)
    id = (await node.api.start())["id"]
    await eventually("a try", lambda: asyncio.to_thread(lambda: node.stderr), lambda log: "tried again" in log)

    # when it is there, then it is called, once
    async with ScriptedUpstream(listener=socket.create_server(("127.0.0.1", port))) as upstream:
        upstream.script = say("a")
        assert (await node.api.ended(id))["status"] == "completed"
        assert len(upstream.calls) == 1


async def test_a_kept_connection_that_was_closed_meanwhile_costs_nothing(node_of, raw):
    # given an upstream that keeps a connection, and closes it when it is used again
    node = await node_of()
    raw.play = lambda asked: () if asked.again else (*WHOLE, Kept)
    await node.api.run()

    # when it is called again, then the call is made on another connection
    assert (await node.api.ended(await node.api.run()))["status"] == "completed"
    assert [asked.again for asked in raw.asked] == [False, True, False]


async def test_a_kept_connection_on_which_an_answer_had_begun_is_no_reason_to_call_again(node_of, raw):
    node = await node_of()
    raw.play = lambda asked: (b"HTTP/1.1 200 O",) if asked.again else (*WHOLE, Kept)
    await node.api.run()
    assert (await node.api.ended(await node.api.run()))["error"]["code"] == "upstream_unreachable"
    assert [asked.again for asked in raw.asked] == [False, True]


async def test_a_kept_connection_that_is_closed_later_is_no_reason_to_call_again(make_node, upstream):
    # given an upstream that has had a call for longer than a close can have been on its way
    node = await make_node(upstream_retries=2)
    upstream.script = say("a")
    await node.api.run()
    upstream.script = None
    id = (await node.api.start())["id"]
    call = await upstream.called()
    await asyncio.sleep(1.1)
    # when the connection is lost
    await call.cut()
    # then the model is not asked twice
    generation = await node.api.ended(id)
    assert (generation["status"], generation["error"]["code"]) == ("failed", "upstream_unreachable")
    assert len(upstream.calls) == 2


async def test_cookies_of_an_upstream_are_nobody_elses(node_of, raw):
    node = await node_of()
    raw.play = lambda asked: (WHOLE[0][:-2] + b"Set-Cookie: session=1; Path=/\r\n\r\n", *WHOLE[1:])
    for _ in range(2):
        await node.api.run()
    assert [asked.header("cookie") for asked in raw.asked] == ["", ""]


async def test_a_query_of_the_base_url_goes_along(make_node, raw):
    node = await make_node(upstream_url=f"http://127.0.0.1:{raw.port}/openai/v1/?api-version=preview")
    raw.play = lambda asked: WHOLE
    await node.api.run()
    assert raw.asked[0].head.startswith(b"POST /openai/v1/chat/completions?api-version=preview HTTP/1.1\r\n")


async def test_what_is_sent_is_the_callers_body_and_little_else(node_of, raw):
    node = await node_of()
    raw.play = lambda asked: WHOLE
    await node.api.run({"model": "m", "messages": [{"role": "user", "content": "é\ud800"}], "further": [1]})
    body = json.loads(raw.asked[0].body)
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "é\ud800"}],
        "further": [1],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert raw.asked[0].header("content-type") == "application/json"
    assert raw.asked[0].header("accept-encoding") == "identity"
    assert raw.asked[0].header("user-agent").startswith("replay/")


@pytest.fixture
async def node_before(make_node, raw):
    """A node before the raw upstream under another name, by way of a proxy."""

    async def start(base_url):
        return await make_node(upstream_url=base_url, env={"HTTP_PROXY": f"http://127.0.0.1:{raw.port}"})

    return start


_AZURE = "http://mine.openai.azure.com"


@pytest.mark.parametrize(
    ("base_url", "said", "asked"),
    [
        ("http://api.openai.com/v1", {}, False),
        ("http://eu.api.openai.com/v1", {"include_usage": False}, False),
        ("http://api.openai.com/v1", {"include_obfuscation": True}, True),
        (f"{_AZURE}/openai/v1", {}, False),
        (f"{_AZURE}/openai/deployments/gpt?api-version=2024-06-01", {}, None),
        ("http://api.openai.com.example/v1", {}, None),
        ("http://notapi.openai.com/v1", {}, None),
    ],
)
async def test_obfuscation_is_left_out_where_the_upstream_knows_of_it_and_nobody_wants_it(
    node_before, raw, base_url, said, asked
):
    node = await node_before(base_url)
    raw.play = lambda asked: WHOLE
    await node.api.run({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream_options": said})
    options = json.loads(raw.asked[0].body)["stream_options"]
    assert options == {"include_usage": True} | ({} if asked is None else {"include_obfuscation": asked})


async def test_an_upstream_that_refuses_to_leave_obfuscation_out_is_asked_again_and_only_once(node_before, raw):
    # given OpenAI's server in an earlier version
    def play(asked):
        known = "include_obfuscation" not in json.loads(asked.body)["stream_options"]
        refusal = b'{"error":{"message":"Unknown parameter: \'stream_options.include_obfuscation\'."}}'
        return WHOLE if known else (sized("400 Bad Request", "application/json", refusal),)

    raw.play = play
    node = await node_before("http://api.openai.com/v1")
    for _ in range(2):
        assert (await node.api.ended(await node.api.run()))["status"] == "completed"
    options = [json.loads(asked.body)["stream_options"] for asked in raw.asked]
    assert ["include_obfuscation" in each for each in options] == [True, False, False]
    assert all(each["include_usage"] for each in options)


async def test_a_proxy_of_the_environment_is_used_and_told_of_by_no_password(make_node, raw):
    # given a proxy that asks for a password, which the node knows
    raw.play = lambda asked: (sized("407 No", "text/html", b"<p>"),)
    proxy = f"http://me:hunter2-hunter2@127.0.0.1:{raw.port}"
    node = await make_node(upstream_url="http://upstream.invalid/v1", env={"HTTP_PROXY": proxy})
    generation = await node.api.ended(await node.api.run())
    assert generation["error"]["code"] == "upstream_error"
    assert raw.asked[0].head.startswith(b"POST http://upstream.invalid/v1/chat/completions HTTP/1.1\r\n")
    assert raw.asked[0].header("proxy-authorization").startswith("Basic ")
    assert "hunter2" not in node.stderr + json.dumps(generation)
