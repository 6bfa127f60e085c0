"""A log as OpenAI's clients see it: the upstream's own chunks under the generation's id.

OPENAI_CHUNKS       with event ids, for `EventSource` (`format=openai`)
COMPLETIONS         `data:` lines alone, as the SDKs need them
COMPLETIONS_BARE    the same without the usage that the client did not ask for
TOKEN_LINES         the visible text alone, for a plain page; the ids name the generation too
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from replay.errors import InvalidRequest, ModelNotFound
from replay.model.event import FILLED, TEMPLATED, Entry, EventId, Kind
from replay.model.generation import End, Status
from replay.wire import json, sse
from replay.wire.chat import numbered
from replay.wire.chat_dialect import further_fields
from replay.wire.dialects import visible_text
from replay.wire.events import SSE, Format, Recording, decode_end, no_notice
from replay.wire.forms import text_of
from replay.wire.openai import Shape, whole_chunk, with_id

_STREAM = "text/event-stream; charset=utf-8"
_TEXT_ALONE = frozenset((Entry.TOKEN[0], Entry.DELTA[0]))
_DONE = b"[DONE]"
_CALLERS_ERRORS = frozenset((InvalidRequest.code, ModelNotFound.code))
_COUNTS = frozenset(("usage", "timings"))  # llama-server moves its times to the chunk that has the usage


def _chunks(recording: Recording, start: int, stop: int, *, usage: bool = True) -> Iterator[tuple[EventId, bytes]]:
    """Chunks and how they close; ``usage=False`` leaves out those that hold nothing else."""
    generation_id = recording.start.generation_id
    renamed: Shape | None = None
    for event in recording.log.events(start, stop):
        entry = event.entry
        if entry[0] in TEMPLATED:
            if renamed is None or renamed.grows:
                renamed = recording.renamed(event.id.seq)
            assert renamed is not None, "a piece always follows a whole chunk"
            chunk = renamed.chunk(entry[1:])
            if usage or entry[0] not in FILLED or text_of(entry[1:]) or not _is_usage(chunk):
                yield event.id, chunk
            continue
        renamed = None
        if event.kind is Kind.END:
            yield event.id, closing_data(decode_end(entry))
        elif event.kind is not Kind.START and (usage or not _is_usage(whole_chunk(entry))):
            yield event.id, with_id(whole_chunk(entry), generation_id)


def _is_usage(raw: bytes) -> bool:
    """Whether a chunk is the one that is sent for `stream_options.include_usage`, and holds nothing else.

    OpenAI sends it without choices, LiteLLM with some that say nothing.
    """
    if b'"usage"' not in raw:
        return False
    chunk = json.loads(raw)
    says_something = any(_says_something(choice) for _, choice in numbered(chunk.get("choices")))
    if not isinstance(chunk.get("usage"), dict) or says_something:
        return False
    return not any(value for key, value in further_fields(chunk).items() if key not in _COUNTS)


def _says_something(choice: dict[str, Any]) -> bool:
    return any(choice.get(key) for key in ("delta", "message", "text", "finish_reason", "logprobs"))


def _with_ids(recording: Recording, start: int, stop: int) -> bytes:
    return b"".join(
        b"data: %b\nid: %d-%d\n\n" % (data, *event_id) for event_id, data in _chunks(recording, start, stop)
    )


def _without_ids(recording: Recording, start: int, stop: int, *, usage: bool) -> bytes:
    if stop - start == 1 and recording.log.entries[start][0] in _TEXT_ALONE:  # what a live reader gets, mostly
        renamed = recording.renamed(start)
        assert renamed is not None, "a piece always follows a whole chunk"
        return b"data: %b\n\n" % renamed.chunk(recording.log.entries[start][1:])
    return b"".join(b"data: %b\n\n" % data for _, data in _chunks(recording, start, stop, usage=usage))


def _as_tokens(recording: Recording, start: int, stop: int) -> bytes:
    generation_id = recording.start.generation_id.encode()
    blocks = []
    for (ms, seq), entry in recording.log.events(start, stop):
        kind = entry[:1]
        if kind == Entry.TOKEN:
            data = b'{"token":"%b"}' % entry[1:]
        elif kind == Entry.FILLED_TOKEN:
            data = b'{"token":"%b"}' % text_of(entry[1:])
        elif kind in (Entry.WHOLE_TOKEN, Entry.FORM_TOKEN):
            data = json.dumps({"token": visible_text(json.loads(whole_chunk(entry)))})
        elif kind == Entry.END:
            data = closing_data(decode_end(entry))
        else:
            continue
        blocks.append(b"data: %b\nid: %b:%d-%d\n\n" % (data, generation_id, ms, seq))
    return b"".join(blocks)


def _reset_alone(name: str, data: dict[str, Any], event_id: str | None = None) -> bytes:
    return SSE.notice(name, data, event_id) if name == "reset" else b""


def closing_data(end: End) -> bytes:
    """How OpenAI's stream closes: `[DONE]`, or the error object of one that broke."""
    return _DONE if end.status is Status.COMPLETED else json.dumps({"error": error_object(end)})


def error_object(end: End) -> dict[str, Any]:
    """OpenAI's error object for a generation that did not complete; the upstream's own words where it had any."""
    error: dict[str, Any] = end.error or {"code": end.status.value, "message": f"The generation was {end.status}."}
    upstream = error.get("upstream", {})
    kind = "invalid_request_error" if error["code"] in _CALLERS_ERRORS else error["code"]
    return {
        "message": error["message"],
        "type": upstream.get("type") or kind,
        "param": upstream.get("param"),
        "code": upstream.get("code") or error["code"],
    }


def _completions(*, usage: bool) -> Format:
    encode = partial(_without_ids, usage=usage)
    return Format(_STREAM, encode, no_notice, sse.KEEPALIVE, event_source=False, cut_unless_completed=True)


OPENAI_CHUNKS = Format(_STREAM, _with_ids, no_notice, sse.KEEPALIVE, event_source=True)
COMPLETIONS = _completions(usage=True)
COMPLETIONS_BARE = _completions(usage=False)
TOKEN_LINES = Format(_STREAM, _as_tokens, _reset_alone, sse.KEEPALIVE, event_source=True)
