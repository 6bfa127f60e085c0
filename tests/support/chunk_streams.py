"""Upstream streams for tests: any number of them, made up, and logs recorded from them.

A stream is a list of raw chunks, as `data:` carried them. Each stream has the habits of one server (how it
writes JSON, what it repeats on every chunk) and says random things in random order.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from replay.model.event import number
from replay.model.generation import End, Start, Status
from replay.model.log import Log
from replay.wire.events import encode_end, encode_start
from replay.wire.recorder import Recorder
from replay.wire.sse import Message

GENERATION_ID = "gen_unit"
COMPLETED = End(status=Status.COMPLETED)
STARTED_MS = 1_763_701_200_123
START = Start(generation_id=GENERATION_ID, model="m", node="node_1", run="r", ttl_ms=1000)


# Recording.


def entries_of(stream: list[bytes]) -> tuple[list[bytes], Recorder]:
    """What a stream's chunks become, one entry each, and who recorded them."""
    recorder = Recorder()
    entries = [recorder.record(Message(b"", raw)) for raw in stream]
    return [entry for entry in entries if entry is not None], recorder


def log_of(entries: list[bytes], end: End | None = COMPLETED) -> Log:
    """A log of these entries 10 ms apart, `start` before them, and `end` after them where there is one."""
    log = Log()
    for entry in (encode_start(START), *entries, *([] if end is None else [encode_end(end)])):
        log.extend(number([entry], after=log.last_id, now_ms=STARTED_MS + 10 * len(log)))
    return log


def record(stream: list[bytes], end: End | None = COMPLETED) -> Log:
    """The log of a stream."""
    return log_of(entries_of(stream)[0], end)


# What the contract says of a chunk, in the plainest way.

_ENVELOPE = {"id", "object", "created", "model", "system_fingerprint", "service_tier", "provider", "obfuscation"}


def visible(chunk: dict[str, Any]) -> str:
    """Its visible text for choice 0, or what an event of the Responses API adds to the answer."""
    if chunk.get("type") == "response.output_text.delta":
        added: str = chunk["delta"]
        return added
    for choice in chunk.get("choices") or []:
        if choice.get("index", 0) == 0:
            said = choice["delta"].get("content") if choice.get("delta") else choice.get("text")
            parts = said if isinstance(said, list) else [{"type": "text", "text": said or ""}]
            return "".join(part["text"] for part in parts if part["type"] == "text")
    return ""


def carries_more(chunk: dict[str, Any]) -> bool:
    """Whether it carries anything beside visible text; null is nothing."""
    if len(chunk["choices"]) != 1:
        return True
    (choice,) = chunk["choices"]
    spoken = ("content",) if choice.get("delta") else ("text",)
    beside = [value for name, value in chunk.items() if name not in {*_ENVELOPE, "choices"}]
    beside += [value for name, value in choice.items() if name not in ("index", "delta", *spoken)]
    said = (choice.get("delta") or {}).items()
    beside += [value for name, value in said if name not in spoken or isinstance(value, list)]
    return any(value is not None for value in beside)


def canonical(value: Any) -> str:
    """Equal for equal JSON; two halves of a surrogate pair are the character, as in every JSON text."""
    return json.dumps(value, sort_keys=True)


# Making streams up.

texts = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from('"\\/\b\f\n\r\t\0\x1f\x7f\x85\u2028\u2029\ufeff\U0001f600\ud83d\ude00\udfff{}[]:,'),
        st.sampled_from("ab "),
    ),
    max_size=8,
)
words = texts.filter(bool)
values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.sampled_from([2**53 + 1, 2**63, 2**64, -(2**63), 10**400])
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
_text_parts = st.fixed_dictionaries({"type": st.just("text"), "text": texts})
_parts = _text_parts | st.fixed_dictionaries(
    {"type": st.just("thinking"), "thinking": texts | st.lists(_text_parts, min_size=1, max_size=2)}
)
_usage = st.fixed_dictionaries({"prompt_tokens": st.integers(0, 9), "total_tokens": st.integers(0, 10**25)})
_numbers = st.integers(-9, 999) | st.floats(0, 9) | st.sampled_from([10**16, 10**17, 2**64, 1e22, 1e-300, -0.0])
_habits = st.sampled_from(
    ["counting", "ids", "message", "numbers", "obfuscation", "twice"]
)  # what changes beside the text
_NAMES_OF_REASONING = ("reasoning", "reasoning_content")
_reasons = st.sampled_from(["stop", "length", "tool_calls", "content_filter"])


