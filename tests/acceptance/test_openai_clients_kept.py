"""The official package and what stays: lists, answers that are over, ids of one's own, and the same key again.

At last, exactly once with nothing but the package: a program that is killed, and started again.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from typing import Any

import pytest
from openai import BadRequestError, ConflictError, DefaultAsyncHttpxClient, NotFoundError, UnprocessableEntityError
from openai.types import Completion
from support.deadlines import within
from support.fault_proxy import FaultProxy
from support.programs import running
from support.samples import SAMPLES
from support.sdk import ON_HTTPX, choices_of, every_sdk, streamed_or_not, text_of
from support.upstream import USAGE, generate, play, say
from support.v1 import CHAT, LEGACY

pytestmark = pytest.mark.slow


LEGACY_NAMES = ["05-completions-text", "14-keepalive-comments"]


# Legacy completions, models, and what is kept.


@every_sdk
@pytest.mark.parametrize("name", LEGACY_NAMES)
async def test_legacy_completions_stream_and_come_whole(ask, service, upstream, name):
    upstream.script = play(SAMPLES[name])
    shown = await ask(service.url, "completions.create", **LEGACY, stream=True)
    assert upstream.calls[-1].legacy
    assert upstream.calls[-1].request["prompt"] == "Hi"
    (id,) = {chunk.id for chunk in shown}
    assert [chunk.to_dict() for chunk in shown] == [chunk | {"id": id} for chunk in SAMPLES[name].chunks]

    whole: Completion = await ask(service.url, "completions.create", **LEGACY)
    (choice,) = whole.choices
    assert (whole.object, choice.text) == ("text_completion", "".join(chunk.choices[0].text for chunk in shown))
    assert (choice.finish_reason, whole.usage) == ("length", shown[-1].usage)


@every_sdk
async def test_models_are_the_upstreams(ask, service, upstream):
    upstream.models = ["test-model", "org/other:model"]
    assert [model.id for model in await ask(service.url, "models.list")] == upstream.models
    model = await ask(service.url, "models.retrieve", model="org/other:model")
    assert (model.id, model.object, model.owned_by) == ("org/other:model", "model", "test")
    with pytest.raises(NotFoundError) as raised:
        await ask(service.url, "models.retrieve", model="nobody's")
    assert raised.value.code == "model_not_found"


@every_sdk
async def test_completions_are_listed_over_pages_and_deleted(ask, make_node, upstream):
    # given five that completed, one that was refused, and one of another model that goes on
    node = await make_node()
    upstream.script = say("Hello")
    made = [
        await ask(
            node.url,
            "chat.completions.create",
            **CHAT,
            store=True,
            metadata={"parity": "even" if place % 2 == 0 else "odd"},
        )
        for place in range(5)
    ]
    ids = [completion.id for completion in made]
    upstream.script = play(SAMPLES["28-400-openai-error"])
    with pytest.raises(BadRequestError):
        await ask(node.url, "chat.completions.create", **CHAT)
    upstream.script = None
    going_on = await node.api.start(CHAT | {"model": "other-model"})

    # then lists have the five, page by page
    async def listed(**query: Any) -> list[str]:
        return [completion.id for completion in await ask(node.url, "chat.completions.list", **query)]

    assert await listed() == ids
    assert await listed(limit=2) == ids
    assert await listed(limit=2, order="desc") == ids[::-1]
    assert await listed(limit=1, after=ids[2]) == ids[3:]
    assert await listed(limit=1, metadata={"parity": "odd"}) == ids[1::2]
    assert await listed(model="test-model") == ids
    assert await listed(model="other-model") == []
    (first, *_) = await ask(node.url, "chat.completions.list", limit=2)
    assert choices_of(first) == choices_of(made[0]) == [("stop", {"content": "Hello"})]
    assert first.metadata == {"parity": "even"}

    # and what is deleted is gone
    gone = await ask(node.url, "chat.completions.delete", completion_id=ids[1])
    assert (gone.id, gone.object, gone.deleted) == (ids[1], "chat.completion.deleted", True)
    assert await listed(limit=2) == [ids[0], *ids[2:]]
    for call in ("retrieve", "delete"):
        with pytest.raises(NotFoundError):
            await ask(node.url, f"chat.completions.{call}", completion_id=ids[1])
    assert (await node.api.post(f"/generations/{going_on['id']}/cancel")).status == 200


@every_sdk
async def test_the_messages_of_a_completion_are_those_of_its_request(ask, service, upstream):
    upstream.script = say("Hello")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi 😀"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": [{"type": "text", "text": "How are you?"}]},
        {"role": "user", "content": "Well?"},
    ]
    made = await ask(service.url, "chat.completions.create", model="test-model", messages=messages, store=True)

    async def kept(**query: Any) -> list[dict[str, Any]]:
        listed = await ask(service.url, "chat.completions.messages.list", completion_id=made.id, **query)
        assert len({message.id for message in listed}) == len(listed)
        return [{"role": message.role, "content": message.content} for message in listed]

    async def contents(**query: Any) -> list[Any]:
        return [message["content"] for message in await kept(**query)]

    expected = [message["content"] for message in messages]
    assert [message["role"] for message in await kept()] == [message["role"] for message in messages]
    assert await contents(limit=2) == expected
    assert await contents(limit=2, order="desc") == expected[::-1]


# The member `replay`, and the Idempotency-Key.


@every_sdk
@streamed_or_not
async def test_options_of_the_service_go_into_the_body(ask, service, upstream, stream):
    upstream.script = say("Hello")
    id = f"chosen-{uuid.uuid4()}"
    options = {"id": id, "ttl": 60, "metadata": {"user": "u1"}}
    answer = await ask(service.url, "chat.completions.create", **CHAT, stream=stream, extra_body={"replay": options})
    assert "replay" not in upstream.calls[-1].request
    assert {chunk.id for chunk in (answer if stream else [answer])} == {id}
    kept = await service.ended(id)
    assert (kept["metadata"], kept["status"]) == ({"user": "u1"}, "completed")
    assert kept["expires_at"] - kept["ended"] == pytest.approx(60, abs=1)


@streamed_or_not
async def test_a_taken_id_is_a_conflict_at_once(service, upstream, stream):
    # given a client that would try twice more, on a connection that counts
    upstream.script = say("Hello")
    requests: list[Any] = []

    async def count(request: Any) -> None:
        requests.append(request)

    http_client = DefaultAsyncHttpxClient(trust_env=False, event_hooks={"request": [count]})
    async with ON_HTTPX.client(service.url, http_client=http_client, max_retries=2) as client:
        chosen = {"replay": {"id": f"chosen-{uuid.uuid4()}"}}
        await client.chat.completions.create(**CHAT, extra_body=chosen)
        requests.clear()

        # when it asks for the same id, then it hears so, once
        with pytest.raises(ConflictError) as raised:
            await client.chat.completions.create(**CHAT, stream=stream, extra_body=chosen)
    assert (raised.value.code, len(requests)) == ("generation_exists", 1)
    assert len(upstream.calls) == 1


@every_sdk
async def test_the_same_key_gets_the_same_answer_streamed_or_whole_on_any_node(
    ask, service, other_service, upstream, key
):
    upstream.script = say("Hel", "lo", usage=USAGE)
    answers = [
        await ask(url, "chat.completions.create", **CHAT, stream=stream, extra_headers=key)
        for url in (service.url, other_service.url)
        for stream in (True, False)
    ]
    assert answers[0] == answers[2]
    assert answers[1] == answers[3]
    assert text_of(answers[0]) == answers[1].choices[0].message.content == "Hello"
    assert answers[0][0].id == answers[1].id
    assert len(upstream.calls) == 1
    with pytest.raises(UnprocessableEntityError) as raised:
        await ask(service.url, "chat.completions.create", **CHAT, temperature=1, extra_headers=key)
    assert raised.value.code == "idempotency_key_reused"


async def test_of_clients_that_race_with_one_key_all_get_the_one_answer(service, other_service, upstream, key):
    upstream.script = generate(50)
    asked = [
        ON_HTTPX.ask(url, "chat.completions.create", **CHAT, stream=True, extra_headers=key)
        for url in [service.url, other_service.url] * 5
    ]
    first, *others = await asyncio.gather(*asked)
    assert all(other == first for other in others)
    assert len(upstream.calls) == 1


async def test_a_connection_that_is_lost_before_the_answer_is_made_good_by_the_sdk_itself(node, upstream, key):
    # given a client whose answer is on its way when the connection goes
    async with FaultProxy(node.url) as network, ON_HTTPX.client(network.url, max_retries=1) as client:
        network.hold_replies()
        asking = asyncio.create_task(client.chat.completions.create(**CHAT, stream=True, extra_headers=key))
        call = await upstream.called()
        await call.say("Hel")
        await network.reply_held()

        # when it is cut
        network.cut()
        network.release()

        # then the client asks again and reads from the first token on
        stream = await within("an answer", asking)
        first = await within("a chunk", anext(stream))
        await call.say("lo")
        await call.finish()
        assert text_of([first, *[chunk async for chunk in stream]]) == "Hello"
    assert len(upstream.calls) == 1


# Exactly once, with nothing but the SDK: a program that is killed, and started again.

_PROGRAM = """
import sys
from openai import OpenAI

