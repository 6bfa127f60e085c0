r"""Finds the blanks of a chunk, by the whole chunk before it, and fills them with what comes; see `forms.py`.

Two whole chunks in a row that say the same but for some strings and numbers are of one shape, and where they differ are
blanks. A chunk that differs elsewhere too is whole again, and has blanks there too.

Three chunks in a row, and the entry of each:

    {"choices":[{"delta":{"content":"Val"}}],"n":1,"x":"xK"}
        T, and the chunk: there is none before it
    {"choices":[{"delta":{"content":"key"}}],"n":2,"x":"q8Z"}
        F33-36 45-46 52-55, a line feed, and the chunk: it differs in three values, the first of which is the text
    {"choices":[{"delta":{"content":" is"}}],"n":3,"x":"p"}
        f is\x031\x01p: the text; `\x03`, 1 more than the form's number, which is 2; `\x01`, the value itself

What a blank holds must change nothing that a stream is judged by, or that tells what its text is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

from replay.model.event import Entry
from replay.redaction import Redaction
from replay.wire import json
from replay.wire.dialect import Dialect, Path
from replay.wire.dialects import dialect_of
from replay.wire.forms import AS_MUCH, ITSELF, MORE, MOST_BLANKS, OWN, PROBES, TEXT, Blank, Form, form_of, form_payload
from replay.wire.openai import LITERAL, is_utf8

_TRIES, _SELDOM = 6, 32  # see `Forms`
_MOST_VALUES = 256  # of a chunk that is looked at
_LONGEST_VALUE = 64  # bytes; what is longer, and does not grow, may be a message so far that has begun anew
_LONGEST_GROWN = 256 << 10  # bytes; what 1,000 readers are sent may not be a million times what is stored

_LONGEST_SECRET = 2048  # bytes, of those that come in pieces

# No number that reads as another one, or as none; see `json.py`.
_NUMBER = re.compile(rb"-?(?:0|[1-9]\d{0,16})(?:\.\d{1,17})?(?:[eE][-+]?\d{1,2})?")
_STRING = LITERAL.pattern
# A string or number that is no key, after its key where it has one; or the key of anything else.
_VALUE = re.compile(rb'(?:"%b"\s*:\s*)?+(?:"(%b)"|(-?\d[-+.\deE]*))|"%b"\s*:' % (_STRING, _STRING, _STRING))


class Filler:
    """A form as it is filled, chunk by chunk."""

    __slots__ = ("_beginning", "_blanks_in_order", "_further", "_redaction", "_so_far", "_visible", "blanks", "counts")

    def __init__(
        self, form: Form, *, visible: bool, counts: bool, blanks: frozenset[int], redaction: Redaction
    ) -> None:
        self.counts = counts  # its chunks count usage
        self.blanks = blanks  # which of the chunk's values these are
        self._visible = visible
        self._redaction = redaction
        self._so_far = {blank: form.values[blank] for blank in form.growing}
        self._beginning, *gaps = form.gaps
        # By offset: which blank, whether it grows, what fits into it and what stands after it. No named tuples here and
        # below: to take those apart for every chunk makes `Recorder.record` an eighth slower (3.5 µs against 3.1).
        self._blanks_in_order: list[tuple[int, bool, Callable[[bytes, int], re.Match[bytes] | None], bytes]] = []
        # Beside the text: which blank, the form's own value, and the number that this is.
        self._further: list[tuple[int, bytes, int | None]] = [
            (blank, own, None) for blank, own in enumerate(form.values[1:], start=1)
        ]
        for blank, before, after in zip(form.order, form.gaps, gaps, strict=False):
            is_string = before.endswith(b'"')
            self._blanks_in_order.append(
                (blank, blank in form.growing, (LITERAL if is_string else _NUMBER).match, after)
            )
            if not is_string and form.values[blank].isdigit():
                self._further[blank - 1] = blank, form.values[blank], int(form.values[blank])

    def entry(self, raw: bytes) -> bytes | None:
        """The entry of a chunk of this form; None when the chunk has another."""
        fillings = self._fillings(raw)
        steps = None if fillings is None else self._steps(fillings)
        if fillings is None or steps is None:
            return None
        for blank in self._so_far:
            self._so_far[blank] += fillings[blank]
        text = fillings[0]
        return (Entry.FILLED_TOKEN if text and self._visible else Entry.FILLED_DELTA) + text + steps

    def _fillings(self, raw: bytes) -> list[bytes] | None:
        """What a chunk has in each blank, and in one that grows what is new."""
        if not raw.startswith(self._beginning):
            return None
        offset = len(self._beginning)
        fillings = [b""] * len(self._blanks_in_order)
        for blank, grows, match_at, gap in self._blanks_in_order:
            if grows:
                so_far = self._so_far[blank]
                if not raw.startswith(so_far, offset) or len(so_far) > _LONGEST_GROWN:
                    return None
                offset += len(so_far)
            match = match_at(raw, offset)
            if match is None:
                return None
            offset = match.end()
            if not raw.startswith(gap, offset):
                return None
            fillings[blank] = match[0]
            offset += len(gap)
        return fillings if offset == len(raw) and is_utf8(raw) else None

    def _steps(self, fillings: list[bytes]) -> bytes | None:
        """How the blanks beside the text are filled; None where they may not be filled so."""
        text, steps, last_more = fillings[0], b"", -1
        for blank, own, number in self._further:
            value = fillings[blank]
            if number is not None and value.isdigit() and (more := int(value) - number) >= 0:
                steps += AS_MUCH if more == last_more else b"%b%d" % (MORE, more)
                last_more = more
            elif value == text:
                steps += TEXT
            elif value == own and blank not in self._so_far:
                steps += OWN
            elif self._may_stand(blank, value):
                steps += ITSELF + value
            else:
                return None
        return steps

    def _may_stand(self, blank: int, value: bytes) -> bool:
        """Whether a value is not too long, and holds no secret, which is taken out of whole chunks."""
        if blank in self._so_far:
            return not self._redaction.hits(self._so_far[blank][-_LONGEST_SECRET:] + value)
        return len(value) <= _LONGEST_VALUE and not self._redaction.hits(value)


class _Value(NamedTuple):
    """A string's inside or a number in a chunk, and what the chunk before had in that offset."""

    start: int
    end: int
    before: bytes


