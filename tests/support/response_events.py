"""Logs played as the Responses API does, the chunks of which they are made, and what they say when read otherwise."""

from __future__ import annotations

import copy
from typing import Any

from openai import omit
from openai._models import construct_type_unchecked
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent

from replay.model.transcript import Transcript
from replay.wire.normalizing import Normalizer
from replay.wire.responses import Responses

ID = "gen_unit"
CREATED, ENDED = 1763701200, 1763701201
ERROR = {"code": "upstream_error", "message": "it broke", "upstream": {"param": "p"}}


def chunk(finish_reason: Any = None, **delta: Any) -> dict[str, Any]:
    """A chat chunk."""
    return {"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def call(index: int | None, arguments: str | None = None, **said: Any) -> dict[str, Any]:
    """A fragment of a call."""
    function = {name: said.pop(name) for name in ("name",) if name in said}
    function |= {} if arguments is None else {"arguments": arguments}
    return ({} if index is None else {"index": index}) | said | ({"function": function} if function else {})


def calls(*fragments: Any) -> dict[str, Any]:
    """A chat chunk with these fragments."""
    return chunk(tool_calls=list(fragments))


def fresh(request: dict[str, Any] | None = None) -> Responses:
    """A response of which nothing has come yet."""
    return Responses(ID, model="asked", created_at=CREATED, request=request or {})


def played(
    chunks: list[Any], status: str = "completed", error: Any = None, request: Any = None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events of a log and the response at its end."""
    responses = fresh(request)
    events = responses.start()
    events += [event for entry in chunks for event in responses.add(entry)]
    events += responses.end(status, error, ENDED)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events, responses.response


def types(events: list[dict[str, Any]]) -> list[str]:
    """Their types, without what all begin with."""
    return [event["type"].removeprefix("response.") for event in events]


def accumulated(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The final response as the SDK's own accumulator has it."""
    kind: Any = ResponseStreamEvent  # an annotated union: what the SDK makes of it by itself, mypy takes for no type
    state: ResponseStreamState[None] = ResponseStreamState(input_tools=omit, text_format=omit)
    for event in events:
        told = state.handle_event(construct_type_unchecked(type_=kind, value=copy.deepcopy(event)))
    last: Any = told[-1]
    response: dict[str, Any] = _without_parsed(last.response.to_dict(mode="python"))
    return response


def _without_parsed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_parsed(each) for key, each in value.items() if not key.startswith("parsed")}
    return [_without_parsed(each) for each in value] if isinstance(value, list) else value


def message_of(chunks: list[Any]) -> dict[str, Any]:
    """The message that they make."""
    return transcript_of(chunks).message


def transcript_of(chunks: list[Any]) -> Transcript:
    """All that chunks, or events, have said."""
    transcript, normalizer = Transcript(), Normalizer()
    for said in map(normalizer.normalize, chunks):
        if said is not None:
            transcript.add(said)
    return transcript
