"""Takes keys and passwords out of a text that leaves the process.

What may not leave are the service's own secrets and those that a caller brought. Texts of ours hold none; those of
others may: an upstream repeats the key that it refuses, a library puts a request's headers into an exception.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import groupby
from string import ascii_lowercase, ascii_uppercase
from typing import Any
from urllib.parse import quote, unquote, unquote_plus

SHORTEST = 8  # characters; what is shorter (`none`, `test`) protects nothing and is a word besides
INSTEAD = "[redacted]"

# How secrets look that nobody has told us: as part of a URL, and as a header in the repr of a request.
_SHAPES = (
    (re.compile(r"(\w://)[^/\s'\"@]+@"), rf"\1{INSTEAD}@"),
    (re.compile(r"(?i)\b(bearer|basic)(\s+)(?=\S*[\d=_-])[^\s'\",;)]{8,}"), rf"\1\2{INSTEAD}"),
    (
        re.compile(r"(?i)(['\"](?:[\w-]*authorization|[\w-]*api-key|(?:set-)?cookie)['\"]\s*[:,]\s*)(['\"])[^'\"]*\2"),
        rf"\1\2{INSTEAD}\2",
    ),
)
_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)
_ESCAPES = re.compile(r"\\(?:u00([0-7][0-9a-fA-F])|(/))")


class Redaction:
    """What must not be told; nothing, where no secrets are named."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = frozenset(secret for secret in secrets if len(secret) >= SHORTEST)
        # The longest first: one may be the beginning of another.
        words = {each for secret in self._secrets for each in _spellings(secret)}
        self._spellings = sorted(words, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._spellings)), re.IGNORECASE) if words else None
        self._shortest = len(self._spellings[-1]) if words else 0

    @cached_property
    def _pieces(self) -> frozenset[str]:
        return frozenset(piece for spelling in self._spellings for piece in _pieces(spelling))

    def beside(self, secrets: Iterable[str]) -> Redaction:
        """The same with further secrets."""
        further = self._secrets | set(secrets)
        return self if further == self._secrets else Redaction(further)

    def text(self, text: str) -> str:
        """A text without the secrets."""
        return text if self._pattern is None else self._pattern.sub(INSTEAD, text)

    def quotation(self, text: str) -> str:
        """A text that quotes what was sent, without the secrets and without pieces of them: it may be cut anywhere."""
        text = self.text(text)
        shown = bytearray(b"\1" * len(text))
        for start, piece in enumerate(_pieces(text)):
            if piece in self._pieces:
                shown[start : start + SHORTEST] = bytes(SHORTEST)
        runs = groupby(zip(text, shown, strict=True), key=lambda each: each[1])
        return "".join("".join(letter for letter, _ in run) if is_shown else INSTEAD for is_shown, run in runs)

    def value(self, value: Any) -> Any:
        """Anything that JSON can say, without the secrets in its strings."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(each) for each in value]
        if isinstance(value, dict):
            return {self.text(key): self.value(each) for key, each in value.items()}
        return value

    def hits(self, raw: bytes) -> bool:
        """Whether a secret stands somewhere in JSON as it came, in whatever of it."""
        if self._pattern is None or len(raw) < self._shortest:
            return False
        text = raw.decode("latin-1")
        if "\\u00" in text or "\\/" in text:
            text = _ESCAPES.sub(lambda escape: escape[2] or chr(int(escape[1], 16)), text)
        return self._pattern.search(text) is not None

    def log_line(self, text: str) -> str:
        """A line of the node's log without the secrets, and without what looks like one."""
        for shape, instead in _SHAPES:
            text = shape.sub(instead, text)
        return self.text(text)


NO_SECRETS = Redaction()


def _spellings(secret: str) -> Iterator[str]:
    """A secret as it comes in headers, URLs and JSON."""
    yield secret
    yield quote(secret)
    yield quote(secret, safe="")
    yield json.dumps(secret)[1:-1]
    yield b64encode(secret.encode(errors="surrogateescape")).decode().rstrip("=")


def _pieces(text: str) -> Iterator[str]:
    """Every SHORTEST characters of a text, in small letters."""
    text = text.translate(_LOWER)
    return (text[start : start + SHORTEST] for start in range(len(text) - SHORTEST + 1))


def secrets_in_headers(values: Iterable[str]) -> set[str]:
    """The secrets in values of headers such as `Authorization`: with their scheme, without it, and Basic's decoded."""
    secrets = set()
    for value in values:
        scheme, _, secret = value.strip().rpartition(" ")
        secrets |= {value, secret}
        if scheme.lower() == "basic":
            login = _decoded(secret)
            secrets |= {login, login.partition(":")[2]}
    return secrets


def secrets_in_url(url: str) -> set[str]:
    """User, password and the values of the query of a URL, as they stand there and decoded."""
    _, _, rest = url.partition("://")
    rest, _, query = rest.partition("#")[0].partition("?")
    login = rest.rpartition("@")[0]
    words = {login, *login.split(":"), *(part.rpartition("=")[2] for part in re.sub("=+(?=&|$)", "", query).split("&"))}
    return words | {unquote_plus(word) for word in words} | {unquote(word) for word in words}


def _decoded(secret: str) -> str:
    try:
        return b64decode(secret, validate=True).decode()
    except ValueError:
        return ""
