"""Responses both ways: an upstream that only knows chats, and one whose events are passed through.

What each sends for the same answer, the events that a client has to see of it, and a world in which a test runs on
either without knowing which.
"""

from __future__ import annotations

import asyncio
import copy
import random
from dataclasses import dataclass
from typing import Any

from support.api import Api
from support.responses import types
from support.scripts import chunks, delta, finish, fragment
from support.upstream import USAGE, Call, Script, ScriptedUpstream, generate, respond, said, say

# Types of events: what begins with each kind of word, and what ends with it.
BEGUN = ["created", "in_progress"]
ITEM, ITEM_DONE = ["output_item.added"], ["output_item.done"]
PART, PART_DONE = [*ITEM, "content_part.added"], ["content_part.done", *ITEM_DONE]
TEXT, TEXT_DONE = ["output_text.delta"], ["output_text.done", *PART_DONE]
REASONING, REASONING_DONE = ["reasoning_text.delta"], ["reasoning_text.done", *PART_DONE]
REFUSAL, REFUSAL_DONE = ["refusal.delta"], ["refusal.done", *PART_DONE]
ARGUMENTS, ARGUMENTS_DONE = ["function_call_arguments.delta"], ["function_call_arguments.done", *ITEM_DONE]

# A chat completion that has everything, and the events that each of its chunks makes.
STEPS: list[tuple[dict[str, Any], list[str]]] = [
    (delta(role="assistant", content=None), BEGUN),
    (delta(reasoning_content="Hm"), [*PART, *REASONING]),
    (delta(reasoning_content=", é😀"), REASONING),
    (delta(content="Val"), [*REASONING_DONE, *PART, *TEXT]),
    (delta(content="key\n\ndata: [DONE]\n\n"), TEXT),
    (fragment(0, id="call_a", type="function", name="get_weather", arguments=""), [*TEXT_DONE, *ITEM]),
    (fragment(0, arguments='{"city": "Par'), ARGUMENTS),
    (fragment(1, id="call_b", type="function", name="get_time", arguments="{"), [*ITEM, *ARGUMENTS]),
    (fragment(0, arguments='is"}'), ARGUMENTS),
    (fragment(1, arguments="}"), ARGUMENTS),
    (finish("tool_calls"), []),
    ({"choices": [], "usage": USAGE}, []),
]
ENDING = [*ARGUMENTS_DONE, *ARGUMENTS_DONE, "completed"]
ALL_TYPES = [*(name for _, names in STEPS for name in names), *ENDING]
EVERYTHING = chunks(*(payload for payload, _ in STEPS))
OUTPUT = [
    ("reasoning", [{"type": "reasoning_text", "text": "Hm, é😀"}]),
    (
        "message",
        [{"type": "output_text", "text": "Valkey\n\ndata: [DONE]\n\n", "annotations": [], "logprobs": []}],
    ),
    ("function_call", "call_a", "get_weather", '{"city": "Paris"}'),
    ("function_call", "call_b", "get_time", "{}"),
]


