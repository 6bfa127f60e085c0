"""Whom a browser may call for: which pages may start, cancel and delete here, and which may read the answers.

A browser lends every page its user's place in the network. Two things are looked at before anything is done:

- *Host.* A page can have its own name resolve to this machine, and is then of one origin with the service. So on
  loopback, where being there is all it takes to be let in, only names are answered that are known to mean it.
- *Origin.* A page of another origin can send what it likes, but cannot read the answer unless it is allowed to
  (https://fetch.spec.whatwg.org/#http-cors-protocol). What changes something is therefore refused unless the page is
  the service's own or one of `--cors-origins`. Programs that are no browsers say nothing of the kind, and are let in.
"""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from functools import lru_cache
from http import HTTPStatus
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from replay.addresses import is_loopback, is_only_loopback
from replay.config import Settings
from replay.errors import CrossSiteRequest, InvalidRequest, Misdirected
from replay.http.headers import CORS

_READING = frozenset(("GET", "HEAD", "OPTIONS"))
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(?:\[(?P<literal>[0-9a-f:.]+)\]|(?P<name>[^\s:/?#@\[\]]+))(?::(?P<port>\d{1,5})?)?", re.IGNORECASE)

# What a page of another origin may read of an answer beside its body.
_EXPOSED = (
    "ETag, Link, Location, Replay-Generation-Id, Replay-Ignored, Replay-Previous-Generation-Id, Replay-Status, "
    "Retry-After, x-request-id, x-should-retry"
)
_PREFLIGHT_S = 600  # a browser need not ask again for so long; what is taken out of the settings still counts then


class Origins:
    """Knows the hosts that this node answers for, and the origins whose pages may call it."""

    def __init__(self, settings: Settings) -> None:
        self._host = settings.host.lower()
        self._hosts = {name.lower() for name in settings.allowed_hosts}
        self._on_loopback = is_only_loopback(self._host)
        self._hosts_matter = self._on_loopback or bool(self._hosts)
        self._origins = {_normal(origin) for origin in settings.cors_origins}

    @web.middleware
    async def admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what no page may do, answer preflights, and leave the rest to the handler.

        Raises Misdirected and CrossSiteRequest.
        """
        request[CORS] = self._cors(request)
        self._check_host(request)
        if request.method not in _READING:
            self.refuse_foreign(request)
        if request.method == "OPTIONS":
            return self._options(request)
        return await handler(request)

    def refuse_foreign(self, request: web.Request) -> None:
        """Raises CrossSiteRequest where a browser asks for a page that is neither the service's own nor allowed."""
        origin = request.headers.get("Origin")
        if not (self._is_allowed(origin) or _is_own(request, origin)):
            raise CrossSiteRequest(
                "this page belongs to another origin; call from the service's own, have this one named in "
                "--cors-origins, or call from a server"
            )

    def _cors(self, request: web.Request) -> dict[str, str]:
        """The headers that let a page of another origin read the answer, where it may."""
        if not self._origins:
            return {}
        origin = request.headers.get("Origin")
        vary = {} if "*" in self._origins else {"Vary": "Origin"}  # or a cache would give one page's answer to another
        if not self._is_allowed(origin):
            return vary
        if "*" in self._origins:
            return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": _EXPOSED}
        assert origin is not None, "none is not allowed"
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Credentials": "true",  # those of a proxy in front
            "Access-Control-Expose-Headers": _EXPOSED,
            **vary,
        }

    def _check_host(self, request: web.Request) -> None:
        host = request.headers.get("Host")
        if not self._hosts_matter or host is None:  # no browser leaves it out
            return
        name = _name_in(host)
        if name is None:
            raise InvalidRequest("Host: expected a host, with or without a port")
        if not (is_loopback(name) or name == self._host or self._is_known_host(name)):
            raise Misdirected(f"Host {host[:100]!r}: expected a loopback name, or one of --host and --allowed-hosts")

    def _is_known_host(self, name: str) -> bool:
        if not self._on_loopback and _is_address(name):  # which nobody can make mean something else
            return True
        parents = {f"*{name[at:]}" for at, letter in enumerate(name) if letter == "."}
        return not self._hosts.isdisjoint({"*", name} | parents)

    def _is_allowed(self, origin: str | None) -> bool:
        return "*" in self._origins or (origin is not None and origin.isascii() and _normal(origin) in self._origins)

    def _options(self, request: web.Request) -> web.Response:
        """What a path takes; to a page of another origin that it may send it (a preflight)."""
        nothing = request.match_info.http_exception
        if not isinstance(nothing, web.HTTPMethodNotAllowed):
            raise nothing or web.HTTPNotFound
        methods = ", ".join(sorted(nothing.allowed_methods | {"OPTIONS"}))
        answer = web.Response(status=HTTPStatus.NO_CONTENT, headers={"Allow": methods})
        if self._is_allowed(request.headers.get("Origin")) and "Access-Control-Request-Method" in request.headers:
            answer.headers["Access-Control-Allow-Methods"] = methods
            # Whatever it wants to send: no header of ours is a secret that a page could guess.
            names = request.headers.get("Access-Control-Request-Headers", "")
            answer.headers["Access-Control-Allow-Headers"] = names
            answer.headers["Access-Control-Max-Age"] = str(_PREFLIGHT_S)
        return answer


def _is_own(request: web.Request, origin: str | None) -> bool:
    """Whether a request comes from a page of this service, or from no page at all.

    `Sec-Fetch-Site` says it best, since it is right behind proxies that change the `Host`; but browsers send it only to
    https and loopback, and a link from a mail is its user's own wish, too. `Origin` comes with every request of another
    origin's script and with everything but GET; a GET that a page makes a browser send by an image or a link has a
    `Referer`, unless the page wants to hide it.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        by_link = request.headers.get("Sec-Fetch-Mode") == "navigate"
        return site == "same-origin" or (site == "none" and not by_link)
    page = origin or request.headers.get("Referer")
    if page is not None:
        # No page can send the second without being asked first, so it is a proxy's word.
        hosts = (request.headers.get(name, "") for name in ("Host", "X-Forwarded-Host"))
        authority = _authority_of(page)
        return authority is not None and authority in [_authority(host.partition(",")[0], page) for host in hosts]
    return request.method != "GET" or "Mozilla/" not in request.headers.get("User-Agent", "")


def _normal(origin: str) -> str:
    """An origin as one spelling: in lower case, without its scheme's own port."""
    origin = origin.lower()
    scheme, _, _ = origin.partition("://")
    return origin.removesuffix(f":{_DEFAULT_PORTS.get(scheme)}")


def _authority_of(url: str) -> tuple[str, int | None] | None:
    with suppress(ValueError):
        return _authority(urlsplit(url).netloc, url)
    return None


def _authority(host: str, url: str) -> tuple[str, int | None] | None:
    """Host and port; the port is that of the URL's scheme where none is named."""
    match = _HOST.fullmatch(host)
    if match is None:
        return None
    scheme = url.partition("://")[0].lower()
    port = int(match["port"]) if match["port"] else _DEFAULT_PORTS.get(scheme)
    return (match["literal"] or match["name"]).lower(), port


@lru_cache(maxsize=256)
def _name_in(host: str) -> str | None:
    """The name or address in a `Host`, in lower case; None where it is none."""
    match = _HOST.fullmatch(host)
    return None if match is None else (match["literal"] or match["name"]).lower().removesuffix(".")


def _is_address(name: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return False