url, key = sys.argv[1:]
client = OpenAI(base_url=url, api_key="none")
stream = client.chat.completions.create(
    model="test-model",
    messages=[{"role": "user", "content": "Hi"}],
    stream=True,
    extra_headers={"Idempotency-Key": key},
)
for chunk in stream:
    if chunk.choices and chunk.choices[0].delta.content:
        print(chunk.choices[0].delta.content, flush=True)
print("over", flush=True)
"""


@pytest.mark.parametrize("place", ["the same node", "another node"])
async def test_a_program_that_is_killed_and_started_again_prints_the_whole_answer(make_node, upstream, key, place):
    # given a program that has printed three tokens when it is killed
    node = await make_node()
    words = [f"word{number}" for number in range(8)]
    arguments = ("-c", _PROGRAM, f"{node.url}/v1", key["Idempotency-Key"])
    async with running(sys.executable, *arguments) as program:
        call = await upstream.called()
        for word in words[:3]:
            await call.say(word)
        await program.has(3)
        await program.kill()
    assert program.lines == words[:3]

    # and a model that goes on meanwhile
    for word in words[3:6]:
        await call.say(word)
    if place == "another node":
        node = await make_node()
        arguments = ("-c", _PROGRAM, f"{node.url}/v1", key["Idempotency-Key"])

    # when it is started again
    async with running(sys.executable, *arguments) as program:
        await program.has(6)
        for word in words[6:]:
            await call.say(word)
        await call.finish()

        # then it prints everything from the first token on, and nobody has paid twice
        assert await program.ended() == [*words, "over"]
    assert len(upstream.calls) == 1

    # and once more when all is over
    async with running(sys.executable, *arguments) as program:
        assert await program.ended() == [*words, "over"]
    assert len(upstream.calls) == 1