def rich() -> list[dict[str, Any]]:
    """What OpenAI's server sends when a model thinks, searches, speaks and calls: obfuscated, with logprobs."""
    texts = ["Val", "key é😀", ' "sequence_number": 3, ', "\u2028\n\ndata: [DONE]\n\n"]
    logprobs = [
        [{"token": text, "logprob": -0.25, "bytes": [*text.encode()], "top_logprobs": [{"token": "x", "logprob": -2}]}]
        for text in texts
    ]
    whole = said(*texts)[-1]["response"]
    parameters = {"type": "object", "properties": {"sequence_number": {"type": "integer"}, "delta": {"type": "string"}}}
    whole["tools"] = [{"type": "function", "name": "get_weather", "strict": True, "parameters": parameters}]
    whole["temperature"] = 1.0
    annotation = {"type": "url_citation", "url": "https://a", "title": "A", "start_index": 0, "end_index": 3}
    message = whole["output"][0]
    message["content"][0] |= {"annotations": [annotation], "logprobs": [each for (each,) in logprobs]}
    summary = {"type": "summary_text", "text": "Hm, so"}
    thought = {"id": "rs_1", "type": "reasoning", "summary": [summary], "encrypted_content": "gAAA="}
    search: dict[str, Any] = {"id": "ws_1", "type": "web_search_call", "status": "completed"}
    search |= {"action": {"type": "search", "query": "valkey"}}
    calls = [
        {"id": f"fc_{name}", "type": "function_call", "status": "completed", "call_id": f"call_{name}"}
        | {"name": f"get_{name}", "arguments": '{"city": "Paris"}'}
        for name in ("weather", "time")
    ]
    custom = {"id": "ctc_1", "type": "custom_tool_call", "status": "completed", "call_id": "call_c"}
    custom |= {"name": "run", "input": "ls -l"}
    whole["output"] = [thought, search, message, *calls, custom]
    begun = whole | {"status": "in_progress", "output": [], "usage": None}
    chance = random.Random(1)

    def veiled(event: dict[str, Any]) -> dict[str, Any]:
        return event | {"obfuscation": "".join(chance.choices("abcXYZ019", k=chance.randrange(1, 16)))}

    def about(index: int, kind: str, item_id: str, **further: Any) -> dict[str, Any]:
        return {"type": f"response.{kind}", "item_id": item_id, "output_index": index, **further}

    def item(index: int, what: str, **shown: Any) -> dict[str, Any]:
        found = whole["output"][index] | shown
        return {"type": f"response.output_item.{what}", "output_index": index, "item": found}

    summed = {"summary_index": 0}
    spoken = {"content_index": 0}
    part = message["content"][0]
    bare = part | {"text": "", "annotations": [], "logprobs": []}
    events = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        item(0, "added", summary=[]),
        about(0, "reasoning_summary_part.added", "rs_1", **summed, part=summary | {"text": ""}),
        veiled(about(0, "reasoning_summary_text.delta", "rs_1", **summed, delta="Hm, ")),
        veiled(about(0, "reasoning_summary_text.delta", "rs_1", **summed, delta="so")),
        about(0, "reasoning_summary_text.done", "rs_1", **summed, text="Hm, so"),
        about(0, "reasoning_summary_part.done", "rs_1", **summed, part=summary),
        item(0, "done"),
        item(1, "added", status="in_progress"),
        *(about(1, f"web_search_call.{what}", "ws_1") for what in ("in_progress", "searching", "completed")),
        item(1, "done"),
        item(2, "added", status="in_progress", content=[]),
        about(2, "content_part.added", message["id"], **spoken, part=bare),
        *(
            veiled(about(2, "output_text.delta", message["id"], **spoken, delta=text, logprobs=probable))
            for text, probable in zip(texts, logprobs, strict=True)
        ),
        about(2, "output_text.annotation.added", message["id"], **spoken, annotation_index=0, annotation=annotation),
        about(2, "output_text.done", message["id"], **spoken, text=part["text"], logprobs=part["logprobs"]),
        about(2, "content_part.done", message["id"], **spoken, part=part),
        item(2, "done"),
        item(3, "added", status="in_progress", arguments=""),
        item(4, "added", status="in_progress", arguments=""),
        *(
            veiled(about(index, "function_call_arguments.delta", calls[index - 3]["id"], delta=piece))
            for piece in ('{"city', '": "Par', 'is"}')
            for index in (3, 4)
        ),
        *(
            about(index, "function_call_arguments.done", call["id"], arguments=call["arguments"], name=call["name"])
            for index, call in enumerate(calls, 3)
        ),
        item(3, "done"),
        item(4, "done"),
        item(5, "added", status="in_progress", input=""),
        veiled(about(5, "custom_tool_call_input.delta", "ctc_1", delta="ls")),
        veiled(about(5, "custom_tool_call_input.delta", "ctc_1", delta=" -l")),
        about(5, "custom_tool_call_input.done", "ctc_1", input="ls -l"),
        item(5, "done"),
        {"type": "response.completed", "response": whole},
    ]
    return [event | {"sequence_number": number} for number, event in enumerate(copy.deepcopy(events))]


def events_under(id: str, events: list[dict[str, Any]], *, background: bool = False) -> list[dict[str, Any]]:
    """An upstream's events as the client has to see them.

    The id is the generation's and the numbers are ours; the upstream was not asked to work in the background.
    """
    ours = {"id": id, "background": background}
    return [
        event | ({"response": event["response"] | ours} if "response" in event else {}) | {"sequence_number": number}
        for number, event in enumerate(events)
    ]


@dataclass
class World:
    """Two nodes, and how their upstream says things."""

    kind: str
    here: Api
    there: Api
    upstream: ScriptedUpstream

    @property
    def passes(self) -> bool:
        """Whether the upstream's events are passed through."""
        return self.kind == "passed"

    @property
    def everything(self) -> Script:
        """Say all kinds of things."""
        return respond(rich()) if self.passes else EVERYTHING

    @property
    def steps(self) -> list[tuple[dict[str, Any], list[str]]]:
        """What the upstream sends, and the types of the events that each of that makes."""
        return [(event, types([event])) for event in said("Val", "key", "!")] if self.passes else STEPS

    @property
    def ending(self) -> list[str]:
        """The events that its end makes, beside those."""
        return [] if self.passes else ENDING

    def says(self, *texts: str) -> Script:
        """Say these texts, and no more."""
        return respond(said(*texts)) if self.passes else say(*texts, usage=USAGE)

    def speaks(self, tokens: int, per_second: float) -> Script:
        """Say so many tokens at that rate."""
        if not self.passes:
            return generate(tokens, per_second)
        events = said(*(f"word{index} " for index in range(tokens)))

        async def script(call: Call) -> None:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            for index, event in enumerate(events):
                await asyncio.sleep(max(0.0, begun + index / per_second - loop.time()))
                await call.send_event(event)
            await call.done()

        return script

    async def send(self, call: Call, payload: dict[str, Any]) -> None:
        """Send one of the steps."""
        await (call.send_event(payload) if self.passes else call.send(call.chunk() | payload))

    async def speak(self, call: Call, text: str) -> None:
        """Begin to answer, with this text."""
        if not self.passes:
            await call.say(text)
            return
        for event in said(text)[:5]:
            await call.send_event(event)

    async def began(self, id: str) -> None:
        """Wait until everybody knows of such a beginning."""
        for api in (self.here, self.there):
            await api.has(id, 6 if self.passes else 2)
