"""An OpenAI-compatible server that says what the test tells it to, when the test tells it to.

Stepped by hand, each call is a gate:

    call = await upstream.called()    # the service has asked; nothing has been answered, not even headers
    await call.say("Hel")             # one text chunk, on the wire when this returns
    await call.finish()

or left alone, with a script that plays every call: `upstream.script = generate(100, per_second=50)`.
Nothing is ever buffered here; each send is one write.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from support.deadlines import DEADLINE_S, within
from support.http1 import reset_on_close
from support.samples import Sample

EVENT_STREAM = {"content-type": "text/event-stream"}
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}

# Headers that belong to the connection of whoever sent them.
_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "date", "server")


class Call:
    """One request of the service, and the answer as far as the test has given it."""

    def __init__(self, request: web.Request, body: Any, keep_alive: bool) -> None:
        self.path = request.path
        self.headers: Mapping[str, str] = request.headers
        self.request: dict[str, Any] = body  # parsed
        self.disconnected = asyncio.Event()  # set when the service hangs up on an answer that goes on
        self._http = request
        self._keep_alive = keep_alive
        self._response: web.StreamResponse | None = None
        self._over = asyncio.Event()

    @property
    def legacy(self) -> bool:
        """Whether this is /v1/completions."""
        return not self.path.endswith("/chat/completions")

    # The answer, step by step.

    async def answer(self, status: int = 200, headers: Mapping[str, str] = EVENT_STREAM) -> None:
        """Send status and headers; `say` and `send_raw` do it where it was not done."""
        own = {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}
        self._response = web.StreamResponse(status=status, headers=own)
        if not self._keep_alive:
            self._response.force_close()
        await self._response.prepare(self._http)

    async def send_raw(self, data: bytes) -> None:
        """Send these bytes of the body, and return when they are written."""
        if self._response is None:
            await self.answer()
        assert self._response is not None
        if data:
            await self._response.write(data)

    async def send(self, payload: Any) -> None:
        """Send one event with this JSON."""
        await self.send_raw(b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n")

    async def say(self, text: str) -> None:
        """Send one chunk with this text of choice 0."""
        await self.send(self.chunk({"text": text} if self.legacy else {"delta": {"content": text}}))

    def chunk(self, choice: Mapping[str, Any] | None = None, **further: Any) -> dict[str, Any]:
        """A chunk of this completion, with at most one choice."""
        choices = [] if choice is None else [{"index": 0, "finish_reason": None, **choice}]
        return {
            "id": "chatcmpl-upstream",
            "object": "text_completion" if self.legacy else "chat.completion.chunk",
            "created": 1_700_000_000,
            "model": self.request.get("model", "test-model"),
            "choices": choices,
            **further,
        }

    async def finish(self, reason: str = "stop", usage: Mapping[str, Any] | None = None) -> None:
        """Send the finish reason, usage where given, `[DONE]`, and end cleanly."""
        ending: dict[str, Any] = {"text": ""} if self.legacy else {"delta": {}}
        await self.send(self.chunk({**ending, "finish_reason": reason}))
        if usage is not None:
            await self.send(self.chunk(usage=dict(usage)))
        await self.send_raw(b"data: [DONE]\n\n")
        await self.done()

    async def done(self) -> None:
        """End the body cleanly, with its final chunk, whatever was sent."""
        if self._response is None:
            await self.answer()
        assert self._response is not None
        await self._response.write_eof()
        self._over.set()

    async def cut(self) -> None:
        """RST, now: no final chunk."""
        self._over.set()
        transport = self._http.transport
        if transport is not None:
            reset_on_close(transport.get_extra_info("socket"))
            transport.abort()

    async def respond(self, status: int, body: bytes | Any, headers: Mapping[str, str] | None = None) -> None:
        """A whole answer at once; anything but bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.answer(status, headers or {"content-type": "application/json"})
        await self.send_raw(data)
        await self.done()

    async def hung_up(self, seconds: float = DEADLINE_S) -> None:
        """Wait until the service hangs up."""
        await within("the service to hang up on the upstream", self.disconnected.wait(), seconds)

    async def serve(self, script: Script | None) -> web.StreamResponse:
        """Hold the connection until the test, or the script, is through with it."""
        try:
            if script is not None:
                await script(self)
            await self._over.wait()
        except (asyncio.CancelledError, ConnectionError):
            if not self._over.is_set():
                self.disconnected.set()
            raise
        return self._response or web.Response()


Script = Callable[[Call], Awaitable[None]]


def say(*texts: str, reason: str = "stop", usage: Mapping[str, Any] | None = None) -> Script:
    """Say these texts, one chunk each, and finish."""

    async def script(call: Call) -> None:
        for text in texts:
            await call.say(text)
        await call.finish(reason, usage)

    return script


def generate(tokens: int, per_second: float | None = None, text: str = "word{} ") -> Script:
    """Say so many tokens at that rate (without one: as fast as they are taken), and finish."""

    async def script(call: Call) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for index in range(tokens):
            if per_second is not None:
                await asyncio.sleep(max(0.0, begun + index / per_second - loop.time()))
            await call.say(text.format(index))
        await call.finish(usage=USAGE)

    return script


def play(sample: Sample, piece: int | None = None) -> Script:
    """Send a recorded answer: its status, its bytes (in pieces of that size, or in one), its kind of end."""

    async def script(call: Call) -> None:
        await call.answer(sample.status, sample.headers)
        size = piece or max(1, len(sample.body))
        for start in range(0, len(sample.body), size):
            await call.send_raw(sample.body[start : start + size])
        await (call.cut() if sample.cut else call.done())

    return script


class ScriptedUpstream:
    """The server: an async context manager; `url` is what `--upstream-url` takes."""

    def __init__(self, *, listener: socket.socket | None = None, keep_alive: bool = True) -> None:
        self.script: Script | None = None
        self.models = ["test-model", "other-model"]
        self.calls: list[Call] = []  # all completions asked for so far, in order, scripted or not
        self.model_calls = 0
        self.keep_alive = keep_alive
        self._untaken: asyncio.Queue[Call] = asyncio.Queue()
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        application = web.Application(client_max_size=64 << 20)
        application.router.add_get("/v1/models", self._list_models)
        application.router.add_post("/v1/chat/completions", self._complete)
        application.router.add_post("/v1/completions", self._complete)
        self._runner = web.AppRunner(
            application, handler_cancellation=True, access_log=None, shutdown_timeout=0, handle_signals=False
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> ScriptedUpstream:
        await self._runner.setup()
        await web.SockSite(self._runner, self._listener).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for call in self.calls:
            await call.cut()
        await self._runner.cleanup()
        self._listener.close()

    async def called(self, seconds: float = DEADLINE_S) -> Call:
        """The next call that is left to the test, and that it has not taken yet; it is waiting for its answer."""
        return await within("a call of the upstream", self._untaken.get(), seconds)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        call = Call(request, await request.json(), self.keep_alive)
        self.calls.append(call)
        if self.script is None:
            self._untaken.put_nowait(call)
        with contextlib.suppress(ConnectionError):
            return await call.serve(self.script)
        return web.Response()  # to nobody: the connection is gone

    async def _list_models(self, request: web.Request) -> web.Response:
        self.model_calls += 1
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "test"} for name in self.models]
        response = web.json_response({"object": "list", "data": models})
        if not self.keep_alive:
            response.force_close()
        return response
