"""The model `demo`: plays back a text that comes with the package, at a human pace, and says so."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from replay.upstream import Api, Call
from replay.wire import json

_TEXT = resources.files("replay.upstream").joinpath("demo.md").read_text(encoding="utf-8")
_NOTICE = (
    "This is a demonstration: the model `demo` plays back a text that comes with replay. "
    "Set --upstream-url or OPENAI_BASE_URL to call a real one."
)
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
# About what a tokenizer makes of it: a word with the space before it, or a run of anything else.
_TOKENS = re.findall(r"\s?\w{1,8}|\s+|[^\w\s]", _TEXT)


class DemoUpstream:
    """An Upstream that needs no server, no key and no money."""

    def __init__(self, tokens_per_second: float) -> None:
        self._pause_s = 1 / tokens_per_second

    async def default_model(self, credentials: Mapping[str, str] | None = None) -> str:
        """Return the only one."""
        return "demo"

    def notice(self, model: str) -> str | None:
        """Return that it is a demonstration."""
        return _NOTICE

    def speaks_responses(self, model: str) -> bool | None:
        """Return that it only knows completions."""
        return False

    async def models(self, credentials: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return a list of the only one."""
        return {"object": "list", "data": [{"id": "demo", "object": "model", "created": 0, "owned_by": "replay"}]}

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[AsyncIterator[bytes]]:
        """Play the text back, whatever was asked; a limit of tokens is honoured."""
        yield self._pieces(call)

    async def _pieces(self, call: Call) -> AsyncIterator[bytes]:
        body = json.loads(call.body)
        limit = next((body[name] for name in _LIMITS if body.get(name)), None)
        tokens = _TOKENS[:limit] if isinstance(limit, int) and limit > 0 else _TOKENS
        message = _text_message if call.api is Api.COMPLETIONS else _chat_message
        envelope = {"id": "chatcmpl-demo", "created": int(time.time()), "model": call.model}
        due = time.monotonic()
        if call.api is not Api.COMPLETIONS:
            yield _chat_message(envelope, "", role="assistant")
        for token in tokens:
            due += self._pause_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            yield message(envelope, token)
        yield message(envelope, finish_reason="stop" if len(tokens) == len(_TOKENS) else "length")
        counted = {"prompt_tokens": 0, "completion_tokens": len(tokens), "total_tokens": len(tokens)}
        yield message(envelope, usage=counted)
        yield b"data: [DONE]\n\n"

    async def close(self) -> None:
        """Do nothing: there is nothing to release."""


def _chat_message(
    envelope: dict[str, Any],
    content: str | None = None,
    *,
    role: str | None = None,
    finish_reason: str | None = None,
    usage: dict[str, int] | None = None,
) -> bytes:
    delta = {name: value for name, value in (("role", role), ("content", content)) if value is not None}
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return _message({**envelope, "object": "chat.completion.chunk"}, choice, usage)


def _text_message(
    envelope: dict[str, Any],
    text: str = "",
    *,
    finish_reason: str | None = None,
    usage: dict[str, int] | None = None,
) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": finish_reason}
    return _message({**envelope, "object": "text_completion"}, choice, usage)


def _message(envelope: dict[str, Any], choice: dict[str, Any], usage: dict[str, int] | None) -> bytes:
    members = {"choices": [choice]} if usage is None else {"choices": [], "usage": usage}
    return b"data: %b\n\n" % json.dumps(envelope | members)
