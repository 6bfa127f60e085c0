"""Records and judges one upstream stream: chat, legacy or Responses.

The events of a Responses stream are numbered; the number is left out, since it says no more than the event's place, and
every event would be of a shape of its own.
"""

from __future__ import annotations

from typing import Any

from replay.errors import UpstreamError, UpstreamInvalid, UpstreamTruncated
from replay.model.event import Entry
from replay.redaction import NO_SECRETS, Redaction
from replay.wire import json
from replay.wire.filling import Filler, Forms
from replay.wire.openai import Template, template_of, visible_text
from replay.wire.responses import as_chunk, is_response_event
from replay.wire.sse import Message

_DONE = b"[DONE]"
_LONGEST_MESSAGE = 2000  # an upstream's error may be a whole page of HTML


class Recorder:
    """Encodes one upstream stream and judges it.

    `record` takes the stream's messages in order; `verdict` says, when the stream is over, how it
    went. `[DONE]` proves nothing (some servers never send it, some send it after an error, some go on
    after it), nor does a clean end. Events of the Responses API are what was asked for with ``responses``.
    What ``redaction`` names is recorded in no chunk that is kept whole, as all are that tell of an error, and in no
    value beside a text.
    """

    __slots__ = (
        "_counted",
        "_finished",
        "_forms",
        "_protocol",
        "_redaction",
        "_responses",
        "_started",
        "_template",
        "chunks",
        "done",
        "error",
    )

    def __init__(self, *, responses: bool = False, redaction: Redaction = NO_SECRETS) -> None:
        self._responses = responses
        self._redaction = redaction
        self._template: Template | Filler | None = None
        self._forms = Forms(redaction)
        self._counted: bytes | dict[str, Any] | None = None  # the last usage, or the chunk that has it
        self._started: set[int] = set()
        self._finished: dict[int, str] = {}
        self._protocol = False  # a chunk had choices, if only none of them
        self.chunks = 0
        self.error: UpstreamError | None = None
        self.done = False  # a [DONE] was seen; more may follow all the same

    def record(self, message: Message) -> bytes | None:
        """The entry for one message; None for one that is no chunk. Raises UpstreamInvalid."""
        raw = _without_number(message.data) if self._responses else message.data
        if self._template is not None:
            entry = self._template.entry(raw)
            if entry is not None:
                self.chunks += 1
                if self._template.counts:
                    self._counted = raw
                return entry
        if raw == _DONE:
            self.done = True
            return None
        return self._record_whole(raw, message.event)

    def _record_whole(self, raw: bytes, event: bytes) -> bytes | None:
        raw, chunk = self._parsed(raw)
        if self._responses and is_response_event(chunk):
            return self._record_response_event(raw, chunk)
        if chunk.get("error") is not None or b"error" in (event, str(chunk.get("type")).encode()):
            self.error = upstream_error(chunk.get("error") or chunk)
            if not chunk.get("choices"):
                return None
        self._judge(chunk)
        return self._keep_whole(raw, chunk)

    def _parsed(self, raw: bytes) -> tuple[bytes, dict[str, Any]]:
        """A chunk, without what an upstream that tells of an error may repeat of the call; raises UpstreamInvalid."""
        if not self._redaction.hits(raw):
            return raw, parse_chunk(raw)
        public = self._redaction.value(parse_chunk(self._redaction.text(raw.decode(errors="replace")).encode()))
        return json.dumps(public), public

    def _record_response_event(self, raw: bytes, event: dict[str, Any]) -> bytes:
        self._protocol = True
        kind = event["type"]
        if kind == "response.failed":
            response = event.get("response")
            self.error = upstream_error((response.get("error") if isinstance(response, dict) else None) or event)
        self.done = kind in ("response.completed", "response.incomplete")
        self._judge(as_chunk(event) or {})
        return self._keep_whole(raw, event)

    def _keep_whole(self, raw: bytes, chunk: dict[str, Any]) -> bytes:
        raw = raw.replace(b"\n", b" ")  # between data lines; inside a JSON string there is none
        self.chunks += 1
        visible = bool(visible_text(chunk))
        form = self._forms.form(raw, chunk, self.chunks)
        if form is None:
            self._template = template_of(raw, chunk)
            return (Entry.WHOLE_TOKEN if visible else Entry.WHOLE_DELTA) + raw
        payload, self._template = form
        return (Entry.FORM_TOKEN if visible else Entry.FORM_DELTA) + payload

    def _judge(self, chunk: dict[str, Any]) -> None:
        self._protocol = self._protocol or "choices" in chunk
        for choice in chunk.get("choices") or ():
            index = choice.get("index", 0)
            self._started.add(index)
            if choice.get("finish_reason"):  # some servers send "" until there is one
                self._finished[index] = str(choice["finish_reason"])
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

    def verdict(self, *, foreign: bool = False) -> UpstreamError | None:
        """What went wrong with the stream that is over now; None when it is complete."""
        if self.error is not None:
            return self.error
        if self.finished:
            return None
        if not self._protocol and (self.chunks or foreign):
            return UpstreamInvalid("the upstream answered 200 with something that is not a stream of chunks")
        return UpstreamTruncated("the upstream's stream ended without a finish reason")


def _without_number(raw: bytes) -> bytes:
    """An event of the Responses API without the number that its place says too."""
    if b'"sequence_number"' not in raw:
        return raw
    try:
        event = parse_chunk(raw)
    except UpstreamInvalid:
        return raw  # whoever records it says so
    return raw if event.pop("sequence_number", None) is None else json.dumps(event)


def parse_chunk(raw: bytes) -> dict[str, Any]:
    """One chunk; raises UpstreamInvalid when it is not one."""
    try:
        chunk = json.loads(raw)
    except (ValueError, RecursionError):
        raise UpstreamInvalid(f"upstream event: expected a JSON object, got {_shown(raw)}") from None
    if not isinstance(chunk, dict):
        raise UpstreamInvalid(f"upstream event: expected a JSON object, got {_shown(raw)}")
    if json.is_deep(raw, chunk):
        raise UpstreamInvalid(f"upstream event: expected at most {json.DEEPEST} levels of JSON, got {_shown(raw)}")
    choices = chunk.get("choices")
    if choices is None:
        return chunk
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise UpstreamInvalid(f"upstream chunk: expected choices as a list of objects, got {_shown(raw)}")
    for choice in choices:
        if not isinstance(choice.get("index", 0), int):
            raise UpstreamInvalid(f"upstream chunk: expected an integer as a choice's index, got {_shown(raw)}")
        if not isinstance(choice.get("delta"), dict | None):
            raise UpstreamInvalid(f"upstream chunk: expected an object as delta, got {_shown(raw)}")
    return chunk


def upstream_error(error: Any) -> UpstreamError:
    """An upstream's error, which may be a string, an OpenAI error object, or neither."""
    if not isinstance(error, dict):
        return UpstreamError(cut(error if isinstance(error, str) else json.dumps(error).decode(errors="replace")))
    message = error.get("message") or error.get("detail") or json.dumps(error).decode(errors="replace")
    if not isinstance(message, str):
        message = json.dumps(message).decode(errors="replace")
    details = {key: error[key] for key in ("type", "param", "code") if isinstance(error.get(key), str | int)}
    return UpstreamError(
        cut(message), details={key: cut(value) if isinstance(value, str) else value for key, value in details.items()}
    )


def cut(text: str) -> str:
    """An error message of a length that can be kept: it stands in the log, and in every list."""
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "…"


def _shown(raw: bytes) -> str:
    return repr(raw[:80].decode(errors="replace"))
