"""Runs a node until a signal: `replay serve`."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from collections.abc import Mapping

import uvloop
from aiohttp.http_exceptions import HttpProcessingError

from replay import config
from replay.app import App

log = logging.getLogger(__name__)

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class _FieldFormatter(logging.Formatter):
    """Time, level, logger, message, and the record's own fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        fields = (f" {name}={value!r}" for name, value in record.__dict__.items() if name not in _STANDARD)
        head, newline, trace = line.partition("\n")
        return head + "".join(fields) + newline + trace


def serve(flags: Mapping[str, str | None]) -> int:
    """Run a node with the settings of a command line; the exit code. Raises InvalidSetting."""
    settings = config.load(flags)
    _log_to_stderr(settings.log_level)
    _allow_many_connections()
    return uvloop.run(_serve(settings))


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_FieldFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("aiohttp.server").addFilter(_is_ours)
    for chatty in ("httpx2", "httpcore2", "openai"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a record tells of more than a client's malformed HTTP, which has been answered with 400."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


def _allow_many_connections() -> None:
    """Every reader is a file descriptor, and the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(settings: config.Settings) -> int:
    """Run until a signal; the exit code. The first SIGTERM or SIGINT drains, the second stops now."""
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    app = App(settings)
    starting = asyncio.create_task(app.start())
    stopping = asyncio.create_task(signals.get())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return 0
    _greet(starting.result())
    await stopping
    draining = asyncio.create_task(app.drain())
    again = asyncio.create_task(signals.get())
    await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
    if draining.done():
        draining.result()
        return 0
    log.warning("stopping now")
    draining.cancel()
    await asyncio.gather(draining, return_exceptions=True)
    await app.stop()
    return 1


def _greet(url: str) -> None:
    print(f"replay is ready at {url}")
    print(f"Open {url}/ in a browser, or start a generation and watch it from a second terminal:\n")
    print(f"  curl -N {url}/generations -H 'Accept: text/event-stream' -d '{{\"prompt\": \"Hello\"}}'\n", flush=True)
