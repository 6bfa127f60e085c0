"""Runs a node, or several as workers of one service, until a signal: `replay serve`."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

from replay import config
from replay.addresses import is_any, is_only_loopback
from replay.app import App, check
from replay.errors import ReplayError
from replay.http.siblings import Siblings
from replay.redaction import Redaction
from replay.workers import Workers

logger = logging.getLogger(__name__)

T = TypeVar("T")

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class _FieldFormatter(logging.Formatter):
    """Time, level, logger, message, and the record's own fields as name=value; no secret, whoever wrote it there."""

    def __init__(self, layout: str, redaction: Redaction) -> None:
        super().__init__(layout)
        self._redaction = redaction

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        fields = (f" {name}={value!r}" for name, value in record.__dict__.items() if name not in _STANDARD)
        head, newline, trace = line.partition("\n")
        return self._redaction.log_line(head + "".join(fields) + newline + trace)


def serve(flags: Mapping[str, str | None]) -> int:
    """Run a node with the settings of a command line; the exit code. Raises ReplayError."""
    settings = config.load(flags)
    check(settings)
    _prepare(settings)
    greet = partial(_greet, settings.host)
    return uvloop.run(_serve_workers(settings, greet) if settings.workers > 1 else _serve(App(settings), greet))


def _work(settings: config.Settings, shared: Path, number: int, ready: Callable[[str], None]) -> int:
    """The same in the process of one worker."""
    _prepare(settings)
    try:
        return uvloop.run(_serve(App(settings, Siblings(shared, number)), ready))
    except ReplayError as error:
        print(f"replay: {error.in_full}", file=sys.stderr)
        return 1


def _prepare(settings: config.Settings) -> None:
    _log_to_stderr(settings, "" if settings.workers == 1 else "[%(process)d] ")
    _allow_many_connections()


def _log_to_stderr(settings: config.Settings, who: str) -> None:
    handler = logging.StreamHandler()
    layout = f"%(asctime)s {who}%(levelname)s %(name)s %(message)s"
    handler.setFormatter(_FieldFormatter(layout, Redaction(config.secrets(settings))))
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    logging.getLogger("aiohttp.server").addFilter(_is_ours)


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a record tells of more than a client's malformed HTTP, which has been answered with 400."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError | RequestPayloadError)


def _allow_many_connections() -> None:
    """Every reader is a file descriptor, and the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(app: App, ready: Callable[[str], None]) -> int:
    """Run until a signal; the exit code. The first SIGTERM or SIGINT drains, the second stops now."""
    signals = _signals()
    stopping = asyncio.create_task(signals.get(), name="first signal")
    starting = await _started_unless(stopping, app.start())
    if starting is None:
        return 0
    url = starting.result()
    # What is there by now stays: a collection would look through all of it, and everybody would wait.
    gc.collect()
    gc.freeze()
    ready(url)
    await stopping
    draining = asyncio.create_task(app.drain(), name="drain")
    again = asyncio.create_task(signals.get(), name="second signal")
    await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
    if draining.done():
        draining.result()
        return 0
    logger.warning("stopping now")
    draining.cancel()
    await asyncio.gather(draining, return_exceptions=True)
    await app.stop()
    return 1


async def _serve_workers(settings: config.Settings, ready: Callable[[str], None]) -> int:
    """Run workers until a signal, which is passed on to them; the exit code."""
    signals = _signals()
    workers = Workers(settings, _work)
    stopping = asyncio.create_task(signals.get(), name="first signal")
    starting = await _started_unless(stopping, workers.start())
    if starting is None:
        return 0
    url = starting.result()
    if url is None:
        return 1
    ready(url)
    await stopping
    workers.leave()
    ending = asyncio.create_task(workers.ended(), name="end of the workers")
    again = asyncio.create_task(signals.get(), name="second signal")
    await asyncio.wait((ending, again), return_when=asyncio.FIRST_COMPLETED)
    if not ending.done():
        workers.leave()
    return await ending


async def _started_unless(stopping: asyncio.Task[int], start: Coroutine[Any, Any, T]) -> asyncio.Task[T] | None:
    """Start something, whose task is done then; None when a signal came first and it was given up."""
    starting = asyncio.create_task(start, name="start")
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        return starting
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    return None


def _signals() -> asyncio.Queue[int]:
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    return signals


def _greet(host: str, url: str) -> None:
    print(f"replay is ready at {url}")
    if not is_only_loopback(host):
        _warn(host, url)
    print(f"Open {url}/ in a browser, or start a generation and watch it from a second terminal:\n")
    print(f"  curl -N {url}/generations -H 'Accept: text/event-stream' -d '{{\"prompt\": \"Hello\"}}'\n", flush=True)


def _warn(host: str, url: str) -> None:
    """Say who else can come in."""
    elsewhere = f" at {url.replace('localhost', socket.gethostname())}/" if is_any(host) else ""
    print(f"It listens on {host} (--host), so other machines reach it too{elsewhere}. Nobody is asked who they are:")
    print("whoever reaches the port may read, start, cancel and delete everything. Put a proxy that asks before it.")
