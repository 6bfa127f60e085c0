"""What an upstream says, put together: the pieces of a chat completion, and scripts that send them."""

from __future__ import annotations

import json
from typing import Any

from support.upstream import Call, Script


def delta(**said: Any) -> dict[str, Any]:
    """What is said by choice 0, in a chunk."""
    return {"choices": [{"index": 0, "delta": said, "finish_reason": None}]}


def fragment(index: int, **said: Any) -> dict[str, Any]:
    """A piece of a call, in a chunk."""
    beside = {name: said.pop(name) for name in ("id", "type") if name in said}
    return delta(tool_calls=[{"index": index, **beside, "function": said}])


def finish(reason: str) -> dict[str, Any]:
    """Why choice 0 ends, in a chunk."""
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def chunks(*payloads: dict[str, Any]) -> Script:
    """Send these chunks, and end as chat completions do."""

    async def script(call: Call) -> None:
        for payload in payloads:
            await call.send_raw(b"data: %b\n\n" % json.dumps(call.chunk() | payload).encode())
        await call.send_raw(b"data: [DONE]\n\n")
        await call.done()

    return script


def say_choices(*choices: dict[str, Any], usage: dict[str, Any] | None = None) -> Script:
    """Send these, each as choice 0 of a chunk of its own, and finish."""

    async def script(call: Call) -> None:
        for choice in choices:
            await call.send(call.chunk(choice))
        await call.finish(usage=usage)

    return script


def in_turn(*scripts: Script) -> Script:
    """The first call is answered with the first script, and so on."""
    left = list(scripts)

    async def script(call: Call) -> None:
        await left.pop(0)(call)

    return script
