"""The composition root: builds the parts, joins them, starts and drains them in order."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import MappingProxyType

from aiohttp import web

from replay import addresses, config
from replay.config import Settings
from replay.errors import InvalidSetting
from replay.http.activity import ActivityEvents
from replay.http.bodies import Bodies
from replay.http.completions import Completions
from replay.http.events import Events
from replay.http.generations import Generations
from replay.http.headers import complete_response
from replay.http.multiplexing import MultiplexedEvents
from replay.http.openai_service import OpenAIService
from replay.http.ops import Ops
from replay.http.origins import Origins
from replay.http.pages import Pages
from replay.http.problems import answer_problems
from replay.http.responses import ResponseCalls
from replay.http.resuming import Resuming
from replay.http.server import Runner
from replay.http.siblings import Siblings
from replay.http.stored import Stored
from replay.http.streaming import Streaming
from replay.http.token_stream import TokenStream
from replay.http.transcripts import Transcripts
from replay.live.activity import Activity
from replay.live.activity_reporter import ActivityReporter
from replay.live.catalogue import Catalogue
from replay.live.counters import Counters
from replay.live.endings import Endings
from replay.live.hub import Hub
from replay.live.keeper import Keeper
from replay.live.orphans import Orphans
from replay.live.periodic_work import PeriodicWork
from replay.live.producers import Producers
from replay.live.starter import Starter
from replay.live.tasks import Tasks
from replay.redaction import Redaction
from replay.store.connection import Address
from replay.store.embedded import EmbeddedValkey
from replay.store.rehearsal import rehearse
from replay.store.valkey import ValkeyStore
from replay.upstream import Upstream
from replay.upstream.demo import DemoUpstream
from replay.upstream.openai import OpenAIUpstream
from replay.upstream.table import UpstreamTable
from replay.upstream.transport import Transport

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 10.0  # a Valkey that starts beside the node takes a moment
_REPAIRED_WITHIN_S = 7.0  # a producer compares a silent log every five, and then puts back what Valkey has lost of it
_BACKLOG = 4096  # a whole room of readers may come back at once; the kernel may allow less


class App:
    """One node, from the first connection to Valkey to the last reader released."""

    def __init__(self, settings: Settings, siblings: Siblings | None = None) -> None:
        self.settings = settings
        self._siblings = siblings  # where it is one of several workers
        self.name = "node_" + secrets.token_hex(8)
        self._parts = AsyncExitStack()  # closed in reverse order of building

    async def start(self) -> str:
        """Build and start everything; the URL it listens on. Raises ReplayError when something cannot work."""
        try:
            return await self._start()
        except BaseException:
            await self._parts.aclose()
            raise

    async def _start(self) -> str:
        origins = Origins(self.settings)
        await self._start_store()
        self._upstream = build_upstream(self.settings)
        self._parts.push_async_callback(self._upstream.close)
        await self._start_live()
        ops = Ops(self._store, self.hub, self.producers, self._counters, siblings=self._siblings)
        if self._siblings is not None:
            await self._siblings.start(ops.registry)
            self._parts.push_async_callback(self._siblings.stop)
        max_bytes = self.settings.max_body_bytes
        web_app = web.Application(middlewares=[answer_problems, origins.admit], client_max_size=max_bytes)
        web_app.on_response_prepare.append(complete_response)
        web_app.add_routes(self._routes(origins, ops))
        url = await self._listen(web_app)
        self._parts.callback(self._cut_connections)
        return url

    async def _start_store(self) -> None:
        """Connect to Valkey: to the one that is named, or else to one of this node's own."""
        settings, parts = self.settings, self._parts
        url = settings.valkey_url
        if url is None:
            embedded = EmbeddedValkey(settings.data_dir, fsync=settings.embedded_fsync)
            await embedded.start()
            parts.push_async_callback(embedded.stop)
            url = embedded.url
        self._store = ValkeyStore(url, timeout_s=settings.store_timeout_s, key_prefix=settings.key_prefix)
        await self._store.start(_CONNECT_TIMEOUT_S)
        parts.push_async_callback(self._store.stop)
        if settings.valkey_url is not None:
            await rehearse(self._store)

    async def _start_live(self) -> None:
        """Build what moves events, and begin what comes by the clock."""
        settings, parts, store, node = self.settings, self._parts, self._store, self.name
        self._counters = counters = Counters()
        self._tasks = tasks = Tasks()
        lost_after_s = max(2 * settings.lease_s, _REPAIRED_WITHIN_S)
        self.hub = hub = Hub(store, cache_bytes=settings.cache_bytes, lost_after_s=lost_after_s)
        parts.push_async_callback(hub.stop)
        self._activity = activity = Activity(store, lost_after_s=lost_after_s)
        activity.start()
        parts.push_async_callback(activity.stop)
        reporter = ActivityReporter(store, activity, tasks)
        redaction = Redaction(config.secrets(settings))
        self.producers = producers = Producers(
            store, hub, reporter, self._upstream, settings, counters, tasks, redaction=redaction
        )
        keeper = Keeper(store, settings, counters, tasks)
        self._endings = Endings(store, hub, producers, keeper, activity, settings, counters, tasks, node=node)
        orphans = Orphans(store, hub, producers, self._endings, reporter, counters, node=node, lease_s=settings.lease_s)
        work = PeriodicWork(store, hub, activity, producers, self._endings, keeper, orphans, settings, name=node)
        await work.start(alone=settings.valkey_url is None)
        parts.push_async_callback(work.stop)
        parts.push_async_callback(tasks.stop)

    def _routes(self, origins: Origins, ops: Ops) -> list[web.RouteDef]:
        """Build the faces; the routes of all of them."""
        settings, store, hub, producers = self.settings, self._store, self.hub, self.producers
        activity, endings, upstream = self._activity, self._endings, self._upstream
        starter = Starter(store, hub, producers, upstream, settings, self._tasks, node=self.name)
        self._streaming = streaming = Streaming(hub, settings, self._counters)
        resuming, bodies = Resuming(streaming), Bodies(settings)
        events = Events(hub, resuming)
        catalogue = Catalogue(store, hub, producers, self._tasks)
        service = OpenAIService(store, hub, producers, endings, starter, upstream, streaming, bodies, settings)
        faces = (
            Generations(store, hub, activity, catalogue, endings, starter, events, bodies, settings, node=self.name),
            events,
            Transcripts(hub),
            MultiplexedEvents(hub, streaming, resuming),
            ActivityEvents(activity, resuming),
            ops,
            Completions(service),
            Stored(service),
            TokenStream(service, resuming, origins),
            ResponseCalls(service),
            Pages(),
        )
        return [route for face in faces for route in face.routes()]

    async def _listen(self, web_app: web.Application) -> str:
        settings = self.settings
        runner = Runner(web_app, settings, access_log=None, handler_cancellation=True, shutdown_timeout=2.0)
        await runner.setup()
        self._parts.push_async_callback(runner.cleanup)
        shared = None if self._siblings is None else True  # by default a port is nobody else's
        site = web.TCPSite(runner, settings.host, settings.port, backlog=_BACKLOG, reuse_port=shared)
        try:
            await site.start()
        except OSError as error:
            raise addresses.refusal(settings.host, settings.port, error) from error
        port = runner.addresses[0][1]
        logger.info("node started", extra={"node": self.name, "host": settings.host, "port": port})
        return addresses.url_here(settings.host, port)

    async def drain(self) -> None:
        """Go away without anybody losing anything.

        Not ready -> new starts refused -> own generations may finish -> the rest end as interrupted ->
        readers are sent elsewhere, a few at a time -> lease given up, connections closed.
        """
        self.producers.draining = True
        logger.info("draining", extra={"generations": len(self.producers), "connections": len(self.hub.connections)})
        await self.producers.drain(self.settings.drain_grace_s)
        self._streaming.closed = True
        await self._release_connections()
        await self.stop()
        logger.info("drained")

    async def _release_connections(self) -> None:
        """Cut the readers, spread over a while: a thousand that come back at once are a storm elsewhere."""
        connections = list(self.hub.connections)
        random.shuffle(connections)
        for connection in connections:
            if connection in self.hub.connections:
                await asyncio.sleep(self.settings.drain_spread_s / len(connections))
                connection.abort()

    def _cut_connections(self) -> None:
        for connection in tuple(self.hub.connections):
            connection.abort()

    async def stop(self) -> None:
        """Stop now."""
        await self._parts.aclose()


