"""A real upstream that others wrote: through a node, LiteLLM's proxy says what it says when it is asked directly."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from openai import APIError, APIStatusError, AsyncOpenAI, RateLimitError
from openai.types.chat import ChatCompletionChunk
from support.deadlines import within
from support.litellm import MASTER_KEY, LiteLLM
from support.node import Node
from support.samples import SAMPLES
from support.sdk import ON_HTTPX, streamed_or_not
from support.upstream import Call, ScriptedUpstream, play
from support.v1 import CHAT, COUNTED, texts_of

pytestmark = pytest.mark.slow  # some ten seconds until it has started

TEXT = "Hello from LiteLLM,\nwith 👩‍👩‍👧‍👦 and [DONE]."
MESSAGES = CHAT["messages"]

SAYS = "says"  # a text
LEGACY = "legacy"  # a text, at /v1/completions
BEHIND = "behind"  # what a scripted server says to LiteLLM
REFUSING = {
    "limited": "litellm.RateLimitError",
    "broken": "litellm.InternalServerError",
    "too-long": "litellm.ContextWindowExceededError",
    "overloaded": "Exception: mock_streaming_error",
}
# Recorded answers that LiteLLM passes on whole.
SAID = ["03-usage-only-empty-choices", "07-reasoning_content", "08-tool_calls", "09-tool_calls-parallel", "12-logprobs"]


@pytest.fixture(scope="session")
def _listener() -> Iterator[socket.socket]:
    """The port of the server behind LiteLLM; every test serves it anew, in its own event loop."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture(scope="session")
def litellm(tmp_path_factory: pytest.TempPathFactory, _listener: socket.socket) -> Iterator[LiteLLM]:
    port = _listener.getsockname()[1]
    models = {
        SAYS: {"mock_response": TEXT},
        LEGACY: {"model": f"text-completion-openai/{LEGACY}", "mock_response": TEXT},
        BEHIND: {"api_base": f"http://127.0.0.1:{port}/v1"},
    } | {name: {"mock_response": mock} for name, mock in REFUSING.items()}
    proxy = LiteLLM(tmp_path_factory.mktemp("litellm"), models)
    try:
        proxy.start()
        yield proxy
    finally:
        proxy.destroy()


@pytest.fixture
async def behind(_listener: socket.socket) -> AsyncIterator[ScriptedUpstream]:
    """The server behind LiteLLM."""
    async with ScriptedUpstream(listener=_listener.dup(), keep_alive=False) as server:
        yield server


@pytest.fixture
async def node(make_node: Callable[..., Awaitable[Node]], litellm: LiteLLM) -> Node:
    """A node in front of LiteLLM."""
    return await make_node(upstream_url=litellm.url, env={"OPENAI_API_KEY": MASTER_KEY})


def sdk(base_url: str, api_key: str) -> AbstractAsyncContextManager[AsyncOpenAI]:
    """The official client of LiteLLM, or of a node in front of it."""
    return ON_HTTPX.client(base_url.removesuffix("/v1"), api_key=api_key)


@pytest.fixture
async def direct(litellm: LiteLLM) -> AsyncIterator[AsyncOpenAI]:
    """A client of LiteLLM itself."""
    async with sdk(litellm.url, MASTER_KEY) as client:
        yield client


@pytest.fixture
async def through(node: Node) -> AsyncIterator[AsyncOpenAI]:
    """A client of the node."""
    async with sdk(f"{node.url}/v1", "none") as client:
        yield client


async def streamed(client: AsyncOpenAI, model: str, **request: Any) -> list[dict[str, Any]]:
    """The chunks of an answer, without what each call has its own of."""
    stream = await client.chat.completions.create(model=model, messages=MESSAGES, stream=True, **request)
    return [_common(chunk.to_dict()) async for chunk in stream]


async def refusal(client: AsyncOpenAI, model: str, **request: Any) -> tuple[int, str]:
    """Status and body of an error."""
    with pytest.raises(APIStatusError) as raised:
        await client.chat.completions.create(model=model, messages=MESSAGES, **request)
    return raised.value.status_code, raised.value.response.text


def _common(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in ("id", "created")}


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(texts_of(chunks))


# Answers.


@pytest.mark.parametrize("options", [{}, COUNTED], ids=["uncounted", "counted"])
async def test_a_streamed_text_is_litellms_chunk_by_chunk(direct, through, options):
    expected = await streamed(direct, SAYS, **options)
    assert text_of(expected) == TEXT
    assert await streamed(through, SAYS, **options) == expected


@pytest.mark.parametrize("options", [{}, COUNTED], ids=["uncounted", "counted"])
@pytest.mark.parametrize("name", SAID)
async def test_what_litellm_makes_of_another_servers_answer_comes_chunk_by_chunk(
    direct, through, behind, name, options
):
    behind.script = play(SAMPLES[name])
    expected = await streamed(direct, BEHIND, **options)
    assert len(expected) > 2
    assert await streamed(through, BEHIND, **options) == expected


