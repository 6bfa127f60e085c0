"""A durable replay service for LLM generations on Valkey Streams, and its Python client.

Here are `Client`, `AsyncClient` and what they give; what they raise is in `replay.errors`, and `Unreachable`,
`UnexpectedAnswer` and `UnknownProblem` here. Loaded when first asked for: the service needs none of it.
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
