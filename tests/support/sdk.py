"""The official OpenAI package, three ways: only its base URL is another, and nothing of it is patched.

A client lives as long as one question, and shows what came where the test sees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import operator
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol

import pytest
from openai import AsyncOpenAI, DefaultAioHttpClient, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from support.deadlines import DEADLINE_S, eventually

_OPTIONS: dict[str, Any] = {"api_key": "none", "timeout": DEADLINE_S, "max_retries": 0}

AT_ONCE_S = DEADLINE_S / 2  # less than anything that the service itself waits for
ROUNDS = 50  # of one client, on the connections that it keeps

Ask = Callable[..., Awaitable[Any]]


class Sdk(Protocol):
    """A way to use the package."""

    async def ask(self, url: str, call: str, shown: list[Any] | None = None, **request: Any) -> Any:
        """Make a call; a stream, and the pages of a list, are read to their end, into `shown`."""

    async def follow(self, url: str, shown: list[Any] | None = None, **request: Any) -> tuple[list[Any], Any]:
        """Use the helper `responses.stream`; its events, and its final response or why there is none."""


class Asynchronous:
    """AsyncOpenAI on one of its transports."""

    def __init__(self, transport: type[Any]) -> None:
        self._transport = transport

    @contextlib.asynccontextmanager
    async def client(self, url: str, **options: Any) -> AsyncIterator[AsyncOpenAI]:
        """A client of a node; options are the package's."""
        http_client = options.pop("http_client", None) or self._transport(trust_env=False)
        async with AsyncOpenAI(base_url=f"{url}/v1", http_client=http_client, **_OPTIONS | options) as client:
            yield client

    async def ask(self, url: str, call: str, shown: list[Any] | None = None, **request: Any) -> Any:
        shown = [] if shown is None else shown
        async with self.client(url) as client:
            answer = operator.attrgetter(call)(client)(**request)
            if inspect.iscoroutine(answer):
                answer = await answer
            if not hasattr(answer, "__aiter__"):
                return answer
            async for item in answer:
                shown.append(item)
            return shown

    async def follow(self, url: str, shown: list[Any] | None = None, **request: Any) -> tuple[list[Any], Any]:
        shown = [] if shown is None else shown
        async with self.client(url) as client, client.responses.stream(**request) as stream:
            async for event in stream:
                shown.append(event)
            try:
                return shown, await stream.get_final_response()
            except RuntimeError as error:
                return shown, error


class Synchronous:
    """OpenAI, in a thread."""

    @contextlib.contextmanager
    def client(self, url: str, **options: Any) -> Iterator[OpenAI]:
        """A client of a node; options are the package's."""
        http_client = DefaultHttpxClient(trust_env=False)
        with OpenAI(base_url=f"{url}/v1", http_client=http_client, **_OPTIONS | options) as client:
            yield client

    async def ask(self, url: str, call: str, shown: list[Any] | None = None, **request: Any) -> Any:
        return await asyncio.to_thread(self._ask, url, call, [] if shown is None else shown, request)

    async def follow(self, url: str, shown: list[Any] | None = None, **request: Any) -> tuple[list[Any], Any]:
        return await asyncio.to_thread(self._follow, url, [] if shown is None else shown, request)

    def _ask(self, url: str, call: str, shown: list[Any], request: dict[str, Any]) -> Any:
        with self.client(url) as client:
            answer = operator.attrgetter(call)(client)(**request)
            if not hasattr(answer, "iter_pages") and not hasattr(answer, "__next__"):
                return answer
            shown.extend(answer)
            return shown

    def _follow(self, url: str, shown: list[Any], request: dict[str, Any]) -> tuple[list[Any], Any]:
        with self.client(url) as client, client.responses.stream(**request) as stream:
            shown.extend(stream)
            try:
                return shown, stream.get_final_response()
            except RuntimeError as error:
                return shown, error


SYNCHRONOUS = Synchronous()
ON_HTTPX = Asynchronous(DefaultAsyncHttpxClient)
ON_AIOHTTP = Asynchronous(DefaultAioHttpClient)
WAYS: dict[str, Sdk] = {"synchronous": SYNCHRONOUS, "on_httpx": ON_HTTPX, "on_aiohttp": ON_AIOHTTP}

every_sdk = pytest.mark.parametrize("ask", [way.ask for way in WAYS.values()], ids=WAYS)
streamed_or_not = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


# What a model is asked for, and how it says it.


class City(BaseModel):
    """A format."""

    name: str
    people: int


CITY = ('{"name": "Pa', 'ris", "peo', 'ple": 2', "100000}")


# What came.


def text_of(chunks: Sequence[ChatCompletionChunk]) -> str:
    """The visible text of choice 0."""
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices if choice.index == 0)


def choices_of(completion: ChatCompletion) -> list[tuple[str, dict[str, Any]]]:
    """Why each choice of a whole completion ends, and what its message says."""
    messages = [
        {name: value for name, value in choice.message.to_dict().items() if value is not None and name != "role"}
        for choice in completion.choices
    ]
    return [(choice.finish_reason, message) for choice, message in zip(completion.choices, messages, strict=True)]


def types(events: Sequence[Any]) -> list[str]:
    """The types of a response's events, without `response.`."""
    return [event.type.removeprefix("response.") for event in events]


async def has(shown: Sequence[Any], count: int, task: asyncio.Task[Any]) -> None:
    """Wait until a client that runs as a task has shown so much."""

    async def seen() -> int:
        if task.done():
            task.result()
        return len(shown)

    await eventually(f"{count} items from a client", seen, lambda seen: seen >= count)
