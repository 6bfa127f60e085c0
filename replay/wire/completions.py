"""OpenAI's answer to a call without streaming, assembled from the chunks of a stream."""

from __future__ import annotations

from typing import Any

from replay.model.event import WHOLES
from replay.model.transcript import Choice, Transcript
from replay.wire import json
from replay.wire.chat import numbered
from replay.wire.events import Recording
from replay.wire.openai import whole_chunk

_ENVELOPE = frozenset(("id", "object", "created", "model"))


def completion_of(
    transcript: Transcript, *, legacy: bool, generation_id: str, model: str, created: int
) -> dict[str, Any]:
    """The `chat.completion`, or ``legacy`` `text_completion`, under the generation's id.

    ``model`` and ``created`` (unix seconds) stand in where the upstream's chunks name none. The usage is null
    where none was counted, and so is the finish reason of a choice that has none.
    """
    envelope = transcript.envelope
    object_of = _text_choice if legacy else _chat_choice
    return {
        "id": generation_id,
        "object": "text_completion" if legacy else "chat.completion",
        "created": envelope.get("created") or created,
        "model": envelope.get("model") or model,
        "choices": [object_of(index, choice) for index, choice in sorted(transcript.choices.items())],
        "usage": transcript.usage,
        **{key: value for key, value in envelope.items() if key not in _ENVELOPE},
    }


def sent_whole(recording: Recording) -> dict[str, Any] | None:
    """The completion that the upstream has sent in one piece, under the generation's id; None where it has streamed."""
    log = recording.log
    if not log.complete or len(log) != 3 or log.entries[1][0] not in WHOLES:
        return None
    completion: dict[str, Any] = json.loads(whole_chunk(log.entries[1]))
    choices = [choice for _, choice in numbered(completion.get("choices"))]
    is_one = completion.get("object") == "chat.completion" and bool(choices)  # and not a message in place of a delta
    if not is_one or not all(isinstance(choice.get("message"), dict) for choice in choices):
        return None
    return completion | {"id": recording.start.generation_id}


def _chat_choice(index: int, choice: Choice) -> dict[str, Any]:
    message = choice.message
    return {
        "index": index,
        "message": message | {"refusal": message.get("refusal")},
        "logprobs": choice.logprobs,
        "finish_reason": choice.finish_reason,
        **choice.further,
    }


def _text_choice(index: int, choice: Choice) -> dict[str, Any]:
    return {
        "index": index,
        "text": choice.text,
        "logprobs": choice.logprobs,
        "finish_reason": choice.finish_reason,
        **choice.further,
    }
