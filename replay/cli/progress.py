"""What the status line says of a generation that is being followed."""

from __future__ import annotations

from replay.client import Delta, End, Event, Generation, Start, Token
from replay.errors import ReplayError


class Progress:
    """Counts what has been seen. Its times are those of the events, so that it is right for those who come late."""

    def __init__(self, generation: Generation) -> None:
        self._model = generation.model
        self._status: str = generation.status
        self._began_ms = generation.created * 1000
        self._ended_ms: float | None = None
        self._outage: str | None = None
        self.failures = 0  # one after the other, since something came
        self._forget()

    def _forget(self) -> None:
        self._tokens = 0
        self._first_token_ms = self._last_token_ms = 0

    def take(self, event: Event) -> None:
        """Count an event."""
        self._outage, self.failures = None, 0
        if isinstance(event, Start):
            self._forget()
        elif isinstance(event, Token | Delta):
            self._status = "streaming"
        elif isinstance(event, End):
            cut_short = event.finish_reason not in (None, "stop")
            self._status = f"{event.status} ({event.finish_reason})" if cut_short else event.status
            self._ended_ms = event.time_ms
        if isinstance(event, Token) and event.time_ms is not None:
            self._tokens += 1
            self._first_token_ms = self._first_token_ms or event.time_ms
            self._last_token_ms = event.time_ms

    def lost(self, error: ReplayError, pause_s: float) -> None:
        """The connection is away."""
        self.failures += 1
        self._outage = f"connection lost, back in {pause_s:.1f} s ({error})"

    def line(self, now_ms: float) -> str:
        """One line: status, model, tokens, their rate between the first and the last, and the time since the start."""
        took_ms = max(0.0, (self._ended_ms or now_ms) - self._began_ms)
        lasted_ms = self._last_token_ms - self._first_token_ms
        rate = f"{(self._tokens - 1) * 1000 / lasted_ms:,.1f} tokens/s" if lasted_ms else None
        tokens = "1 token" if self._tokens == 1 else f"{self._tokens:,} tokens"
        parts = (self._outage or self._status, self._model, tokens, rate, span(took_ms / 1000))
        return " · ".join(part for part in parts if part)


def span(seconds: float) -> str:
    """A span of time in its two largest units, as `1.5 s`, `2 min 05 s`, `3 h 00 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02} min"
