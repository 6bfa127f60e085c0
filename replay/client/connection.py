"""How the requests of this client look to httpx2, and its outcomes to this client."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx2

from replay.client.events import NotAnEvent
from replay.client.exchange import Answer, Lost, Request
from replay.errors import InvalidSetting

_DEFAULT_URL = "http://127.0.0.1:8080"
_LONGEST_CONNECT_S = 5.0  # a machine that is there answers sooner

# What can happen to an exchange on its way, and not because of what was asked.
LOST = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ProxyError, NotAnEvent)


class Connection:
    """Where the service is, and what a request to it takes."""

    def __init__(
        self, url: str | None, *, headers: Mapping[str, str] | None, timeout_s: float, silence_timeout_s: float
    ) -> None:
        self.url = _check_url(url or os.environ.get("REPLAY_URL") or _DEFAULT_URL)
        self._headers = dict(headers or {})
        self._timeout_s = timeout_s
        self._silence_timeout_s = silence_timeout_s

    def options(self) -> dict[str, Any]:
        """For httpx2's clients. Every generation that is followed is a connection, so there is no limit to them."""
        return {
            "base_url": self.url,
            "headers": {"Accept-Encoding": "identity", **self._headers},  # what is compressed on its way comes late
            "limits": httpx2.Limits(max_connections=None, max_keepalive_connections=20),
        }

    def arguments(self, request: Request) -> dict[str, Any]:
        """For a request that is answered whole."""
        return self._arguments(request, self._timeout_s + request.held_s)

    def stream_arguments(self, request: Request) -> dict[str, Any]:
        """For a request whose answer goes on."""
        return self._arguments(request, self._silence_timeout_s)

    def _arguments(self, request: Request, silence_s: float) -> dict[str, Any]:
        connect_s = min(self._timeout_s, _LONGEST_CONNECT_S)
        return {
            "method": request.method,
            "url": request.path,
            "params": request.query,
            "headers": request.headers,
            "content": request.body,
            "timeout": httpx2.Timeout(self._timeout_s, connect=connect_s, read=silence_s),
        }

    def lost(self, error: Exception) -> Lost:
        """Why there was no answer."""
        return Lost(f"no answer from {self.url}: {str(error) or type(error).__name__}")


def _check_url(text: str) -> str:
    """A URL of a service, if it is one; raises InvalidSetting otherwise."""
    try:
        url, port = httpx2.URL(text), urlsplit(text).port
    except (httpx2.InvalidURL, ValueError) as error:
        raise InvalidSetting(f"url {text!r}: {error}") from error
    if url.scheme not in ("http", "https") or not url.host or port == 0:
        raise InvalidSetting(f"url {text!r}: expected http://… or https://…")
    return text.rstrip("/")


def answer_of(response: httpx2.Response) -> Answer:
    """A response that has been read."""
    return Answer(response.status_code, response.headers, response.content)
