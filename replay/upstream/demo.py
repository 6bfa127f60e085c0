"""The model `demo`: plays back a text that comes with the package, at a human pace, and says so."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from replay.wire import json

_TEXT = resources.files("replay.upstream").joinpath("demo.md").read_text(encoding="utf-8")
# About what a tokenizer makes of it: a word with the space before it, or a run of anything else.
_TOKENS = re.findall(r"\s?\w{1,8}|\s+|[^\w\s]", _TEXT)


class DemoUpstream:
    """An Upstream that needs no server, no key and no money."""

    notice: str | None = (
        "This is a demonstration: the model `demo` plays back a text that comes with replay. "
        "Set --upstream-url or OPENAI_BASE_URL to call a real one."
    )

    def __init__(self, tokens_per_second: float) -> None:
        self._pause_s = 1 / tokens_per_second

    async def default_model(self) -> str:
        """There is only one."""
        return "demo"

    @asynccontextmanager
    async def stream(self, request: dict[str, Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        """Play the text back, whatever was asked; `max_tokens` is honoured."""
        yield self._pieces(request)

    async def _pieces(self, request: dict[str, Any]) -> AsyncIterator[bytes]:
        limit = request.get("max_completion_tokens") or request.get("max_tokens")
        tokens = _TOKENS[:limit] if isinstance(limit, int) and limit > 0 else _TOKENS
        envelope = {
            "id": "chatcmpl-demo",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": request.get("model"),
        }
        due = time.monotonic()
        yield _message(envelope, {"role": "assistant", "content": ""})
        for token in tokens:
            due += self._pause_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            yield _message(envelope, {"content": token})
        reason = "stop" if len(tokens) == len(_TOKENS) else "length"
        yield _message(envelope, {}, finish_reason=reason)
        counted = {"prompt_tokens": 0, "completion_tokens": len(tokens), "total_tokens": len(tokens)}
        yield b"data: %b\n\n" % json.dumps({**envelope, "choices": [], "usage": counted})
        yield b"data: [DONE]\n\n"

    async def close(self) -> None:
        """Nothing to release."""


def _message(envelope: dict[str, Any], delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: %b\n\n" % json.dumps({**envelope, "choices": [choice]})
