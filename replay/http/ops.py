"""What an operator asks: health, readiness, metrics, the API's description."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from importlib import resources

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from replay.errors import Draining, StoreUnavailable
from replay.http.siblings import Siblings
from replay.live.counters import Counters, Histogram
from replay.live.hub import Hub
from replay.live.producers import Producers
from replay.store import EventStore
from replay.wire import json

_PROBE_TIMEOUT_S = 1.0  # a probe that waits longer has its answer


class Ops:
    """`/healthz`, `/readyz`, `/metrics`, `/openapi.json`."""

    def __init__(
        self, store: EventStore, hub: Hub, producers: Producers, counters: Counters, *, siblings: Siblings | None
    ) -> None:
        self._store = store
        self._producers = producers
        self._siblings = siblings
        self.registry = CollectorRegistry(auto_describe=False)  # this process's own metrics
        self.registry.register(_NodeCollector(store, hub, producers, counters))
        self._openapi = resources.files("replay.http").joinpath("openapi.json").read_bytes()

    def routes(self) -> list[web.RouteDef]:
        """What this face answers."""
        return [
            web.get("/healthz", self.healthz),
            web.get("/readyz", self.readyz),
            web.get("/metrics", self.metrics),
            web.get("/openapi.json", self.openapi),
        ]

    async def healthz(self, request: web.Request) -> web.Response:
        """Answer that the process runs and its loop turns."""
        return _status("ok")

    async def readyz(self, request: web.Request) -> web.Response:
        """Answer that Valkey takes what is written and the node is not draining; raises Draining, StoreUnavailable."""
        if self._producers.draining:
            raise Draining("this node is shutting down")
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                await self._store.probe()
        except TimeoutError:
            raise StoreUnavailable(f"Valkey did not answer within {_PROBE_TIMEOUT_S:g} s") from None
        return _status("ready")

    async def metrics(self, request: web.Request) -> web.Response:
        """Answer in Prometheus' text format."""
        body = generate_latest(self.registry) if self._siblings is None else await self._siblings.metrics()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def openapi(self, request: web.Request) -> web.Response:
        """Answer with the OpenAPI document."""
        return web.Response(body=self._openapi, content_type="application/json")


def _status(word: str) -> web.Response:
    return web.Response(body=json.dumps({"status": word}), content_type="application/json")


class _NodeCollector(Collector):
    """Publishes what the parts have counted; nothing is computed until somebody asks."""

    def __init__(self, store: EventStore, hub: Hub, producers: Producers, counters: Counters) -> None:
        self._store = store
        self._hub = hub
        self._producers = producers
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        counters = self._counters
        yield from _counters(
            ("replay_generations_started", "Generations started here", counters.started),
            ("replay_tokens_recorded", "Tokens recorded here", counters.tokens),
            ("replay_events_recorded", "Upstream chunks recorded here, tokens included", counters.events),
            ("replay_catch_ups", "Subscribers that had been behind and had caught up", counters.catch_ups),
            ("replay_slow_reader_aborts", "Subscribers cut for taking nothing for too long", counters.slow_aborts),
            ("replay_healed_events", "Events appended again after Valkey had lost them", counters.healed),
            ("replay_orphans_ended", "Generations ended whose node was gone", counters.orphans_ended),
            ("replay_valkey_connects", "Connections made to Valkey", self._store.connects),
        )
        ended = CounterMetricFamily("replay_generations_ended", "Generations ended here", labels=["status"])
        for status, count in sorted(counters.ended.items()):
            ended.add_metric([status], count)
        yield ended
        yield GaugeMetricFamily("replay_generations_live", "Generations produced here now", len(self._producers))
        yield GaugeMetricFamily("replay_subscribers", "Long-lived connections here now", len(self._hub.connections))
        yield GaugeMetricFamily("replay_feeds", "Generations held in memory", len(self._hub))
        yield GaugeMetricFamily("replay_feed_bytes", "Their size", self._hub.size)
        yield GaugeMetricFamily("replay_valkey_connections", "Connections to Valkey now", self._store.connections)
        yield _histogram("replay_append_seconds", "From an append to its acknowledgement", counters.append_seconds)
        yield _histogram("replay_first_token_seconds", "From start to first token", counters.first_token_seconds)
        yield _histogram("replay_inter_token_seconds", "Between two tokens", counters.inter_token_seconds)


def _counters(*rows: tuple[str, str, int]) -> Iterable[Metric]:
    return (CounterMetricFamily(name, text, value) for name, text, value in rows)


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    buckets, total = [], 0
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=histogram.total)
