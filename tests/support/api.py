"""The service's API as a client sees it: no more than paths, and what a test asks for again and again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from support.deadlines import DEADLINE_S, eventually
from support.http1 import Answer, Stream, open_stream, request
from support.sse import EventSourceClient, Message, messages, read_stream

TERMINAL = ("completed", "failed", "cancelled", "interrupted")


class Api:
    """One node's API."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.started: list[str] = []  # ids, for whoever tidies up

    async def get(self, path: str, headers: Mapping[str, str] | None = None, **query: Any) -> Answer:
        return await request("GET", self.at(path, **query), headers=headers)

    async def post(
        self, path: str, json_body: Any = None, headers: Mapping[str, str] | None = None, **options: Any
    ) -> Answer:
        return await request("POST", self.at(path), json_body=json_body, headers=headers, **options)

    async def open(
        self, path: str, json_body: Any, headers: Mapping[str, str] | None = None, *, seconds: float = DEADLINE_S
    ) -> Stream:
        """A POST whose answer is read as it comes; returns when its head is there."""
        return await open_stream(
            self.at(path),
            method="POST",
            headers={"Content-Type": "application/json", **(headers or {})},
            body=json.dumps(json_body).encode(),
            seconds=seconds,
        )

    def note(self, answer: Answer | Stream) -> None:
        """Remember what a call has started, for whoever tidies up."""
        if id := answer.headers.get("replay-generation-id"):
            self.started.append(id)

    async def delete(self, path: str) -> Answer:
        return await request("DELETE", self.at(path))

    def at(self, path: str, **query: Any) -> str:
        """The URL of a path; a list gives its parameter several times, None leaves it out."""
        given = {name: value for name, value in query.items() if value is not None}
        return f"{self.url}{path}" + ("?" + urlencode(given, doseq=True) if given else "")

    # Generations.

    async def start(
        self,
        body: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        **replay: Any,
    ) -> dict[str, Any]:
        """Start a generation; keywords go into the request's `replay`. The generation object."""
        whole: dict[str, Any] = {"prompt": "Hi", "model": "test-model"} if body is None else dict(body)
        if replay:
            whole["replay"] = replay
        answer = await self.post("/generations", whole, headers)
        assert answer.status == 201, answer
        generation: dict[str, Any] = answer.json()
        self.started.append(generation["id"])
        return generation

    async def run(self, body: Mapping[str, Any] | None = None, **replay: Any) -> str:
        """Start a generation and wait until it has ended; its id. The upstream must have a script."""
        id: str = (await self.start(body, **replay))["id"]
        await self.ended(id)
        return id

    async def generation(self, id: str) -> dict[str, Any]:
        answer = await self.get(f"/generations/{id}")
        assert answer.status == 200, answer
        generation: dict[str, Any] = answer.json()
        return generation

    async def ended(self, id: str, seconds: float = DEADLINE_S) -> dict[str, Any]:
        """The generation object, as soon as its status is a terminal one."""
        return await eventually(
            f"the end of {id}", lambda: self.generation(id), lambda g: g["status"] in TERMINAL, seconds
        )

    async def has(self, id: str, events: int) -> dict[str, Any]:
        """The generation object, as soon as its log has so many events."""
        return await eventually(
            f"{events} events in {id}", lambda: self.generation(id), lambda g: g["events"] >= events
        )

    async def has_subscribers(self, id: str, count: int) -> dict[str, Any]:
        """The generation object, as soon as so many watch it."""
        return await eventually(
            f"{count} subscribers of {id}", lambda: self.generation(id), lambda g: g["subscribers"] == count
        )

    async def newest(self) -> str:
        """The id of the generation that was started last."""
        answer = await self.get("/generations", limit=1)
        id: str = answer.json()["generations"][0]["id"]
        return id

    def events_url(self, id: str, **query: Any) -> str:
        return self.at(f"/generations/{id}/events", **query)

    def source(self, id: str, *, last_event_id: str = "", **query: Any) -> EventSourceClient:
        """An EventSource on a generation."""
        return EventSourceClient(self.events_url(id, **query), last_event_id=last_event_id)

    async def read(self, id: str, headers: Mapping[str, str] | None = None, **query: Any) -> Answer:
        """One events request, read to its end."""
        return await read_stream(self.events_url(id, **query), headers)

    async def log(self, id: str) -> list[Message]:
        """All events of a generation that has ended."""
        answer = await self.read(id)
        assert (answer.status, answer.clean) == (200, True), answer
        return messages(answer.body)

    async def transcript(self, id: str, **query: Any) -> dict[str, Any]:
        answer = await self.get(f"/generations/{id}/transcript", **query)
        assert answer.status == 200, answer
        transcript: dict[str, Any] = answer.json()
        return transcript


def event_id(id: str) -> tuple[int, int]:
    """`<ms>-<seq>` as two integers."""
    ms, seq = id.split("-")
    return int(ms), int(seq)


def text_of(events: list[Message]) -> str:
    """The visible answer: the content of all tokens, joined."""
    return "".join(event.json()["content"] for event in events if event.event == "token")


def assert_problem(answer: Answer, status: int, code: str | None = None) -> None:
    """Hold an answer against RFC 9457 and the contract: five members, of which `code` is ours."""
    assert answer.status == status, answer
    assert answer.media_type == "application/problem+json", answer
    problem = answer.json()
    assert problem["status"] == status
    assert all(isinstance(problem[name], str) and problem[name] for name in ("type", "title", "detail", "code"))
    assert code is None or problem["code"] == code
