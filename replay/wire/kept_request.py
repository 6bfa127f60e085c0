"""A request as it may be kept: without the keys that it brings for others.

A tool on a remote server comes with that server's key, and gateways take a key of the model's provider in the body.
They are for the upstream, so they stand neither in Valkey nor in a response that repeats its request. What a user or a
model says is left as it is, and so are schemas, in which such a name is only a name.
"""

from __future__ import annotations

from typing import Any

_KEYS = frozenset(
    (
        *("authorization", "authorization_token", "api_key", "apikey", "api-key", "x-api-key", "access_token"),
        *("aws_secret_access_key", "aws_session_token", "password", "client_secret", "vertex_credentials"),
    )
)
_HEADERS = frozenset(("headers", "extra_headers"))
_SAID = frozenset(("messages", "input", "prompt", "instructions", "metadata"))
_SCHEMAS = frozenset(("parameters", "input_schema", "schema", "json_schema"))
_INSTEAD = "[redacted]"


def without_keys(request: dict[str, Any]) -> dict[str, Any]:
    """The request with a placeholder for each key."""
    return _kept(request, set())


def keys_in(request: dict[str, Any]) -> set[str]:
    """The keys that are left out."""
    found: set[str] = set()
    _kept(request, found)
    return found


def _kept(request: dict[str, Any], found: set[str]) -> dict[str, Any]:
    return {name: value if name in _SAID else _member(name, value, found) for name, value in request.items()}


def _member(name: str, value: Any, found: set[str]) -> Any:
    if name.lower() in _KEYS and isinstance(value, str):
        found.add(value)
        return _INSTEAD
    if isinstance(value, list):
        return [_member("", each, found) for each in value]
    if not isinstance(value, dict) or name in _SCHEMAS:
        return value
    if name.lower() in _HEADERS:
        found.update(each for each in value.values() if isinstance(each, str))
        return dict.fromkeys(value, _INSTEAD)
    return {inner: _member(inner, each, found) for inner, each in value.items()}
