"""HTTP to one upstream: its connections, its limits of time, and how what fails there is told.

Its failures are told in our words. Those of aiohttp go no further than the node's log: they may hold a request's
headers, an address of the operator's network, or a page of internals.

A request is tried again only when it surely was not begun: no connection came about, the answer said so itself
(408, 409, 429 and 5xx), or a connection that had been kept was closed before a byte of the answer. A model that has
been asked twice is paid for twice.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
from aiohttp.http_exceptions import ContentEncodingError
from yarl import URL

from replay.errors import (
    InvalidSetting,
    UpstreamError,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
    new_reference,
)
from replay.redaction import Redaction
from replay.wire.refusals import LARGEST, refused

logger = logging.getLogger(__name__)

_IDLE_CONNECTION_S = 4.0  # shorter than the five seconds that many servers allow, so that they seldom close one first
_REFUSAL_S = 10.0  # for the body of an answer that is an error
_NOT_BEGUN = frozenset((408, 409, 429))  # and 5xx
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
_LONGEST_WAIT_S = 60.0  # an upstream that asks for more is not tried again


class _Unreadable(Exception):
    """The connection was given up in the middle of a body, over bytes that are no HTTP."""


class _Closed(Exception):
    """A connection that had been kept was closed before a byte of the answer."""


class Transport:
    """Requests to the upstream at a base URL.

    A user and a password in the URL are sent as Basic authorization in place of the key, and its query with each
    request. A proxy is taken from the environment, as usual. Redirects are not followed, and cookies are not kept: what
    an upstream gives to one caller is nobody else's.
    """

    def __init__(
        self,
        base_url: str,
        *,
        credentials: Mapping[str, str],
        redaction: Redaction,
        connect_timeout_s: float,
        idle_timeout_s: float,
    ) -> None:
        try:
            url = URL(base_url)
        except ValueError:
            url = URL()
        if url.scheme not in ("http", "https") or not url.host:
            raise InvalidSetting("the upstream's base URL: expected http://… or https://…, with a host")
        self._credentials = dict(credentials)
        if url.user is not None or url.password is not None:
            self._credentials["Authorization"] = aiohttp.BasicAuth(url.user or "", url.password or "").encode()
        self._redaction = redaction
        self._url = url.with_user(None).with_fragment(None)
        self._shown = str(self._url.with_query(None))
        self._connect_timeout_s = connect_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._proxy = None if proxy_bypass(url.host) else getproxies().get(url.scheme)
        self._session: aiohttp.ClientSession | None = None

    def _open(self) -> aiohttp.ClientSession:
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_reuseconn.append(_note_reuse)
        return aiohttp.ClientSession(
            # A generation may take hours, so nothing limits how many are under way at once.
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=_IDLE_CONNECTION_S, ssl=httpx2.create_ssl_context()
            ),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self._connect_timeout_s, sock_read=self._idle_timeout_s
            ),
            headers={
                "User-Agent": f"replay/{version('replay')}",
                "Accept": "application/json",
                "Accept-Encoding": "identity",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[tracing],
        )

    async def request(
        self,
        method: str,
        path: str,
        *,
        credentials: Mapping[str, str] | None,
        secrets: Iterable[str],
        content: bytes | None = None,
        retries: int,
    ) -> aiohttp.ClientResponse:
        """The head of an answer that is no error; its reader has to close it.

        ``credentials`` are the caller's, in place of all of the service's own; None: those. ``secrets`` are what an
        error must not repeat of the call, ``content`` is JSON, ``retries`` are further tries.

        Raises UpstreamError, with the upstream's own words where the answer was an error; UpstreamUnreachable,
        UpstreamTimeout, UpstreamInvalid.
        """
        headers = dict(self._credentials if credentials is None else credentials)
        redaction = self._redaction.beside(secrets)
        if content is not None:
            headers["Content-Type"] = "application/json"
        tries = 0
        while True:
            try:
                return await self._once(method, path, headers, content, redaction)
            except _Closed:
                continue  # there are only so many that were kept, and this one is gone
            except UpstreamError as error:
                pause_s = _pause_s(error, tries)
                if tries >= retries or pause_s is None:
                    raise
                logger.info("upstream is tried again", extra={"upstream": self._shown, "reason": error.in_full})
            await asyncio.sleep(pause_s)
            tries += 1

    async def _once(
        self, method: str, path: str, headers: Mapping[str, str], content: bytes | None, redaction: Redaction
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            self._session = self._open()
        connection = SimpleNamespace(reused=False)
        try:
            response = await self._session.request(
                method,
                self._url.with_path(self._url.raw_path.rstrip("/") + path, encoded=True, keep_query=True),
                headers=headers,
                data=content,
                allow_redirects=False,
                proxy=self._proxy,
                trace_request_ctx=connection,
            )
        except (aiohttp.ClientError, OSError) as error:
            if connection.reused and _is_closed_unanswered(error):
                raise _Closed from error
            raise self._failure(error, redaction) from error
        if 200 <= response.status < 300:
            return response
        try:
            raise refused(response.status, response.headers, await _beginning(response), redaction)
        finally:
            response.close()

    def _failure(self, error: Exception, redaction: Redaction) -> UpstreamError:
        """What a failure before the answer's head is told as."""
        aside = f"{self._shown}: {redaction.text(f'{type(error).__name__}: {error}')}"
        if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
            return UpstreamTimeout(f"the upstream did not answer within {self._idle_timeout_s:g} s", aside=aside)
        reason = _why_unreachable(error)
        if reason is not None:
            return UpstreamUnreachable(f"the upstream cannot be reached: {reason}", aside=aside)
        return _unreadable(aside)

    async def pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The pieces of an answer's body, as they come.

        Raises UpstreamTimeout after a silence, UpstreamTruncated when it is cut, UpstreamInvalid when it is no HTTP.
        """
        try:
            # The session's own read timeout is the limit of silence: another one for each piece costs 8 % of a chunk.
            with _woken(response) as content:
                async for piece in content.iter_any():
                    yield piece
        except TimeoutError as error:
            raise UpstreamTimeout(f"the upstream sent nothing for {self._idle_timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError, _Unreadable) as error:
            aside = f"{self._shown}: {type(error).__name__}: {error}"
            if isinstance(error.__cause__, ContentEncodingError):
                raise UpstreamInvalid(
                    "the upstream's answer is not in the content encoding that it names", aside=aside
                ) from error
            if isinstance(error, _Unreadable | aiohttp.ClientResponseError):
                raise _unreadable(aside) from error
            raise UpstreamTruncated("the upstream closed the connection", aside=aside) from error

    async def whole(self, response: aiohttp.ClientResponse, largest: int) -> bytes:
        """The body of an answer, all of it; raises as `pieces` does, and UpstreamInvalid when it is too large."""
        body = bytearray()
        async for piece in self.pieces(response):
            body += piece
            if len(body) > largest:
                raise UpstreamInvalid(f"the upstream's answer is larger than {largest} bytes")
        return bytes(body)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


async def _note_reuse(session: object, connection: Any, params: object) -> None:
    connection.trace_request_ctx.reused = True


@contextmanager
def _woken(response: aiohttp.ClientResponse) -> Iterator[aiohttp.StreamReader]:
    """The body of an answer, whose reader is woken when the connection is gone without a word.

    When bytes that are no HTTP come in the middle of a body, aiohttp (3.13 to 3.14.5) closes the connection and tells
    nobody, and its limit of silence is no more.
    """
    content = response.content
    protocol = response.connection.protocol if response.connection is not None else None
    closed = protocol.closed if protocol is not None else None

    def wake(closed: asyncio.Future[None] | None) -> None:
        if closed is not None and not closed.cancelled():
            closed.exception()  # or it is reported as one that nobody has seen
        if not content.is_eof() and content.exception() is None:
            content.set_exception(_Unreadable("the connection was closed over bytes that are no HTTP"))

    if closed is None:
        wake(None)
        yield content
        return
    closed.add_done_callback(wake)
    try:
        yield content
    finally:
        closed.remove_done_callback(wake)  # the connection may serve many more answers


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """As much of an error's body as is kept, and one byte more where there is more."""
    body = b""
    try:
        async with asyncio.timeout(_REFUSAL_S):
            with _woken(response) as content:
                async for piece in content.iter_any():
                    body += piece
                    if len(body) > LARGEST:
                        break
    except (aiohttp.ClientError, OSError, TimeoutError, _Unreadable):
        pass  # what has come says as much as there is to know
    return body[: LARGEST + 1]


