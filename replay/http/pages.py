"""The dashboard and the JavaScript module: a fixed set of files that come with the package, as they are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

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
_FOLDERS = ("replay", "dashboard")


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    content_type: str
    etag: str


class Pages:
    """`/`, `/g/{id}`, `/replay.js` and the files they need, which lie in `static/` as they are served."""

    def __init__(self) -> None:
        static = resources.files("replay.http").joinpath("static")
        self._index = _file(static.joinpath("index.html"))
        self._module = _file(static.joinpath("replay.js"))
        self._files = {
            (folder, entry.name): _file(entry) for folder in _FOLDERS for entry in static.joinpath(folder).iterdir()
        }

    def routes(self) -> list[web.RouteDef]:
        """What this face answers."""
        return [
            web.get("/", self.index),
            web.get("/g/{id}", self.index),
            web.get("/replay.js", self.module),
            web.get(f"/{{folder:{'|'.join(_FOLDERS)}}}/{{file}}", self.file),
        ]

    async def index(self, request: web.Request) -> web.Response:
        """Answer with the one document; its script looks at the address."""
        return self._answer(request, self._index)

    async def module(self, request: web.Request) -> web.Response:
        """Answer with the module that pages import."""
        return self._answer(request, self._module)

    async def file(self, request: web.Request) -> web.Response:
        """Answer with a file that comes with the package; raises HTTPNotFound for any other name."""
        file = self._files.get((request.match_info["folder"], request.match_info["file"]))
        if file is None:
            raise web.HTTPNotFound
        return self._answer(request, file)

    def _answer(self, request: web.Request, file: _File) -> web.Response:
        headers = {**_HEADERS, "ETag": f'"{file.etag}"'}
        if any(known.value in (file.etag, "*") for known in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(body=file.body, headers={**headers, "Content-Type": file.content_type})


def _file(entry: Traversable) -> _File:
    body = entry.read_bytes()
    return _File(body, _TYPES[entry.name.rpartition(".")[2]], hashlib.sha256(body).hexdigest()[:32])
