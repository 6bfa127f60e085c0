"""What an outcome that is no success means: which error it is, whether asking again can help, and when."""

from __future__ import annotations

import json
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

from replay.client.exchange import Answer, Lost, Outcome
from replay.errors import ReplayError

_PROBLEM = "application/problem+json"


class Unreachable(ReplayError):
    """The service cannot be reached."""

    code = "unreachable"
    status = 503


class UnexpectedAnswer(ReplayError):
    """What answered does not speak as this service does."""

    code = "unexpected_answer"
    status = 502


class UnknownProblem(ReplayError):
    """The service refused, with a code that this client does not know; `status`, `code` and `detail` say how."""

    def __init__(self, detail: str, *, status: int, code: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        self.code = code


def error_of(outcome: Outcome) -> ReplayError:
    """The error that the caller of a failed request should see: the service's own where the code is known."""
    if isinstance(outcome, Lost):
        return Unreachable(outcome.reason)
    problem = _problem_in(outcome)
    if problem is None:
        kind = Unreachable if may_pass(outcome) else UnexpectedAnswer
        return kind(f"expected an answer of the service, got status {outcome.status} from something else")
    detail, code = str(problem.get("detail")), str(problem.get("code"))
    error_class = _ERRORS.get(code)
    return UnknownProblem(detail, status=outcome.status, code=code) if error_class is None else error_class(detail)


def may_pass(outcome: Outcome) -> bool:
    """Whether the same request may succeed later: nobody answered, a proxy did, or the service says so."""
    if isinstance(outcome, Lost) or outcome.status == HTTPStatus.SERVICE_UNAVAILABLE:
        return True
    from_between = _problem_in(outcome) is None
    return from_between and (outcome.status == HTTPStatus.TOO_MANY_REQUESTS or outcome.status >= 500)


def retry_after_s(outcome: Outcome) -> float:
    """The seconds for which whoever answered asks us to stay away (RFC 9110, 10.2.3); 0 where that is not said."""
    if isinstance(outcome, Lost):
        return 0.0
    text = outcome.headers.get("Retry-After", "")
    if text.isascii() and text.isdecimal():
        return float(text)
    try:  # a date is held against the answer's own, since the clocks may differ
        return max(0.0, (_time(text) - _time(outcome.headers.get("Date", text))))
    except ValueError:
        return 0.0


def _time(text: str) -> float:
    return parsedate_to_datetime(text).timestamp()


def _problem_in(answer: Answer) -> dict[str, Any] | None:
    """The problem document of an answer of the service; what stands between it and us sends pages of its own."""
    if not answer.headers.get("Content-Type", "").startswith(_PROBLEM):
        return None
    try:
        problem = json.loads(answer.body)
    except ValueError:
        return None
    return problem if isinstance(problem, dict) else None


def _tree(error: type[ReplayError]) -> Iterator[type[ReplayError]]:
    yield error
    for kind in error.__subclasses__():
        yield from _tree(kind)


# Where classes share a code, the most general one.
_ERRORS = {error.code: error for error in reversed(list(_tree(ReplayError))) if error is not UnknownProblem}
