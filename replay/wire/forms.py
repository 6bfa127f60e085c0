"""Chunks that differ from one to the next in several values: a form with blanks, and what fills them.

Some servers send more with every token than its text: random `obfuscation`, the usage so far, another `created`, the
same reasoning under two names, the whole message so far. Such a chunk is stored whole as a form (`F`, `G`): where its
blanks are, and its JSON. Those after it are stored as what fills the blanks (`f`, `g`): the text, and after it for
each further blank one of these bytes, none of which stands raw in JSON, with what belongs to it:

    1 value   the value itself: the inside of a string's literal, or a number
    2         the same as the text
    3 number  the form's own number, and so much more
    4         likewise, and as much more as the number before it
    5         the form's own value

A blank may grow: it holds what it held in the chunk before, and then what fills it. So what an entry stands for depends
on its form, and where a blank grows on the entries since the form, which any reader of a log has.

Everything between the blanks is kept byte for byte, and so is what fills them. `filling.py` makes the entries.
"""

from __future__ import annotations

import re
import secrets
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from replay.wire import json
from replay.wire.dialects import is_plain
from replay.wire.openai import with_id

ITSELF, TEXT, MORE, AS_MUCH, OWN = (bytes((byte,)) for byte in range(1, 6))
MOST_BLANKS = 16

_STEP = re.compile(rb"([\x01-\x05])")
_BLANK = re.compile(rb"(\d+)-(\d+)(\+?)")
# They stand for what fills the blanks where JSON is made of a form: a string's inside, or a number of 64 bits.
_PROBE = b"%d" % (10**14 + secrets.randbelow(9 * 10**14))
PROBES = tuple(b"%b%02d" % (_PROBE, number) for number in range(MOST_BLANKS))
_PROBES_IN = re.compile(rb"%b(\d\d)" % _PROBE)


class Blank(NamedTuple):
    """A stretch of a chunk in which it differs from others."""

    start: int
    end: int
    grows: bool


@dataclass(frozen=True, slots=True)
class Form:
    """A chunk but for what stands in its blanks, of which the first is that of the text."""

    gaps: tuple[bytes, ...]  # what stands before, between and after the blanks
    order: tuple[int, ...]  # which blanks stand between the gaps
    values: tuple[bytes, ...]  # what the chunk itself has in its blanks, or, where one grows, the chunk before
    growing: tuple[int, ...]  # which blanks grow
    plain: bool  # where its text is visible, the chunk carries nothing beside it

    @property
    def grows(self) -> bool:
        """Whether what an entry stands for depends on those before it."""
        return bool(self.growing)

    @property
    def size(self) -> int:
        """How long its own chunk is."""
        return sum(map(len, self.gaps)) + sum(map(len, self.values))

    def chunk(self, filling: bytes) -> bytes:
        """The chunk that an entry stands for."""
        values = self.fillings(filling)
        for blank in self.growing:
            values[blank] = self.values[blank] + values[blank]
        return self.filled(values)

    def filled(self, values: Sequence[bytes]) -> bytes:
        """The chunk with these in its blanks."""
        parts = [self.gaps[0]]
        for blank, gap in zip(self.order, self.gaps[1:], strict=True):
            parts += values[blank], gap
        return b"".join(parts)

    def fillings(self, filling: bytes) -> list[bytes]:
        """What an entry puts into each blank."""
        text, *steps = _STEP.split(filling)
        values, more = [text], 0
        for step, value, own in zip(steps[::2], steps[1::2], self.values[1:], strict=True):
            if step == ITSELF:
                values.append(value)
            elif step == TEXT:
                values.append(text)
            elif step == OWN:
                values.append(own)
            else:
                more = int(value) if step == MORE else more
                values.append(b"%d" % (int(own) + more))
        return values

    def having(self, values: Sequence[bytes]) -> Form:
        """The same with other values of its own."""
        return replace(self, values=tuple(values))

    def with_id(self, generation_id: str) -> Form:
        """The same under another chunk id; blanks that are not seen then are left out."""
        parts = _PROBES_IN.split(with_id(self.filled(PROBES), generation_id))
        return replace(self, gaps=tuple(parts[::2]), order=tuple(map(int, parts[1::2])))


class Growth:
    """What the growing blanks of a form have come to."""

    __slots__ = ("_ends", "_form", "_so_far")

    def __init__(self, form: Form) -> None:
        self._form = form
        self._so_far = [bytearray(form.values[blank]) for blank in form.growing]
        self._ends = [array("Q", [len(so_far)]) for so_far in self._so_far]  # before each entry that fills the form

    def __len__(self) -> int:
        """How many entries are in it."""
        return len(self._ends[0]) - 1

    def add(self, filling: bytes) -> None:
        """Take the next entry."""
        fillings = self._form.fillings(filling)
        for blank, so_far, ends in zip(self._form.growing, self._so_far, self._ends, strict=True):
            so_far += fillings[blank]
            ends.append(len(so_far))

    def before(self, index: int) -> list[bytes]:
        """The values that a form has for the entry at ``index``."""
        values = list(self._form.values)
        for blank, so_far, ends in zip(self._form.growing, self._so_far, self._ends, strict=True):
            values[blank] = bytes(so_far[: ends[index]])
        return values


def form_payload(blanks: Sequence[Blank], raw: bytes) -> bytes:
    """A form as it is stored."""
    spans = (b"%d-%d%b" % (blank.start, blank.end, b"+" * blank.grows) for blank in blanks)
    return b" ".join(spans) + b"\n" + raw


def form_of(payload: bytes) -> Form:
    """A stored form."""
    head, _, raw = payload.partition(b"\n")
    blanks = [Blank(int(start), int(end), bool(grows)) for start, end, grows in _BLANK.findall(head)]
    order = sorted(range(len(blanks)), key=lambda blank: blanks[blank].start)
    edges = [0, *(edge for blank in order for edge in blanks[blank][:2]), len(raw)]
    return Form(
        gaps=tuple(raw[start:end] for start, end in list(pairwise(edges))[::2]),
        order=tuple(order),
        values=tuple(raw[blank.start : blank.end] for blank in blanks),
        growing=tuple(index for index, blank in enumerate(blanks) if blank.grows),
        plain=is_plain(json.loads(raw)),
    )


def text_of(filling: bytes) -> bytes:
    """The text of what fills a form."""
    return _STEP.split(filling, maxsplit=1)[0]
