"""The libraries for server-sent events that `make clients` tries, each with the program that uses it.

A program is given the library's name and a URL. It reads the generation to its end with the lines that
replay/http/README.md gives for the library, prints every event that the library shows as a line of JSON,
`[id, event, data]`, and exits.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Language:
    """One program, in one language, that uses many libraries."""

    name: str
    command: tuple[str, ...]
    tool: str | None = None  # without it, what is here is not tried
    build: tuple[str, ...] | None = None  # run once in the program's folder

    @property
    def folder(self) -> Path:
        return HERE / self.name

    @property
    def missing(self) -> str | None:
        """The tool that is not there."""
        return self.tool if self.tool and not shutil.which(self.tool) else None


PYTHON = Language("python", (".python/bin/python", "clients.py"))
NPM = Language("npm", ("node", "clients.mjs"))
GO = Language("go", ("./clients",), tool="go", build=("go", "build", "-o", "clients", "."))
RUST = Language("rust", ("target/debug/clients",), tool="cargo", build=("cargo", "build", "--locked", "--quiet"))
JAVA = Language("java", ("sh", "run.sh"), tool="mvn", build=("mvn", "-B", "-q", "compile"))

LIBRARIES: dict[Language, tuple[str, ...]] = {
    PYTHON: (
        "sseclient",
        "sseclient-py",
        "httpx-sse",
        "aiohttp-sse-client2",
        "requests-sse",
        "launchdarkly-eventsource",
        "launchdarkly-eventsource async",
        "aiosseclient",
        "simple-sse-client",
        "assel",
    ),
    NPM: (
        "eventsource 2",
        "eventsource 3",
        "eventsource 4",
        "eventsource 5",
        "undici",
        "eventsource-client",
        "@microsoft/fetch-event-source",
        "extended-eventsource",
        "launchdarkly-eventsource",
        "event-source-polyfill",
        "reconnecting-eventsource",
        "event-source-plus",
    ),
    GO: ("r3labs/sse", "tmaxmax/go-sse", "launchdarkly/eventsource", "donovanhide/eventsource"),
    RUST: ("reqwest-eventsource", "eventsource-client", "eventsource-stream", "reqwest-sse", "sseer"),
    JAVA: ("okhttp-sse", "okhttp-eventsource", "jersey", "cxf", "resteasy", "webclient"),
}
