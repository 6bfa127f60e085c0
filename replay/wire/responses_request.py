"""A request of OpenAI's Responses API as the chat-completions request that says the same.

For upstreams that only know chat completions. What a chat request has under the same name goes over as
it is, and so does what neither API knows: people send their server's own parameters along. What would
only tell a Responses server how to keep or to send its answer is left out. What a chat request cannot
say is refused, rather than answered as if it had not been asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from replay.errors import InvalidRequest

_V = TypeVar("_V")
Object = dict[str, Any]
_Translation = Callable[[Object, str], Object]  # of an object, given its place for what it may have to say

# What other fields of the chat request say.
_TRANSLATED = frozenset(
    ("input", "instructions", "max_output_tokens", "text", "reasoning", "tools", "tool_choice", "top_logprobs")
)
_OF_THE_SERVER = frozenset(
    (
        *("stream", "stream_options", "background", "store", "include", "truncation", "max_tool_calls"),
        "previous_response_id",  # what it stands for is part of the input by now
        "metadata",  # it is kept here; OpenAI refuses it in a chat request that is not to be stored
    )
)
_UNSAYABLE = ("prompt", "conversation", "context_management")
_NOT_KEPT = _TRANSLATED | _OF_THE_SERVER | frozenset(_UNSAYABLE)
_ABOUT_TOOLS = ("tool_choice", "parallel_tool_calls")


def chat_request(body: Object) -> Object:
    """Translate one request; raises InvalidRequest, which names the field."""
    for field in _UNSAYABLE:
        if body.get(field) is not None:
            raise InvalidRequest(f"{field}: expected nothing, since the upstream only knows chat completions")
    translated = {
        "messages": _messages(body),
        # Not `max_completion_tokens`: many servers only know the older name.
        "max_tokens": body.get("max_output_tokens"),
        "tools": [_translated(tool, _TOOLS, place) for tool, place in _objects(body, "tools")] or None,
        "tool_choice": _tool_choice(body.get("tool_choice")),
        "reasoning_effort": _object(body, "reasoning").get("effort"),
        **_text(_object(body, "text")),
        **_logprobs(body),
    }
    request = {key: value for key, value in body.items() if key not in _NOT_KEPT}
    request |= {key: value for key, value in translated.items() if value is not None}
    if "tools" not in request:  # without tools servers refuse what says how to use them
        request = {key: value for key, value in request.items() if key not in _ABOUT_TOOLS}
    return request


# Reading what may be anything.


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else repr(value)[:80]


def _unexpected(place: str, expected: str, value: Any) -> InvalidRequest:
    return InvalidRequest(f"{place}: expected {expected}, got {_shown(value)}")


def _at(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _string(holder: Object, key: str, place: str = "") -> str:
    """The string under a key, which must be there."""
    value = holder.get(key)
    if not isinstance(value, str):
        raise _unexpected(_at(place, key), "a string", value)
    return value


def _object(holder: Object, key: str, place: str = "") -> Object:
    """The object under a key; empty where there is none."""
    value = holder.get(key)
    if not isinstance(value, dict | None):
        raise _unexpected(_at(place, key), "an object", value)
    return value or {}


def _objects(holder: Object, key: str, place: str = "") -> Iterator[tuple[Object, str]]:
    """The objects listed under a key, each with its place; none where there is no list."""
    values = holder.get(key)
    if not isinstance(values, list | None):
        raise _unexpected(_at(place, key), "a list", values)
    for number, value in enumerate(values or ()):
        each = f"{_at(place, key)}[{number}]"
        if not isinstance(value, dict):
            raise _unexpected(each, "an object", value)
        yield value, each


def _one_of(table: Mapping[str, _V], name: Any, place: str) -> _V:
    if not isinstance(name, str) or name not in table:
        raise _unexpected(place, "one of " + ", ".join(table), name)
    return table[name]


def _translated(holder: Object, table: Mapping[str, _Translation], place: str) -> Object:
    """What has a type, translated as that type is."""
    return _one_of(table, holder.get("type"), _at(place, "type"))(holder, place)


def _given(holder: Object, *keys: str) -> Object:
    return {key: holder[key] for key in keys if holder.get(key) is not None}


# The conversation.


def _messages(body: Object) -> list[Object]:
    messages: list[Object] = []
    if body.get("instructions"):
        messages.append({"role": "system", "content": _string(body, "instructions")})
    said = body.get("input")
    if not said or not isinstance(said, str | list):
        raise _unexpected("input", "a text or a list of items", said)
    if isinstance(said, str):
        return [*messages, {"role": "user", "content": said}]
    for item, place in _objects(body, "input"):
        kind = "message" if item.get("type") is None and "role" in item else item.get("type")
        _one_of(_ITEMS, kind, _at(place, "type"))(messages, item, place)
    return messages


def _add_message(messages: list[Object], item: Object, place: str) -> None:
    role = _one_of(_ROLES, item.get("role"), _at(place, "role"))
    if role == "assistant":
        _add_answer(messages, item, place)
    else:
        messages.append({"role": role, "content": _content(item, "content", place, _INPUT_PARTS)})


def _add_answer(messages: list[Object], item: Object, place: str) -> None:
    """What the assistant said; after its calls it joins their message, which only their outputs may follow."""
    said = _answer(item, place)
    if said and not (messages and "tool_calls" in messages[-1]):
        messages.append({"role": "assistant", "content": None})
    for field, text in said.items():
        messages[-1][field] = (messages[-1].get(field) or "") + text


def _answer(item: Object, place: str) -> dict[str, str]:
    """The text and the refusal of an assistant's message; neither where its parts are none."""
    content = item.get("content")
    if isinstance(content, str):
        return {"content": content}
    if content is None:
        raise _unexpected(_at(place, "content"), "a text or a list of parts", content)
    said: dict[str, str] = {}
    for part, part_place in _objects(item, "content", place):
        field, key = _one_of(_OUTPUT_PARTS, part.get("type"), _at(part_place, "type"))
        said[field] = said.get(field, "") + _string(part, key, part_place)
    return said


