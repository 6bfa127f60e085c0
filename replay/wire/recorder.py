"""Records and judges one upstream stream, in whichever dialect it is."""

from __future__ import annotations

from typing import Any

from replay.errors import UpstreamError, UpstreamInvalid, UpstreamTruncated
from replay.model.event import TOKENS, Entry
from replay.redaction import NO_SECRETS, Redaction
from replay.wire import json
from replay.wire.chat import numbered, reason_of, text_in
from replay.wire.chat_dialect import CHAT
from replay.wire.chunk import parse_chunk, read_chunk, shown, words_of
from replay.wire.dialect import Dialect
from replay.wire.dialects import dialect_of
from replay.wire.failures import error_in_words, is_failure, reason_error, upstream_error
from replay.wire.filling import Filler, Forms
from replay.wire.noise import is_end_mark, is_heartbeat, unwrapped
from replay.wire.normalizing import Normalizer
from replay.wire.openai import Template, template_of
from replay.wire.sse import Message


class Recorder:
    """Encodes one upstream stream and judges it.

    `record` takes the stream's messages in order; `verdict` says, when the stream is over, how it
    went. `[DONE]` proves nothing (some servers never send it, some send it after an error, some go on
    after it), nor does a clean end. Once an answer is whole, nothing that is no JSON undoes it. ``dialect`` is what the
    upstream was asked in; it may answer in that of chat all the same.
    What ``redaction`` names is recorded in no chunk that is kept whole, as all are that tell of an error, and in no
    value beside a text.
    """

    __slots__ = (
        "_counted",
        "_dialect",
        "_failed",
        "_finished",
        "_forms",
        "_normalizer",
        "_protocol",
        "_redaction",
        "_spoken",
        "_started",
        "_template",
        "broken",
        "chunks",
        "done",
        "error",
        "noise",
    )

    def __init__(self, dialect: Dialect = CHAT, *, redaction: Redaction = NO_SECRETS) -> None:
        self._dialect = dialect
        self._redaction = redaction
        self._template: Template | Filler | None = None
        self._forms = Forms(redaction)
        self._normalizer = Normalizer()
        self._counted: bytes | dict[str, Any] | None = None  # the last usage, or the chunk that has it
        self._started: set[int] = set()
        self._finished: dict[int, str] = {}
        self._failed: str | None = None  # the first finish reason that means a failure
        self._spoken = False  # text was told that the reader did not see
        self._protocol = False  # a chunk has proved that there are chunks
        self.chunks = 0
        self.error: UpstreamError | None = None
        self.broken = False  # a message could not be read, and the answer was not whole
        self.done = False  # the stream's own end mark was seen; more may follow all the same
        self.noise = b""  # the first message that was no chunk, and was passed over

    def record(self, message: Message) -> bytes | None:
        """The entry for one message; None for one that is no chunk. Raises UpstreamInvalid."""
        raw = self._dialect.unnumbered(message.data) if self._dialect.is_numbered else message.data
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
        dialect = self._dialect if self._dialect.recognises(chunk) else CHAT
        error = dialect.error_in(chunk, event)
        if error is not None:
            self.error = upstream_error(error)
        if not dialect.is_kept(chunk, event, is_error=error is not None):
            if error is None:
                self._pass_over(raw)
            return None
        self._protocol = self._protocol or dialect.is_of_protocol(chunk)
        self.done = self.done or dialect.is_last(chunk)
        plain = self._normalizer.normalize(chunk, spoken=self._spoken)
        # What nobody has asked for in its dialect is no answer, although readers understand it.
        self._judge(chunk if dialect is CHAT else plain or {})
        return self._keep_whole(raw, chunk, plain)

    def _pass_over(self, raw: bytes) -> None:
        self.noise = self.noise or raw.strip() or b"empty data"

    def _parsed(self, raw: bytes) -> tuple[bytes, dict[str, Any]]:
        """A chunk, without what an upstream that tells of an error may repeat of the call; raises UpstreamInvalid."""
        if not self._redaction.hits(raw):
            return read_chunk(raw)
        _, chunk = read_chunk(self._redaction.text(raw.decode(errors="replace")).encode())
        public = self._redaction.value(chunk)
        return json.dumps(public), public

    def _keep_whole(self, raw: bytes, chunk: dict[str, Any], plain: dict[str, Any] | None) -> bytes:
        raw = raw.replace(b"\n", b" ")  # between data lines; inside a JSON string there is none
        self.chunks += 1
        visible = plain is not None and bool(text_in(plain))
        form = self._forms.form(raw, chunk, self.chunks)
        if form is None:
            template = template_of(raw, chunk)
            self._template = template if template is not None and dialect_of(chunk).may_be_joined(chunk) else None
            return (Entry.WHOLE_TOKEN if visible else Entry.WHOLE_DELTA) + raw
        payload, self._template = form
        return (Entry.FORM_TOKEN if visible else Entry.FORM_DELTA) + payload

    def _judge(self, chunk: dict[str, Any]) -> None:
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
        aside = shown(self._redaction.text(foreign.decode(errors="replace"))) if foreign else ""
        return UpstreamTruncated("the upstream's stream ended without a finish reason", aside=aside)

    def not_a_stream(self, foreign: bytes) -> UpstreamInvalid:
        """The error for an answer that is something else, of which ``foreign`` is a line."""
        line = self._redaction.text(foreign.decode(errors="replace")).strip()
        what = "a page" if line.startswith("<") else "something that is not a stream of chunks"
        return UpstreamInvalid(f"the upstream answered 200 with {what}{words_of(line)}", aside=shown(line))


def _failed(choice: dict[str, Any], reason: str) -> str | None:
    """The finish reason that means a failure; a gateway may have made a harmless one of its provider's."""
    return next(filter(is_failure, (reason, str(choice.get("native_finish_reason")))), None)
