"""A log as readers see it: the same events in several formats, each of which stands alone.

A `Format` turns a stretch of a log into bytes for every reader alike, so it is done once however many
read. What belongs to one connection only (`live`, `reset`, `snapshot`) is a `Format.notice`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from typing import Any, Protocol, TypeVar

from replay.model.event import FILLED, FORMS, TEMPLATED, Entry, Event, Kind
from replay.model.generation import End, Generation, Start, Status, status_of
from replay.model.log import Log
from replay.wire import json, sse
from replay.wire.dialects import dialect_of, is_plain, visible_text
from replay.wire.forms import Form, Growth, form_of, text_of
from replay.wire.openai import Shape, chunk_of, template_of

_TEXT_ALONE = frozenset((Entry.TOKEN[0], Entry.DELTA[0]))
_VISIBLE = frozenset((Entry.TOKEN[0], Entry.FILLED_TOKEN[0]))  # text, and no whole chunk


# A newer node may store more than this one knows.
_START_FIELDS = frozenset(field.name for field in fields(Start))
_END_FIELDS = frozenset(field.name for field in fields(End))


def encode_start(start: Start) -> bytes:
    """The entry of a `start`."""
    return Entry.START + json.dumps({key: value for key, value in asdict(start).items() if value is not None})


def decode_start(entry: bytes) -> Start:
    """The start of a log from its first entry."""
    stored = json.loads(entry[1:])
    return Start(**{name: stored[name] for name in _START_FIELDS & stored.keys()})


def encode_end(end: End) -> bytes:
    """The entry of an `end`."""
    return Entry.END + json.dumps({key: value for key, value in asdict(end).items() if value is not None})


def decode_end(entry: bytes) -> End:
    """The end of a log from its last entry."""
    stored = json.loads(entry[1:])
    return End(**{name: stored[name] for name in _END_FIELDS & stored.keys()} | {"status": Status(stored["status"])})


def generation_of(first: Event, last: Event) -> Generation:
    """The generation that both ends of its log tell of."""
    end = decode_end(last.entry) if last.kind is Kind.END else None
    return Generation(decode_start(first.entry), first.id, last.id, end)


class View(Protocol):
    """Something that is made of a log and grows with it; it does not hold the log, which holds it."""

    def read(self, recording: Recording) -> None:
        """Take what the log has more."""


V = TypeVar("V", bound=View)


class Recording:
    """A log, and what is made of it once for all who read it."""

    __slots__ = ("_end", "_growths", "_renamed", "_start", "_templates", "_views", "log")

    def __init__(self, log: Log) -> None:
        self.log = log
        self._start: Start | None = None
        self._end: End | None = None
        self._templates: dict[int, Shape | None] = {}
        self._renamed: dict[int, Shape | None] = {}
        self._growths: dict[int, Growth] = {}
        self._views: dict[Any, Any] = {}

    @property
    def start(self) -> Start:
        """What the log's first event tells."""
        if self._start is None:
            self._start = decode_start(self.log.entries[0])
        return self._start

    @property
    def end(self) -> End | None:
        """What the log's last event tells, once it is an `end`."""
        if self._end is None and self.log.complete:
            self._end = decode_end(self.log.entries[-1])
        return self._end

    @property
    def status(self) -> Status:
        """The end's status; before that, whether the upstream has sent anything."""
        return status_of(self.end, last_seq=len(self.log) - 1)

    def template(self, seq: int) -> Shape | None:
        """The template of the entry at ``seq``."""
        whole = self.log.last_whole(seq)
        return self._grown(self._template(whole), whole, seq)

    def renamed(self, seq: int) -> Shape | None:
        """The same under the generation's id."""
        whole = self.log.last_whole(seq)
        if whole not in self._renamed:
            template = self._template(whole)
            self._renamed[whole] = template and template.with_id(self.start.generation_id)
        return self._grown(self._renamed[whole], whole, seq)

    def outline(self, seq: int) -> Shape | None:
        """The same, but what grows holds only what is new."""
        template = self._template(self.log.last_whole(seq))
        if not isinstance(template, Form) or not template.grows:
            return template
        return template.having([b"" if blank in template.growing else own for blank, own in enumerate(template.values)])

    def reach(self, start: int, stop: int, most_bytes: int) -> int:
        """How far from ``start`` to encode at once, about so many bytes; a chunk may repeat all that has grown."""
        stop = self.log.reach(start, stop, most_bytes)
        templates = (self.template(start), self.template(stop - 1))
        sizes = [each.size for each in templates if isinstance(each, Form) and each.grows]
        return min(stop, start + max(1, most_bytes // max(sizes))) if sizes else stop

    def _template(self, whole: int) -> Shape | None:
        if whole < 0:
            return None
        if whole not in self._templates:
            entry = self.log.entries[whole]
            self._templates[whole] = form_of(entry[1:]) if entry[0] in FORMS else template_of(entry[1:])
        return self._templates[whole]

    def _grown(self, template: Shape | None, whole: int, seq: int) -> Shape | None:
        """A template with what its blanks have come to before an entry."""
        if not isinstance(template, Form) or not template.grows or seq == whole:
            return template
        growth = self._growths.get(whole)
        if growth is None:
            growth = self._growths[whole] = Growth(template)
        first = whole + 1
        for entry in self.log.entries[first + len(growth) : seq]:
            growth.add(entry[1:])
        return template.having(growth.before(seq - first))

    def view(self, kind: Callable[[Recording], V]) -> V:
        """A further view of the log, as far as it goes; made when first asked for."""
        if kind not in self._views:
            self._views[kind] = kind(self)
        view: V = self._views[kind]
        view.read(self)
        return view


def event_data(event: Event, template: Shape | None) -> bytes:
    """One event as one line of JSON, without its id."""
    kind = event.kind
    if kind is Kind.START:
        return json.dumps(_start_data(event))
    if kind is Kind.END:
        return json.dumps(_end_data(event))
    chunk = json.loads(chunk_of(event.entry, template))
    if kind is Kind.DELTA:
        return json.dumps({"type": "delta", **_carried(chunk)})
    data: dict[str, Any] = {"type": "token", "content": visible_text(chunk), "index": event.id.seq}
    return json.dumps(data if is_plain(chunk) else data | _carried(chunk))


def _start_data(event: Event) -> dict[str, Any]:
    start = decode_start(event.entry)
    data = {
        "type": "start",
        "generation_id": start.generation_id,
        "model": start.model,
        "created": event.id.ms / 1000,
    }
    return data if start.notice is None else data | {"notice": start.notice}


def _end_data(event: Event) -> dict[str, Any]:
    end = asdict(decode_end(event.entry))
    del end["refusal"]  # for whoever made the call
    return {"type": "end", **end, "tokens": end["total_tokens"], "timestamp": event.id.ms / 1000}


def _carried(chunk: dict[str, Any]) -> dict[str, Any]:
    """What a chunk carries, without the envelope."""
    carried = dialect_of(chunk).carried(chunk)
    return {key: value for key, value in carried.items() if key not in _OWN}


_OWN = frozenset(("type", "content", "index", "generation_id"))  # an upstream's field must not pass for ours


_PLAIN_TOKEN = b'event: token\ndata: {"type":"token","content":"%b","index":%d}\nid: %d-%d\n\n'


def _as_sse(recording: Recording, start: int, stop: int) -> bytes:
    """Events as an `EventSource` reads them."""
    log, blocks = recording.log, []
    for seq, end in _runs(log.entries, start, min(stop, len(log))):
        template = recording.template(seq) if log.entries[seq][0] in TEMPLATED else None
        if log.entries[seq][0] in _VISIBLE and template is not None and template.plain:
            blocks.append(_plain_tokens(log, seq, end))
            continue
        for event in log.events(seq, end):
            if template is not None and template.grows:
                template = recording.template(event.id.seq)
            name = event.kind.value.encode()
            blocks.append(sse.block(name, event_data(event, template), event_id=b"%d-%d" % event.id))
    return b"".join(blocks)


def _runs(entries: Sequence[bytes], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The events from ``start`` to before ``stop``, those of one template that follow each other as text in one."""
    while start < stop:
        end = start + 1
        kind = entries[start][0]
        if kind in _VISIBLE:
            while end < stop and entries[end][0] == kind:
                end += 1
        yield start, end
        start = end


def _plain_tokens(log: Log, start: int, stop: int) -> bytes:
    """Tokens that carry their text alone: one format for all of them takes a third of the time."""
    texts = [entry[1:] for entry in log.entries[start:stop]]
    if log.entries[start][0] in FILLED:
        texts = [text_of(filling) for filling in texts]
    seqs = range(start, stop)
    values = zip(texts, seqs, log.times[start:stop], seqs, strict=True)
    return _PLAIN_TOKEN * len(texts) % tuple(chain.from_iterable(values))


def _as_lines(recording: Recording, start: int, stop: int) -> bytes:
    return b"".join(line + b"\n" for line in event_objects(recording, start, stop))


def event_objects(recording: Recording, start: int, stop: int) -> list[bytes]:
    """Events as JSON objects that hold their id."""
    return [
        b'{"id":"%d-%d",%b' % (*event.id, event_data(event, recording.template(event.id.seq))[1:])
        for event in recording.log.events(start, stop)
    ]


def _sse_notice(name: str, data: dict[str, Any], event_id: str | None = None) -> bytes:
    encoded = None if event_id is None else event_id.encode()
    return sse.block(name.encode(), json.dumps({"type": name, **data}), event_id=encoded)


def _line_notice(name: str, data: dict[str, Any], event_id: str | None = None) -> bytes:
    # On a line `id` is the cursor; what a snapshot's data has under that name is its generation.
    renamed = {("generation_id" if key == "id" else key): value for key, value in data.items()}
    identity = {} if event_id is None else {"id": event_id}
    return json.dumps({**identity, "type": name, **renamed}) + b"\n"


def no_notice(name: str, data: dict[str, Any], event_id: str | None = None) -> bytes:
    """For a format whose readers know nothing but the log."""
    return b""


@dataclass(frozen=True, slots=True, eq=False)
class Format:
    """How a log stands on the wire."""

    content_type: str
    encode: Callable[[Recording, int, int], bytes]  # the events from a seq to before another
    notice: Callable[..., bytes]  # (name, data, event_id=None) of what concerns one connection only
    keepalive: bytes
    event_source: bool  # whether its readers know `retry:`, and stay away after a 204
    cut_unless_completed: bool = False  # its readers take a clean end for success
    block_end: bytes = b"\n\n"  # which stands nowhere else


SSE = Format("text/event-stream; charset=utf-8", _as_sse, _sse_notice, sse.KEEPALIVE, event_source=True)
# Blank before a line of JSON: no reader of lines ever sees an empty line.
NDJSON = Format("application/x-ndjson", _as_lines, _line_notice, b" ", event_source=False, block_end=b"\n")