def _add_call(messages: list[Object], item: Object, place: str) -> None:
    """A call of the assistant, which stands in its message; several in a row are one message's."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    kind, wrote = ("function", "arguments") if item["type"] == "function_call" else ("custom", "input")
    call = {"name": _string(item, "name", place), wrote: _string(item, wrote, place)}
    calls = messages[-1].setdefault("tool_calls", [])
    calls.append({"id": _string(item, "call_id", place), "type": kind, kind: call})


def _add_output(messages: list[Object], item: Object, place: str) -> None:
    content = _content(item, "output", place, _TEXT_PARTS)
    messages.append({"role": "tool", "tool_call_id": _string(item, "call_id", place), "content": content})


def _leave_out(messages: list[Object], item: Object, place: str) -> None:
    """Reasoning is the model's own; no chat request has a place for it."""


_ITEMS = {
    "message": _add_message,
    "function_call": _add_call,
    "custom_tool_call": _add_call,
    "function_call_output": _add_output,
    "custom_tool_call_output": _add_output,
    "reasoning": _leave_out,
}
# Most servers' templates know no `developer`; OpenAI's own models take `system` for the same.
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


def _content(item: Object, key: str, place: str, known: Mapping[str, _Translation]) -> str | list[Object]:
    """The text or the parts under a key; a single text is a string, which every server understands."""
    if isinstance(item.get(key), str):
        return _string(item, key, place)
    parts = [_translated(part, known, part_place) for part, part_place in _objects(item, key, place)]
    if not parts:
        raise _unexpected(_at(place, key), "a text or a list of parts, not empty", item.get(key))
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def _text_part(part: Object, place: str) -> Object:
    return {"type": "text", "text": _string(part, "text", place)}


def _image_part(part: Object, place: str) -> Object:
    url = _string(part, "image_url", place)  # an uploaded file's id would mean nothing in a chat request
    return {"type": "image_url", "image_url": {"url": url, **_given(part, "detail")}}


def _audio_part(part: Object, place: str) -> Object:
    return {"type": "input_audio", "input_audio": _object(part, "input_audio", place)}


def _file_part(part: Object, place: str) -> Object:
    file = _given(part, "file_id", "file_data", "filename")
    if file.keys() <= {"filename"}:
        raise _unexpected(_at(place, "file_data"), "the file, or the file_id of one", None)
    return {"type": "file", "file": file}


_TEXT_PARTS: dict[str, _Translation] = {"input_text": _text_part, "output_text": _text_part}
_INPUT_PARTS = _TEXT_PARTS | {"input_image": _image_part, "input_file": _file_part, "input_audio": _audio_part}
# What an answer is made of: the message's field, and the part's key.
_OUTPUT_PARTS = {
    "output_text": ("content", "text"),
    "input_text": ("content", "text"),
    "refusal": ("refusal", "refusal"),
}


# Tools.


def _function_tool(tool: Object, place: str) -> Object:
    function = {"name": _string(tool, "name", place), **_given(tool, "description", "parameters", "strict")}
    return {"type": "function", "function": function}


def _custom_tool(tool: Object, place: str) -> Object:
    custom = {"name": _string(tool, "name", place), **_given(tool, "description")}
    if form := _object(tool, "format", place):
        custom["format"] = _translated(form, _INPUT_FORMATS, f"{place}.format")
    return {"type": "custom", "custom": custom}


_INPUT_FORMATS: dict[str, _Translation] = {
    "text": lambda form, place: {"type": "text"},
    "grammar": lambda form, place: {"type": "grammar", "grammar": _given(form, "definition", "syntax")},
}
_TOOLS: dict[str, _Translation] = {"function": _function_tool, "custom": _custom_tool}


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, dict):
        return _translated(choice, _CHOICES, "tool_choice")
    if not isinstance(choice, str | None):
        raise _unexpected("tool_choice", "a string or an object", choice)
    return choice


def _named(choice: Object, place: str) -> Object:
    return {"type": choice["type"], choice["type"]: {"name": _string(choice, "name", place)}}


def _allowed(choice: Object, place: str) -> Object:
    tools = [_translated(tool, _NAMED, tool_place) for tool, tool_place in _objects(choice, "tools", place)]
    return {"type": "allowed_tools", "allowed_tools": {"mode": _string(choice, "mode", place), "tools": tools}}


_NAMED: dict[str, _Translation] = {"function": _named, "custom": _named}
_CHOICES = _NAMED | {"allowed_tools": _allowed}


# The answer's form.


def _text(text: Object) -> Object:
    form = _object(text, "format", "text")
    as_chat = _translated(form, _FORMATS, "text.format") if form else {}
    return {"response_format": as_chat or None, "verbosity": text.get("verbosity")}


def _json_schema(form: Object, place: str) -> Object:
    schema = {"name": _string(form, "name", place), **_given(form, "schema", "strict", "description")}
    return {"type": "json_schema", "json_schema": schema}


_FORMATS: dict[str, _Translation] = {
    "text": lambda form, place: {},
    "json_object": lambda form, place: {"type": "json_object"},
    "json_schema": _json_schema,
}


def _logprobs(body: Object) -> Object:
    include, top = body.get("include"), body.get("top_logprobs")
    if not isinstance(include, list | None):
        raise _unexpected("include", "a list", include)
    if not top and "message.output_text.logprobs" not in (include or ()):
        return {}
    return {"logprobs": True, "top_logprobs": top or None}
