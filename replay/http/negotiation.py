"""What a request asks for: media types and query parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from aiohttp import web

from replay.errors import GenerationNotFound, InvalidRequest, NotAcceptable
from replay.model.generation import is_generation_id

_NUMBER = re.compile(r"([0-9]{1,20}(\.[0-9]{0,20})?|\.[0-9]{1,20})([eE][+-]?[0-9]{1,3})?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def generation_id_of(request: web.Request) -> str:
    """The id in the path; raises GenerationNotFound for what can be none."""
    return generation_id_in(request.match_info["id"])


def generation_id_in(text: str) -> str:
    """The text, if it can be a generation's id; raises GenerationNotFound."""
    if not is_generation_id(text):
        raise GenerationNotFound(f"generation {text[:150]!r} does not exist")
    return text


def accepted(request: web.Request, offers: Sequence[str]) -> str:
    """The offer that the Accept header likes best (RFC 9110, 12.5.1), earlier offers first; raises NotAcceptable."""
    header = ",".join(request.headers.getall("Accept", ["*/*"])) or "*/*"
    ranges = [_media_range(part) for part in header.split(",") if part.strip()]
    best = max(offers, key=lambda offer: _quality(offer, ranges))
    if _quality(best, ranges) <= 0:
        raise NotAcceptable(f"Accept: {header[:200]}: expected one of {', '.join(offers)}")
    return best


def _media_range(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = next((value[2:] for value in parameters if value.startswith("q=")), "1")
    try:
        return name, float(quality)
    except ValueError:
        return name, 0.0


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The quality of the most specific range that covers an offer."""
    for wanted in (offer, offer.partition("/")[0] + "/*", "*/*"):
        for name, quality in ranges:
            if name == wanted:
                return quality
    return 0.0


def number(request: web.Request, name: str, *, least: float, most: float) -> float | None:
    """A query parameter that is a number in a range; None without one. Raises InvalidRequest."""
    text = request.query.get(name)
    if text is None:
        return None
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not least <= value <= most:
        raise InvalidRequest(f"{name}={text[:100]!r}: expected a number from {least:.15g} to {most:.15g}")
    return value


def integer(request: web.Request, name: str, *, least: int, most: int, default: int) -> int:
    """A query parameter that is an integer in a range; raises InvalidRequest."""
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and least <= int(text) <= most):
        raise InvalidRequest(f"{name}={text[:100]!r}: expected an integer from {least} to {most}")
    return int(text)


def time_ms(request: web.Request, name: str, *, rounded_up: bool = True) -> int | None:
    """A query parameter that is a time, unix ms or ISO 8601 (UTC where it names no zone); raises InvalidRequest."""
    text = request.query.get(name)
    if text is None:
        return None
    if text.isascii() and text.isdecimal() and len(text) <= 16:
        return int(text)
    try:
        # A plus sign in a query string is a space.
        time = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError:
        raise InvalidRequest(f"{name}={text[:100]!r}: expected unix ms or ISO 8601") from None
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    ms = timedelta(milliseconds=1)
    return -((_EPOCH - time) // ms) if rounded_up else (time - _EPOCH) // ms  # in integers