def check(settings: Settings) -> None:
    """Look at what the settings name, before anything starts; raises InvalidSetting and AddressInUse."""
    build_upstream(settings)
    if settings.valkey_url is not None:
        Address.parse(settings.valkey_url)
    addresses.check(settings.host, settings.port)


def build_upstream(settings: Settings, environ: Mapping[str, str] = os.environ) -> Upstream:
    """The upstreams that the settings name, else the OpenAI client's own environment variables, else the demo.

    Raises InvalidSetting.
    """
    redaction = Redaction(config.secrets(settings, environ))
    url = settings.upstream_url or environ.get("OPENAI_BASE_URL") or None  # set to nothing it is not set
    key = settings.upstream_api_key or environ.get("OPENAI_API_KEY") or None
    lines = [row for row in re.split(r"[;\n]", settings.upstreams or "") if row.strip()]
    rows = [_upstream_row(number, row, settings, redaction, environ) for number, row in enumerate(lines, 1)]
    if url is not None or key is not None:
        account = {
            header: environ[name]
            for name, header in (("OPENAI_ORG_ID", "OpenAI-Organization"), ("OPENAI_PROJECT_ID", "OpenAI-Project"))
            if environ.get(name)
        }
        source = "--upstream-url" if settings.upstream_url else "OPENAI_BASE_URL"
        variable = "REPLAY_UPSTREAM_API_KEY" if settings.upstream_api_key else "OPENAI_API_KEY"
        url = url or "https://api.openai.com/v1"
        others = _server(url, source, _key(key, variable), settings, redaction, account)
        return UpstreamTable([*rows, ("*", others)]) if rows else others
    return UpstreamTable(rows) if rows else DemoUpstream(settings.demo_tokens_per_second)


