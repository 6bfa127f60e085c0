"""The official package and the Responses API, in all three ways of using it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from openai import APIError, NotFoundError, RateLimitError
from support.deadlines import eventually, within
from support.samples import SAMPLES
from support.sdk import AT_ONCE_S, CITY, City, every_sdk, has, streamed_or_not, types
from support.upstream import USAGE, play, respond, said, say
from support.v1 import INPUT

pytestmark = pytest.mark.slow


@every_sdk
async def test_a_response_streams_and_comes_whole(ask, service, upstream):
    upstream.script = say("Hel", "lo", usage=USAGE)
    shown = await ask(service.url, "responses.create", **INPUT, stream=True)
    assert [event.sequence_number for event in shown] == list(range(len(shown)))
    assert (types(shown)[0], types(shown)[-1]) == ("created", "completed")
    assert [event.delta for event in shown if event.type == "response.output_text.delta"] == ["Hel", "lo"]
    streamed = shown[-1].response
    assert (streamed.status, streamed.output_text, streamed.error) == ("completed", "Hello", None)
    assert (streamed.usage.input_tokens, streamed.usage.output_tokens, streamed.usage.total_tokens) == (5, 7, 12)
    assert await ask(service.url, "responses.retrieve", response_id=streamed.id) == streamed

    whole = await ask(service.url, "responses.create", **INPUT)
    assert (whole.status, whole.output_text, whole.usage) == ("completed", "Hello", streamed.usage)
    assert whole.id != streamed.id
    assert await ask(service.url, "responses.retrieve", response_id=whole.id) == whole


async def test_the_response_stream_helper_parses_text_and_tool_calls(client, upstream):
    upstream.script = say(*CITY)
    async with client.responses.stream(**INPUT, text_format=City) as stream:
        deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        response = await stream.get_final_response()
    assert (deltas, response.output_parsed) == (list(CITY), City(name="Paris", people=2_100_000))
    assert (await client.responses.parse(**INPUT, text_format=City)).output_parsed == response.output_parsed

    upstream.script = play(SAMPLES["09-tool_calls-parallel"])
    async with client.responses.stream(**INPUT) as stream:
        response = await stream.get_final_response()
    assert [(item.type, item.call_id, item.name, item.arguments) for item in response.output] == [
        ("function_call", "call__Jpw_dlnOgeM7c9t", "get_weather", '{"city":"Paris"}'),
        ("function_call", "call_H4UY_by5qR7nOFIY", "get_time", '{"tz":"CET"}'),
    ]


@every_sdk
async def test_a_response_of_an_upstream_that_speaks_the_api_passes_through(ask, make_node, upstream):
    upstream.speaks_responses = True
    upstream.script = respond(said("Hel", "lo"))
    node = await make_node()
    shown = await ask(node.url, "responses.create", **INPUT, stream=True)
    assert types(shown) == [event["type"].removeprefix("response.") for event in said("Hel", "lo")]
    assert (shown[-1].response.output_text, shown[-1].response.usage.total_tokens) == ("Hello", 12)
    assert (await ask(node.url, "responses.create", **INPUT)).output_text == "Hello"


@every_sdk
async def test_a_response_in_the_background_is_followed_from_any_event_on_any_node(
    ask, service, other_service, upstream
):
    # given one whose client has left
    response = await ask(service.url, "responses.create", **INPUT, background=True)
    assert response.status in ("queued", "in_progress")
    call = await upstream.called()
    await call.say("Hel")
    await service.has(response.id, 2)

    # when others follow it, from its start or from what they have, while it goes on
    followers = []
    for api in (service, other_service):
        shown: list[Any] = []
        following = ask(api.url, "responses.retrieve", shown, response_id=response.id, stream=True)
        followers.append((shown, asyncio.create_task(following)))
    for shown, task in followers:
        await has(shown, 1, task)
    await call.say("lo")
    await call.finish(usage=USAGE)

    # then all have the same events, and what comes after each of them is exactly the rest
    whole, other = [await within("the end", task) for _, task in followers]
    assert whole == other
    assert types(whole)[-1] == "completed"
    for number in range(len(whole)):
        rest = await ask(
            other_service.url, "responses.retrieve", response_id=response.id, stream=True, starting_after=number
        )
        assert rest == whole[number + 1 :]
    done = await ask(other_service.url, "responses.retrieve", response_id=response.id)
    assert (done.status, done.output_text, done.background) == ("completed", "Hello", True)
    assert len(upstream.calls) == 1


@every_sdk
async def test_a_cancelled_response_ends_its_stream_without_an_error(ask, service, upstream):
    shown: list[Any] = []
    asking = asyncio.create_task(ask(service.url, "responses.create", shown, **INPUT, background=True, stream=True))
    call = await upstream.called()
    await call.say("Hel")

    async def deltas() -> list[str]:
        return [kind for kind in types(shown) if kind == "output_text.delta"]

    await eventually("a delta", deltas)
    id = shown[0].response.id
    assert (await ask(service.url, "responses.cancel", response_id=id)).status == "cancelled"
    await within("the end of the stream", asking)
    assert not {"completed", "failed", "incomplete"} & set(types(shown))
    kept = await ask(service.url, "responses.retrieve", response_id=id)
    assert (kept.status, kept.output_text) == ("cancelled", "Hel")
    await call.hung_up()


@every_sdk
async def test_a_deleted_response_is_gone(ask, service, upstream):
    upstream.script = say("Hello")
    made = await ask(service.url, "responses.create", **INPUT)
    await ask(service.url, "responses.delete", response_id=made.id)
    for call in ("retrieve", "delete", "cancel"):
        with pytest.raises(NotFoundError):
            await ask(service.url, f"responses.{call}", response_id=made.id)


@every_sdk
async def test_a_response_that_the_upstream_cuts_has_failed(ask, service, upstream):
    shown: list[Any] = []
    asking = asyncio.create_task(ask(service.url, "responses.create", shown, **INPUT, stream=True))
    call = await upstream.called()
    await call.say("Hel")
    await has(shown, 1, asking)
    await call.cut()
    with contextlib.suppress(APIError):  # the SDK may be told so or so, but told it must be
        await within("the end", asking)
        assert types(shown)[-1] == "failed"
        assert shown[-1].response.error.message
    kept = await ask(service.url, "responses.retrieve", response_id=shown[0].response.id)
    assert (kept.status, kept.output_text) == ("failed", "Hel")
    assert kept.error is not None


@every_sdk
@streamed_or_not
async def test_a_response_is_refused_with_the_upstreams_status_and_body(ask, service, upstream, stream):
    sample = SAMPLES["25-429-retry-after"]
    upstream.script = play(sample)
    with pytest.raises(RateLimitError) as raised:
        await within("a refusal", ask(service.url, "responses.create", **INPUT, stream=stream), AT_ONCE_S)
    assert raised.value.response.text == sample.body.decode()
    assert raised.value.response.headers["retry-after"] == sample.headers["retry-after"]


@every_sdk
async def test_a_response_continues_another_and_its_input_can_be_had(ask, service, upstream):
    upstream.script = say("Yes?")
    first = await ask(service.url, "responses.create", **INPUT, instructions="Be brief.")
    upstream.script = say("Well.")
    second = await ask(
        service.url, "responses.create", model="test-model", input="How are you?", previous_response_id=first.id
    )
    assert (second.previous_response_id, second.output_text) == (first.id, "Well.")
    asked = [(message["role"], message["content"]) for message in upstream.calls[-1].request["messages"]]
    assert asked == [("user", "Hi"), ("assistant", "Yes?"), ("user", "How are you?")]
    items = await ask(service.url, "responses.input_items.list", response_id=second.id, limit=1, order="asc")
    assert [(item.role, item.content[0].text) for item in items] == asked
