"""Metrics of all workers of a service, whichever of them is asked.

A worker shows its own on a Unix socket in a directory that the workers share. Whoever is asked for `/metrics` asks the
others there, and gives each figure the label `worker`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector, web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)

_TIMEOUT = ClientTimeout(total=1.0)  # a worker that is just being started again is left out


class Siblings:
    """The workers that share a directory; this is one of them."""

    def __init__(self, shared: Path, number: int) -> None:
        self._shared = shared
        self._own = shared / f"{number}.metrics"
        self._runner: web.AppRunner | None = None

    async def start(self, registry: CollectorRegistry) -> None:
        """Show this worker's metrics to the others."""

        async def metrics(request: web.Request) -> web.Response:
            return web.Response(body=generate_latest(registry))

        app = web.Application()
        app.add_routes([web.get("/", metrics)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        self._own.unlink(missing_ok=True)  # of one that had the number before, and was killed
        await web.UnixSite(self._runner, str(self._own)).start()

    async def stop(self) -> None:
        """Show nothing more."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def metrics(self) -> bytes:
        """What all workers show, in Prometheus' text format."""
        paths = sorted(self._shared.glob("*.metrics"))
        texts = await asyncio.gather(*map(_ask, paths))
        merged = CollectorRegistry(auto_describe=False)
        merged.register(_Merged({path.stem: text for path, text in zip(paths, texts, strict=True) if text}))
        return generate_latest(merged)


async def _ask(path: Path) -> str | None:
    try:
        async with ClientSession(connector=UnixConnector(str(path)), timeout=_TIMEOUT) as session:
            return await (await session.get("http://worker/")).text()
    except (ClientError, OSError, TimeoutError) as error:
        logger.warning("a worker's metrics are missing", extra={"worker": path.stem, "reason": repr(error)})
        return None


class _Merged(Collector):
    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for worker, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                merged.samples += [
                    sample._replace(labels={**sample.labels, "worker": worker}) for sample in family.samples
                ]
        yield from families.values()
