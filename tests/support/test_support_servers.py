"""The real server and the scripted upstream, as tests use them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.http1 import Stream, open_stream, request
from support.samples import SAMPLES, Sample
from support.sse import messages, read_stream
from support.upstream import USAGE, ScriptedUpstream, generate, play, say
from support.valkey import ValkeyServer


async def test_valkey_comes_back_with_its_data_after_kill_and_shorter_after_restore(tmp_path: Path) -> None:
    # given a snapshot between two writes that are on disk when they are acknowledged
    valkey = ValkeyServer(tmp_path / "valkey", appendfsync="always")
    valkey.start()
    try:
        async with valkey.client() as client:
            await client.xadd("log", {"e": "first"}, id="1-0")
            snapshot = valkey.snapshot()
            await client.xadd("log", {"e": "second"}, id="2-0")

        # when the server is killed, it comes back whole; when it is set back, shorter
        valkey.kill()
        valkey.start()
        async with valkey.client() as client:
            assert await client.xlen("log") == 2
        valkey.restore(snapshot)
        async with valkey.client() as client:
            assert await client.xrange("log") == [(b"1-0", {b"e": b"first"})]
    finally:
        valkey.destroy()


async def test_valkey_answers_on_a_unix_socket_and_asks_for_its_password(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path / "valkey", requirepass="p@ss/word", maxmemory="64mb")
    server.start()
    try:
        async with server.client() as client:
            assert await client.ping()
            assert (await client.config_get("maxmemory"))["maxmemory"] == str(64 << 20)
        async with type(client).from_url(server.unix_url) as client:
            assert await client.ping()
    finally:
        server.destroy()
    assert not server.running


async def test_paused_valkey_answers_after_resume(valkey: ValkeyServer) -> None:
    async with valkey.client(socket_timeout=0.1, retry=None) as client:
        await client.ping()
        valkey.pause()
        with pytest.raises(Exception, match=r"[Tt]imeout"):
            await client.ping()
        valkey.resume()
        assert await client.ping()


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


async def ask(upstream: ScriptedUpstream, path: str = "/chat/completions", **fields: Any) -> Stream:
    body = json.dumps({"model": "m", "stream": True, **fields}).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer k"}
    return await open_stream(upstream.url + path, method="POST", headers=headers, body=body)


async def test_upstream_answers_step_by_step(upstream: ScriptedUpstream) -> None:
    # given a call that has been answered with its headers only
    asking = asyncio.create_task(ask(upstream, temperature=0))
    call = await upstream.called()
    assert (call.request["temperature"], call.headers["authorization"]) == (0, "Bearer k")
    assert not asking.done()
    await call.answer()
    answer = await asking

    # when it speaks, each word is on the wire at once
    await call.say("Hel")
    await answer.until(b"Hel")
    await call.say("lo")
    await answer.until(b"lo")
    await call.finish("length", USAGE)

    # then the whole is what OpenAI would have sent
    whole = await answer.to_end()
    *chunks, done = [event.data for event in messages(whole.body)]
    assert done == "[DONE]"
    assert [json.loads(chunk)["choices"] for chunk in chunks] == [
        [{"index": 0, "finish_reason": None, "delta": {"content": "Hel"}}],
        [{"index": 0, "finish_reason": None, "delta": {"content": "lo"}}],
        [{"index": 0, "finish_reason": "length", "delta": {}}],
        [],
    ]
    assert json.loads(chunks[-1])["usage"] == USAGE
    assert whole.clean


async def test_upstream_notices_a_hang_up_and_can_cut(upstream: ScriptedUpstream) -> None:
    for keep_alive in (True, False):
        upstream.keep_alive = keep_alive
        asking = asyncio.create_task(ask(upstream))
        call = await upstream.called()
        await call.say("a")
        (await asking).hang_up()
        await call.hung_up()

        asking = asyncio.create_task(ask(upstream))
        call = await upstream.called()
        await call.say("a")
        answer = await asking
        await call.cut()
        end = await answer.to_end()
        assert b'"a"' in end.body
        assert not end.clean
        assert not call.disconnected.is_set()


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=list(SAMPLES))
async def test_upstream_plays_a_sample_byte_for_byte(upstream: ScriptedUpstream, sample: Sample) -> None:
    upstream.script = play(sample, piece=100)
    answer = await (await ask(upstream)).to_end()
    assert (answer.status, answer.body, answer.clean) == (sample.status, sample.body, not sample.cut)
    assert answer.headers["content-type"] == sample.headers["content-type"]


async def test_upstream_generates_by_itself(upstream: ScriptedUpstream) -> None:
    upstream.script = generate(3, per_second=1000, text="w{} ")
    answer = await (await ask(upstream)).to_end()
    assert b'"w0 "' in answer.body
    assert len(messages(answer.body)) == 3 + 3  # the finish reason, usage, [DONE]
    upstream.script = say("legacy")
    answer = await (await ask(upstream, "/completions", prompt="x")).to_end()
    assert json.loads(messages(answer.body)[0].data)["choices"][0]["text"] == "legacy"
    assert len(upstream.calls) == 2


async def test_upstream_lists_models(upstream: ScriptedUpstream) -> None:
    answer = await request("GET", upstream.url + "/models")
    assert [model["id"] for model in answer.json()["data"]] == ["test-model", "other-model"]
    assert upstream.model_calls == 1
    assert (await read_stream(upstream.url + "/nothing")).status == 404
