"""Reads a request's body, decoded as its `Content-Encoding` says (RFC 9110, 8.4)."""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections.abc import Callable
from typing import Protocol

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from replay.config import Settings
from replay.errors import BodyTooLarge, InvalidRequest, RequestTimeout, UnsupportedEncoding

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
_KNOWN = "gzip, deflate, zstd"


async def read_body(request: web.Request, settings: Settings) -> bytes:
    """The whole body, decoded.

    Raises BodyTooLarge, as sent or as decoded; RequestTimeout; UnsupportedEncoding; InvalidRequest where it is not what
    its headers announce.
    """
    names = request.headers.get("Content-Encoding", "").lower().split(",")
    encodings = [name.strip() for name in names if name.strip() not in ("", "identity")]
    if len(encodings) > 1 or not _DECODERS.keys() >= set(encodings):
        raise UnsupportedEncoding(f"Content-Encoding: expected one of {_KNOWN}")
    raw = await _read(request, settings)
    if not encodings:
        return raw
    try:
        decoder = _DECODERS[encodings[0]](raw)
        return await asyncio.to_thread(_decoded, raw, decoder, settings.max_body_bytes)
    except (zlib.error, zstd.ZstdError, EOFError):
        raise InvalidRequest(f"body: expected it to be {encodings[0]}, as its Content-Encoding says") from None


async def _read(request: web.Request, settings: Settings) -> bytes:
    most = settings.max_body_bytes
    if request.content_length is not None and request.content_length > most:
        raise BodyTooLarge(f"body: expected at most {most} bytes, got {request.content_length}")
    try:
        async with asyncio.timeout(settings.request_timeout_s):
            return await request.read()
    except TimeoutError:
        raise RequestTimeout(f"body: expected within {settings.request_timeout_s:g} s") from None
    except (HttpProcessingError, web.RequestPayloadError) as error:
        raise InvalidRequest("body: expected it to be of the length that its headers name") from error


def _decoded(raw: bytes, decoder: _Decoder, most: int) -> bytes:
    """A body that is one encoded member and nothing behind it; raises EOFError where it is not."""
    decoded = decoder.decompress(raw, most + 1)
    if len(decoded) > most:
        raise BodyTooLarge(f"body: expected at most {most} bytes when decoded")
    if not decoder.eof or decoder.unused_data:
        raise EOFError
    return decoded