class Forms:
    """Finds forms among the whole chunks of one stream."""

    __slots__ = ("_before", "_blanks", "_in_a_row", "_number", "_redaction")

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction
        self._before = b""  # the last whole chunk
        self._blanks: frozenset[int] = frozenset()  # which of its values are blanks
        self._number = 0  # which chunk of the stream that was
        self._in_a_row = 0  # how many whole chunks there were without any other between them

    def form(self, raw: bytes, chunk: dict[str, Any], number: int) -> tuple[bytes, Filler] | None:
        """The next whole chunk as a form, as it is stored and as it is filled; None where none is seen.

        To look for one takes some 50 µs. Where that was in vain several times in a row, it is seldom done.
        """
        self._in_a_row = self._in_a_row + 1 if number == self._number + 1 else 1
        worthwhile = self._in_a_row <= _TRIES or self._in_a_row % _SELDOM == 0
        form = _form(raw, chunk, self._before, self._blanks, self._redaction) if worthwhile else None
        self._before, self._number = raw, number
        self._blanks = form[1].blanks if form is not None else frozenset()
        return form


def _form(
    raw: bytes, chunk: dict[str, Any], before: bytes, blanks: frozenset[int], redaction: Redaction
) -> tuple[bytes, Filler] | None:
    """A chunk as a form, by the one before it and the blanks which that had."""
    dialect = dialect_of(chunk)
    values = _values(before, raw) if dialect.may_repeat(chunk) else None
    if values is None:
        return None
    blanks |= {index for index, value in enumerate(values) if raw[value.start : value.end] != value.before}
    changing = [values[index] for index in sorted(blanks)]
    if len(changing) > MOST_BLANKS or not all(_may_change(value, raw) for value in changing):
        return None
    sample = json.loads(_with_probes(raw, changing))
    paths = _paths_of_probes(sample, len(changing))
    if paths is None or any(map(dialect.is_judged, paths)):
        return None
    text = _text_probe(dialect, sample)
    if text is None:
        return None
    stretches = [
        Blank(value.start, value.end, grows=dialect.is_replaced(path) and _has_grown(value, raw))
        for value, path in zip(changing, paths, strict=True)
    ]
    stretches.insert(0, stretches.pop(PROBES.index(text)))
    payload = form_payload(stretches, raw)
    filler = Filler(
        form_of(payload),
        visible=dialect.visible_text(sample).encode() == text,
        counts=isinstance(chunk.get("usage"), dict),
        blanks=blanks,
        redaction=redaction,
    )
    return payload, filler


def _values(before: bytes, raw: bytes) -> list[_Value] | None:
    """All strings and numbers of a chunk; None where the chunk before has another shape, or there are too many."""
    values: list[_Value] = []
    offset = offset_before = 0
    for (start_before, end_before), (start, end) in zip(_spans(before), _spans(raw), strict=False):
        if len(values) == _MOST_VALUES or before[offset_before:start_before] != raw[offset:start]:
            return None
        values.append(_Value(start, end, before[start_before:end_before]))
        offset, offset_before = end, end_before
    return values if before[offset_before:] == raw[offset:] else None


def _spans(raw: bytes) -> Iterator[tuple[int, int]]:
    for match in _VALUE.finditer(raw):
        if match.lastindex is not None:
            yield match.span(match.lastindex)


def _may_change(value: _Value, raw: bytes) -> bool:
    """Whether a value is one that can be recognised where another stands."""
    return _is_string(value, raw) or _NUMBER.fullmatch(raw, value.start, value.end) is not None


def _is_string(value: _Value, raw: bytes) -> bool:
    return raw[value.start - 1 : value.start] == b'"'


def _with_probes(raw: bytes, values: Sequence[_Value]) -> bytes:
    edges = [0, *(edge for value in values for edge in (value.start, value.end)), len(raw)]
    gaps = (raw[start:end] for start, end in list(pairwise(edges))[::2])
    return b"".join(chain.from_iterable(zip(gaps, (*PROBES[: len(values)], b""), strict=True)))


def _paths_of_probes(sample: dict[str, Any], count: int) -> list[Path] | None:
    """Where the probes are found; None where one is not, as where its key comes twice."""
    leaves = {str(value): path for value, path in _leaves(sample)}
    paths = [leaves[probe.decode()] for probe in PROBES[:count] if probe.decode() in leaves]
    return paths if len(paths) == count else None


def _leaves(value: Any, path: Path = ()) -> Iterator[tuple[Any, Path]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield value, path


def _has_grown(value: _Value, raw: bytes) -> bool:
    return _is_string(value, raw) and raw.startswith(value.before, value.start)


def _text_probe(dialect: Dialect, sample: dict[str, Any]) -> bytes | None:
    """The probe that stands for the text; a text that is seen goes first, and has to be a blank."""
    seen = dialect.visible_text(sample)
    strings = [seen] if seen else dialect.growing_strings(sample)
    return next((probe for probe in (string.encode(errors="replace") for string in strings) if probe in PROBES), None)
