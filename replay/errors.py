"""The one tree of errors: each class has a sentence, a code and an HTTP status.

Raise them inwards with what was expected and what came; ``http/problems.py`` answers once, at the edge. A message is
for whoever asked, so it is in our words: another library's may hold a key, a header or an address. Those go into
``aside``, which is for the node's log and the operator's terminal.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass


class ReplayError(Exception):
    """Something went wrong inside the service."""

    code = "internal_error"
    status = 500

    def __init__(self, message: str = "", *, aside: str = "") -> None:
        super().__init__(message)
        self.aside = aside

    @property
    def in_full(self) -> str:
        """The message with what only the operator may read."""
        return f"{self} ({self.aside})" if self.aside else str(self)

    @property
    def title(self) -> str:
        """The sentence that stands for the whole class, as in RFC 9457's ``title``."""
        return (type(self).__doc__ or "").split("\n", 1)[0]


class InvalidSetting(ReplayError):
    """A setting has a value that cannot be used."""

    code = "invalid_setting"


class IncompatibleLibrary(ReplayError):
    """A library has changed in what this service relies on."""

    code = "incompatible_library"


class AddressInUse(ReplayError):
    """Another process listens on this address and port."""

    code = "address_in_use"


class InvalidRequest(ReplayError):
    """The request is not one this call understands."""

    code = "invalid_request"
    status = 400


class InvalidEventId(InvalidRequest):
    """A cursor is the id of an event."""

    code = "invalid_event_id"


class CrossSiteRequest(ReplayError):
    """A page of another origin may not change anything here."""

    code = "cross_site_request"
    status = 403


class GenerationNotFound(ReplayError):
    """No such generation: never started, deleted, or expired."""

    code = "generation_not_found"
    status = 404


class ModelNotFound(ReplayError):
    """No upstream answers for this model."""

    code = "model_not_found"
    status = 404


class PreviousResponseNotFound(InvalidRequest):
    """The response to continue from is not here any more, was never complete, or its request was not kept."""

    code = "previous_response_not_found"


class NotAcceptable(ReplayError):
    """No media type that was asked for can be served."""

    code = "not_acceptable"
    status = 406


class RequestTimeout(ReplayError):
    """The request took too long to arrive."""

    code = "request_timeout"
    status = 408


class GenerationExists(ReplayError):
    """The chosen id is taken."""

    code = "generation_exists"
    status = 409


class BodyTooLarge(ReplayError):
    """The request body is larger than this node accepts."""

    code = "body_too_large"
    status = 413


class UnsupportedEncoding(ReplayError):
    """The request body is in an encoding that this node does not know."""

    code = "unsupported_encoding"
    status = 415


class Misdirected(ReplayError):
    """The request is for a host that this node does not answer for."""

    code = "misdirected_request"
    status = 421


class IdempotencyKeyReused(ReplayError):
    """The Idempotency-Key was used before with another request body."""

    code = "idempotency_key_reused"
    status = 422


class TooManyGenerations(ReplayError):
    """This node produces as many generations as it may."""

    code = "too_many_generations"
    status = 429


class HeadTooLarge(InvalidRequest):
    """The head of the request is larger than this node accepts."""

    status = 431


class Overloaded(ReplayError):
    """This node holds as many bytes of request bodies as it may."""

    code = "overloaded"
    status = 503


class Draining(ReplayError):
    """This node is shutting down and starts nothing new."""

    code = "draining"
    status = 503


class StoreUnavailable(ReplayError):
    """Valkey does not answer."""

    code = "store_unavailable"
    status = 503


class StoreRefused(StoreUnavailable):
    """Valkey answers, but will not do it: full, read-only, too old, or not letting us in."""


class DataDirInUse(ReplayError):
    """Another node runs on this data directory."""

    code = "data_dir_in_use"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An upstream's answer that was an error: its own JSON, or ours where it was none."""

    status: int
    headers: dict[str, str]  # when to come back
    body: str  # JSON, a character for each byte (ISO 8859-1)


class UpstreamError(ReplayError):
    """The upstream answered with an error.

    `details` is what its error object said beside the message: `type`, `param`, `code`.
    """

    code = "upstream_error"
    status = 502

    def __init__(
        self, message: str, *, details: dict[str, object] | None = None, refusal: Refusal | None = None, aside: str = ""
    ) -> None:
        super().__init__(message, aside=aside)
        self.details = details or {}
        self.refusal = refusal


class UpstreamInvalid(UpstreamError):
    """The upstream does not speak the protocol."""

    code = "upstream_invalid"


class UpstreamUnreachable(UpstreamError):
    """The upstream cannot be reached."""

    code = "upstream_unreachable"


class UpstreamTimeout(UpstreamError):
    """The upstream took too long."""

    code = "upstream_timeout"
    status = 504


class NoDescriptor(UpstreamError):
    """This node has no file descriptor left for a call of the upstream."""

    code = Overloaded.code
    status = Overloaded.status


class UpstreamTruncated(UpstreamError):
    """The upstream's stream stopped before it was finished."""

    code = "upstream_truncated"


class LimitExceeded(ReplayError):
    """A generation grew past a limit."""

    code = "limit_exceeded"
    status = 507


class Abandoned(ReplayError):
    """Nobody watched for as long as the caller allowed."""

    code = "abandoned"
    status = 409


class NodeLost(ReplayError):
    """The node that produced this generation went away."""

    code = "node_lost"
    status = 503


class Shutdown(ReplayError):
    """The node that produced this generation was shut down."""

    code = "shutdown"
    status = 503


def unexpected(logger: logging.Logger, error: BaseException, **fields: object) -> ReplayError:
    """The error that stands for one which nobody foresaw: it only says where the node's log explains it."""
    reference = new_reference()
    logger.error("unexpected error", exc_info=error, extra={"reference": reference, **fields})
    return ReplayError(f"something went wrong inside the service; its log has more under {reference}")


def new_reference() -> str:
    """What an error and the line of the node's log that explains it have in common."""
    return f"ref_{secrets.token_hex(6)}"


def status_of(code: str) -> int:
    """The HTTP status of the errors with this code."""
    return _STATUSES.get(code, ReplayError.status)


def _tree(error: type[ReplayError]) -> Iterator[type[ReplayError]]:
    yield error
    for kind in error.__subclasses__():
        yield from _tree(kind)


_STATUSES = {error.code: error.status for error in reversed(list(_tree(ReplayError)))}
