"""Requests of the Responses API as chat-completions requests."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chunk_streams import values

from replay.errors import InvalidRequest
from replay.wire.responses import Responses
from replay.wire.responses_request import chat_request


def messages(*items: Any, **further: Any) -> list[dict[str, Any]]:
    """The messages that these items become."""
    said: list[dict[str, Any]] = chat_request({"input": list(items), **further})["messages"]
    return said


def said(role: str, *parts: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": list(parts)}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def function_call(call_id: str, arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "id": "fc", "call_id": call_id, "name": "f", "arguments": arguments}


def chat_call(call_id: str, arguments: str = "{}") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "f", "arguments": arguments}}


def output(call_id: str, what: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": what}


# The conversation.


def test_text_is_what_the_user_says():
    assert chat_request({"model": "m", "input": "Hi"}) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
    }


def test_instructions_come_first():
    assert messages({"role": "user", "content": "Hi"}, instructions="be brief") == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "Hi"},
    ]
    assert messages({"role": "user", "content": "Hi"}, instructions=None) == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("role", "expected"),
    [("user", "user"), ("system", "system"), ("developer", "system"), ("assistant", "assistant")],
)
def test_message_needs_no_type(role, expected):
    for kind in ({}, {"type": None}, {"type": "message"}):
        assert messages({**kind, "role": role, "content": "Hi"}) == [{"role": expected, "content": "Hi"}]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([{"type": "input_text", "text": "a"}], "a"),
        ([{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}], [text_part("a"), text_part("b")]),
        (
            [{"type": "input_image", "image_url": "data:x", "detail": "low", "file_id": None}],
            [{"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}}],
        ),
        (
            [{"type": "input_image", "image_url": "https://x"}],
            [{"type": "image_url", "image_url": {"url": "https://x"}}],
        ),
        (
            [{"type": "input_file", "file_data": "data:x", "filename": "x.pdf"}],
            [{"type": "file", "file": {"file_data": "data:x", "filename": "x.pdf"}}],
        ),
        ([{"type": "input_file", "file_id": "file_1"}], [{"type": "file", "file": {"file_id": "file_1"}}]),
        (
            [{"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}],
            [{"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}],
        ),
    ],
)
def test_parts_of_a_message(parts, expected):
    assert messages(said("user", *parts)) == [{"role": "user", "content": expected}]


def test_parts_of_an_answer_are_its_text_and_its_refusal():
    texts = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []} for text in "ab"]
    refusal = {"type": "refusal", "refusal": "No"}
    assert messages(said("assistant", *texts)) == [{"role": "assistant", "content": "ab"}]
    assert messages(said("assistant", refusal)) == [{"role": "assistant", "content": None, "refusal": "No"}]
    assert messages(said("assistant", *texts, refusal)) == [{"role": "assistant", "content": "ab", "refusal": "No"}]
    assert messages(said("assistant")) == []


def test_conversation_with_tools_over_several_turns():
    assert messages(
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        said("assistant", {"type": "output_text", "text": "I look."}),
        function_call("a"),
        {"type": "reasoning", "id": "rs", "summary": []},
        function_call("b", "[]"),
        output("a", "rain"),
        output("b", [{"type": "input_text", "text": "5 °C"}]),
        function_call("c"),
        output("c", [{"type": "input_text", "text": "x"}, {"type": "input_text", "text": "y"}]),
        {"type": "custom_tool_call", "call_id": "d", "name": "f", "input": "raw"},
        {"type": "custom_tool_call_output", "call_id": "d", "output": ""},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "Thanks."},
    ) == [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [chat_call("a"), chat_call("b", "[]")]},
        {"role": "tool", "tool_call_id": "a", "content": "rain"},
        {"role": "tool", "tool_call_id": "b", "content": "5 °C"},
        {"role": "assistant", "content": None, "tool_calls": [chat_call("c")]},
        {"role": "tool", "tool_call_id": "c", "content": [text_part("x"), text_part("y")]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "d", "type": "custom", "custom": {"name": "f", "input": "raw"}}],
        },
        {"role": "tool", "tool_call_id": "d", "content": ""},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "Thanks."},
    ]


def test_what_is_said_after_a_call_stands_in_the_message_of_the_call():
    # Nothing may stand between the calls of a chat message and their outputs.
    answers = [{"role": "assistant", "content": text} for text in "ab"]
    assert messages(answers[0], function_call("a"), answers[1], output("a", "x")) == [
        {"role": "assistant", "content": "ab", "tool_calls": [chat_call("a")]},
        {"role": "tool", "tool_call_id": "a", "content": "x"},
    ]
    assert messages(*answers) == [{"role": "assistant", "content": text} for text in "ab"]


def test_what_another_server_has_done_by_itself_is_told_by_what_it_said_of_it():
    searched = {
        "type": "web_search_call",
        "id": "ws",
        "status": "completed",
        "action": {"type": "search", "query": "x"},
    }
    answer = {"role": "assistant", "content": "It rains."}
    user = {"role": "user", "content": "Weather?"}
    assert messages(user, searched, answer) == [user, answer]


def test_what_a_tool_shows_follows_all_outputs_as_a_message_of_the_user():
    # A tool's message holds text alone, and nothing may stand between the outputs of one message's calls.
    image, picture = (
        {"type": "input_image", "image_url": "data:x"},
        {"type": "image_url", "image_url": {"url": "data:x"}},
    )
    written = {"type": "input_text", "text": "x"}
    assert messages(
        function_call("a"),
        function_call("b"),
        output("a", [image]),
        {"type": "reasoning", "id": "rs", "summary": []},
        output("b", [written, image]),
        function_call("c"),
        output("c", [image, written, written]),
    ) == [
        {"role": "assistant", "content": None, "tool_calls": [chat_call("a"), chat_call("b")]},
        {"role": "tool", "tool_call_id": "a", "content": "The next message of the user shows it."},
        {"role": "tool", "tool_call_id": "b", "content": "x"},
        {"role": "user", "content": [picture, picture]},
        {"role": "assistant", "content": None, "tool_calls": [chat_call("c")]},
        {"role": "tool", "tool_call_id": "c", "content": [text_part("x"), text_part("x")]},
        {"role": "user", "content": [picture]},
    ]


def test_output_of_a_response_is_input_of_the_next_request():
    responses = Responses("gen_unit", model="m", created_at=0, request={})
    call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}
    for delta in ({"reasoning_content": "hm"}, {"content": "I look."}, {"tool_calls": [call]}, {"content": " Now."}):
        responses.add({"choices": [{"index": 0, "delta": delta}]})
    responses.end("completed", None, 1)
    assert messages(*responses.response["output"], output("a", "rain")) == [
        {"role": "assistant", "content": "I look. Now.", "tool_calls": [chat_call("a")]},
        {"role": "tool", "tool_call_id": "a", "content": "rain"},
    ]


# The parameters.


def parameters(**body: Any) -> dict[str, Any]:
    """What these parameters become."""
    return {key: value for key, value in chat_request({"input": "Hi", **body}).items() if key != "messages"}


_FLAT = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
_NESTED = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": False}}
_SCHEMA = {"name": "n", "schema": {"type": "object"}, "strict": True, "description": "d"}
_GRAMMAR = {"definition": "start: x", "syntax": "lark"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"max_output_tokens": 5}, {"max_tokens": 5}),
        ({"max_output_tokens": None, "reasoning": None, "text": None, "tools": None, "include": None}, {}),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {"verbosity": "low"}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": {"type": "json_schema", **_SCHEMA}}},
            {"response_format": {"type": "json_schema", "json_schema": _SCHEMA}},
        ),
        ({"reasoning": {"effort": "high", "summary": "auto"}}, {"reasoning_effort": "high"}),
        ({"tools": [_FLAT]}, {"tools": [_NESTED]}),
        (
            {"tools": [{"type": "function", "name": "f", "description": "d", "parameters": None, "strict": None}]},
            {"tools": [{"type": "function", "function": {"name": "f", "description": "d"}}]},
        ),
        ({"tools": [{"type": "custom", "name": "f"}]}, {"tools": [{"type": "custom", "custom": {"name": "f"}}]}),
        (
            {"tools": [{"type": "custom", "name": "f", "format": {"type": "text"}}]},
            {"tools": [{"type": "custom", "custom": {"name": "f", "format": {"type": "text"}}}]},
        ),
        (
            {"tools": [{"type": "custom", "name": "f", "format": {"type": "grammar", **_GRAMMAR}}]},
            {
                "tools": [
                    {"type": "custom", "custom": {"name": "f", "format": {"type": "grammar", "grammar": _GRAMMAR}}}
                ]
            },
        ),
        (
            {"tools": [_FLAT], "tool_choice": "required", "parallel_tool_calls": False},
            {"tools": [_NESTED], "tool_choice": "required", "parallel_tool_calls": False},
        ),
        (
            {"tools": [_FLAT], "tool_choice": {"type": "function", "name": "f"}},
            {"tools": [_NESTED], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        ),
        (
            {"tools": [_FLAT], "tool_choice": {"type": "custom", "name": "f"}},
            {"tools": [_NESTED], "tool_choice": {"type": "custom", "custom": {"name": "f"}}},
        ),
        (
            {
                "tools": [_FLAT],
                "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
            },
            {
                "tools": [_NESTED],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
                },
            },
        ),
        # Servers refuse these without tools.
        ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}, {}),
        ({"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"top_logprobs": 0}, {}),
        ({"include": ["message.output_text.logprobs", "reasoning.encrypted_content"]}, {"logprobs": True}),
        ({"include": ["reasoning.encrypted_content"]}, {}),
    ],
)
def test_parameters_are_translated(body, expected):
    assert parameters(**body) == expected


def test_parameters_of_the_same_name_and_unknown_ones_go_over_as_they_are():
    same = {
        "model": "m",
        "temperature": 0.5,
        "top_p": 0.9,
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "service_tier": "flex",
        "seed": 7,
        "chat_template_kwargs": {"enable_thinking": False},
        "min_p": None,
    }
    assert parameters(**same) == same


def test_what_only_the_responses_server_does_is_left_out():
    assert parameters(client_metadata={"session_id": "s"}) == {}
    assert parameters(stream=True, stream_options={"include_obfuscation": False}, background=True, store=True) == {}
    assert parameters(metadata={"a": "b"}) == {}
    assert parameters(truncation="auto", max_tool_calls=3, previous_response_id="gen_1", prompt=None) == {}


# What cannot be said.


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "input: expected a text or a list of items, got nothing"),
        ({"input": ""}, "input: expected a text or a list of items, got ''"),
        ({"input": []}, "input: expected a text or a list of items, got a list"),
        ({"input": {}}, "input: expected a text or a list of items, got an object"),
        ({"input": ["x"]}, "input[0]: expected an object, got 'x'"),
        ({"input": [{"type": "item_reference", "id": "msg"}]}, "input[0].type: expected one of message, "),
        ({"input": [{"id": "msg"}]}, "input[0].type: expected one of message, "),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role: expected one of user, assistant, "),
        ({"input": [{"role": "user"}]}, "input[0].content: expected a text or a list of parts, not empty, got nothing"),
        ({"input": [{"role": "assistant"}]}, "input[0].content: expected a text or a list of parts, got nothing"),
        ({"input": [{"role": "user", "content": 1}]}, "input[0].content: expected a list, got 1"),
        ({"input": [said("user", {"type": "video"})]}, "input[0].content[0].type: expected one of input_text, "),
        ({"input": [said("user", {"type": "input_text"})]}, "input[0].content[0].text: expected a string, got nothing"),
        ({"input": [said("user", {"type": "input_image", "file_id": "f"})]}, "input[0].content[0].image_url: "),
        ({"input": [said("user", {"type": "input_file", "file_url": "u"})]}, "input[0].content[0].file_data: "),
        ({"input": [said("assistant", {"type": "input_image"})]}, "input[0].content[0].type: expected one of "),
        ({"input": [output("a", [{"type": "input_image"}])]}, "input[0].output[0].image_url: expected a string"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id: expected a string"),
        ({"instructions": ["x"]}, "instructions: expected a string, got a list"),
        ({"prompt": {"id": "p"}}, "prompt: expected nothing"),
        ({"conversation": "conv_1"}, "conversation: expected nothing"),
        ({"tools": [_NESTED]}, "tools[0].name: expected a string, got nothing"),
        ({"tools": {}}, "tools: expected a list, got an object"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice.type: expected one of function, custom, allowed_tools, "),
        ({"tool_choice": 1}, "tool_choice: expected a string or an object, got 1"),
        ({"text": "x"}, "text: expected an object, got 'x'"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type: expected one of text, json_object, json_schema, "),
        ({"reasoning": "high"}, "reasoning: expected an object, got 'high'"),
        ({"include": "x"}, "include: expected a list, got 'x'"),
    ],
)
def test_what_a_chat_request_cannot_say_is_refused_by_name(body, message):
    with pytest.raises(InvalidRequest) as refused:
        chat_request(body if "input" in body or not body else {"input": "Hi", **body})
    assert str(refused.value).startswith(message)


_WHOLE = {
    "model": "m",
    "instructions": "be brief",
    "input": [
        said("user", {"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "data:x"}),
        said("assistant", {"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "No"}),
        function_call("a") | {"namespace": "n"},
        output("a", [{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": "data:x"}]),
        said("user", {"type": "input_file", "file_id": "f"}, {"type": "input_audio", "input_audio": {}}),
    ],
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}, "verbosity": "low"},
    "reasoning": {"effort": "low"},
    "tools": [
        _FLAT,
        {"type": "custom", "name": "g", "format": {"type": "grammar", **_GRAMMAR}},
        {"type": "namespace", "name": "n", "description": "d", "tools": [_FLAT]},
        {"type": "web_search"},
    ],
    "tool_choice": {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "f", "namespace": "n"}, {"type": "namespace", "name": "n"}],
    },
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 2,
    "max_output_tokens": 5,
}


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is something inside, at any depth."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in inside for found in [(*place, key), *_places(inner, (*place, key))]]


@st.composite
def _damaged(draw: st.DrawFn) -> dict[str, Any]:
    """A whole request with anything at all in one place."""
    body = copy.deepcopy(_WHOLE)
    *path, last = draw(st.sampled_from(_places(body)))
    holder: Any = body
    for key in path:
        holder = holder[key]
    holder[last] = draw(values)
    return body


@given(body=_damaged() | st.dictionaries(st.sampled_from([*_WHOLE, "prompt"]) | st.text(), values))
@settings(max_examples=500, deadline=None)
def test_any_request_is_translated_or_refused(body):
    before = copy.deepcopy(body)
    try:
        translated = chat_request(body)
    except InvalidRequest:
        pass
    else:
        assert translated["messages"]
    assert body == before


def test_whole_request_is_translated():
    assert len(chat_request(_WHOLE)["messages"]) == 6