async def test_a_whole_text_is_litellms(direct, through):
    expected = await direct.chat.completions.create(model=SAYS, messages=MESSAGES)
    whole = await through.chat.completions.create(model=SAYS, messages=MESSAGES)
    assert [(choice.message.content, choice.message.role, choice.finish_reason) for choice in whole.choices] == [
        (choice.message.content, choice.message.role, choice.finish_reason) for choice in expected.choices
    ]
    assert (whole.choices[0].message.content, whole.model, whole.object) == (TEXT, expected.model, expected.object)


@pytest.mark.parametrize("name", ["08-tool_calls", "09-tool_calls-parallel"])
async def test_whole_tool_calls_are_litellms(direct, through, behind, name):
    # given what LiteLLM streams, put together by LiteLLM's client
    behind.script = play(SAMPLES[name])
    async with direct.chat.completions.stream(model=BEHIND, messages=MESSAGES) as stream:
        expected = (await stream.get_final_completion()).choices[0].message.tool_calls
    assert expected

    # then the node puts it together alike
    whole = await through.chat.completions.create(model=BEHIND, messages=MESSAGES)
    assert whole.choices[0].finish_reason == "tool_calls"
    assert [(call.id, call.type, call.function.name, call.function.arguments) for call in expected] == [
        (call.id, call.type, call.function.name, call.function.arguments)
        for call in whole.choices[0].message.tool_calls
    ]


async def test_usage_is_counted_without_being_asked_for(direct, through):
    *_, last = await streamed(direct, SAYS, **COUNTED)
    whole = await through.chat.completions.create(model=SAYS, messages=MESSAGES)
    assert whole.usage.to_dict() == last["usage"]
    assert last["usage"]["total_tokens"] > 0


async def test_usage_that_was_not_asked_for_is_not_streamed(through):
    assert [chunk["usage"] for chunk in await streamed(through, SAYS) if chunk.get("usage")] == []


@pytest.mark.parametrize("options", [{}, COUNTED], ids=["uncounted", "counted"])
async def test_legacy_completions_stream_and_come_whole(direct, through, options):
    async def chunks(client: AsyncOpenAI) -> list[dict[str, Any]]:
        stream = await client.completions.create(model=LEGACY, prompt="Hi", stream=True, **options)
        shown = [_common(chunk.to_dict()) async for chunk in stream]
        # Where it is not asked to count, LiteLLM writes a usage of zeros into each.
        return shown if options else [chunk | {"usage": None} for chunk in shown]

    expected = await chunks(direct)
    assert "".join(chunk["choices"][0].get("text", "") for chunk in expected) == TEXT
    assert await chunks(through) == expected
    whole = await through.completions.create(model=LEGACY, prompt="Hi")
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (TEXT, "stop")


async def test_parameters_reach_the_server_behind_litellm(direct, through, behind):
    behind.script = play(SAMPLES["08-tool_calls"])
    function = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    tools = [{"type": "function", "function": function}]
    for client in (direct, through):
        await streamed(client, BEHIND, temperature=0.5, seed=7, stop=["."], tools=tools, **COUNTED)
    expected, request = [call.request for call in behind.calls]
    assert request == expected
    assert (request["temperature"], request["seed"], request["tools"]) == (0.5, 7, tools)


async def test_models_are_litellms(direct, through):
    expected = [model.to_dict() async for model in direct.models.list()]
    assert {SAYS, LEGACY, BEHIND} < {model["id"] for model in expected}
    assert [model.to_dict() async for model in through.models.list()] == expected


async def test_a_node_asks_for_the_first_model_where_none_is_named(node, litellm):
    answer = await node.api.post("/generations", {"prompt": "Hi"})
    assert (answer.status, answer.json()["model"]) == (201, SAYS)
    await node.api.ended(answer.json()["id"])
    assert (await node.api.transcript(answer.json()["id"]))["text"] == TEXT


async def test_the_transcript_of_an_answer_is_its_text(node, through):
    completion = await through.chat.completions.create(model=SAYS, messages=MESSAGES)
    transcript = await node.api.transcript(completion.id)
    assert (transcript["status"], transcript["text"], transcript["finish_reason"]) == ("completed", TEXT, "stop")
    assert transcript["message"] == {"role": "assistant", "content": TEXT}
    assert transcript["usage"] == completion.usage.to_dict()
    plain = await node.api.get(f"/generations/{completion.id}/transcript", {"Accept": "text/plain"})
    assert plain.body.decode() == TEXT


async def test_the_same_key_asks_litellm_once(node, behind, through):
    behind.script = play(SAMPLES["07-reasoning_content"])
    key = {"Idempotency-Key": f"key-{uuid.uuid4()}"}
    answers = [
        [
            chunk
            async for chunk in await through.chat.completions.create(
                model=BEHIND, messages=MESSAGES, stream=True, extra_headers=key
            )
        ]
        for _ in range(3)
    ]
    assert answers[0] == answers[1] == answers[2] != []
    assert len(behind.calls) == 1


