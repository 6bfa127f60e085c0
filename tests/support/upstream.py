"""An OpenAI-compatible server that says what the test tells it to, when the test tells it to.

Stepped by hand, each call is a gate:

    call = await upstream.called()    # the service has asked; nothing has been answered, not even headers
    await call.say("Hel")             # one text chunk, on the wire when this returns
    await call.finish()

or left alone, with a script that plays every call: `upstream.script = generate(100, per_second=50)`.
Nothing is ever buffered here; each send is one write.

It only knows completions, as most servers do. With `speaks_responses` it also knows `/v1/responses`, whose calls are
stepped with `send_event`, or played by `respond(said("Hel", "lo"))`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
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
        return self.path.endswith("/v1/completions")

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

    async def send_event(self, event: Mapping[str, Any]) -> None:
        """Send one event of the Responses API."""
        await self.send_raw(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode()))

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


def respond(events: Iterable[Mapping[str, Any]]) -> Script:
    """Send these events of the Responses API, and end cleanly."""

    async def script(call: Call) -> None:
        for event in events:
            await call.send_event(event)
        await call.done()

    return script


def said(*texts: str, **response: Any) -> list[dict[str, Any]]:
    """The events with which OpenAI's server says these texts, each in a delta; keywords go into its response."""
    part: dict[str, Any] = {"type": "output_text", "text": "".join(texts), "annotations": [], "logprobs": []}
    item = {"id": "msg_upstream", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    whole = {"id": "resp_upstream", "object": "response", "created_at": 1_700_000_000, "model": "test-model"}
    whole |= {"output": [item], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "background": False}
    usage = {"input_tokens": 5, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}}
    usage |= {"output_tokens": 7, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 12}
    whole |= {"status": "completed", "usage": usage, "error": None, "incomplete_details": None, **response}
    begun = whole | {"status": "in_progress", "output": [], "usage": None}
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", "item": item | {"status": "in_progress", "content": []}},
        {"type": "response.content_part.added", **place, "part": part | {"text": ""}},
        *({"type": "response.output_text.delta", **place, "delta": text, "logprobs": []} for text in texts),
        {"type": "response.output_text.done", **place, "text": part["text"], "logprobs": []},
        {"type": "response.content_part.done", **place, "part": part},
        {"type": "response.output_item.done", "item": item},
        {"type": "response.completed", "response": whole},
    ]
    for number, event in enumerate(events):
        event["sequence_number"] = number
        if "item" in event:
            event["output_index"] = 0
    return events


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
        self.speaks_responses = False
        self.models = ["test-model", "other-model"]
        self.calls: list[Call] = []  # all completions asked for so far, in order, scripted or not
        self.asked_in_vain = 0  # calls of /v1/responses, where that is not known
        self.model_calls = 0
        self.model_headers: list[Mapping[str, str]] = []  # of each of these
        self.models_refusal: tuple[int, Any] | None = None  # status and JSON, instead of the list
        self.keep_alive = keep_alive
        self._untaken: asyncio.Queue[Call] = asyncio.Queue()
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        application = web.Application(client_max_size=64 << 20)
        application.router.add_get("/v1/models", self._list_models)
        application.router.add_post("/v1/chat/completions", self._complete)
        application.router.add_post("/v1/completions", self._complete)
        application.router.add_post("/v1/responses", self._respond)
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

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        if self.speaks_responses:
            return await self._complete(request)
        self.asked_in_vain += 1
        response = web.json_response({"detail": "Not Found"}, status=404)
        if not self.keep_alive:
            response.force_close()
        return response

    async def _list_models(self, request: web.Request) -> web.Response:
        self.model_calls += 1
        self.model_headers.append(request.headers)
        status, refusal = self.models_refusal or (200, None)
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "test"} for name in self.models]
        response = web.json_response(refusal or {"object": "list", "data": models}, status=status)
        if not self.keep_alive:
            response.force_close()
        return response
