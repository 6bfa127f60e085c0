"""Tools that only OpenAI's own server knows, in Responses calls to an upstream that only knows chat completions."""

from __future__ import annotations

from typing import Any

import pytest
from support.api import Api
from support.http1 import request
from support.sse import messages
from support.upstream import Call, respond, said, say
from support.v1 import INPUT, RESPONSES_PATH, ask, id_of

FUNCTION = {"type": "function", "name": "get_time", "parameters": {"type": "object"}}
CRM = {"type": "namespace", "name": "crm", "description": "Customers.", "tools": [{"type": "function", "name": "find"}]}
SEARCH = {"type": "web_search", "external_web_access": False}
BODY: dict[str, Any] = INPUT | {"tools": [FUNCTION, CRM, SEARCH]}
CALLED = {"type": "function_call", "call_id": "call_1", "namespace": "crm", "name": "find", "arguments": '{"id": 7}'}


def said_of(item: dict[str, Any]) -> dict[str, Any]:
    """What stands in an item but for what the server that made it knows."""
    return {name: value for name, value in item.items() if name not in ("id", "status")}


async def calls_crm(call: Call) -> None:
    """Say that a customer is looked for, in pieces."""
    function = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "crm__find", "arguments": ""}}
    await call.send(call.chunk({"delta": {"role": "assistant", "tool_calls": [function]}}))
    for piece in ('{"id"', ": 7}"):
        await call.send(call.chunk({"delta": {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}}))
    await call.finish("tool_calls")


async def notice_of(api: Api, generation_id: str) -> str | None:
    answer = await api.get(f"/generations/{generation_id}/events", headers={"Accept": "application/json"})
    notice: str | None = answer.json()["events"][0].get("notice")
    return notice


@pytest.mark.parametrize("form", [{}, {"stream": True}, {"background": True}, {"background": True, "stream": True}])
@pytest.mark.parametrize("speaks", ["auto", "no"])
async def test_a_tool_that_no_chat_upstream_has_is_left_out_and_named(make_node, upstream, form, speaks):
    node = await make_node(upstream_responses=speaks)
    upstream.script = say("Hello")
    answer = await ask(node.api, BODY | form)
    assert answer.status == 200, answer
    generation_id = id_of(answer)
    if speaks == "no" or not form.get("background"):
        assert answer.headers["replay-ignored"] == "web_search"
    await node.api.ended(generation_id)
    assert [tool["function"]["name"] for tool in upstream.calls[0].request["tools"]] == ["get_time", "crm__find"]

    # then whoever looks at it later is told too
    assert (await node.api.get(f"{RESPONSES_PATH}/{generation_id}")).headers["replay-ignored"] == "web_search"
    notice = await notice_of(node.api, generation_id)
    assert notice is not None
    assert "web_search" in notice
    assert ("if it turns out" in notice) == (speaks == "auto")  # nobody knew when it was written


async def test_what_the_upstream_has_is_neither_left_out_nor_named(make_node, upstream):
    node = await make_node()
    upstream.speaks_responses = True
    upstream.script = respond(said("Hello"))
    for _ in range(2):  # the second one when it is known
        answer = await ask(node.api, BODY)
        assert "replay-ignored" not in answer.headers
        assert upstream.calls[-1].request["tools"] == BODY["tools"]
    assert await notice_of(node.api, id_of(answer)) is None


@pytest.mark.parametrize("store", [True, False])
async def test_a_call_into_a_namespace_comes_back_under_its_names_on_any_node_and_after_a_restart(
    make_node, upstream, store
):
    node, other = await make_node(), await make_node()
    upstream.script = calls_crm
    answer = await ask(node.api, BODY | {"stream": True, "store": store})
    events = [message.json() for message in messages(answer.body)]
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.delta", "function_call_arguments.done", "output_item.done", "completed"),
    ]
    assert said_of(events[2]["item"]) == CALLED | {"arguments": ""}
    assert said_of(events[6]["item"]) == CALLED
    assert events[5]["name"] == "find"
    assert [said_of(item) for item in events[7]["response"]["output"]] == [CALLED]

    # then it is the same elsewhere and later
    path = f"{RESPONSES_PATH}/{answer.headers['replay-generation-id']}"
    await node.restart()
    for api in (node.api, other.api):
        assert (await api.get(path)).json() == events[7]["response"]
        again = await request("GET", api.at(path, stream="true"))
        assert again.body == answer.body


@pytest.mark.parametrize("remembered", [True, False])
async def test_a_conversation_goes_on_with_the_call_under_the_name_that_the_upstream_knows(
    service, upstream, remembered
):
    upstream.script = calls_crm
    first = await ask(service, BODY)
    output = {"type": "function_call_output", "call_id": "call_1", "output": "Ada"}
    previous = {"previous_response_id": first.json()["id"], "input": [output]}
    written_out = {"input": [{"role": "user", "content": "Hi"}, *first.json()["output"], output], "store": False}
    upstream.script = say("It is Ada.")
    answer = await ask(service, BODY | (previous if remembered else written_out))
    assert answer.status == 200, answer
    function = {"name": "crm__find", "arguments": '{"id": 7}'}
    assert upstream.calls[-1].request["messages"] == [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Ada"},
    ]


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "web_search"},
        {"type": "file_search"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}]},
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_tool_that_is_demanded_is_not_left_out(service, upstream, choice, stream):
    answer = await ask(service, BODY | {"tool_choice": choice, "stream": stream})
    assert answer.status == 400, answer
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("invalid_request", "invalid_request_error")
    assert error["message"].split(":")[0].split(".")[0] == "tool_choice"
    assert "replay-ignored" not in answer.headers
    assert upstream.calls == []


async def test_only_a_tool_of_the_server_s_cannot_be_required(service, upstream):
    answer = await ask(service, BODY | {"tools": [SEARCH], "tool_choice": "required"})
    assert answer.status == 400, answer
    upstream.script = say("Hello")
    answer = await ask(service, BODY | {"tools": [SEARCH]})
    assert (answer.status, answer.headers["replay-ignored"]) == (200, "web_search")
    assert upstream.calls[0].request.keys().isdisjoint(("tools", "tool_choice"))
