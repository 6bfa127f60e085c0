"""The recorded upstream answers in `tests/samples`, as the wire carried them.

What each is, is told by its number and name; how it came (status, headers, cut or clean) is told here,
since a body alone cannot say it.

Those in `shapes` were written by hand, each after what a server sends; beside it stands what it says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

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

# Samples that are streams of chunks, whole or not: the others are an answer of their own, and 15 is another API's.
STREAMS = {name: sample for name, sample in SAMPLES.items() if name[:2] not in ("15", "21", "23", "25", "28")}
FAILING = {"19": "temperature", "20": "APIConnectionError"}  # with an error in the stream; what it says
COMPLETE = {name: sample for name, sample in STREAMS.items() if name[:2] not in (*FAILING, *_CUT)}
TWO_CHOICES = "11"  # of which one never finishes


def each_sample(samples: Mapping[str, Sample]) -> pytest.MarkDecorator:
    """A test of each of these samples, under its name."""
    return pytest.mark.parametrize("sample", [pytest.param(sample, id=name) for name, sample in samples.items()])


# Names of chat completions that are complete.
CHATS = [
    *("01-role-only-then-null-content", "02-role-and-content-together", "03-usage-only-empty-choices"),
    *("04-usage-inside-finish-no-DONE", "07-reasoning_content", "08-tool_calls", "09-tool_calls-parallel"),
    *("12-logprobs", "30-raw-U2028-and-DONE-in-text", "40-azure-first-chunk", "42-crlf"),
    *("44-continuous-usage", "47-empty-delta-and-null-delta", "49-vllm-finish-with-content"),
]
REFUSALS = ["25-429-retry-after", "28-400-openai-error"]

# What some of them say: why each choice ends, and its message.
WHOLE: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "02-role-and-content-together": [("stop", {"content": "Hello café 😀"})],
    "04-usage-inside-finish-no-DONE": [("length", {"content": "tet"})],
    "07-reasoning_content": [("length", {"reasoning_content": " the reader is", "content": " the reader"})],
    "08-tool_calls": [
        (
            "tool_calls",
            {
                "tool_calls": [
                    {
                        "id": "ciZ4iQvGw94UgyET1rnHM1gfXGGeQRTO",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city": "Paris é"}'},
                    }
                ]
            },
        )
    ],
    "09-tool_calls-parallel": [
        (
            "tool_calls",
            {
                "tool_calls": [
                    {
                        "id": "call__Jpw_dlnOgeM7c9t",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'},
                    },
                    {
                        "id": "call_H4UY_by5qR7nOFIY",
                        "type": "function",
                        "function": {"name": "get_time", "arguments": '{"tz":"CET"}'},
                    },
                ]
            },
        )
    ],
    "40-azure-first-chunk": [("stop", {"content": "Hi"})],
    "47-empty-delta-and-null-delta": [("content_filter", {"content": "x", "refusal": "No."})],
    "49-vllm-finish-with-content": [("length", {"content": "tr "})],
}