def _upstream_row(
    number: int, row: str, settings: Settings, redaction: Redaction, environ: Mapping[str, str]
) -> tuple[str, Upstream]:
    """One row; its errors do not repeat it, since a key may stand in the wrong place."""
    pattern, *further = row.split()
    if not 1 <= len(further) <= 2 or "://" in pattern or not further[0].startswith(("http://", "https://")):
        raise InvalidSetting(
            "--upstreams: expected a pattern, a base URL and, where it asks for a key, a variable's name "
            f"in row {number}, as in gpt-* https://api.openai.com/v1 OPENAI_API_KEY"
        )
    if len(further) == 2 and further[1] not in environ:
        name = further[1] if re.fullmatch("[A-Z]{1,12}|[A-Z0-9]+(_[A-Z0-9]+)+", further[1]) else "it names"
        raise InvalidSetting(f"--upstreams: expected a key in the variable {name}, which is not set, for row {number}")
    key = _key(environ[further[1]], further[1]) if len(further) == 2 else None
    return pattern, _server(further[0], f"--upstreams, row {number}", key, settings, redaction)


def _key(key: str | None, variable: str) -> str | None:
    """An upstream's key, if it can go into a header."""
    if key is not None and not re.fullmatch(r"[\x21-\x7e]+", key):
        raise InvalidSetting(f"{variable}: expected a key of printable ASCII without blanks")
    return key


def _server(
    url: str,
    source: str,
    api_key: str | None,
    settings: Settings,
    redaction: Redaction,
    account: Mapping[str, str] = MappingProxyType({}),
) -> OpenAIUpstream:
    transport = Transport(
        url,
        source=source,
        # Local servers ask for no key, but some of them for a header.
        credentials={"Authorization": f"Bearer {api_key or 'none'}", **account},
        redaction=redaction,
        connect_timeout_s=settings.upstream_connect_timeout_s,
        idle_timeout_s=settings.upstream_idle_timeout_s,
    )
    return OpenAIUpstream(transport, speaks_responses={"yes": True, "no": False}.get(settings.upstream_responses))
