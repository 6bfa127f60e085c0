"""What an upstream's answer that is an error becomes."""

from __future__ import annotations

import json

import pytest

from replay.redaction import NO_SECRETS, Redaction
from replay.wire.refusals import LARGEST, refused

JSON = {"content-type": "application/json"}


def body_of(error):
    return error.refusal.body.encode("latin-1")


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/Problem+JSON; charset=utf-8", "text/html", ""]
)
def test_json_goes_on_as_it_came_and_under_a_label_that_is_true(content_type):
    raw = '{ "error": {"message": "nö", "type": "t", "param": "p", "code": 7} }'.encode()
    error = refused(400, {"content-type": content_type}, raw, NO_SECRETS)
    assert (body_of(error), error.refusal.status) == (raw, 400)
    assert error.refusal.headers == ({"content-type": content_type} if "json" in content_type.lower() else {})
    assert (str(error), error.details) == ("HTTP 400: nö", {"type": "t", "param": "p", "code": 7})


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"detail": "no"}', "HTTP 500: no"),
        (b'{"error": "no"}', "HTTP 500: no"),
        (b'{"error": {}}', 'HTTP 500: {"error":{}}'),
        (b'["no"]', 'HTTP 500: ["no"]'),
        (b'[{"error": {"code": 400, "message": "no"}}]', "HTTP 500: no"),
        (b'{"error": {"error": {"message": "no"}}}', "HTTP 500: no"),
        (b'"no"', "HTTP 500: no"),
    ],
)
def test_json_of_any_shape_has_a_message(raw, message):
    assert str(refused(500, JSON, raw, NO_SECRETS)) == message


@pytest.mark.parametrize(
    ("content_type", "raw"),
    [
        ("application/json", b"[" * 500 + b"]" * 500),
        ("application/json", b'"' + b"x" * LARGEST + b'"'),
        ("application/json", b"null"),
        ("text/html", b"<p>no"),
        ("application/octet-stream", b"\xff\0"),
    ],
    ids=["deep", "large", "null", "page", "bytes"],
)
def test_anything_else_is_not_repeated(content_type, raw):
    error = refused(502, {"content-type": content_type}, raw, NO_SECRETS)
    message = f"the upstream answered with {content_type}"
    told = {"message": message, "type": "server_error", "param": None, "code": "upstream_error"}
    assert json.loads(body_of(error)) == {"error": told}
    assert str(error) == f"HTTP 502: {message}"


def test_only_what_says_when_to_come_back_is_passed_on_of_the_headers():
    headers = JSON | {"retry-after": "7", "retry-after-ms": "1\x01", "x-should-retry": "x" * 200, "set-cookie": "a=b"}
    assert refused(429, headers, b"{}", NO_SECRETS).refusal.headers == JSON | {"retry-after": "7"}


@pytest.mark.parametrize(("status", "said"), [(101, ""), (204, ""), (302, "redirect"), (600, ""), (999, "")])
def test_a_status_that_is_no_error_is_not_passed_on(status, said):
    error = refused(status, JSON, b"{}", NO_SECRETS)
    assert error.refusal is None
    assert f"HTTP {status}" in str(error)
    assert said in str(error)


def test_secrets_are_taken_out_of_what_it_says():
    redaction = Redaction(["sk-12345678"])
    error = refused(401, JSON, b'{"error": {"message": "bad sk\\u002d12345678", "code": "sk-12345678"}}', redaction)
    assert json.loads(body_of(error)) == {"error": {"message": "bad [redacted]", "code": "[redacted]"}}
    assert (str(error), error.details) == ("HTTP 401: bad [redacted]", {"code": "[redacted]"})
    assert "sk-" not in body_of(refused(401, {"content-type": "text/plain"}, b"bad sk-12345678", redaction)).decode()
