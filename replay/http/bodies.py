"""Reads the bodies of requests: JSON objects, encoded as their `Content-Encoding` says (RFC 9110, 8.4)."""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any, Protocol

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from replay.config import Settings
from replay.errors import BodyTooLarge, InvalidRequest, Overloaded, RequestTimeout, UnsupportedEncoding
from replay.offload import AT_ONCE, offload
from replay.wire import json

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


class _Decoder(Protocol):
    """One of the standard library's decompressors."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


_GZIP, _ZLIB, _RAW = 31, 15, -15  # window bits of zlib
_DECODERS: dict[str, Callable[[bytes], _Decoder]] = {
    "gzip": lambda _: zlib.decompressobj(_GZIP),
    "x-gzip": lambda _: zlib.decompressobj(_GZIP),
    # The standard means zlib's format; some senders leave its header out.
    "deflate": lambda raw: zlib.decompressobj(_ZLIB if raw[:1] and raw[0] & 0x0F == 8 else _RAW),
    # No larger a window than RFC 9659 lets a sender use: a frame may ask for memory that it never fills.
    "zstd": lambda _: zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 23}),
}
SIZE = web.RequestKey("SIZE", int)  # about how many bytes a request's body has

_MOST_TREES = 2  # a tree takes some ten times its bytes
_TRY_AGAIN = "there are too many large request bodies here just now; try again in a second"
_KNOWN = "gzip, deflate, zstd"


class Bodies:
    """Reads the bodies of a node's requests, and bounds what those take that are not looked at at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bytes = 0  # beyond the first `AT_ONCE` of each body, which are not counted
        self._trees = asyncio.Semaphore(_MOST_TREES)

    @asynccontextmanager
    async def read_object(self, request: web.Request) -> AsyncIterator[dict[str, Any]]:
        """The JSON object that is a request's body; nobody may have it any more when the context ends.

        Raises BodyTooLarge, for what was sent and for what it is when decoded; Overloaded; RequestTimeout;
        UnsupportedEncoding; InvalidRequest where it is no JSON object, or not what its headers announce.
        """
        settings = self._settings
        encoding = _encoding(request)
        with _Share(self) as share:
            raw = await self._receive(request, share)
            request[SIZE] = len(raw) if encoding is None else settings.max_body_bytes
            async with self._turn() if request[SIZE] > AT_ONCE else nullcontext():
                yield await offload(request[SIZE], lambda: _parsed(_decoded(raw, encoding, settings), settings))

    async def _receive(self, request: web.Request, share: _Share) -> bytes:
        settings = self._settings
        most = settings.max_body_bytes
        if request.content_length is not None and request.content_length > most:
            raise BodyTooLarge(f"body: expected at most {most} bytes, got {request.content_length}")
        raw = bytearray()
        try:
            async with asyncio.timeout(settings.request_timeout_s):
                while piece := await request.content.readany():
                    raw += piece
                    if len(raw) > most:
                        raise BodyTooLarge(f"body: expected at most {most} bytes")
                    share.grow_to(len(raw))
        except TimeoutError:
            raise RequestTimeout(f"body: expected within {settings.request_timeout_s:g} s") from None
        except (HttpProcessingError, web.RequestPayloadError) as error:
            raise InvalidRequest("body: expected it to be of the length that its headers name") from error
        return bytes(raw)

    def hold(self, more: int) -> None:
        """Count bytes that a large body takes more, or, below 0, gives back; raises Overloaded."""
        self._bytes += more
        if more > 0 and self._bytes > self._settings.max_bodies_bytes:
            raise Overloaded(_TRY_AGAIN)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One of the few large bodies that are trees at a time."""
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                await self._trees.acquire()
        except TimeoutError:
            raise Overloaded(_TRY_AGAIN) from None
        try:
            yield
        finally:
            self._trees.release()


class _Share:
    """What one body takes of what all may take, beyond its first `AT_ONCE` bytes: connections bound those."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._bytes = 0

    def grow_to(self, size: int) -> None:
        """Take more; raises Overloaded."""
        more = max(0, size - AT_ONCE) - self._bytes
        self._bytes += more
        self._bodies.hold(more)

    def __enter__(self) -> _Share:
        return self

    def __exit__(self, *_: object) -> None:
        self._bodies.hold(-self._bytes)


def shown(value: Any) -> str:
    """The beginning of a value, for a message."""
    return json.dumps(value)[:100].decode(errors="replace")


def _encoding(request: web.Request) -> str | None:
    names = ",".join(request.headers.getall("Content-Encoding", ())).lower().split(",")
    encodings = [name.strip() for name in names if name.strip() not in ("", "identity")]
    if len(encodings) > 1 or not _DECODERS.keys() >= set(encodings):
        raise UnsupportedEncoding(f"Content-Encoding: expected one of {_KNOWN}")
    return encodings[0] if encodings else None


def _decoded(raw: bytes, encoding: str | None, settings: Settings) -> bytes:
    """A body that is one encoded member and nothing after it."""
    if encoding is None:
        return raw
    most = settings.max_body_bytes
    try:
        decoder = _DECODERS[encoding](raw)
        decoded = decoder.decompress(raw, most + 1)
    except (zlib.error, zstd.ZstdError):
        decoded = None
    if decoded is not None and len(decoded) > most:
        raise BodyTooLarge(f"body: expected at most {most} bytes when decoded")
    if decoded is None or not decoder.eof or decoder.unused_data:
        raise InvalidRequest(f"body: expected it to be {encoding}, as its Content-Encoding says, and nothing else")
    return decoded


def _parsed(raw: bytes, settings: Settings) -> dict[str, Any]:
    if json.has_more_values(raw, settings.max_body_values):
        raise BodyTooLarge(f"body: expected at most {settings.max_body_values} JSON values")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidRequest("body: expected a JSON object in UTF-8") from None
    if json.is_deep(raw, body):
        raise InvalidRequest(f"body: expected at most {json.DEEPEST} levels of JSON")
    if not isinstance(body, dict):
        raise InvalidRequest(f"body: expected a JSON object, got {shown(body)}")
    return body
