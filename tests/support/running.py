"""Generations that go on, and say what the test says next."""

from __future__ import annotations

from typing import Any, NamedTuple

from support.api import Api
from support.upstream import Call, ScriptedUpstream


class Running(NamedTuple):
    """A generation that goes on, and the upstream's side of it."""

    id: str
    call: Call


async def begin(api: Api, upstream: ScriptedUpstream, *texts: str, **replay: Any) -> Running:
    """Start a generation that has said these texts; keywords go into the request's `replay`."""
    id = (await api.start(**replay))["id"]
    call = await upstream.called()
    for text in texts:
        await call.say(text)
    await api.has(id, 1 + len(texts))
    return Running(id, call)
