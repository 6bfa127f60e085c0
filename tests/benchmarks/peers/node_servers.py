"""Two designs in Node: a stream that its producer sends again for whoever asks, and a log with offsets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from . import installing
from .peer import Peer, http_request

_SERVERS = Path(__file__).parent / "servers"


class ResumableStream(Peer):
    """Vercel's resumable-stream: the producer keeps the text, and publishes it in Valkey, once for each reader.

    A reader resumes after so many characters of the body.
    """

    name = "resumable-stream"
    replays = True
    resumes = True

    @classmethod
    async def install(cls) -> None:
        await installing.node_modules()

    async def _start(self, directory: Path) -> None:
        node = await installing.node_modules()
        self.versions = await installing.node_versions("resumable-stream", "redis")
        url = f"redis://127.0.0.1:{self._run_valkey(directory).port}"
        server = _SERVERS.absolute() / "resumable_stream_server.mjs"
        await self._run("node", [node, server, str(self.port)], directory, REDIS_URL=url)

    async def open(self, stream: str) -> None:
        await self._publisher.ask(http_request("PUT", f"/streams/{stream}", self.port, {}))

    def _subscription(self, stream: str, replay: bool, after: str | None) -> tuple[str, Mapping[str, str]]:
        begin = after if after is not None else "0" if replay else str(2**53 - 1)  # more than there ever is
        return f"/streams/{stream}?resumeAt={begin}", {}

    def _publication(self, stream: str, data: bytes) -> bytes:
        return http_request("POST", f"/streams/{stream}", self.port, {"Content-Type": "text/plain"}, data)


class DurableStreams(Peer):
    """The reference server of the Durable Streams protocol, in memory, as it is when nothing is set.

    A reader resumes after the `streamNextOffset` of the last `control` event.
    """

    name = "@durable-streams/server"
    replays = True
    resumes = True

    @classmethod
    async def install(cls) -> None:
        await installing.node_modules()

    async def _start(self, directory: Path) -> None:
        node = await installing.node_modules()
        self.versions = await installing.node_versions("@durable-streams/server")
        server = _SERVERS.absolute() / "durable_streams_server.mjs"
        await self._run("node", [node, server, str(self.port)], directory)

    async def open(self, stream: str) -> None:
        await self._publisher.ask(http_request("PUT", f"/v1/stream/{stream}", self.port, _TEXT))

    def _subscription(self, stream: str, replay: bool, after: str | None) -> tuple[str, Mapping[str, str]]:
        offset = after if after is not None else "-1" if replay else "now"
        return f"/v1/stream/{stream}?offset={offset}&live=sse", {}

    def _publication(self, stream: str, data: bytes) -> bytes:
        return http_request("POST", f"/v1/stream/{stream}", self.port, _TEXT, data)


# Kept and sent as it is; JSON would be parsed, and sent as an array of one.
_TEXT = {"Content-Type": "text/plain"}
