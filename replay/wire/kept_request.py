"""A request as it may be kept: without the keys that it brings for others.

A tool on a remote server comes with that server's key, and gateways take a key of the model's provider in the body.
They are for the upstream, so they stand neither in Valkey nor in a response that repeats its request. What a user or a
model says is left as it is, and so are schemas, in which such a name is only a name.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from replay.redaction import INSTEAD, SHORTEST, secrets_in_headers, secrets_in_url

# In snake case: `apiToken` and `X-Api-Key` are among them.
_KEY = re.compile(
    r"(?:.*_)?(?:api_?key|token|secret|secret_key|secret_access_key|password|passwd|authorization|auth|credentials?)"
)
_HEADERS = frozenset(("headers", "extra_headers"))
_SAID = frozenset(("messages", "input", "prompt", "instructions", "metadata"))
_SCHEMAS = frozenset(("parameters", "input_schema", "schema", "json_schema"))
_LONGEST_COMMON = 64  # characters of a name that may come again
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_URL = re.compile(r"(?i)(https?://)(?:([^/?#@\s]*)@)?([^?#\s]*)(?:\?([^#\s]*))?\S*")


def without_keys(request: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The request with a placeholder for each key, and the keys, as they may turn up in a text."""
    keys: set[str] = set()
    public = {name: value if name in _SAID else _member(name, value, keys) for name, value in request.items()}
    return public, secrets_in_headers(keys)


def _member(name: str, value: Any, keys: set[str]) -> Any:
    if _names_key(name):
        return _placeholder(value, keys)
    if isinstance(value, str):
        return _url(value, keys)
    if isinstance(value, list):
        return [_member("", each, keys) for each in value]
    if not isinstance(value, dict) or name in _SCHEMAS:
        return value
    return {inner: _member(inner, each, keys) for inner, each in value.items()}


def _names_key(name: str) -> bool:
    """Whether what stands under a name is a key, or headers in which one may be."""
    return _is_key(name) if len(name) <= _LONGEST_COMMON else _is_key.__wrapped__(name)


@lru_cache(maxsize=4096)  # requests repeat a few names thousands of times
def _is_key(name: str) -> bool:
    spelling = _CAMEL.sub("_", name).replace("-", "_").lower()
    return spelling in _HEADERS or _KEY.fullmatch(spelling) is not None


def _placeholder(value: Any, keys: set[str]) -> Any:
    """All that stands under a name that holds a key."""
    if isinstance(value, dict):
        return {name: _placeholder(each, keys) for name, each in value.items()}
    if isinstance(value, list):
        return [_placeholder(each, keys) for each in value]
    if not isinstance(value, str) or len(value) < SHORTEST:
        return value
    keys.add(value)
    return INSTEAD


def _url(text: str, keys: set[str]) -> str:
    """A URL without its user, password and query."""
    match = _URL.fullmatch(text)
    if match is None or not (match[2] or match[4]):
        return text
    keys.update(secrets_in_url(text))
    return match[1] + match[3]