# As it comes.


async def opened(
    client: AsyncOpenAI, behind: ScriptedUpstream
) -> tuple[Call, AsyncIterator[ChatCompletionChunk], list[ChatCompletionChunk]]:
    """A call of the server behind, the stream at the other end, and what that has shown: "Hel"."""
    asking = asyncio.create_task(client.chat.completions.create(model=BEHIND, messages=MESSAGES, stream=True))
    call = await behind.called()
    await call.send(call.chunk({"delta": {"role": "assistant", "content": "Hel"}}))
    stream = await within("an answer", asking)
    shown: list[ChatCompletionChunk] = []
    await _until("Hel", stream, shown)
    return call, stream, shown


async def _until(text: str, stream: AsyncIterator[ChatCompletionChunk], shown: list[ChatCompletionChunk]) -> None:
    while text_of([chunk.to_dict() for chunk in shown]) != text:
        shown.append(await within(f"{text!r}; has {shown}", anext(stream)))


async def test_a_token_is_shown_before_the_server_behind_litellm_goes_on(behind, through):
    call, stream, shown = await opened(through, behind)
    await call.say("lo")
    await _until("Hello", stream, shown)
    await call.say("!")
    await _until("Hello!", stream, shown)
    await call.finish()
    rest = [choice async for chunk in stream for choice in chunk.choices]
    assert [choice.finish_reason for choice in rest if choice.finish_reason] == ["stop"]


async def test_a_cut_behind_litellm_is_its_error_in_the_stream(node, behind, direct, through):
    # given how LiteLLM itself tells of a server that is cut
    call, stream, _ = await opened(direct, behind)
    await call.cut()
    with pytest.raises(APIError) as expected:
        await within("an error", anext(stream))

    # when it happens behind a node
    call, stream, shown = await opened(through, behind)
    await call.cut()

    # then it is told with the same words, and recorded
    with pytest.raises(APIError) as raised:
        await within("an error", anext(stream))
    assert raised.value.message == expected.value.message
    assert raised.value.code == expected.value.code
    generation = await node.api.ended(shown[0].id)
    assert (generation["status"], generation["error"]["code"]) == ("failed", "upstream_error")
    assert (await node.api.transcript(shown[0].id))["text"] == "Hel"


async def test_a_cancel_reaches_the_server_behind_litellm(node, behind, through):
    call, _, shown = await opened(through, behind)
    assert (await node.api.post(f"/generations/{shown[0].id}/cancel")).json()["status"] == "cancelled"
    await call.hung_up()


# Refusals.


@streamed_or_not
@pytest.mark.parametrize("model", [*REFUSING, "nobody's"])
async def test_a_refusal_keeps_litellms_status_and_body(direct, through, model, stream):
    status, body = await refusal(direct, model, stream=True)
    assert status in (400, 429, 500, 529)
    assert await refusal(through, model, stream=stream) == (status, body)


@streamed_or_not
@pytest.mark.parametrize("name", ["25-429-retry-after", "28-400-openai-error"])
async def test_a_refusal_behind_litellm_keeps_its_status_and_body(direct, through, behind, name, stream):
    behind.script = play(SAMPLES[name])
    expected = await refusal(direct, BEHIND, stream=True)
    assert expected[0] == SAMPLES[name].status
    assert await refusal(through, BEHIND, stream=stream) == expected


async def test_a_refusal_is_the_sdks_own_error(through):
    with pytest.raises(RateLimitError, match="mock rate limit") as raised:
        await through.chat.completions.create(model="limited", messages=MESSAGES)
    assert (raised.value.code, raised.value.type) == ("429", "throttling_error")
    assert "replay-generation-id" not in raised.value.response.headers


async def test_a_key_that_litellm_does_not_know_is_refused_in_its_words(make_node, litellm):
    async with sdk(litellm.url, "sk-wrong") as client:
        expected = await refusal(client, SAYS)
    assert 400 <= expected[0] < 500
    node = await make_node(upstream_url=litellm.url, env={"OPENAI_API_KEY": "sk-wrong"})
    async with sdk(f"{node.url}/v1", MASTER_KEY) as client:  # the caller's is not passed on
        assert await refusal(client, SAYS) == expected
        assert await refusal(client, SAYS, stream=True) == expected


async def test_with_credentials_of_the_caller_litellm_sees_the_callers_key(make_node, litellm):
    node = await make_node(
        upstream_url=litellm.url, upstream_credentials="caller", env={"OPENAI_API_KEY": "sk-service"}
    )
    async with sdk(f"{node.url}/v1", MASTER_KEY) as client:
        assert text_of(await streamed(client, SAYS)) == TEXT
        assert SAYS in [model.id async for model in client.models.list()]
    async with sdk(litellm.url, "sk-wrong") as client:
        expected = await refusal(client, SAYS)
    async with sdk(f"{node.url}/v1", "sk-wrong") as client:
        assert await refusal(client, SAYS) == expected
