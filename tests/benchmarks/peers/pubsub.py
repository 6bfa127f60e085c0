"""The design of tutorials in Python: a subscription to a Redis channel for each reader, and nothing kept.

A reader is subscribed when the comment `subscribed` has come, which is later than the head of the response.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from . import installing
from .peer import Peer
from .publisher import Publisher, resp_answer, resp_command

_SERVERS = Path(__file__).parent / "servers"


class PubSub(Peer):
    """A server that passes on what is published in Valkey."""

    replays = False
    resumes = False
    _distributions: ClassVar[tuple[str, ...]]

    @classmethod
    async def install(cls) -> None:
        await installing.python_environment()

    async def _start(self, directory: Path) -> None:
        python = await installing.python_environment()
        self.versions = await installing.python_versions(*self._distributions)
        valkey = self._run_valkey(directory)
        self._valkey_port = valkey.port
        url = f"redis://127.0.0.1:{valkey.port}/0"
        await self._run("python", [python.absolute(), *self._arguments()], directory, REDIS_URL=url)

    @abstractmethod
    def _arguments(self) -> list[str | Path]:
        """What the interpreter is to run."""

    def _subscription(self, stream: str, replay: bool, after: str | None) -> tuple[str, Mapping[str, str]]:
        return f"/events/{stream}", {}

    def _publication(self, stream: str, data: bytes) -> bytes:
        return resp_command(b"PUBLISH", stream.encode(), data)

    def _publishing(self) -> Publisher:
        return Publisher(self._valkey_port, resp_answer)


class SseStarlette(PubSub):
    """EventSourceResponse on uvicorn with all that makes it quick."""

    name = "sse-starlette on uvicorn"
    _distributions = ("sse-starlette", "uvicorn", "uvloop", "httptools", "redis")

    def _arguments(self) -> list[str | Path]:
        address = ["--port", str(self.port), "--backlog", "8192"]
        quick = ["--loop", "uvloop", "--http", "httptools", "--log-level", "warning"]
        return ["-m", "uvicorn", "--app-dir", _SERVERS, "sse_starlette_server:app", *address, *quick]


class AioHttp(PubSub):
    """A StreamResponse for each reader, on uvloop."""

    name = "aiohttp"
    _distributions = ("aiohttp", "uvloop", "redis")

    def _arguments(self) -> list[str | Path]:
        return [_SERVERS / "aiohttp_server.py", str(self.port)]
