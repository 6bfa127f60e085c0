"""The upstream port: whatever generates."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol


class Upstream(Protocol):
    """Answers a chat-completions request with an event stream of chunks."""

    notice: str | None  # what the reader of a generation has to be told, as that it is a demonstration

    async def default_model(self) -> str:
        """The model for a request that names none; raises UpstreamError."""

    def stream(self, request: dict[str, Any]) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Send the request and yield the pieces of the answer's body as they come.

        Raises UpstreamError for an answer that is no stream, UpstreamUnreachable before the first byte,
        UpstreamTimeout after a silence, and UpstreamTruncated when the body is cut.
        """

    async def close(self) -> None:
        """Release what it holds."""
