"""Responses that go on from an earlier one: what the upstream hears then, and what cannot be continued."""

from __future__ import annotations

import json

import pytest
from support.both_ways import World
from support.deadlines import eventually
from support.responses import TOOL, becomes, begin, heard, run, text_in
from support.scripts import chunks, finish, fragment
from support.upstream import Script, respond, said, say
from support.v1 import ERROR, INPUT, RESPONSES_PATH, ask, assert_refused, id_of, new_id

GIVEN = {"role": "user", "content": [{"type": "input_text", "text": "How is it in Paris?"}]}
OUTPUT_OF_CALL = {"type": "function_call_output", "call_id": "call_a", "output": "rain"}
HISTORY = [
    ("user", "How is it in Paris?"),
    ("call", "call_a", "get_weather", '{"city": "Paris"}'),
    ("output", "call_a", "rain"),
    ("assistant", "It rains."),
    ("user", "Sure?"),
    ("assistant", "Yes."),
    ("user", "And tomorrow?"),
]


def calls_for_weather(world: World) -> Script:
    """Call a function, and say nothing else."""
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    if not world.passes:
        return chunks(fragment(0, id="call_a", type="function", **function), finish("tool_calls"))
    item = {"id": "fc_upstream", "type": "function_call", "status": "completed", "call_id": "call_a", **function}
    created, in_progress, *_, completed = said(output=[item])
    begun = {"output_index": 0, "item": item | {"arguments": "", "status": "in_progress"}}
    place = {"item_id": "fc_upstream", "output_index": 0}
    events = [
        created,
        in_progress,
        {"type": "response.output_item.added", **begun},
        {"type": "response.function_call_arguments.delta", **place, "delta": function["arguments"]},
        {"type": "response.function_call_arguments.done", **place, **function},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        completed,
    ]
    return respond([event | {"sequence_number": number} for number, event in enumerate(events)])


async def test_a_conversation_goes_on_from_the_earlier_response(world):
    # given a first turn, in which the model calls a function
    world.upstream.script = calls_for_weather(world)
    first = await ask(world.here, INPUT | {"input": [GIVEN], "instructions": "Be brief.", "tools": [TOOL]})
    assert [item["type"] for item in first.json()["output"]] == ["function_call"]
    said = world.upstream.calls[0].request
    assert said["tools"] == [
        TOOL if world.passes else {"type": "function", "function": {k: v for k, v in TOOL.items() if k != "type"}}
    ]

    # when its output is given in a second turn, and more is asked in others, here and there, streamed or not
    turns = [
        (world.there, [OUTPUT_OF_CALL], "It rains.", {"stream": True}),
        (world.here, "Sure?", "Yes.", {"background": True}),
        (world.there, [{"role": "user", "content": "And tomorrow?"}], "No.", {}),
    ]
    ids = [id_of(first)]
    for api, given, text, form in turns:
        world.upstream.script = world.says(text)
        id = id_of(await ask(api, INPUT | {"input": given, "previous_response_id": ids[-1]} | form))
        found = await becomes(api, id, "completed")
        assert (found["previous_response_id"], text_in(found), found["instructions"]) == (ids[-1], text, None)
        ids.append(id)

    # then the upstream hears all that was said before each time, but for instructions, which are not handed on
    for call, turn in zip(world.upstream.calls[1:], (3, 5, 7), strict=True):
        assert heard(call) == HISTORY[:turn]
        assert "previous_response_id" not in call.request
        assert "instructions" not in call.request

    # and so it is listed
    for api in (world.here, world.there):
        listed = (await api.get(f"{RESPONSES_PATH}/{ids[-1]}/input_items", order="asc")).json()["data"]
        assert [item.get("type", "message") for item in listed] == [
            *("message", "function_call", "function_call_output", "message", "message", "message", "message")
        ]


