"""Takes keys and passwords out of a text that leaves the process.

What may not leave are the service's own secrets and those that a caller brought. Texts of ours hold none; those of
others may: an upstream repeats the key that it refuses, a library puts a request's headers into an exception.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

_SHORTEST = 8  # characters; what is shorter (`none`, `test`) protects nothing and is a word besides
_INSTEAD = "[redacted]"

# How secrets look that nobody has told us: as part of a URL, and as a header in the repr of a request.
_SHAPES = (
    (re.compile(r"(\w://)[^/\s'\"@]+@"), rf"\1{_INSTEAD}@"),
    (re.compile(r"(?i)\b(bearer|basic)(\s+)(?=\S*[\d=_-])[^\s'\",;)]{8,}"), rf"\1\2{_INSTEAD}"),
    (
        re.compile(r"(?i)(['\"](?:[\w-]*authorization|[\w-]*api-key|(?:set-)?cookie)['\"]\s*[:,]\s*)(['\"])[^'\"]*\2"),
        rf"\1\2{_INSTEAD}\2",
    ),
)


class Redaction:
    """What must not be told; nothing, where no secrets are named."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = frozenset(secret for secret in secrets if len(secret) >= _SHORTEST)
        # The longest first: one may be the beginning of another.
        longest_first = sorted(self._secrets, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def beside(self, secrets: Iterable[str]) -> Redaction:
        """The same with further secrets."""
        return Redaction(self._secrets | set(secrets))

    def text(self, text: str) -> str:
        """A text without the secrets."""
        return text if self._pattern is None else self._pattern.sub(_INSTEAD, text)

    def value(self, value: Any) -> Any:
        """Anything that JSON can say, without the secrets in its strings."""
        return value if self._pattern is None else _mapped(self.text, value)

    def log_line(self, text: str) -> str:
        """A line of the node's log without the secrets, and without what looks like one."""
        for shape, instead in _SHAPES:
            text = shape.sub(instead, text)
        return self.text(text)


NO_SECRETS = Redaction()


def _mapped(change: Callable[[str], str], value: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped(change, each) for each in value]
    if isinstance(value, dict):
        return {change(key): _mapped(change, each) for key, each in value.items()}
    return value


def secrets_in_headers(headers: Iterable[str]) -> set[str]:
    """The secrets in values of headers such as `Authorization`, where a scheme stands before them."""
    return {part for header in headers for part in (header, header.rpartition(" ")[2])}
