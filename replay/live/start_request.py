"""What somebody wants started, and by what two requests are told to be the same."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from replay.upstream import Api
from replay.wire import json

Prepare = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequest:
    """A generation somebody wants."""

    request: dict[str, Any]  # for the upstream
    api: Api | None = None  # of OpenAI's API; None: a chat completion asked for at /generations
    credentials: Mapping[str, str] | None = field(default=None, repr=False)  # the caller's own, for the upstream
    prepare: Prepare | None = None  # completes the request, when and where the log is created
    keep_request: bool = True
    unstreamed: bool = False  # its caller wants no stream
    response: dict[str, Any] | None = None  # what a response repeats of its request
    # What a response tells of its tools where the upstream only knows chat completions; see `Start`.
    ignored: list[str] | None = None
    namespaced: dict[str, list[str]] | None = None
    generation_id: str | None = None
    ttl_ms: int
    metadata: dict[str, Any] | None = None
    abandon_after_ms: int | None = None
    idempotency_key: str | None = None
    job: str | None = None  # a key that is used with many requests, and stands for each of them apart
    caller: bytes | None = field(default=None, repr=False)  # a digest of the credentials; None: it has no retries
    retry: bool = False  # the caller says that this is not its first try
    size: int = 0  # about how many bytes of JSON the request is

    def fingerprint(self) -> str:
        """Equal for equal bodies, however they were written."""
        return hashlib.sha256(json.canonical(self._body)).hexdigest()

    def digest(self) -> str | None:
        """The same for this caller alone; of what is written the same, as a client does that repeats itself.

        None where there is a key, or nobody to know again. To sort it would take ten times as long. It stands in
        Valkey, and tells nothing of the credentials: whoever would guess them has to know all of the request as well.
        """
        if self.caller is None or self.idempotency_key is not None or self.job is not None:
            return None
        digest = hashlib.sha256(self.caller)
        digest.update(json.dumps(self._body))
        return digest.hexdigest()[:32]

    @property
    def _body(self) -> list[Any]:
        """What has to be equal. How the answer is sent is none of it: some clients ask again for the whole."""
        request = {name: value for name, value in self.request.items() if name != "stream_options"}
        return [request, self.api, self.generation_id, self.ttl_ms, self.metadata, self.abandon_after_ms]
