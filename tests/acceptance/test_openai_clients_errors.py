"""What goes wrong is the error of the official package that OpenAI's own answer would have been."""

from __future__ import annotations

import asyncio
import json

import pytest
from openai import APIConnectionError, APIError, APIStatusError, BadRequestError, InternalServerError, RateLimitError
from openai.types.chat import ChatCompletionChunk
from support.deadlines import within
from support.fault_proxy import FaultProxy
from support.ports import free_port
from support.samples import REFUSALS, SAMPLES
from support.scripts import in_turn
from support.sdk import AT_ONCE_S, ON_HTTPX, choices_of, every_sdk, has, streamed_or_not, text_of
from support.upstream import Call, play, say
from support.v1 import CHAT

pytestmark = pytest.mark.slow


@every_sdk
@streamed_or_not
@pytest.mark.parametrize("name", REFUSALS)
async def test_a_refusal_keeps_the_upstreams_status_headers_and_body(ask, service, upstream, name, stream):
    sample = SAMPLES[name]
    upstream.script = play(sample)
    expected = {400: BadRequestError, 429: RateLimitError}[sample.status]
    with pytest.raises(expected) as raised:
        await within("a refusal", ask(service.url, "chat.completions.create", **CHAT, stream=stream), AT_ONCE_S)
    error: APIStatusError = raised.value
    assert (error.status_code, error.response.text) == (sample.status, sample.body.decode())
    assert error.response.headers.get("retry-after") == sample.headers.get("retry-after")
    assert error.request_id is not None
    if sample.headers["content-type"].startswith("application/json"):
        told = json.loads(sample.body)["error"]
        assert (error.body, error.code, error.type) == (told, str(told["code"]), told["type"])


@every_sdk
@streamed_or_not
async def test_a_refusal_in_the_shape_of_a_stream_is_an_error_with_the_upstreams_words(ask, service, upstream, stream):
    sample = SAMPLES["23-status500-with-sse-body"]
    upstream.script = play(sample)
    with pytest.raises(InternalServerError) as raised:
        await within("a refusal", ask(service.url, "chat.completions.create", **CHAT, stream=stream), AT_ONCE_S)
    told = sample.payloads[0]["error"]
    assert (raised.value.body["message"], raised.value.code) == (told["message"], told["code"])


async def test_it_is_the_sdk_that_tries_again_and_not_the_node(make_node, upstream):
    # given a node as it comes, and an upstream that refuses once
    node = await make_node(upstream_retries=None)
    busy = play(SAMPLES["25-429-retry-after"])

    # when a client does not want to try again, then the upstream is asked once
    upstream.script = busy
    async with ON_HTTPX.client(node.url) as client:
        with pytest.raises(RateLimitError):
            await client.chat.completions.create(**CHAT)
    assert len(upstream.calls) == 1

    # when it does, then it gets the second answer
    async with ON_HTTPX.client(node.url, max_retries=1) as client:
        upstream.script = in_turn(busy, say("Hello"))
        assert choices_of(await client.chat.completions.create(**CHAT)) == [("stop", {"content": "Hello"})]
        upstream.script = in_turn(busy, say("Hello"))
        assert text_of([c async for c in await client.chat.completions.create(**CHAT, stream=True)]) == "Hello"
    assert len(upstream.calls) == 5


async def test_a_refusal_does_not_use_up_the_idempotency_key_for_the_sdks_next_try(service, upstream, key):
    async def refuse(call: Call) -> None:
        await call.respond(503, {"error": {"message": "Busy"}}, {"retry-after-ms": "1"})

    upstream.script = in_turn(refuse, refuse, say("Hello"))
    async with ON_HTTPX.client(service.url, max_retries=2) as client:
        first = await client.chat.completions.create(**CHAT, extra_headers=key)
        again = await client.chat.completions.create(**CHAT, extra_headers=key)
    assert choices_of(first) == [("stop", {"content": "Hello"})]
    assert again == first
    assert len(upstream.calls) == 3


