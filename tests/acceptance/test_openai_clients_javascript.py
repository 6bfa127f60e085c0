"""Clients in JavaScript get from `/v1` what they get from OpenAI: npm's `openai`, and Vercel's `ai`.

The latter through `@ai-sdk/openai-compatible`; each is used as its documentation says, and nothing of it is patched.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from openai.types.chat import ChatCompletion
from support.fault_proxy import FaultProxy, keep_alives
from support.programs import Program, node_js, running
from support.samples import CHATS, REFUSALS, SAMPLES, WHOLE
from support.scripts import say_choices
from support.sdk import ROUNDS, choices_of, streamed_or_not
from support.upstream import USAGE, Call, play, say
from support.v1 import CHAT, COUNTED, INPUT

pytestmark = pytest.mark.slow


OPENAI_JS, AI_SDK = "pages/npm-openai.mjs", "pages/ai-sdk.mjs"


@contextlib.asynccontextmanager
async def questioning(script: str, url: str, call: str, **spec: Any) -> AsyncIterator[Program]:
    """One of the scripts in `pages`, on its way with a question."""
    question = json.dumps({"url": f"{url}/v1", "call": call, **spec})
    async with running(node_js(), script, question) as process:
        yield process


async def answered(script: str, url: str, call: str, **spec: Any) -> list[tuple[str, Any]]:
    """All that a script printed about the answer to a question."""
    async with questioning(script, url, call, **spec) as program:
        return [(kind, value) for kind, value in map(json.loads, await program.ended())]


def only(kind: str, printed: Sequence[tuple[str, Any]]) -> list[Any]:
    """The values of one kind."""
    return [value for name, value in printed if name == kind]


@pytest.mark.parametrize("name", CHATS)
async def test_npm_openai_streams_the_upstreams_chunks(service, upstream, name):
    upstream.script = play(SAMPLES[name])
    printed = await answered(OPENAI_JS, service.url, "create", request=CHAT | COUNTED | {"stream": True})
    (response,) = only("response", printed)
    assert response["request_id"].startswith("req_")
    assert only("chunk", printed) == [chunk | {"id": response["id"]} for chunk in SAMPLES[name].chunks]
    assert printed[-1] == ("end", None)


@pytest.mark.parametrize("name", WHOLE)
async def test_npm_openai_gets_whole_answers(service, upstream, name):
    upstream.script = play(SAMPLES[name])
    printed = await answered(OPENAI_JS, service.url, "create", request=CHAT)
    (completion,) = only("completion", printed)
    assert choices_of(ChatCompletion.model_validate(completion)) == WHOLE[name]
    assert [response["id"] for response in only("response", printed)] == [completion["id"]]


async def test_npm_openais_helper_puts_text_and_tool_calls_together(service, upstream):
    first = {"delta": {"role": "assistant", "content": "Hel"}}  # without a role it will not have it
    upstream.script = say_choices(first, {"delta": {"content": "lo"}}, usage=USAGE)
    printed = await answered(OPENAI_JS, service.url, "helper", request=CHAT | COUNTED)
    (completion,) = only("completion", printed)
    assert only("content", printed) == ["Hel", "lo"]
    assert (completion["choices"][0]["message"]["content"], completion["usage"]) == ("Hello", USAGE)

    upstream.script = play(SAMPLES["09-tool_calls-parallel"])
    printed = await answered(OPENAI_JS, service.url, "helper", request=CHAT)
    (completion,) = only("completion", printed)
    ((_, expected),) = WHOLE["09-tool_calls-parallel"]
    calls = completion["choices"][0]["message"]["tool_calls"]
    assert [call["function"]["arguments"] for call in calls] == ['{"city":"Paris"}', '{"tz":"CET"}']
    assert [call["id"] for call in calls] == [call["id"] for call in expected["tool_calls"]]
    assert only("arguments", printed) == ['{"city":"Paris"}', '{"tz":"CET"}']


async def test_npm_openai_streams_and_resumes_responses(service, other_service, upstream):
    upstream.script = say("Hel", "lo", usage=USAGE)
    printed = await answered(OPENAI_JS, service.url, "respond", request=INPUT | {"background": True})
    events = only("event", printed)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == "Hello"
    assert (events[-1]["type"], events[-1]["response"]["status"]) == ("response.completed", "completed")
    id = events[0]["response"]["id"]
    printed = await answered(OPENAI_JS, other_service.url, "resume", request={"id": id, "starting_after": 2})
    assert only("event", printed) == events[3:]


async def test_npm_openai_asks_again_and_again_on_the_connections_that_it_keeps(service, upstream):
    upstream.script = say("Hel", "lo")
    printed = await answered(OPENAI_JS, service.url, "again", request=CHAT | {"stream": True}, rounds=ROUNDS)
    assert printed == [*[("text", "Hello")] * ROUNDS, ("end", None)]
    assert len(upstream.calls) == ROUNDS


async def test_npm_openai_lists_over_pages(make_node, upstream):
    node = await make_node()
    upstream.script = say("Hello")
    ids = [await node.api.run(CHAT) for _ in range(5)]
    printed = await answered(OPENAI_JS, node.url, "list", request={"limit": 2})
    assert [completion["id"] for completion in only("completion", printed)] == ids


@streamed_or_not
@pytest.mark.parametrize("name", REFUSALS)
async def test_npm_openai_sees_a_refusal_with_its_status(service, upstream, name, stream):
    sample = SAMPLES[name]
    upstream.script = play(sample)
    printed = await answered(OPENAI_JS, service.url, "create", request=CHAT | {"stream": stream})
    ((kind, error),) = printed
    expected = {400: "BadRequestError", 429: "RateLimitError", 500: "InternalServerError"}[sample.status]
    assert (kind, error["name"], error["status"]) == ("error", expected, sample.status)
    assert error["retry_after"] == sample.headers.get("retry-after")
    if sample.headers["content-type"].startswith("application/json"):
        assert error["type"] == json.loads(sample.body)["error"]["type"]


@pytest.mark.parametrize("name", ["19-error-string-midstream", "20-error-object-midstream-no-DONE"])
async def test_npm_openai_sees_an_error_in_the_stream(service, upstream, name):
    upstream.script = play(SAMPLES[name])
    printed = await answered(OPENAI_JS, service.url, "create", request=CHAT | {"stream": True})
    assert len(only("chunk", printed)) == len(SAMPLES[name].chunks)
    kind, error = printed[-1]
    assert (kind, error["name"]) == ("error", "APIError")
    assert not only("end", printed)


@pytest.mark.parametrize("fault", ["upstream cut", "connection cut", "node killed"])
async def test_npm_openai_never_takes_a_cut_for_the_end(node, upstream, fault):
    async with (
        FaultProxy(node.url) as network,
        questioning(OPENAI_JS, network.url, "create", request=CHAT | {"stream": True}) as program,
    ):
        call = await upstream.called()
        await call.say("Hel")
        await program.has(2)  # the response and a chunk
        await _break(fault, call, network, node)
        printed = [json.loads(line) for line in await program.ended()]
    assert [kind for kind, _ in printed] == ["response", "chunk", "error"]
    if fault == "upstream cut":
        assert printed[-1][1]["code"] == "upstream_truncated"


async def _break(fault: str, call: Call, network: FaultProxy, node: Any) -> None:
    if fault == "upstream cut":
        await call.cut()
    elif fault == "connection cut":
        network.cut()
    else:
        node.kill()


async def test_npm_openai_with_a_key_gets_the_same_answer(service, other_service, upstream, key):
    upstream.script = say("Hel", "lo")
    spec = {"request": CHAT | {"stream": True}, "options": {"headers": key}}
    first = await answered(OPENAI_JS, service.url, "create", **spec)
    again = await answered(OPENAI_JS, other_service.url, "create", **spec)
    assert only("chunk", first) == only("chunk", again) != []
    assert len(upstream.calls) == 1


async def test_keep_alives_disturb_no_client_in_javascript(make_node, upstream):
    node = await make_node(keepalive_s=0.05)
    for script, call_name, spec in (
        (OPENAI_JS, "create", {"request": CHAT | {"stream": True}}),
        (AI_SDK, "fullStream", {}),
    ):
        async with FaultProxy(node.url) as network, questioning(script, network.url, call_name, **spec) as program:
            call = await upstream.called()
            await call.answer()
            await keep_alives(network, 5)
            await call.say("Hel")
            await keep_alives(network, 5)
            await call.say("lo")
            await call.finish()
            printed = [json.loads(line) for line in await program.ended()]
        assert printed[-1] == ["end", None]
        texts = only("text", printed) or [
            chunk["choices"][0]["delta"].get("content", "") for chunk in only("chunk", printed)
        ]
        assert "".join(texts) == "Hello"


async def test_ai_sdk_streams_text(service, upstream):
    upstream.script = say("Hel", "lo ", "café 😀", usage=USAGE)
    printed = await answered(AI_SDK, service.url, "textStream")
    assert printed == [("text", "Hel"), ("text", "lo "), ("text", "café 😀"), ("end", None)]
    printed = await answered(AI_SDK, service.url, "fullStream")
    assert only("text", printed) == ["Hel", "lo ", "café 😀"]
    assert printed[-2:] == [("finish", {"reason": "stop", "tokens": USAGE["total_tokens"]}), ("end", None)]


async def test_ai_sdk_generates_text(service, upstream):
    upstream.script = say("Hel", "lo", usage=USAGE)
    ((_, result), _) = await answered(AI_SDK, service.url, "generateText")
    id = result.pop("id")
    assert result == {"text": "Hello", "tools": [], "reason": "stop", "tokens": USAGE["total_tokens"]}
    assert (await service.transcript(id))["text"] == "Hello"


async def test_ai_sdk_streams_reasoning(service, upstream):
    upstream.script = play(SAMPLES["07-reasoning_content"])
    printed = await answered(AI_SDK, service.url, "fullStream")
    assert ("".join(only("reasoning", printed)), "".join(only("text", printed))) == (" the reader is", " the reader")
    assert only("finish", printed)[0]["reason"] == "length"


async def test_ai_sdk_calls_tools(service, upstream):
    upstream.script = play(SAMPLES["08-tool_calls"])
    expected = {"toolName": "get_weather", "input": {"city": "Paris é"}}
    printed = await answered(AI_SDK, service.url, "fullStream")
    assert upstream.calls[-1].request["tools"][0]["function"]["name"] == "get_weather"
    assert only("tool", printed) == [expected]
    assert only("finish", printed)[0]["reason"] == "tool-calls"
    ((_, result), _) = await answered(AI_SDK, service.url, "generateText")
    assert (result["tools"], result["reason"]) == ([expected], "tool-calls")


@pytest.mark.parametrize("call_name", ["textStream", "fullStream", "generateText"])
async def test_ai_sdk_sees_a_refusal_with_its_status_and_body(service, upstream, call_name):
    sample = SAMPLES["25-429-retry-after"]
    upstream.script = play(sample)
    printed = await answered(AI_SDK, service.url, call_name)
    (error,) = only("onError", printed) or only("error", printed)
    assert (error["name"], error["status"]) == ("AI_APICallError", 429)
    assert error["body"] == sample.body.decode()
    assert not only("text", printed)


async def test_ai_sdk_sees_an_error_in_the_stream(service, upstream):
    sample = SAMPLES["20-error-object-midstream-no-DONE"]
    upstream.script = play(sample)
    printed = await answered(AI_SDK, service.url, "fullStream")
    assert only("text", printed) == [" reader", " is"]
    assert "Response payload is not completed" in only("error", printed)[0]["message"]
    assert [finish["reason"] for finish in only("finish", printed)] in ([], ["error"])
    printed = await answered(AI_SDK, service.url, "textStream")
    assert "Response payload is not completed" in only("onError", printed)[0]["message"]


@pytest.mark.parametrize("fault", ["upstream cut", "connection cut", "node killed"])
async def test_ai_sdk_never_takes_a_cut_for_the_end(node, upstream, fault):
    async with FaultProxy(node.url) as network, questioning(AI_SDK, network.url, "fullStream") as program:
        call = await upstream.called()
        await call.say("Hel")
        await program.has(1)
        await _break(fault, call, network, node)
        printed = [json.loads(line) for line in await program.ended()]
    assert only("text", printed) == ["Hel"]
    assert only("error", printed)
    assert [finish["reason"] for finish in only("finish", printed)] in ([], ["error"])


async def test_ai_sdk_with_a_key_gets_the_same_answer(service, other_service, upstream, key):
    upstream.script = say("Hel", "lo")
    first = await answered(AI_SDK, service.url, "textStream", headers=key)
    again = await answered(AI_SDK, other_service.url, "textStream", headers=key)
    assert first == again == [("text", "Hel"), ("text", "lo"), ("end", None)]
    assert len(upstream.calls) == 1
