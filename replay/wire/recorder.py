"""Records and judges one upstream stream: chat, legacy or Responses.

The events of a Responses stream are numbered; the number is left out, since it says no more than the event's `seq`, and
every event would be of a shape of its own.
"""

from __future__ import annotations

from typing import Any

from replay.errors import UpstreamError, UpstreamInvalid, UpstreamTruncated
from replay.model.event import TOKENS, Entry
from replay.redaction import NO_SECRETS, Redaction
from replay.wire import json
from replay.wire.chat import as_index, numbered, reason_of, text_in
from replay.wire.failures import error_in, error_in_words, is_failure, reason_error, upstream_error
from replay.wire.filling import Filler, Forms
from replay.wire.noise import is_end_mark, is_heartbeat, is_heartbeat_object, unwrapped
from replay.wire.openai import Template, may_be_joined, template_of
from replay.wire.reading import Reader
from replay.wire.response_outcome import error_of
from replay.wire.responses import is_response_event
from replay.wire.sse import Message

_LONGEST_WORDS = 200  # characters


class Recorder:
    """Encodes one upstream stream and judges it.

    `record` takes the stream's messages in order; `verdict` says, when the stream is over, how it
    went. `[DONE]` proves nothing (some servers never send it, some send it after an error, some go on
    after it), nor does a clean end. Once an answer is whole, nothing that is no JSON undoes it. Events of the Responses
    API are what was asked for with ``responses``.
    What ``redaction`` names is recorded in no chunk that is kept whole, as all are that tell of an error, and in no
    value beside a text.
    """

    __slots__ = (
        "_counted",
        "_failed",
        "_finished",
        "_forms",
        "_protocol",
        "_reader",
        "_redaction",
        "_responses",
        "_spoken",
        "_started",
        "_template",
        "broken",
        "chunks",
        "done",
        "error",
        "noise",
    )

    def __init__(self, *, responses: bool = False, redaction: Redaction = NO_SECRETS) -> None:
        self._responses = responses
        self._redaction = redaction
        self._template: Template | Filler | None = None
        self._forms = Forms(redaction)
        self._reader = Reader()
        self._counted: bytes | dict[str, Any] | None = None  # the last usage, or the chunk that has it
        self._started: set[int] = set()
        self._finished: dict[int, str] = {}
        self._failed: str | None = None  # the first finish reason that means a failure
        self._spoken = False  # text was told that the reader did not see
        self._protocol = False  # a chunk had choices, if only none of them
        self.chunks = 0
        self.error: UpstreamError | None = None
        self.broken = False  # a message could not be read, and the answer was not whole
        self.done = False  # the stream's own end mark was seen; more may follow all the same
        self.noise = b""  # the first message that was no chunk, and was passed over

    def record(self, message: Message) -> bytes | None:
        """The entry for one message; None for one that is no chunk. Raises UpstreamInvalid."""
        raw = _without_number(message.data) if self._responses else message.data
        if self._template is not None:
            entry = self._template.entry(raw)
            if entry is not None:
                self.chunks += 1
                self._spoken = self._spoken or entry[0] in TOKENS
                if self._template.counts:
                    self._counted = raw
                return entry
        return self._record_whole(raw, message.event)

    def _record_whole(self, raw: bytes, event: bytes) -> bytes | None:
        raw = unwrapped(raw)
        if is_end_mark(raw):
            self.done = True
        elif event == b"error" and not raw.lstrip().startswith(b"{") and not self.whole:
            self.error = error_in_words(self._redaction.text(raw.decode(errors="replace")))
        elif is_heartbeat(raw, event):
            self._pass_over(raw)
        else:
            return self._record_object(raw, event)
        return None

    def _record_object(self, raw: bytes, event: bytes) -> bytes | None:
        try:
            raw, chunk = self._parsed(raw)
        except UpstreamInvalid:
            if not self.whole:
                self.broken = True
                raise
            self._pass_over(raw)
            return None
        if self._responses and is_response_event(chunk):
            return self._record_response_event(raw, chunk)
        error = error_in(chunk, event)
        if error is not None:
            self.error = upstream_error(error)
            if not chunk.get("choices"):
                return None
        elif is_heartbeat_object(chunk, event):
            self._pass_over(raw)
            return None
        self._judge(chunk)
        return self._keep_whole(raw, chunk, self._reader.read(chunk, spoken=self._spoken))

    def _pass_over(self, raw: bytes) -> None:
        self.noise = self.noise or raw.strip() or b"empty data"

    def _parsed(self, raw: bytes) -> tuple[bytes, dict[str, Any]]:
        """A chunk, without what an upstream that tells of an error may repeat of the call; raises UpstreamInvalid."""
        if not self._redaction.hits(raw):
            return _read_chunk(raw)
        _, chunk = _read_chunk(self._redaction.text(raw.decode(errors="replace")).encode())
        public = self._redaction.value(chunk)
        return json.dumps(public), public

    def _record_response_event(self, raw: bytes, event: dict[str, Any]) -> bytes:
        self._protocol = True
        error = error_of(event)
        if error is not None:
            self.error = upstream_error(error)
        self.done = event["type"] in ("response.completed", "response.incomplete")
        said = self._reader.read(event)
        self._judge(said or {})
        return self._keep_whole(raw, event, said)

    def _keep_whole(self, raw: bytes, chunk: dict[str, Any], said: dict[str, Any] | None) -> bytes:
        raw = raw.replace(b"\n", b" ")  # between data lines; inside a JSON string there is none
        self.chunks += 1
        visible = said is not None and bool(text_in(said))
        form = self._forms.form(raw, chunk, self.chunks)
        if form is None:
            template = template_of(raw, chunk)
            self._template = template if template is not None and may_be_joined(chunk) else None
            return (Entry.WHOLE_TOKEN if visible else Entry.WHOLE_DELTA) + raw
        payload, self._template = form
        return (Entry.FORM_TOKEN if visible else Entry.FORM_DELTA) + payload

    def _judge(self, chunk: dict[str, Any]) -> None:
        self._protocol = self._protocol or "choices" in chunk
        for index, choice in numbered(chunk.get("choices")):
            self._started.add(index)
            reason = reason_of(choice)
            if reason is not None:
                self._finished[index] = reason
                self._failed = self._failed or _failed(choice, reason)
        if isinstance(chunk.get("usage"), dict):
            self._counted = chunk["usage"]

    @property
    def usage(self) -> dict[str, Any] | None:
        """What was counted last."""
        if isinstance(self._counted, bytes):
            usage: dict[str, Any] = parse_chunk(self._counted)["usage"]
            return usage
        return self._counted

    @property
    def finish_reason(self) -> str | None:
        """Choice 0's, or else that of the first choice that has one."""
        return self._finished[min(self._finished)] if self._finished else None

    @property
    def finished(self) -> bool:
        """Whether every choice that was started has its finish reason."""
        return bool(self._started) and self._started <= self._finished.keys()

    @property
    def whole(self) -> bool:
        """Whether nothing is missing; several servers finish only one of several choices, and then end the stream."""
        return self.finished or (self.done and bool(self._finished))

    @property
    def failure(self) -> UpstreamError | None:
        """The failure that the stream has told of: an error, or a finish reason that means one."""
        if self.error is not None:
            return self.error
        return None if self._failed is None else reason_error(self._failed)

    def verdict(self, *, foreign: bytes = b"") -> UpstreamError | None:
        """What went wrong with the stream that is over now; None when it is complete.

        ``foreign`` is a line that is none of an event stream.
        """
        if self.failure is not None:
            return self.failure
        if self.whole:
            return None
        if not self._protocol and (self.chunks or foreign):
            return self.not_a_stream(foreign)
        aside = _shown(self._redaction.text(foreign.decode(errors="replace"))) if foreign else ""
        return UpstreamTruncated("the upstream's stream ended without a finish reason", aside=aside)

    def not_a_stream(self, foreign: bytes) -> UpstreamInvalid:
        """The error for an answer that is something else, of which ``foreign`` is a line."""
        line = self._redaction.text(foreign.decode(errors="replace")).strip()
        what = "a page" if line.startswith("<") else "something that is not a stream of chunks"
        return UpstreamInvalid(f"the upstream answered 200 with {what}{_words(line)}", aside=_shown(line))


