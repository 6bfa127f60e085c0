"""A durable replay service for LLM generations on Valkey Streams, and its Python client.

Here are `Client`, `AsyncClient` and what they give; what they raise is in `replay.errors`, and `Unreachable`,
`UnexpectedAnswer` and `UnknownProblem` here. Loaded when first asked for: the service needs none of it.

The service, from the outside in (`README.md` is the map of it):

    __main__.py     the command line: `replay serve`, and what is in cli/
    serve.py        runs a node until a signal; workers.py: several, which share a port
    app.py          App: builds the parts of a node, joins them, drains them
    http/           shows the log: one file a face
    live/           moves it: feeds, producers, subscribers
    store/          keeps it
    upstream/       what generates
    wire/           turns bytes into it, and back
    model/          what is true of it

    client/, cli/   what knows the service by its API alone

For all of them:

    config.py       Settings: every setting, with its limits and its reason
    errors.py       the one tree of errors
    addresses.py    where a node listens
    descriptors.py  who may have the process's file descriptors
    offload.py      work that takes long, beside the event loop
    redaction.py    takes keys and passwords out of what leaves the process
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replay.client import (
        AsyncClient,
        Client,
        Delta,
        End,
        Event,
        Generation,
        Live,
        Reset,
        Start,
        Status,
        Token,
        Transcript,
        UnexpectedAnswer,
        UnknownProblem,
        Unreachable,
    )

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Client",
    "Delta",
    "End",
    "Event",
    "Generation",
    "Live",
    "Reset",
    "Start",
    "Status",
    "Token",
    "Transcript",
    "UnexpectedAnswer",
    "UnknownProblem",
    "Unreachable",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("replay.client"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
