"""Any OpenAI-compatible server, through the official client: it knows keys, retries and errors.

Its per-chunk models are left out: the body is read as raw bytes, which costs 42 µs a chunk instead of 133
to 199 and loses nothing that the models do not know.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx2
import openai
from openai import AsyncOpenAI, AsyncStream, DefaultAioHttpClient, Omit

from replay.errors import (
    Refusal,
    UpstreamError,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from replay.upstream import CREDENTIALS, Api, Call
from replay.wire import json
from replay.wire.openai import upstream_error, with_usage
from replay.wire.responses_request import chat_request

log = logging.getLogger(__name__)

_PATHS = {Api.CHAT: "/chat/completions", Api.COMPLETIONS: "/completions", Api.RESPONSES: "/responses"}
# An answer of these types is somebody's page or a whole completion, not a stream.
_NO_STREAM = ("application/json", "text/html", "application/problem+json")
_TOLD = ("content-type", "retry-after", "retry-after-ms", "x-should-retry")  # what a refusal's headers say
_LONGEST_REFUSAL = 64 << 10  # bytes; it stands in the log
_NOT_THERE = (404, 405, 501)


class OpenAIUpstream:
    """An Upstream at a base URL.

    What the server turns out not to know is remembered: the Responses API (``speaks_responses``, None until it is
    known), whose calls are translated then, and the option that makes it count usage.
    """

    def __init__(
        self,
        *,
        base_url: str,
        api_key: str,
        connect_timeout_s: float,
        idle_timeout_s: float,
        speaks_responses: bool | None,
    ) -> None:
        self._base_url = base_url
        self._idle_timeout_s = idle_timeout_s
        self._default_model: str | None = None
        self._speaks_responses = speaks_responses
        self._counts_usage = True
        timeout = httpx2.Timeout(idle_timeout_s, connect=connect_timeout_s)
        # A generation may take hours, so nothing limits how many are under way at once.
        limits = httpx2.Limits(max_connections=0, max_keepalive_connections=100)
        self._client = AsyncOpenAI(
            base_url=base_url,
            api_key=api_key,
            timeout=timeout,
            http_client=DefaultAioHttpClient(timeout=timeout, limits=limits),
        )

    async def default_model(self, credentials: Mapping[str, str] | None = None) -> str:
        """The first model the upstream lists; raises UpstreamError."""
        if self._default_model is None:
            models = (await self.models(credentials))["data"]
            if not models:
                raise UpstreamInvalid(f"the upstream at {self._base_url} lists no model; name one in the request")
            self._default_model = models[0]["id"]
        return self._default_model

    def notice(self, model: str) -> str | None:
        """Nothing: it is a real one."""
        return None

    async def models(self, credentials: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The upstream's own list; raises UpstreamError."""
        with _translated(self._base_url):
            answer = await self._client.models.with_raw_response.list(extra_headers=_headers(credentials))
            listed = json.loads(answer.content)
        data = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(data, list) or not all(isinstance(model, dict) and "id" in model for model in data):
            raise UpstreamInvalid(f"the upstream at {self._base_url} answered with something that is no list of models")
        found: dict[str, Any] = listed
        return found

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[AsyncIterator[bytes]]:
        """See the port."""
        response = await self._ask(call)
        try:
            content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if content_type in _NO_STREAM:
                raise UpstreamInvalid(
                    f"the upstream answered 200 with {content_type}: expected a stream of chunks (text/event-stream)"
                )
            yield self._pieces(response)
        finally:
            await response.aclose()

    async def _ask(self, call: Call) -> httpx2.Response:
        """Make the call; in another way where this one is not known to the server, which is remembered."""
        native = call.api is Api.RESPONSES and self._speaks_responses is not False
        counted = self._counts_usage
        while True:
            api = call.api if native or call.api is not Api.RESPONSES else Api.CHAT
            body = call.body if api is call.api else chat_request(call.body)
            if counted and api is not Api.RESPONSES:
                body = with_usage(body)
            try:
                response = await self._post(_PATHS[api], body, call)
            except UpstreamError as error:
                if native and self._speaks_responses is None and _is_no_call(error):
                    native = False
                elif counted and _is_about_usage(error):
                    counted = False
                else:
                    raise
            else:
                self._counts_usage = self._counts_usage and counted
                if call.api is Api.RESPONSES:
                    self._speaks_responses = native
                return response

    async def _post(self, path: str, body: dict[str, Any], call: Call) -> httpx2.Response:
        with _translated(self._base_url):
            answer = await self._client.post(
                path,
                # Half a surrogate pair, which JavaScript sends, is more than the client's own encoder can write.
                content=json.dumps(body | {"stream": True}),
                cast_to=object,
                options={
                    "headers": {"Content-Type": "application/json"} | _headers(call.credentials),
                    "max_retries": call.retries,
                },
                stream=True,
                stream_cls=AsyncStream[object],
            )
        return answer.response

    async def _pieces(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        encoded = "content-encoding" in response.headers
        # The transport's own read timeout is the limit of silence: another one for each piece costs 8 % of a chunk.
        pieces = response.aiter_bytes() if encoded else cast(httpx2.AsyncByteStream, response.stream)
        try:
            async for piece in pieces:
                yield piece
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise UpstreamTimeout(f"the upstream sent nothing for {self._idle_timeout_s:g} s") from error
        except (httpx2.HTTPError, OSError) as error:
            raise UpstreamTruncated(f"the upstream's stream was cut: {error}") from error

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()


class _translated:  # noqa: N801 - reads as a word in a with statement
    """Raises the client's errors as ours."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # The aiohttp transport reports a refused connection as one that timed out.
        if isinstance(error, openai.APITimeoutError) and not isinstance(error.__cause__, httpx2.ConnectTimeout):
            raise UpstreamTimeout(f"the upstream at {self._base_url} did not answer in time") from error
        if isinstance(error, openai.APIStatusError):
            raise _status_error(error) from error
        if isinstance(error, openai.APIConnectionError):
            reason = error.__cause__ or error
            raise UpstreamUnreachable(f"cannot reach the upstream at {self._base_url}: {reason}") from error
        if isinstance(error, openai.OpenAIError | httpx2.HTTPError | ValueError):
            raise UpstreamError(f"calling the upstream at {self._base_url} failed: {error}") from error


def _status_error(error: openai.APIStatusError) -> UpstreamError:
    described = upstream_error(error.body if error.body is not None else error.message)
    response = error.response
    refusal = Refusal(
        status=error.status_code,
        headers={name: response.headers[name] for name in _TOLD if name in response.headers},
        body=response.content[:_LONGEST_REFUSAL].decode("latin-1"),
    )
    return UpstreamError(f"HTTP {error.status_code}: {described}", details=described.details, refusal=refusal)


def _is_no_call(error: UpstreamError) -> bool:
    """Whether the server does not know the path, which is something else than not knowing the model."""
    refusal = error.refusal
    return refusal is not None and refusal.status in _NOT_THERE and "model" not in refusal.body


def _is_about_usage(error: UpstreamError) -> bool:
    """Whether the server refuses the option that makes it count."""
    refusal = error.refusal
    return refusal is not None and ("stream_options" in refusal.body or "include_usage" in refusal.body)


def _headers(credentials: Mapping[str, str] | None) -> dict[str, str | Omit]:
    """Who calls: the caller's credentials in place of all of the service's own, where there are any."""
    if credentials is None:
        return {}
    return {**dict.fromkeys(CREDENTIALS, Omit()), **credentials}
