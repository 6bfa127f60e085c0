"""The tools of a Responses request as a chat request can name them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.errors import InvalidRequest
from replay.wire.responses import Responses
from replay.wire.responses_request import chat_request
from replay.wire.responses_tools import tools_of

SEARCH = {"type": "web_search", "external_web_access": False}
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}


def namespace(name: str, *tools: Any) -> dict[str, Any]:
    listed = [{"type": "function", "name": tool} if isinstance(tool, str) else tool for tool in tools]
    return {"type": "namespace", "name": name, "description": "d", "tools": listed}


def asked(*tools: Any, said: Any = "Hi", **further: Any) -> dict[str, Any]:
    """The chat request of one with these tools."""
    return chat_request({"input": said, "tools": list(tools), **further})


def names(*tools: Any) -> list[str]:
    """What these tools are named in the chat."""
    return [tool[tool["type"]]["name"] for tool in tools_of({"tools": list(tools)}).listed]


def test_tools_of_a_namespace_are_listed_under_both_names():
    grammar = {"type": "custom", "name": "patch", "format": {"type": "text"}}
    listed = asked(FUNCTION, namespace("crm", {**FUNCTION, "strict": True, "defer_loading": True}, grammar))["tools"]
    assert listed == [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
        {"type": "function", "function": {"name": "crm__f", "parameters": {"type": "object"}, "strict": True}},
        {"type": "custom", "custom": {"name": "crm__patch", "format": {"type": "text"}}},
    ]


def test_name_that_no_chat_takes_is_made_one_of_its_own():
    long = "l" * 70
    found = names(namespace("a b", "ü.x"), namespace("c", long, f"{long}m", "x"), namespace(long, "y"))
    assert len(set(found)) == len(found) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in found)
    assert found[0].startswith("a_b____x_")


@pytest.mark.parametrize(
    "tools",
    [
        [namespace("a", "b__c"), namespace("a__b", "c")],
        [{"type": "function", "name": "a__b"}, namespace("a", "b")],
        [namespace("a", "b"), {"type": "function", "name": "a__b"}],
    ],
)
def test_names_that_would_be_the_same_are_told_apart(tools):
    found = names(*tools)
    assert len(set(found)) == 2
    assert "a__b" in found or "a__b__c" in found


_word = st.text(st.sampled_from("ab_-. é"), max_size=70)
_listed = st.one_of(
    st.builds(lambda name: {"type": "function", "name": name}, _word),
    st.builds(lambda name, tools: namespace(name, *tools), _word, st.lists(_word, max_size=3, unique=True)),
)


@given(st.lists(_listed, max_size=6))
@settings(max_examples=300, deadline=None)
def test_every_call_comes_back_under_the_name_that_the_request_has(listed):
    # given tools, each named once
    pairs = [
        (tool["name"], inner["name"]) if tool["type"] == "namespace" else (None, tool["name"])
        for tool in listed
        for inner in tool.get("tools", [tool])
    ]
    if len(set(pairs)) < len(pairs):
        return

    # when each is called
    tools = tools_of({"tools": listed})
    calls = [
        {"index": index, "id": f"call_{index}", "function": {"name": tool["function"]["name"], "arguments": "{}"}}
        for index, tool in enumerate(tools.listed)
    ]
    view = Responses("gen_1", model="m", created_at=1, request={}, names=tools.namespaced)
    view.start()
    view.add({"choices": [{"index": 0, "delta": {"tool_calls": calls}}]})

    # then it is named as it was asked for, and goes over again as it came
    assert [(item.get("namespace"), item["name"]) for item in view.response["output"]] == pairs
    if pairs:
        again = chat_request({"input": view.response["output"], "tools": listed})["messages"][0]["tool_calls"]
        assert [call["function"]["name"] for call in again] == [call["function"]["name"] for call in calls]


def test_events_of_a_call_name_its_namespace():
    names = {"crm__get": ["crm", "get"], "crm__write": ["crm", "write"]}
    view = Responses("gen_1", model="m", created_at=1, request={}, names=names)
    fragments = [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "crm__get", "arguments": "{}"}},
        {"index": 1, "id": "b", "type": "custom", "custom": {"name": "crm__write", "input": "x"}},
        {"index": 2, "id": "c", "type": "function", "function": {"name": "crm__made_up", "arguments": "{}"}},
    ]
    events = [event for each in fragments for event in view.add({"choices": [{"delta": {"tool_calls": [each]}}]})]
    events += view.end("completed", None, 2)
    named = [
        (event["type"].removeprefix("response."), about.get("namespace"), about["name"])
        for event in events
        if "name" in (about := event.get("item", event))
    ]
    assert named == [
        ("output_item.added", "crm", "get"),
        ("output_item.added", "crm", "write"),
        ("output_item.added", None, "crm__made_up"),
        ("function_call_arguments.done", "crm", "get"),
        ("output_item.done", "crm", "get"),
        ("output_item.done", "crm", "write"),
        ("function_call_arguments.done", None, "crm__made_up"),
        ("output_item.done", None, "crm__made_up"),
    ]


def test_call_of_a_tool_that_is_not_listed_any_more_keeps_its_name():
    call = {"type": "function_call", "call_id": "c", "namespace": "crm", "name": "f", "arguments": "{}"}
    for tools in ([], [namespace("crm", "f")], [namespace("other", "f")]):
        (message,) = asked(*tools, said=[call])["messages"]
        assert message["tool_calls"][0]["function"]["name"] == "crm__f"


def test_tools_that_the_server_would_run_are_left_out_and_named_once():
    tools = [
        SEARCH,
        FUNCTION,
        {"type": "mcp", "server_label": "l"},
        SEARCH,
        namespace("n", {"type": "local_shell"}, "f"),
    ]
    assert names(*tools) == ["f", "n__f"]
    assert tools_of({"tools": tools}).ignored == ["web_search", "mcp", "local_shell"]
    assert "tools" not in asked(SEARCH, tool_choice="auto", parallel_tool_calls=True)
    assert "tool_choice" not in asked(SEARCH, tool_choice="auto", parallel_tool_calls=True)


def allowed(mode: str, *tools: dict[str, Any]) -> dict[str, Any]:
    return {"type": "allowed_tools", "mode": mode, "tools": list(tools)}


def chosen(*names: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name}} for name in names]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("required", "required"),
        ({"type": "function", "name": "f", "namespace": "crm"}, *chosen("crm__f")),
        ({"type": "function", "name": "f", "namespace": None}, *chosen("f")),
        (allowed("auto", {"type": "web_search"}), "none"),
        (
            allowed("required", {"type": "web_search"}, {"type": "function", "name": "f"}),
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": chosen("f")}},
        ),
        (
            allowed("auto", {"type": "namespace", "name": "crm"}, {"type": "function", "name": "h", "namespace": "n"}),
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": chosen("crm__f", "crm__g", "n__h")}},
        ),
    ],
)
def test_choice_names_what_is_listed(choice, expected):
    tools = [SEARCH, FUNCTION, namespace("crm", "f", "g"), namespace("n", "h")]
    assert asked(*tools, tool_choice=choice)["tool_choice"] == expected


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        ([SEARCH, FUNCTION], {"type": "web_search"}),
        ([SEARCH, FUNCTION], {"type": "mcp", "server_label": "l"}),
        ([SEARCH], "required"),
        ([SEARCH, FUNCTION], allowed("required", {"type": "web_search"})),
    ],
)
def test_choice_that_demands_what_is_left_out_is_refused(tools, choice):
    with pytest.raises(InvalidRequest, match=r"^tool_choice.*only knows chat completions"):
        asked(*tools, tool_choice=choice)


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ([{}], "tools[0].type: expected a string, got nothing"),
        ([{"type": "web search"}], "tools[0].type: expected the type of a tool, got 'web search'"),
        ([{"type": f"t{number}"} for number in range(33)], "tools: expected at most 32 types"),
        ([{"type": "namespace", "tools": [FUNCTION]}], "tools[0].name: expected a string, got nothing"),
        ([namespace("n", 5)], "tools[0].tools[0]: expected an object, got 5"),
        ([namespace("n", {"type": "function"})], "tools[0].tools[0].name: expected a string, got nothing"),
        ([{"type": "namespace", "name": "n", "tools": {}}], "tools[0].tools: expected a list, got an object"),
        (
            [namespace("n", *(f"{number:060}" for number in range(1000)))],
            "tools: expected at most 65536 bytes of names",
        ),
    ],
)
def test_what_is_no_list_of_tools_is_refused_by_place(tools, message):
    with pytest.raises(InvalidRequest) as refused:
        asked(*tools)
    assert str(refused.value).startswith(message)