def _unreadable(aside: str) -> UpstreamInvalid:
    reference = new_reference()
    logger.warning("upstream cannot be understood", extra={"reference": reference, "reason": aside})
    return UpstreamInvalid(
        f"the upstream's answer cannot be read as HTTP; this node's log has more under {reference}", aside=aside
    )


def _is_closed_unanswered(error: Exception) -> bool:
    """Whether the server closed the connection, or had closed it, without a byte of an answer."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return isinstance(error.message, str)  # otherwise it is what had come of the answer's head
    return isinstance(error, aiohttp.ClientOSError)


def _why_unreachable(error: Exception) -> str | None:
    """Why no answer came, where that was the connection's fault and not the answer's."""
    if isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
        return "the proxy on the way to it does not let us through"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name is not known"
    if isinstance(error, ssl.CertificateError):
        return "its certificate is not trusted"
    if isinstance(error, ssl.SSLError | aiohttp.ClientSSLError):
        return "it does not speak TLS as we do"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "it does not take the connection in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        refused = isinstance(error.os_error, ConnectionRefusedError)
        return "it refuses the connection" if refused else "there is no way to it"
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return "it closed the connection before it answered"
    return None


def _pause_s(error: UpstreamError, tries: int) -> float | None:
    """Seconds until the next try; None where the call may have been begun, or another try is not wanted."""
    refusal = error.refusal
    pause_s: float = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**tries) * random.uniform(0.75, 1.0)
    if refusal is None:
        never_sent = isinstance(error.__cause__, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        return pause_s if never_sent else None
    wanted = refusal.headers.get("x-should-retry")
    if wanted == "false" or (wanted != "true" and refusal.status not in _NOT_BEGUN and refusal.status < 500):
        return None
    asked_s = _asked_s(refusal.headers)
    if asked_s is None:
        return pause_s
    return asked_s if asked_s <= _LONGEST_WAIT_S else None


def _asked_s(headers: Mapping[str, str]) -> float | None:
    """When to come back, in seconds from now, as the answer says; None where it does not."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit_s)
        except (KeyError, ValueError):
            continue
    try:
        when = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    left_s: float = when.timestamp() - time.time()
    return max(0.0, left_s)
