"""A request of OpenAI's Responses API as the chat-completions request that says the same.

For upstreams that only know chat completions. What a chat request has under the same name goes over as
it is, and so does what neither API knows: people send their server's own parameters along. What would
only tell a Responses server how to keep or to send its answer is left out. What a chat request cannot
say is refused, rather than answered as if it had not been asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from replay.errors import InvalidRequest
from replay.wire.expect import Object, at, given, object_in, objects_in, one_of, string_in, unexpected
from replay.wire.responses_tools import Tools, tools_of

_Translation = Callable[[Object, str], Object]  # of an object, given its path for what it may have to say

# What other fields of the chat request say.
_TRANSLATED = frozenset(
    ("input", "instructions", "max_output_tokens", "text", "reasoning", "tools", "tool_choice", "top_logprobs")
)
_OF_THE_SERVER = frozenset(
    (
        *("stream", "stream_options", "background", "store", "include", "truncation", "max_tool_calls"),
        "previous_response_id",  # what it stands for is part of the input by now
        "metadata",  # it is kept here; OpenAI refuses it in a chat request that is not to be stored
        "client_metadata",  # Codex tells its server of itself
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
    tools = tools_of(body)
    translated = {
        "messages": _messages(body, tools),
        # Not `max_completion_tokens`: many servers only know the older name.
        "max_tokens": body.get("max_output_tokens"),
        "tools": tools.listed or None,
        "tool_choice": tools.choice(body.get("tool_choice")),
        "reasoning_effort": object_in(body, "reasoning").get("effort"),
        **_text(object_in(body, "text")),
        **_logprobs(body),
    }
    request = {key: value for key, value in body.items() if key not in _NOT_KEPT}
    request |= {key: value for key, value in translated.items() if value is not None}
    if "tools" not in request:  # without tools servers refuse what says how to use them
        request = {key: value for key, value in request.items() if key not in _ABOUT_TOOLS}
    return request


# The conversation.


def _translated(holder: Object, table: Mapping[str, _Translation], path: str) -> Object:
    """What has a type, translated as that type is."""
    return one_of(table, holder.get("type"), at(path, "type"))(holder, path)


def _messages(body: Object, tools: Tools) -> list[Object]:
    said = body.get("input")
    if not said or not isinstance(said, str | list):
        raise unexpected("input", "a text or a list of items", said)
    conversation = _Conversation(tools)
    if body.get("instructions"):
        conversation.say("system", string_in(body, "instructions"))
    if isinstance(said, str):
        conversation.say("user", said)
    else:
        for item, path in objects_in(body, "input"):
            conversation.add(item, path)
    return conversation.messages()


class _Conversation:
    """The messages that the items become."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._messages: list[Object] = []
        self._seen: list[Object] = []  # of tools' outputs, the parts that no message of a tool can hold

    def say(self, role: str, content: str | list[Object]) -> None:
        """Add a message."""
        self._messages.append({"role": role, "content": content})

    def add(self, item: Object, path: str) -> None:
        """Add an item."""
        kind = "message" if item.get("type") is None and "role" in item else item.get("type")
        add = one_of(_ITEMS, kind, at(path, "type"))
        if kind not in _AMONG_OUTPUTS:
            self._show_seen()
        add(self, item, path)

    def messages(self) -> list[Object]:
        """All messages."""
        self._show_seen()
        return self._messages

    def _show_seen(self) -> None:
        """Have the user show what tools have put out; only after all outputs, for these have to follow their calls."""
        if self._seen:
            self.say("user", self._seen)
            self._seen = []

    def add_message(self, item: Object, path: str) -> None:
        """Add a message of anybody's."""
        role = one_of(_ROLES, item.get("role"), at(path, "role"))
        if role == "assistant":
            self._add_answer(item, path)
        else:
            self.say(role, _content(item, "content", path, _INPUT_PARTS))

    def _add_answer(self, item: Object, path: str) -> None:
        """What the assistant said; after its calls it joins their message, which only their outputs may follow."""
        messages = self._messages
        said = _answer(item, path)
        if said and not (messages and "tool_calls" in messages[-1]):
            messages.append({"role": "assistant", "content": None})
        for field, text in said.items():
            messages[-1][field] = (messages[-1].get(field) or "") + text

    def add_call(self, item: Object, path: str) -> None:
        """Add a call of the assistant, which stands in its message; several in a row are one message's."""
        messages = self._messages
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        kind, wrote = ("function", "arguments") if item["type"] == "function_call" else ("custom", "input")
        call = {"name": self._tools.name(item, path), wrote: string_in(item, wrote, path)}
        calls = messages[-1].setdefault("tool_calls", [])
        calls.append({"id": string_in(item, "call_id", path), "type": kind, kind: call})

    def add_output(self, item: Object, path: str) -> None:
        """Add what a tool has put out."""
        content = self._output_text(_content(item, "output", path, _INPUT_PARTS))
        call_id = string_in(item, "call_id", path)
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": content})

    def _output_text(self, output: str | list[Object]) -> str | list[Object]:
        """What a tool's message can hold of its output: text."""
        if isinstance(output, str):
            return output
        texts = [part for part in output if part["type"] == "text"]
        self._seen += [part for part in output if part["type"] != "text"]
        if len(texts) > 1:
            return texts
        return str(texts[0]["text"]) if texts else "The next message of the user shows it."

    def leave_out(self, item: Object, path: str) -> None:
        """Reasoning is the model's own, and what a server has searched for stands in what it says of it."""