def _failed(choice: dict[str, Any], reason: str) -> str | None:
    """The finish reason that means a failure; a gateway may have made a harmless one of its provider's."""
    return next(filter(is_failure, (reason, str(choice.get("native_finish_reason")))), None)


def _without_number(raw: bytes) -> bytes:
    """An event of the Responses API without the number that its `seq` says too."""
    if b'"sequence_number"' not in raw:
        return raw
    try:
        raw, event = _read_chunk(raw)
    except UpstreamInvalid:
        return raw  # whoever records it says so
    return raw if event.pop("sequence_number", None) is None else json.dumps(event)


def _read_chunk(raw: bytes) -> tuple[bytes, dict[str, Any]]:
    """One chunk, and as what it is kept: without numbers that JSON does not know; raises UpstreamInvalid."""
    try:
        return raw, parse_chunk(raw)
    except UpstreamInvalid:
        mended = json.mended(raw)
        return mended, parse_chunk(mended)


def parse_chunk(raw: bytes) -> dict[str, Any]:
    """One chunk; raises UpstreamInvalid when it is not one."""
    try:
        chunk = json.loads(raw)
    except (ValueError, RecursionError):
        chunk = None
    if not isinstance(chunk, dict):
        raise _no_chunk(f"expected a JSON object{_words(raw.decode(errors='replace'))}", raw)
    if json.is_deep(raw, chunk):
        raise _no_chunk(f"expected at most {json.DEEPEST} levels of JSON", raw)
    choices = chunk.get("choices")
    if choices is None:
        return chunk
    if not isinstance(choices, list) or not all(isinstance(choice, dict | None) for choice in choices):
        raise _no_chunk("expected choices as a list of objects", raw)
    for choice in filter(None, choices):
        if choice.get("index") is not None and as_index(choice["index"]) is None:
            raise _no_chunk("expected an integer as a choice's index", raw)
        if not isinstance(choice.get("delta"), dict | str | None):
            raise _no_chunk("expected an object as delta", raw)
    return chunk


def _no_chunk(expected: str, raw: bytes) -> UpstreamInvalid:
    return UpstreamInvalid(
        f"the upstream sent what is no chunk: {expected}", aside=_shown(raw.decode(errors="replace"))
    )


def _words(text: str) -> str:
    """What was said in plain words where something else was expected, for an error message; else nothing."""
    return f"; it says “{text[:_LONGEST_WORDS]}”" if text[:1].isalpha() else ""


def _shown(text: str) -> str:
    return repr(text[:80])
