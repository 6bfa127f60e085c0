"""Calls of `/v1`: what is asked, how it is asked, and what an answer is held against."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from support.api import Api
from support.deadlines import DEADLINE_S
from support.http1 import Answer, Stream
from support.samples import Sample
from support.sse import messages

CHAT_PATH = "/v1/chat/completions"
LEGACY_PATH = "/v1/completions"
RESPONSES_PATH = "/v1/responses"
TOKENS_PATH = "/v1/completions/stream"

CHAT: dict[str, Any] = {"model": "test-model", "messages": [{"role": "user", "content": "Hi"}]}
LEGACY: dict[str, Any] = {"model": "test-model", "prompt": "Hi"}
INPUT: dict[str, Any] = {"model": "test-model", "input": "Hi"}
COUNTED: dict[str, Any] = {"stream_options": {"include_usage": True}}

# One call of each kind: its path and its body.
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT_PATH, CHAT),
    "a legacy one": (LEGACY_PATH, LEGACY),
    "a response": (RESPONSES_PATH, INPUT),
    "a prompt": (TOKENS_PATH, LEGACY),
}

ERROR = {"error": {"message": "slow down", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}}
DONE = "[DONE]"
PROMPT_S = 5  # a refusal waits for nothing, and least of all for what is done behind it

# Texts that look like what stands around a text, or that not every part of a service can carry.
NASTY = (
    *("", " ", "\n\ndata: x\n\n", "\r", "\0", '"', "\\", '\\"}}]}', "\u2028", "é😀", "\ufeff", DONE, "x" * 300),
    *("{", "\ud83d", "\ude00"),
)

streamed_or_whole = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


# Asking.


def path_for(body: Mapping[str, Any]) -> str:
    """Where such a body is a request."""
    if "input" in body:
        return RESPONSES_PATH
    return LEGACY_PATH if "prompt" in body else CHAT_PATH


def body_for(sample: Sample) -> dict[str, Any]:
    """A request that such a stream answers."""
    return LEGACY if any("text" in choice for chunk in sample.chunks for choice in chunk["choices"]) else CHAT


async def opened(
    api: Api, body: Mapping[str, Any] = CHAT, headers: Mapping[str, str] | None = None, seconds: float = DEADLINE_S
) -> Stream:
    """A streamed call; returns when its head has come."""
    stream = await api.open(path_for(body), {**body, "stream": True}, headers, seconds=seconds)
    api.note(stream)
    return stream


async def ask(
    api: Api,
    body: Mapping[str, Any] = CHAT,
    headers: Mapping[str, str] | None = None,
    *,
    stream: bool | None = None,
    seconds: float = DEADLINE_S,
) -> Answer:
    """A call and its whole answer; where `stream` does not say whether it is streamed, the body does."""
    if stream or (stream is None and body.get("stream")):
        return await (await opened(api, body, headers, seconds)).to_end(seconds)
    whole = body if stream is None else {**body, "stream": stream}
    answer = await api.post(path_for(body), whole, headers, seconds=seconds)
    api.note(answer)
    return answer


def asking(
    api: Api, body: Mapping[str, Any] = CHAT, headers: Mapping[str, str] | None = None, **options: Any
) -> asyncio.Task[Answer]:
    """A call that is under way; options are those of `ask`."""
    return asyncio.create_task(ask(api, body, headers, **options))


def opening(api: Api, body: Mapping[str, Any] = CHAT, headers: Mapping[str, str] | None = None) -> asyncio.Task[Stream]:
    """A streamed call whose head has not come yet."""
    return asyncio.create_task(opened(api, body, headers))


def new_id() -> str:
    """An id that nobody has taken."""
    return f"gen_{uuid.uuid4().hex}"


# What came.


def id_of(answer: Answer | Stream) -> str:
    """The id of the generation that an answer is of."""
    return answer.headers["replay-generation-id"]


def data_of(answer: Answer) -> list[Any]:
    """What stands in each `data:`: parsed, or `[DONE]`."""
    return [event.data if event.data == DONE else event.json() for event in messages(answer.body)]


def texts_of(chunks: Sequence[Any]) -> list[str]:
    """The text of choice 0 in each chunk that has some; `[DONE]` may be among them."""
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk != DONE and chunk.get("choices")]
    return [delta["content"] for delta in deltas if delta.get("content")]


def under(id: str, chunks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The upstream's chunks as the client has to see them."""
    return [{**chunk, "id": id} for chunk in chunks]


def assert_error_object(payload: Any, message: str = "", code: str | None = None) -> None:
    """Hold an error against OpenAI's shape."""
    assert set(payload) == {"error"}, payload
    error = payload["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert isinstance(error["message"], str)
    assert error["message"]
    assert message in error["message"]
    assert isinstance(error["type"], str)
    assert code is None or error["code"] == code, error


def assert_refused(answer: Answer, status: int, code: str | None = None, message: str = "") -> None:
    """Hold an answer against what OpenAI's clients know as an error."""
    assert answer.status == status, answer
    assert answer.media_type == "application/json", answer
    assert answer.headers["x-request-id"]
    assert_error_object(answer.json(), message, code)
    if status in (400, 403, 404):
        assert answer.json()["error"]["type"] == "invalid_request_error"


def assert_broken_off(answer: Answer, message: str = "", code: str | None = None) -> list[Any]:
    """Hold a streamed answer against what a failure has to look like; the chunks before it."""
    assert answer.status == 200, answer
    assert not answer.clean
    *chunks, last = data_of(answer)
    assert DONE not in chunks
    assert all("error" not in chunk for chunk in chunks)
    assert_error_object(last, message, code)
    return chunks
