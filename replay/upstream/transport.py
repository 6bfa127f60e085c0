"""HTTP to one upstream: its connections, its limits of time, and how what fails there is told.

Its failures are told in our words. Those of aiohttp go no further than the node's log: they may hold a request's
headers, an address of the operator's network, or a page of internals.

`retries.py` says what is tried again. One case is mended here: a connection that had been kept was closed while the
request was on its way, so that goes over another one.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import socket
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
from aiohttp.http_exceptions import ContentEncodingError
from yarl import URL

from replay import __version__, descriptors
from replay.errors import (
    InvalidSetting,
    NoDescriptor,
    UpstreamError,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
    new_reference,
)
from replay.redaction import Redaction
from replay.upstream.body import Silent, Unreadable, read_body
from replay.upstream.retries import pause_before_next_s
from replay.wire.refusals import LARGEST, refused

logger = logging.getLogger(__name__)

_IDLE_CONNECTION_S = 4.0  # shorter than the five seconds that many servers allow, so that they seldom close one first
_CROSSING_S = 1.0  # a close that crosses a request is here by then; later the server has had it, and may have begun
_REFUSAL_S = 10.0  # for the body of an answer that is an error


# What can be a host without its scheme, and no key: those have neither a port nor a version at their end.
_HOST_ALONE = re.compile(r"[\w.-]+:\d{1,5}(/[\w./-]*)?|[\w-]+(\.[\w-]+)+/v\d/?")


class _Closed(Exception):
    """A connection that had been kept was closed while the request was on its way."""


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
        source: str,
        credentials: Mapping[str, str],
        redaction: Redaction,
        connect_timeout_s: float,
        idle_timeout_s: float,
    ) -> None:
        """``source`` names the setting in which the URL stands; raises InvalidSetting."""
        url = _base_url(base_url, source)
        self._credentials = dict(credentials)
        if url.user is not None or url.password is not None:
            login = f"{url.user or ''}:{url.password or ''}"
            self._credentials["Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
        self._redaction = redaction
        self.url = url.with_user(None).with_fragment(None)
        self._public_url = str(self.url.with_query(None))
        self._connect_timeout_s = connect_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._proxy = None if proxy_bypass(url.host or "") else getproxies().get(url.scheme)
        self._session: aiohttp.ClientSession | None = None

    def _open(self) -> aiohttp.ClientSession:
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_create_end.append(_connected)
        tracing.on_connection_reuseconn.append(_reused)
        return aiohttp.ClientSession(
            # A generation may take hours, so nothing limits how many are under way at once.
            connector=aiohttp.TCPConnector(
                limit=0,
                keepalive_timeout=_IDLE_CONNECTION_S,
                ssl=httpx2.create_ssl_context(),
                socket_factory=_new_socket,
            ),
            # How long an answer may take, and be silent, is for us to say: aiohttp counts any byte as a sign of life.
            timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_timeout_s),
            headers={
                "User-Agent": f"replay/{__version__}",
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
        UpstreamTimeout, UpstreamInvalid; NoDescriptor.
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
                pause_s = pause_before_next_s(error, tries)
                if tries >= retries or pause_s is None:
                    raise
                logger.info("upstream is tried again", extra={"upstream": self._public_url, "reason": error.in_full})
            await asyncio.sleep(pause_s)
            tries += 1

    async def _once(
        self, method: str, path: str, headers: Mapping[str, str], content: bytes | None, redaction: Redaction
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            self._session = self._open()
        connection = _Connection(asyncio.timeout(None), self._idle_timeout_s)
        try:
            async with connection.deadline:
                response = await self._session.request(
                    method,
                    self.url.with_path(self.url.raw_path.rstrip("/") + path, encoded=True, keep_query=True),
                    headers=headers,
                    data=content,
                    allow_redirects=False,
                    proxy=self._proxy,
                    trace_request_ctx=connection,
                )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if connection.was_just_taken_again and _is_closed_unanswered(error):
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
        aside = self._aside(error, redaction)
        if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
            return UpstreamTimeout(f"the upstream did not answer within {self._idle_timeout_s:g} s", aside=aside)
        if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno == errno.EMFILE:
            return NoDescriptor("too many connections are open on this node; try again in a second", aside=aside)
        reason = _why_unreachable(error)
        if reason is not None:
            return UpstreamUnreachable(f"the upstream cannot be reached: {reason}", aside=aside)
        return _unreadable(aside)

    def _aside(self, error: Exception, redaction: Redaction) -> str:
        """What the node's log has of an error; it may quote what was sent, and that what was asked."""
        return redaction.quotation(f"{self._public_url}: {type(error).__name__}: {error}")

    async def pieces(self, response: aiohttp.ClientResponse, *, secrets: Iterable[str]) -> AsyncIterator[bytes]:
        """The pieces of an answer's body, as they come; ``secrets`` as for `request`.

        Raises UpstreamTimeout after a silence, UpstreamTruncated when it is cut, UpstreamInvalid when it is no HTTP.
        """
        try:
            async for piece in read_body(response, self._idle_timeout_s):
                yield piece
        except Silent as error:
            raise UpstreamTimeout(f"the upstream sent nothing for {self._idle_timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError, Unreadable) as error:
            aside = self._aside(error, self._redaction.beside(secrets))
            if isinstance(error.__cause__, ContentEncodingError):
                raise UpstreamInvalid(
                    "the upstream's answer is not in the content encoding that it names", aside=aside
                ) from error
            if isinstance(error, Unreadable | aiohttp.ClientResponseError):
                raise _unreadable(aside) from error
            raise UpstreamTruncated("the upstream closed the connection", aside=aside) from error

    async def read_whole(self, response: aiohttp.ClientResponse, largest: int, *, secrets: Iterable[str]) -> bytes:
        """The body of an answer, all of it; raises as `pieces` does, and UpstreamInvalid when it is too large."""
        body = bytearray()
        async for piece in self.pieces(response, secrets=secrets):
            body += piece
            if len(body) > largest:
                raise UpstreamInvalid(f"the upstream's answer is larger than {largest} bytes")
        return bytes(body)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


def _base_url(text: str, source: str) -> URL:
    """The base URL of an upstream; raises InvalidSetting, which repeats nothing that may be a key."""
    if _HOST_ALONE.fullmatch(text):
        raise InvalidSetting(
            f"{source}: expected http:// or https:// before the host, as in http://{text}; got {text!r}"
        )
    try:
        url = URL(text)
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host or re.search(r"\s", text):
        raise InvalidSetting(f"{source}: expected a URL such as http://localhost:11434/v1, with a host and no blanks")
    return url


def _new_socket(address: tuple[int, int, int, str, object]) -> socket.socket:
    """A socket for a call; where only Valkey's descriptors are left, the system's own refusal."""
    family, type, protocol, *_ = address
    opened = socket.socket(family, type, protocol)
    if opened.fileno() >= descriptors.mark():
        opened.close()
        raise OSError(errno.EMFILE, "the other file descriptors are kept for Valkey")
    return opened


@dataclass
class _Connection:
    """The connection that a request gets, from which on the answer's head is waited for."""

    deadline: asyncio.Timeout
    idle_timeout_s: float
    reused: bool = False
    made_at: float = 0.0

    def made(self) -> None:
        self.made_at = asyncio.get_running_loop().time()
        self.deadline.reschedule(self.made_at + self.idle_timeout_s)

    @property
    def was_just_taken_again(self) -> bool:
        return self.reused and asyncio.get_running_loop().time() - self.made_at < _CROSSING_S


async def _connected(session: object, request: SimpleNamespace, params: object) -> None:
    request.trace_request_ctx.made()


async def _reused(session: object, request: SimpleNamespace, params: object) -> None:
    request.trace_request_ctx.reused = True
    request.trace_request_ctx.made()


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """As much of an error's body as is kept, and one byte more where there is more."""
    body = b""
    try:
        async with asyncio.timeout(_REFUSAL_S):
            async for piece in read_body(response, _REFUSAL_S):
                body += piece
                if len(body) > LARGEST:
                    break
    except (aiohttp.ClientError, OSError, TimeoutError, Unreadable, Silent):
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
    if isinstance(error, ValueError):  # InvalidURL is one, too
        return "its address, or that of the proxy on the way to it, is none"
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
