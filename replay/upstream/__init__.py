"""The upstream port: whatever generates.

    table.py          UpstreamTable: several upstreams, told apart by the model
    openai.py         OpenAIUpstream: any OpenAI-compatible server
      transport.py    HTTP to one of them; retries.py: whether a call is made again; body.py: reads the answer
    demo.py           DemoUpstream: a recording that comes with the package

A further protocol is a class here that has what `Upstream` names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from replay.redaction import secrets_in_headers
from replay.wire.chat_dialect import CHAT
from replay.wire.dialect import Dialect
from replay.wire.responses_dialect import RESPONSES

# The headers by which a caller is known to OpenAI and to Azure.
CREDENTIALS = ("Authorization", "OpenAI-Organization", "OpenAI-Project", "api-key")


class Api(StrEnum):
    """The calls of OpenAI's API that generate."""

    CHAT = "chat"
    COMPLETIONS = "completions"  # the legacy ones
    RESPONSES = "responses"

    @property
    def dialect(self) -> Dialect:
        """The one in which an answer is asked for."""
        return RESPONSES if self is Api.RESPONSES else CHAT


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What an upstream is asked."""

    api: Api
    model: str
    body: bytes = field(repr=False)  # a JSON object that names the model; bytes take a tenth of what a tree does
    keys: frozenset[str] = field(default=frozenset(), repr=False)  # that the body brings for others
    credentials: Mapping[str, str] | None = field(default=None, repr=False)  # headers; None: the service's own
    retries: int = 0  # further tries before the first byte
    unstreamed: bool = False  # whoever asks wants the whole answer, and no stream

    @property
    def secrets(self) -> set[str]:
        """What the caller has brought that nobody else may be told."""
        return secrets_in_headers((self.credentials or {}).values()) | self.keys


class Upstream(Protocol):
    """Answers calls with an event stream of chunks; one of the Responses API with its own events, or with chunks."""

    async def default_model(self, credentials: Mapping[str, str] | None = None) -> str:
        """Return the model for a request that names none; raises UpstreamError."""

    def notice(self, model: str) -> str | None:
        """Return what the reader of a generation has to be told, as that it is a demonstration; None for nothing."""

    def speaks_responses(self, model: str) -> bool | None:
        """Whether a call of the Responses API is answered as such, and not with chunks; None where nobody knows yet."""

    async def models(self, credentials: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return OpenAI's list of models; raises UpstreamError."""

    def stream(self, call: Call) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Make the call and yield the pieces of the answer's body as they come; entered when it has been accepted.

        Raises UpstreamError for an answer that is an error, UpstreamUnreachable before the first byte,
        UpstreamTimeout after a silence, UpstreamTruncated when the body is cut, and InvalidRequest for a call
        that cannot be put to this upstream.
        """

    async def close(self) -> None:
        """Release what it holds."""
