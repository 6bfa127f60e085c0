"""OpenAI's answer to a call without streaming, assembled from the chunks of a stream."""

from __future__ import annotations

from typing import Any

from replay.model.event import WHOLES
from replay.model.transcript import Choice, Transcript
from replay.wire import json
from replay.wire.events import Recording
from replay.wire.openai import whole_chunk

_ENVELOPE = frozenset(("id", "object", "created", "model"))


def completion_of(transcript: Transcript, *, generation_id: str, model: str, created: int) -> dict[str, Any]:
    """The `chat.completion`, or `text_completion` where the chunks were such, under the generation's id.

    ``model`` and ``created`` (unix seconds) stand in where the upstream's chunks name none. The usage is null
    where none was counted, and so is the finish reason of a choice that has none.
    """
    said = transcript.envelope
    shown = _text_choice if transcript.legacy else _chat_choice
    return {
        "id": generation_id,
        "object": "text_completion" if transcript.legacy else "chat.completion",
        "created": said.get("created") or created,
        "model": said.get("model") or model,
        "choices": [shown(index, choice) for index, choice in sorted(transcript.choices.items())],
        "usage": transcript.usage,
        **{key: value for key, value in said.items() if key not in _ENVELOPE},
    }


def sent_whole(recording: Recording) -> dict[str, Any] | None:
    """The completion that the upstream has sent in one piece, under the generation's id; None where it has streamed."""
    log = recording.log
    if not log.complete or len(log) != 3 or log.entries[1][0] not in WHOLES:
        return None
    completion: dict[str, Any] = json.loads(whole_chunk(log.entries[1]))
    choices = completion.get("choices")
    if not choices or not all(isinstance(choice.get("message"), dict) for choice in choices):
        return None
    return completion | {"id": recording.start.generation_id}


def _chat_choice(index: int, choice: Choice) -> dict[str, Any]:
    message = whole_message(choice.message)
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
        "text": choice.message["content"] or "",
        "logprobs": choice.logprobs,
        "finish_reason": choice.finish_reason,
        **choice.further,
    }


def whole_message(folded: dict[str, Any]) -> dict[str, Any]:
    """A message as a call without streaming gives it: a call's index is only for putting its pieces together."""
    calls = folded.get("tool_calls")
    if calls is None:
        return folded
    return folded | {"tool_calls": [{key: call[key] for key in call if key != "index"} for call in calls]}
