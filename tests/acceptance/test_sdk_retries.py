"""What OpenAI's own client repeats, and what a program repeats that was killed, is asked of the upstream once.

The client is used as its documentation says, with its own retries; nothing of it is patched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import uuid
from typing import Any

import pytest
from support.deadlines import within
from support.fault_proxy import FaultProxy
from support.sdk import ON_AIOHTTP, ON_HTTPX, text_of
from support.upstream import Call, ScriptedUpstream, generate, say
from support.v1 import CHAT, streamed_or_whole

pytestmark = pytest.mark.slow

TRANSPORTS = {"httpx": ON_HTTPX, "aiohttp": ON_AIOHTTP}
IMPATIENT_S = 1.0

each_transport = pytest.mark.parametrize("transport", TRANSPORTS)


async def read(answer: Any) -> str:
    """The text of an answer, streamed or whole."""
    if hasattr(answer, "__aiter__"):
        return text_of([chunk async for chunk in answer])
    return answer.choices[0].message.content or ""


@each_transport
@streamed_or_whole
async def test_a_client_that_gives_up_twice_has_made_one_call(service, other_service, upstream, stream, transport):
    # given a client that waits for less than the upstream takes
    async with TRANSPORTS[transport].client(service.url, timeout=IMPATIENT_S, max_retries=5) as client:
        asking = asyncio.ensure_future(client.chat.completions.create(**CHAT, stream=stream))
        call = await upstream.called()
        id = await service.newest()

        # when it has hung up and come back, twice, and then the upstream answers
        for count in (0, 1, 0, 1):
            await service.has_subscribers(id, count)
        await call.say("Hel")
        await call.say("lo")
        await call.finish()

        # then it has the answer
        assert await read(await within("an answer", asking)) == "Hello"
    assert len(upstream.calls) == 1


@streamed_or_whole
async def test_a_client_that_is_cut_before_its_answer_has_made_one_call(service, upstream, stream):
    async with FaultProxy(service.url) as network, ON_HTTPX.client(network.url, max_retries=1) as client:
        asking = asyncio.ensure_future(client.chat.completions.create(**CHAT, stream=stream))
        call = await upstream.called()
        network.cut()
        id = await service.newest()
        for count in (0, 1):
            await service.has_subscribers(id, count)
        await call.say("Hello")
        await call.finish()
        assert await read(await within("an answer", asking)) == "Hello"
    assert len(upstream.calls) == 1


async def test_a_client_that_waits_for_bytes_is_kept_by_the_head_and_keepalives(make_node, upstream):
    # given an upstream that accepts after three times as long as the client waits for a byte
    async def late(call: Call) -> None:
        await asyncio.sleep(3 * IMPATIENT_S)
        await say("Hello")(call)

    upstream.script = late
    node = await make_node(head_patience_s=0.1, keepalive_s=0.1)
    async with ON_HTTPX.client(node.url, timeout=IMPATIENT_S, max_retries=0) as client:
        assert await read(await client.chat.completions.create(**CHAT, stream=True)) == "Hello"
    assert len(upstream.calls) == 1


async def test_calls_that_are_alike_and_in_time_are_answered_apart(service, upstream):
    upstream.script = generate(3, per_second=20)
    async with ON_HTTPX.client(service.url) as client:
        answers = await asyncio.gather(*(client.chat.completions.create(**CHAT) for _ in range(4)))
    assert len({answer.id for answer in answers}) == 4
    assert len(upstream.calls) == 4


# A program that is killed and started again, with one static header.

CLIENT = """
import json, sys
from openai import DefaultHttpxClient, OpenAI

url, job = sys.argv[1:]
client = OpenAI(
    base_url=url, api_key="none", default_headers={"Replay-Job": job}, http_client=DefaultHttpxClient(trust_env=False)
)
"""
ONE_CALL = (
    CLIENT
    + """
stream = client.chat.completions.create(model="test-model", messages=[{"role": "user", "content": "Hi"}], stream=True)
for chunk in stream:
    print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
"""
)
AGENT = (
    CLIENT
    + """
tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
messages = [{"role": "user", "content": "Look, and tell"}]
while True:
    message, calls = "", []
    for chunk in client.chat.completions.create(model="test-model", messages=messages, tools=[tool], stream=True):
        for choice in chunk.choices:
            message += choice.delta.content or ""
            calls += choice.delta.tool_calls or []
            print(choice.delta.content or "", end="", flush=True)
    if not calls:
        break
    print("[looked]", end="", flush=True)
    messages.append({"role": "assistant", "tool_calls": [call.model_dump(exclude={"index"}) for call in calls]})
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "a cat"} for call in calls]
"""
)
LOOK = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


async def run(program: str, url: str, job: str, *, kill_at: str | None = None) -> str:
    """What a program prints, to its end or to where it is killed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, f"{url}/v1", job), stdout=asyncio.subprocess.PIPE, env=clean
    )
    assert process.stdout is not None
    printed = b""
    try:
        while piece := await within("what it prints", process.stdout.read(1000), 30):
            printed += piece
            if kill_at is not None and kill_at.encode() in printed:
                break
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    return printed.decode()


async def test_a_program_that_is_killed_and_runs_again_has_its_whole_answer(service, other_service, upstream):
    upstream.script = generate(40, per_second=40)
    job = uuid.uuid4().hex
    killed = await run(ONE_CALL, service.url, job, kill_at="word5 ")
    whole = "".join(f"word{number} " for number in range(40))
    assert whole.startswith(killed)
    assert killed != whole
    assert await run(ONE_CALL, other_service.url, job) == whole
    assert len(upstream.calls) == 1


async def test_an_agent_that_is_killed_in_its_second_step_pays_for_two(
    service, other_service, upstream: ScriptedUpstream
):
    # given an agent's loop whose first step calls a tool
    async def step(call: Call) -> None:
        if len(call.request["messages"]) == 1:
            await call.send(call.chunk({"delta": {"role": "assistant", "tool_calls": [LOOK]}}))
            await call.finish("tool_calls")
        else:
            await generate(40, per_second=40)(call)

    upstream.script = step
    job = uuid.uuid4().hex

    # when it is killed in the middle of the second, and runs again elsewhere
    assert "[looked]word0 " in await run(AGENT, service.url, job, kill_at="word5 ")
    printed = await run(AGENT, other_service.url, job)

    # then it ends as if nothing had been, and each step was paid for once
    assert printed == "[looked]" + "".join(f"word{number} " for number in range(40))
    assert len(upstream.calls) == 2
