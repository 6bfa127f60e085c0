"""The dashboard and the JavaScript module: a fixed set of files that come with the package, as they are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from aiohttp import web

_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml; charset=utf-8",
}
# A model's words are shown here: whatever they are, nothing in them can run, load or send anything.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "font-src 'none'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",  # a generation's address is all it takes to read it
    # The files name each other without a version: the browser asks each time, and is told that it has them.
    "Cache-Control": "no-cache",
}
_INDEX = "index.html"
_MODULE = "replay.js"


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    content_type: str
    etag: str


class Pages:
    """`/`, `/g/{id}`, `/replay.js` and the files they need."""

    def __init__(self) -> None:
        folder = resources.files("replay.http").joinpath("dashboard")
        self._files = {
            entry.name: _file(entry.read_bytes(), suffix)
            for entry in folder.iterdir()
            if (suffix := entry.name.rpartition(".")[2]) in _TYPES
        }

    def routes(self) -> list[web.RouteDef]:
        """What this face answers."""
        return [
            web.get("/", self.index),
            web.get("/g/{id}", self.index),
            web.get("/replay.js", self.module),
            web.get("/dashboard/{file}", self.file),
        ]

    async def index(self, request: web.Request) -> web.Response:
        """The one document; its script looks at the address."""
        return self._answer(request, _INDEX)

    async def module(self, request: web.Request) -> web.Response:
        """The module that pages import."""
        return self._answer(request, _MODULE)

    async def file(self, request: web.Request) -> web.Response:
        """One of the files that come with the package; raises HTTPNotFound for any other name."""
        name = request.match_info["file"]
        if name not in self._files or name in (_INDEX, _MODULE):
            raise web.HTTPNotFound
        return self._answer(request, name)

    def _answer(self, request: web.Request, name: str) -> web.Response:
        file = self._files[name]
        headers = {**_HEADERS, "ETag": f'"{file.etag}"'}
        if any(known.value in (file.etag, "*") for known in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(body=file.body, headers={**headers, "Content-Type": file.content_type})


def _file(body: bytes, suffix: str) -> _File:
    return _File(body, _TYPES[suffix], hashlib.sha256(body).hexdigest()[:32])
