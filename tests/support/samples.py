"""The recorded upstream answers in `tests/samples`, as the wire carried them.

What each is, is told by its number and name; how it came (status, headers, cut or clean) is told here,
since a body alone cannot say it.

Those in `shapes` were written by hand, each after what a server sends; beside it stands what it says.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.sse import messages

DIRECTORY = Path(__file__).parents[1] / "samples"

_CUT = ("22",)  # the connection was reset; all others ended cleanly
_STATUS = {"23": 500}
_EVENT_STREAM = {"content-type": "text/event-stream"}


@dataclass(frozen=True)
class Sample:
    """One recorded answer."""

    name: str
    status: int
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    cut: bool = False

    @property
    def payloads(self) -> list[Any]:
        """The JSON of every `data:`, errors included, without `[DONE]`."""
        return [json.loads(event.data) for event in messages(self.body) if event.data != "[DONE]"]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The payloads that are chunks of a completion."""
        return [payload for payload in self.payloads if "choices" in payload]


def load(path: Path) -> Sample:
    """Read one file."""
    body = path.read_bytes()
    number = path.name.partition("-")[0]
    if path.suffix == ".json":
        head, _, body = body.replace(b"\r\n", b"\n").partition(b"\n\n")
        status, *lines = head.decode().split("\n")
        fields = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        return Sample(path.stem, int(status.split()[1]), headers, body)
    return Sample(path.stem, _STATUS.get(number, 200), _EVENT_STREAM, body, cut=number in _CUT)


_NO_NUMBER = re.compile(rb"(?<=[:\[,] )-?(?:NaN|Infinity|1e\d{3}|\d{4300,})")


@dataclass(frozen=True)
class Shape(Sample):
    """A stream whose chunks have a shape of their own."""

    path: Path = DIRECTORY
    right: dict[str, Any] = field(default_factory=dict, repr=False)  # what it says

    @property
    def is_response(self) -> bool:
        """Whether it is one of the Responses API."""
        return b'"response.' in self.body

    @property
    def payloads(self) -> list[Any]:
        """The JSON of every `data:`, with null for what no JSON has, without `[DONE]`."""
        return Sample(self.name, self.status, self.headers, _NO_NUMBER.sub(b"null", self.body)).payloads


def _shape(path: Path) -> Shape:
    right = json.loads(path.with_suffix(".json").read_text())
    return Shape(path.stem, 200, _EVENT_STREAM, path.read_bytes(), path=path, right=right)


SHAPES = [_shape(path) for path in sorted((DIRECTORY / "shapes").glob("*.sse"))]
SAMPLES = {sample.name: sample for sample in map(load, sorted(DIRECTORY.glob("[0-9]*")))}
