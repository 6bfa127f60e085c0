"""Any OpenAI-compatible server.

The body of its answer is handed on as the bytes that come: a client library's models of chunks would cost several
times as much, and lose what they do not know.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
from yarl import URL

from replay.errors import UpstreamError, UpstreamInvalid
from replay.offload import offload
from replay.redaction import secrets_in_headers
from replay.upstream import Api, Call
from replay.upstream.transport import Transport
from replay.wire import json
from replay.wire.openai import with_usage, without_obfuscation
from replay.wire.responses_request import chat_request

_PATHS = {Api.CHAT: "/chat/completions", Api.COMPLETIONS: "/completions", Api.RESPONSES: "/responses"}
_NOT_THERE = (404, 405, 501)
_LIST_RETRIES = 2
_LARGEST_LIST = 16 << 20  # bytes; protects from an endless one


class OpenAIUpstream:
    """An Upstream at a base URL.

    What the server turns out not to know is remembered: the Responses API (``speaks_responses``, None until it is
    known), whose calls are translated then, and the options that make it count usage and leave out obfuscation.
    """

    def __init__(self, transport: Transport, *, speaks_responses: bool | None) -> None:
        self._transport = transport
        self._default_model: str | None = None
        self._speaks_responses = speaks_responses
        self._counts_usage = True
        self._omits_obfuscation = _knows_obfuscation(transport.url)

    async def default_model(self, credentials: Mapping[str, str] | None = None) -> str:
        """Return the first model the upstream lists; raises UpstreamError."""
        if self._default_model is None:
            models = (await self.models(credentials))["data"]
            if not models:
                raise UpstreamInvalid("the upstream lists no model; name one in the request")
            self._default_model = models[0]["id"]
        return self._default_model

    def notice(self, model: str) -> str | None:
        """Return nothing: it is a real one."""
        return None

    def speaks_responses(self, model: str) -> bool | None:
        """Return what was set, or has been found out."""
        return self._speaks_responses

    async def models(self, credentials: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return the upstream's own list; raises UpstreamError."""
        secrets = secrets_in_headers((credentials or {}).values())
        response = await self._transport.request(
            "GET", "/models", credentials=credentials, secrets=secrets, retries=_LIST_RETRIES
        )
        try:
            answer = json.loads(await self._transport.read_whole(response, _LARGEST_LIST, secrets=secrets))
        except ValueError:
            answer = None
        finally:
            response.close()
        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(data, list) or not all(isinstance(model, dict) and "id" in model for model in data):
            raise UpstreamInvalid("the upstream answered with something that is no list of models")
        models: dict[str, Any] = answer
        return models

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[AsyncIterator[bytes]]:
        """See the port."""
        with ExitStack() as opened:
            pieces = await self._open(call, opened)
            if call.unstreamed:
                pieces = self._insist(call, pieces, opened)
            del call  # it may be megabytes, and the answer takes minutes
            yield pieces

    async def _insist(self, call: Call, pieces: AsyncIterator[bytes], opened: ExitStack) -> AsyncIterator[bytes]:
        """An answer's pieces; where it has none, those of a second one that is asked for without a stream.

        Some servers say nothing at all in a stream where they would refuse the same call without one, and say why.
        """
        first = await anext(pieces, b"")
        if not first:
            pieces = await self._open(call, opened, stream=False)
        del call
        if first:
            yield first
        async for piece in pieces:
            yield piece

    async def _open(self, call: Call, opened: ExitStack, *, stream: bool = True) -> AsyncIterator[bytes]:
        response = await self._ask(call, stream=stream)
        opened.callback(response.close)
        return self._transport.pieces(response, secrets=call.secrets)

    async def _ask(self, call: Call, *, stream: bool) -> aiohttp.ClientResponse:
        """Make the call; in another way where this one is not known to the server, which is remembered."""
        native = call.api is Api.RESPONSES and self._speaks_responses is not False
        counted, plain = self._counts_usage, self._omits_obfuscation
        while True:
            api = call.api if native or call.api is not Api.RESPONSES else Api.CHAT
            content = await offload(
                len(call.body), partial(_content, call, api, stream=stream, counted=counted, plain=plain)
            )
            try:
                response = await self._transport.request(
                    "POST",
                    _PATHS[api],
                    credentials=call.credentials,
                    secrets=call.secrets,
                    content=content,
                    retries=call.retries,
                )
            except UpstreamError as error:
                if native and self._speaks_responses is None and _is_no_call(error):
                    native = False
                elif plain and _is_about(error, "include_obfuscation"):
                    plain = False
                elif counted and _is_about(error, "include_usage"):
                    counted = False
                else:
                    raise
            else:
                self._counts_usage = self._counts_usage and counted
                self._omits_obfuscation = self._omits_obfuscation and plain
                if call.api is Api.RESPONSES:
                    self._speaks_responses = native
                return response

    async def close(self) -> None:
        """Close its connections."""
        await self._transport.close()


def _content(call: Call, api: Api, *, stream: bool, counted: bool, plain: bool) -> bytes:
    """What is sent: the call's body, translated where this is another API, with what is asked for beside."""
    body = json.loads(call.body)
    if api is not call.api:
        body = chat_request(body)
    if not stream:
        body.pop("stream_options", None)  # servers refuse options of a stream where none is asked for
        return json.dumps(body | {"stream": False})
    if counted and api is not Api.RESPONSES:
        body = with_usage(body)
    if plain:
        body = without_obfuscation(body)
    return json.dumps(body | {"stream": True})


def _is_no_call(error: UpstreamError) -> bool:
    """Whether the server does not know the path, which is something else than not knowing the model."""
    refusal = error.refusal
    return refusal is not None and refusal.status in _NOT_THERE and "model" not in refusal.body


def _is_about(error: UpstreamError, option: str) -> bool:
    """Whether the server refuses an option of the stream."""
    refusal = error.refusal
    return refusal is not None and ("stream_options" in refusal.body or option in refusal.body)


def _knows_obfuscation(url: URL) -> bool:
    """Whether this is OpenAI's server or Azure's with the same API; others may refuse what they do not know."""
    host = f".{url.host}"
    azure = host.endswith(".openai.azure.com") and url.path.startswith("/openai/v1")
    return azure or host.endswith(".api.openai.com")