def dump(value: Any, style: str) -> bytes:
    """JSON as servers write it: each has its own way."""
    # Half a surrogate pair has no UTF-8; `backslashreplace` makes it the escape that JSON has for it.
    if style == "ascii":  # Python's default
        return json.dumps(value).encode()
    if style == "lines":  # one chunk over several data lines
        return json.dumps(value, ensure_ascii=False, indent=1).encode(errors="backslashreplace")
    separators = (" ,\t", " : ") if style == "spaced" else (",", ":")
    text = json.dumps(value, ensure_ascii=False, separators=separators)
    if style == "slashes":  # PHP's default
        text = text.replace("/", "\\/")
    return (f" {text}\t" if style == "spaced" else text).encode(errors="backslashreplace")


@st.composite
def streams(draw: st.DrawFn, legacy: bool | None = None) -> list[bytes]:
    """A stream of chunks, finished or not."""
    style = draw(st.sampled_from(["ascii", "raw", "slashes", "spaced", "lines"]))
    legacy = draw(st.integers(0, 4)) == 0 if legacy is None else legacy
    roles, usages, ticks, shuffled, nulls = (draw(st.integers(0, 3)) == 0 for _ in range(5))
    habits = draw(st.sets(_habits)) if draw(st.booleans()) else set()
    seldom = st.integers(0, 60 if habits else 9).map(lambda chance: chance == 1)  # what interrupts a habit
    choices = draw(st.sampled_from([1, 1, 1, 2, 3])) if not habits or draw(seldom) else 1
    further = draw(st.dictionaries(words.map("x_".__add__), values, max_size=1)) if draw(st.booleans()) else {}
    envelope = {"id": draw(texts), "object": "chat.completion.chunk", "model": draw(texts)}
    named: set[int] = set()
    repeats_names, in_parts = draw(st.booleans()), draw(st.integers(0, 3)) == 0
    so_far = ""
    raws: list[bytes] = []

    def delta(kind: str) -> dict[str, Any]:
        said: dict[str, Any] = {"role": "assistant"} if roles or kind == "role" else {}
        if kind in ("content", "reasoning_content", "reasoning", "refusal"):
            said[kind] = draw(texts)
            if "twice" in habits and kind in _NAMES_OF_REASONING:
                said |= dict.fromkeys(_NAMES_OF_REASONING, said[kind])
            if in_parts and kind == "content":
                said[kind] = [draw(_parts)]
        elif kind == "null":
            said |= {"content": None, "refusal": None}
        elif kind == "call":
            index = draw(st.integers(0, 2))
            function: dict[str, Any] = {"arguments": draw(texts)}
            fragment: dict[str, Any] = {"index": index, "function": function}
            if repeats_names or index not in named:
                function["name"] = f"call_{index}"
                fragment |= {"id": f"id_{index}", "type": "function"}
                named.add(index)
            said["tool_calls"] = [fragment]
        return said

    kinds = st.sampled_from(
        ["role", *["content"] * 8, "reasoning_content", "reasoning", "refusal", *["call"] * 2, "null", "empty"]
    )
    kind = draw(kinds)
    for _ in range(draw(st.integers(0, 14))):
        if draw(seldom) if habits else draw(st.integers(0, 3)) == 0:
            kind = draw(kinds)  # servers say much of one kind in a row
        said = {"text": draw(texts)} if legacy else {"delta": delta(kind)}
        choice: dict[str, Any] = {"index": draw(st.integers(0, choices - 1)), **said}
        if nulls:
            choice |= {"logprobs": None, "finish_reason": None}
        if draw(seldom):
            choice["logprobs"] = {"content": [{"token": draw(texts), "logprob": draw(st.floats(-9, 0))}]}
        if draw(seldom):
            choice["finish_reason"] = draw(_reasons)
        chunk = {**envelope, "created": len(raws) if ticks else 7, "choices": [choice], **further}
        if "message" in habits:
            so_far = "" if draw(seldom) else so_far + (visible(chunk) or draw(texts))
            choice["message"] = {"role": "assistant", "content": so_far}
        if "obfuscation" in habits:
            chunk["obfuscation"] = draw(texts)
        if "ids" in habits:
            chunk["id"] = draw(texts)
        if "numbers" in habits:
            chunk["x_timings"] = {"took": draw(_numbers), "left": draw(_numbers)}
        if "counting" in habits:
            chunk["usage"] = {"prompt_tokens": 3, "completion_tokens": len(raws), "total_tokens": 3 + len(raws)}
        if usages:
            chunk["usage"] = draw(_usage | st.none())
        if draw(seldom):
            chunk["choices"] = draw(st.sampled_from([[], [choice, {**choice, "index": choice["index"] + 1}]]))
        raws.append(dump(_shuffle(draw, chunk) if shuffled else chunk, style))
    if draw(st.booleans()):
        raws.append(dump({**envelope, "choices": [], "usage": draw(_usage)}, style))
    return raws


def _shuffle(draw: st.DrawFn, chunk: dict[str, Any]) -> dict[str, Any]:
    return {name: chunk[name] for name in draw(st.permutations(list(chunk)))}