@every_sdk
@streamed_or_not
async def test_an_upstream_that_cannot_be_reached_is_a_502(ask, make_node, stream):
    node = await make_node(upstream_url=f"http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(InternalServerError) as raised:
        await within("a refusal", ask(node.url, "chat.completions.create", **CHAT, stream=stream), AT_ONCE_S)
    assert (raised.value.status_code, raised.value.code) == (502, "upstream_unreachable")


@every_sdk
@streamed_or_not
async def test_an_upstream_that_answers_200_and_nothing_is_a_502(ask, service, upstream, stream):
    upstream.script = play(SAMPLES["21-empty-200"])
    with pytest.raises(InternalServerError) as raised:
        await ask(service.url, "chat.completions.create", **CHAT, stream=stream)
    assert raised.value.status_code == 502
    assert raised.value.code in ("upstream_truncated", "upstream_invalid")


@every_sdk
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("19-error-string-midstream", "has to be a strictly positive float"),
        ("20-error-object-midstream-no-DONE", "Response payload is not completed"),
    ],
)
async def test_an_error_in_the_stream_is_raised_with_the_upstreams_words(ask, service, upstream, name, message):
    upstream.script = play(SAMPLES[name])
    shown: list[ChatCompletionChunk] = []
    with pytest.raises(APIError, match=message) as raised:
        await ask(service.url, "chat.completions.create", shown, **CHAT, stream=True)
    assert not isinstance(raised.value, APIConnectionError)
    assert raised.value.body.keys() == {"message", "type", "param", "code"}
    assert len(shown) == len(SAMPLES[name].chunks)
    assert (await service.generation(shown[0].id))["status"] == "failed"


@every_sdk
async def test_a_stream_that_the_upstream_cuts_is_an_error_after_what_was_said(ask, service, upstream):
    shown: list[ChatCompletionChunk] = []
    asking = asyncio.create_task(ask(service.url, "chat.completions.create", shown, **CHAT, stream=True))
    call = await upstream.called()
    await call.say("Hel")
    await has(shown, 1, asking)
    await call.cut()
    with pytest.raises(APIError) as raised:
        await within("an error", asking)
    assert (raised.value.code, text_of(shown)) == ("upstream_truncated", "Hel")
    kept = await service.ended(shown[0].id)
    assert (kept["status"], kept["error"]["code"]) == ("failed", "upstream_truncated")


@every_sdk
async def test_a_whole_answer_that_the_upstream_cuts_is_a_502(ask, service, upstream):
    upstream.script = play(SAMPLES["22-cut-midline-no-final-chunk"])
    with pytest.raises(InternalServerError) as raised:
        await ask(service.url, "chat.completions.create", **CHAT)
    assert raised.value.status_code == 502


@every_sdk
async def test_a_refusal_that_takes_its_time_keeps_its_status(ask, make_node, upstream):
    node = await make_node(keepalive_s=0.05)
    asking = asyncio.create_task(ask(node.url, "chat.completions.create", **CHAT, stream=True))
    call = await upstream.called()
    await asyncio.sleep(0.3)  # several keep-alives' time, none of which may be sent before the status is known
    await call.respond(429, {"error": {"message": "Slow down", "type": "tokens", "param": None, "code": "tpm"}})
    with pytest.raises(RateLimitError, match="Slow down") as raised:
        await within("an error", asking, AT_ONCE_S)
    assert (raised.value.code, raised.value.type) == ("tpm", "tokens")


@every_sdk
@pytest.mark.parametrize("fault", ["cut", "killed"])
async def test_a_connection_that_breaks_is_never_taken_for_the_end(ask, node, upstream, fault):
    async with FaultProxy(node.url) as network:
        shown: list[ChatCompletionChunk] = []
        asking = asyncio.create_task(ask(network.url, "chat.completions.create", shown, **CHAT, stream=True))
        call = await upstream.called()
        await call.say("Hel")
        await has(shown, 1, asking)
        if fault == "cut":
            network.cut()
        else:
            node.kill()
        with pytest.raises(APIConnectionError):
            await within("an error", asking)
    assert text_of(shown) == "Hel"


@every_sdk
async def test_a_node_that_drains_ends_a_stream_with_an_error(ask, node, upstream):
    shown: list[ChatCompletionChunk] = []
    asking = asyncio.create_task(ask(node.url, "chat.completions.create", shown, **CHAT, stream=True))
    call = await upstream.called()
    await call.say("Hel")
    await has(shown, 1, asking)
    assert await node.stop() == 0
    with pytest.raises(APIError):
        await within("an error", asking)
    assert text_of(shown) == "Hel"


@every_sdk
async def test_requests_that_no_upstream_could_answer_are_bad_requests(ask, service, upstream):
    for request in ({"messages": []}, {"messages": "Hi"}, {"extra_body": {"replay": {"colour": 1}}}):
        with pytest.raises(BadRequestError) as raised:
            await ask(service.url, "chat.completions.create", **(CHAT | request))
        assert (raised.value.code, raised.value.type) == ("invalid_request", "invalid_request_error")
    with pytest.raises(BadRequestError):
        await ask(service.url, "completions.create", model="test-model", prompt=None)
    assert upstream.calls == []