_ITEMS: dict[str, Callable[[_Conversation, Object, str], None]] = {
    "message": _Conversation.add_message,
    "function_call": _Conversation.add_call,
    "custom_tool_call": _Conversation.add_call,
    "function_call_output": _Conversation.add_output,
    "custom_tool_call_output": _Conversation.add_output,
    "reasoning": _Conversation.leave_out,
    "web_search_call": _Conversation.leave_out,
    "file_search_call": _Conversation.leave_out,
    "code_interpreter_call": _Conversation.leave_out,
}
_AMONG_OUTPUTS = frozenset(
    kind for kind, add in _ITEMS.items() if add in (_Conversation.add_output, _Conversation.leave_out)
)
# Most servers' templates know no `developer`; OpenAI's own models take `system` for the same.
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


def _answer(item: Object, path: str) -> dict[str, str]:
    """The text and the refusal of an assistant's message; neither where its parts are none."""
    content = item.get("content")
    if isinstance(content, str):
        return {"content": content}
    if content is None:
        raise unexpected(at(path, "content"), "a text or a list of parts", content)
    said: dict[str, str] = {}
    for part, part_path in objects_in(item, "content", path):
        field, key = one_of(_OUTPUT_PARTS, part.get("type"), at(part_path, "type"))
        said[field] = said.get(field, "") + string_in(part, key, part_path)
    return said


def _content(item: Object, key: str, path: str, known: Mapping[str, _Translation]) -> str | list[Object]:
    """The text or the parts under a key; a single text is a string, which every server understands."""
    if isinstance(item.get(key), str):
        return string_in(item, key, path)
    parts = [_translated(part, known, part_path) for part, part_path in objects_in(item, key, path)]
    if not parts:
        raise unexpected(at(path, key), "a text or a list of parts, not empty", item.get(key))
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def _text_part(part: Object, path: str) -> Object:
    return {"type": "text", "text": string_in(part, "text", path)}


def _image_part(part: Object, path: str) -> Object:
    url = string_in(part, "image_url", path)  # an uploaded file's id would mean nothing in a chat request
    return {"type": "image_url", "image_url": {"url": url, **given(part, "detail")}}


def _audio_part(part: Object, path: str) -> Object:
    return {"type": "input_audio", "input_audio": object_in(part, "input_audio", path)}


def _file_part(part: Object, path: str) -> Object:
    file = given(part, "file_id", "file_data", "filename")
    if file.keys() <= {"filename"}:
        raise unexpected(at(path, "file_data"), "the file, or the file_id of one", None)
    return {"type": "file", "file": file}


_TEXT_PARTS: dict[str, _Translation] = {"input_text": _text_part, "output_text": _text_part}
_INPUT_PARTS = _TEXT_PARTS | {"input_image": _image_part, "input_file": _file_part, "input_audio": _audio_part}
# What an answer is made of: the message's field, and the part's key.
_OUTPUT_PARTS = {
    "output_text": ("content", "text"),
    "input_text": ("content", "text"),
    "refusal": ("refusal", "refusal"),
}


# The format of the answer.


def _text(text: Object) -> Object:
    wanted = object_in(text, "format", "text")
    as_chat = _translated(wanted, _FORMATS, "text.format") if wanted else {}
    return {"response_format": as_chat or None, "verbosity": text.get("verbosity")}


def _json_schema(wanted: Object, path: str) -> Object:
    schema = {"name": string_in(wanted, "name", path), **given(wanted, "schema", "strict", "description")}
    return {"type": "json_schema", "json_schema": schema}


_FORMATS: dict[str, _Translation] = {
    "text": lambda wanted, path: {},
    "json_object": lambda wanted, path: {"type": "json_object"},
    "json_schema": _json_schema,
}


def _logprobs(body: Object) -> Object:
    include, top = body.get("include"), body.get("top_logprobs")
    if not isinstance(include, list | None):
        raise unexpected("include", "a list", include)
    if not top and "message.output_text.logprobs" not in (include or ()):
        return {}
    return {"logprobs": True, "top_logprobs": top or None}