async def test_a_conversation_branches(world):
    # given an answer, from which two go on
    world.upstream.script = world.says("One.")
    id = id_of(await ask(world.here, INPUT))
    for api, text in ((world.here, "left"), (world.there, "right")):
        await ask(api, INPUT | {"input": text, "previous_response_id": id})
    assert [heard(call)[-2:] for call in world.upstream.calls[1:]] == [
        [("assistant", "One."), ("user", "left")],
        [("assistant", "One."), ("user", "right")],
    ]


async def test_new_instructions_take_the_place_of_the_old(world):
    world.upstream.script = world.says("a")
    id = id_of(await ask(world.here, INPUT | {"instructions": "Be brief."}))
    found = (await ask(world.here, INPUT | {"instructions": "Be long.", "previous_response_id": id})).json()
    assert found["instructions"] == "Be long."
    sent = json.dumps(world.upstream.calls[1].request)
    assert "Be long." in sent
    assert "Be brief." not in sent


async def test_an_incomplete_response_is_continued(world):
    events = said("Val")
    events[-1]["type"] = "response.incomplete"
    events[-1]["response"] |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    world.upstream.script = respond(events) if world.passes else say("Val", reason="length")
    earlier = (await ask(world.here, INPUT)).json()
    assert earlier["status"] == "incomplete"
    world.upstream.script = world.says("key")
    assert (await ask(world.here, INPUT | {"input": "Go on", "previous_response_id": earlier["id"]})).status == 200
    assert heard(world.upstream.calls[1]) == [("user", "Hi"), ("assistant", "Val"), ("user", "Go on")]


@pytest.mark.parametrize(
    "earlier", ["unknown", "running", "failed", "cancelled", "not kept", "deleted", "expired", "a chat", "refused"]
)
async def test_what_cannot_be_continued_is_a_400_and_starts_nothing(world, earlier):
    # given something that is no response which is still here and was complete
    id = await _no_response(world, earlier)
    calls = len(world.upstream.calls)

    # when it is to be continued, then it is refused, and nothing is started
    for api in (world.here, world.there):
        for form in ({"stream": True}, {"stream": False}, {"background": True}, {"background": True, "stream": True}):
            chosen = new_id()
            body = INPUT | {"previous_response_id": id, "replay": {"id": chosen}} | form
            answer = await ask(api, body)
            assert_refused(answer, 400, "previous_response_not_found", "previous_response_id")
            assert answer.headers.get("replay-generation-id") is None
            assert (await api.get(f"/generations/{chosen}")).status == 404
    assert len(world.upstream.calls) == calls


async def _no_response(world: World, how: str) -> str:
    if how == "unknown":
        return "resp_67c9fdcecf488190bdd9a0409de3a1ec"
    if how in ("running", "cancelled", "failed"):
        id = await begin(world.here)
        call = await world.upstream.called()
        await world.speak(call, "a")
        if how == "cancelled":
            await world.here.post(f"{RESPONSES_PATH}/{id}/cancel")
        elif how == "failed":
            await call.cut()
            await world.here.ended(id)
        return id
    if how == "refused":
        world.upstream.script = lambda call: call.respond(400, ERROR)
        return await run(world.here)
    world.upstream.script = say("a") if how == "a chat" else world.says("a")
    if how == "a chat":
        return await world.here.run()
    id = await run(world.here, INPUT | {"store": how != "not kept", "replay": {"ttl": 1 if how == "expired" else 60}})
    if how == "deleted":
        await world.there.delete(f"{RESPONSES_PATH}/{id}")
    if how == "expired":
        for api in (world.here, world.there):
            await eventually(
                "its expiry",
                lambda: api.get(f"{RESPONSES_PATH}/{id}"),  # noqa: B023 - called at once
                lambda answer: answer.status == 404,
            )
    return id


async def test_a_request_that_was_too_large_to_be_kept_is_not_continued(world):
    world.upstream.script = world.says("a")
    id = id_of(await ask(world.here, INPUT | {"input": "x" * (256 << 10)}))
    answer = await ask(world.here, INPUT | {"previous_response_id": id})
    assert_refused(answer, 400, "previous_response_not_found", "max-kept-request-bytes")
    assert len(world.upstream.calls) == 1
