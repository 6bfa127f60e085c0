"""`/openapi.json` beside the answers themselves: statuses, media types, headers and members that it does not know."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.http1 import Answer, request
from support.upstream import say
from support.v1 import CHAT

RESPONSE = {"model": "test-model", "input": "Hi"}
SSE = {"Accept": "text/event-stream"}
LINES = {"Accept": "application/x-ndjson"}
PAGE = {"Accept": "application/json"}
TEXT = {"Accept": "text/plain"}
WEBSOCKET = {"Connection": "Upgrade", "Upgrade": "websocket"}

# On answers of every kind, or of the connection.
STANDING = frozenset(
    [
        "cache-control",
        "connection",
        "content-length",
        "content-type",
        "date",
        "retry-after",
        "server",
        "transfer-encoding",
        "vary",
        "x-accel-buffering",
        "x-content-type-options",
    ]
)


class Description:
    """What `/openapi.json` says."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def _whole(self, part: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in part:
            names = part["$ref"].removeprefix("#/").split("/")
            part = self._document
            for name in names:
                part = part[name]
        return part

    def holds(self, method: str, path: str, answer: Answer) -> None:
        """Hold an answer against what is said of it."""
        template = next(each for each in sorted(self._document["paths"], reverse=True) if _fits(each, path))
        responses = self._document["paths"][template][method.lower()]["responses"]
        assert str(answer.status) in responses, answer
        said = self._whole(responses[str(answer.status)])
        known = {name.lower() for name in said.get("headers", ())} | STANDING
        assert {name.lower() for name in answer.headers} <= known, answer
        assert (answer.media_type or None) in (said.get("content") or {None}), answer
        if answer.media_type and answer.media_type.endswith("/json") and answer.status < 300:
            self._knows(answer.json(), said["content"][answer.media_type]["schema"])

    def _knows(self, value: Any, schema: dict[str, Any]) -> None:
        schema = self._whole(schema)
        if isinstance(value, list):
            for each in value:
                self._knows(each, schema.get("items", {}))
        elif isinstance(value, dict) and "properties" in schema:
            assert set(schema.get("required", ())) <= value.keys(), value
            if schema.get("additionalProperties") is None:
                assert value.keys() <= schema["properties"].keys(), value
            for name, each in value.items():
                self._knows(each, schema["properties"].get(name, {}))


def _fits(template: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path.partition("?")[0]) is not None


@pytest.mark.parametrize(
    ("method", "path", "headers", "body"),
    [
        ("POST", "/generations", {}, {"prompt": "Hi"}),
        ("POST", "/generations", {"Idempotency-Key": "openapi"}, {"prompt": "Hi"}),
        ("POST", "/generations", {"Idempotency-Key": "openapi"}, {"prompt": "Ho"}),
        ("POST", "/generations", SSE, {"prompt": "Hi"}),
        ("POST", "/generations", {}, {"prompt": 7}),
        ("GET", "/generations?limit=2", {}, None),
        ("GET", "/generations?colour=red", {}, None),
        ("GET", "/generations/{id}", {}, None),
        ("GET", "/generations/nothing", {}, None),
        ("POST", "/generations/{id}/cancel", {}, None),
        ("GET", "/generations/{id}/events", {}, None),
        ("GET", "/generations/{id}/events", LINES, None),
        ("GET", "/generations/{id}/events", PAGE, None),
        ("GET", "/generations/{id}/events?after={last}", {}, None),
        ("GET", "/generations/{id}/transcript", {}, None),
        ("GET", "/generations/{id}/transcript", TEXT, None),
        ("GET", "/generations/{id}/transcript", {"If-None-Match": "*"}, None),
        ("GET", "/events?generation={id}", {}, None),
        ("POST", "/v1/chat/completions", {}, CHAT),
        ("POST", "/v1/chat/completions", {}, CHAT | {"stream": True}),
        ("POST", "/v1/chat/completions", {}, CHAT | {"replay": {"id": "{id}"}}),
        ("POST", "/v1/chat/completions", {}, CHAT | {"messages": 7}),
        ("GET", "/v1/chat/completions", {}, None),
        ("GET", "/v1/chat/completions/{id}", {}, None),
        ("GET", "/v1/chat/completions/{id}/messages", {}, None),
        ("GET", "/v1/completions/stream?prompt=Hi", {}, None),
        ("GET", "/v1/completions/stream", {}, None),
        ("POST", "/v1/responses", {}, RESPONSE),
        ("POST", "/v1/responses", {}, RESPONSE | {"stream": True}),
        ("POST", "/v1/responses", {}, RESPONSE | {"tools": [{"type": "web_search"}]}),
        ("GET", "/v1/responses", {}, None),
        ("GET", "/v1/responses", WEBSOCKET, None),
        ("GET", "/v1/responses/nothing", {}, None),
        ("GET", "/v1/models", {}, None),
        ("GET", "/v1/models/nothing", {}, None),
        ("GET", "/", {}, None),
        ("GET", "/g/{id}", {}, None),
        ("GET", "/replay.js", {}, None),
        ("GET", "/healthz", {}, None),
        ("GET", "/readyz", {}, None),
        ("GET", "/metrics", {}, None),
        ("GET", "/openapi.json", {}, None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_answer_is_what_is_described(service, upstream, method, path, headers, body):
    upstream.script = say("a")
    id = await service.run()
    last = (await service.generation(id))["last_event_id"]
    if body and body.get("replay"):
        body = body | {"replay": {"id": id}}
    description = Description((await service.get("/openapi.json")).json())
    path = path.format(id=id, last=last)
    answer = await request(method, service.at(path), headers=headers, json_body=body)
    description.holds(method, path, answer)


async def test_what_any_call_may_be_answered_with_is_said(service):
    said = (await service.get("/openapi.json")).json()["info"]["description"]
    for status in (400, 403, 405, 408, 417, 421, 431, 500, 503):
        assert str(status) in said
