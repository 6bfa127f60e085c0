"""An OpenAI-compatible server in a process of its own, which costs next to nothing.

The user's message names the answer. Every event is one write and one chunk of the transfer coding, as real servers
send them:

    /paced/v1   at a pace, each event at a random moment of its turn, so that no two streams run in step
    /fast/v1    the very same bytes, as fast as they are taken
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import re
from multiprocessing.connection import Connection

import uvloop

_ANSWER = re.compile(rb"answer (\d+)")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
_MODELS = b'{"object":"list","data":[{"id":"gpt-4o","object":"model","created":0,"owned_by":"test"}]}'
_LIST = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_MODELS), _MODELS)

Answer = list[bytes]  # its events, each with its blank line


class ModelServer:
    """The process, as a context manager."""

    def __init__(self, answers: list[Answer], per_second: float) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._port, theirs = spawn.Pipe(duplex=False)
        self._process = spawn.Process(target=_run, args=(answers, per_second, theirs), daemon=True)

    def __enter__(self) -> ModelServer:
        self._process.start()
        if not self._port.poll(30):
            raise RuntimeError("the model server did not start")
        port = self._port.recv()
        self.paced_url = f"http://127.0.0.1:{port}/paced/v1"
        self.fast_url = f"http://127.0.0.1:{port}/fast/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()


def _run(answers: list[Answer], per_second: float, port: Connection) -> None:
    uvloop.run(_serve(answers, per_second, port))


async def _serve(answers: list[Answer], per_second: float, port: Connection) -> None:
    framed = [[b"%x\r\n%b\r\n" % (len(event), event) for event in answer] for answer in answers]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await _answer(reader, writer, framed, per_second)

    server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=1000)
    port.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, framed: list[list[bytes]], per_second: float
) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    if head.startswith(b"GET "):
        writer.write(_LIST)
        return
    length, paced = _LENGTH.search(head), head.startswith(b"POST /paced/v1/chat/completions ")
    assert length is not None, f"expected a request with its length, got {head!r}"
    named = _ANSWER.search(await reader.readexactly(int(length[1])))
    assert named is not None, "expected a message that names an answer"
    frames = framed[int(named[1])]
    writer.write(_STREAM)
    if paced:
        await _pace(writer, frames, per_second)
    else:
        writer.write(b"".join(frames))
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _pace(writer: asyncio.StreamWriter, frames: list[bytes], per_second: float) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    for turn, frame in enumerate(frames):
        # Against the schedule, not against the event before: a server that comes late makes up for it.
        await asyncio.sleep(max(0.0, began + (turn + random.random()) / per_second - loop.time()))
        writer.write(frame)
