"""Several upstreams, told apart by the model that is asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from fnmatch import fnmatchcase
from typing import Any

from replay.errors import ModelNotFound
from replay.upstream import Call, Upstream


class UpstreamTable:
    """An Upstream made of several: rows of a pattern (`gpt-*`) and an upstream; the first row that fits answers."""

    def __init__(self, rows: Sequence[tuple[str, Upstream]]) -> None:
        self._rows = rows

    def _of(self, model: str) -> Upstream:
        for pattern, upstream in self._rows:
            if fnmatchcase(model, pattern):
                return upstream
        patterns = ", ".join(pattern for pattern, _ in self._rows)
        raise ModelNotFound(f"model {model[:100]!r}: expected one of {patterns} (--upstreams)")

    async def default_model(self, credentials: Mapping[str, str] | None = None) -> str:
        """Return the first model of the last row, mostly that for all others; raises ModelNotFound, UpstreamError."""
        pattern, upstream = self._rows[-1]
        models = (await upstream.models(credentials))["data"]
        for model in models:
            if fnmatchcase(model["id"], pattern):
                name: str = model["id"]
                return name
        raise ModelNotFound(f"no model is listed that fits {pattern}; name one in the request")

    def notice(self, model: str) -> str | None:
        """Return that of the upstream which answers."""
        return self._of(model).notice(model)

    def speaks_responses(self, model: str) -> bool | None:
        """Whether the one that answers does; None too where none does."""
        try:
            return self._of(model).speaks_responses(model)
        except ModelNotFound:
            return None

    async def models(self, credentials: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return what the upstreams list, each as far as it would be asked for it; raises UpstreamError."""
        models = []
        for pattern, upstream in self._rows:
            answer = await upstream.models(credentials)
            models += [model for model in answer["data"] if self._is_for(model["id"], pattern)]
        return {"object": "list", "data": models}

    def _is_for(self, model: str, pattern: str) -> bool:
        return next((row for row, _ in self._rows if fnmatchcase(model, row)), None) == pattern

    def stream(self, call: Call) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """See the port; raises ModelNotFound."""
        return self._of(call.model).stream(call)

    async def close(self) -> None:
        """Release what they hold."""
        for _, upstream in self._rows:
            await upstream.close()
