"""A log's events as they stand on the wire, cut into pieces that a reader can take at once.

A piece is whole events, as many as its encoding allows, or a single one that is larger. Late joiners get segments,
which are pieces that were framed once for all of them: they begin at every `SEGMENT`th event, and where one ends that
holds no more. Whoever begins elsewhere joins the others within `SEGMENT` events.
"""

from __future__ import annotations

from typing import NamedTuple

from replay.wire.events import Format, Recording
from replay.wire.framing import Framing
from replay.wire.sse import one_line

SEGMENT = 256  # events, at most, that are framed together
_OVERHEAD = 256  # bytes that a segment takes beside its frames


class Encoding(NamedTuple):
    """Whose bytes are the same: one format, in one framing, in pieces of one size."""

    format: Format
    framing: Framing
    piece_bytes: int = 32 << 10

    def framed(self, blocks: bytes) -> bytes:
        """Whole blocks as they stand on the wire."""
        return self.framing.frame(one_line(blocks), self.format.block_end)


def encode(recording: Recording, encoding: Encoding, start: int, stop: int) -> tuple[bytes, int]:
    """A piece of the events from ``start`` to before ``stop``, and the seq after it."""
    most = encoding.piece_bytes
    end = recording.reach(start, stop, most)
    data = encoding.format.encode(recording, start, end)
    while len(data) > most and end - start > 1:  # a frame is larger than its entry
        end = start + max(1, (end - start) * most // len(data))
        data = encoding.format.encode(recording, start, end)
    return encoding.framed(data), end


class _Segment(NamedTuple):
    data: bytes
    end: int  # the seq after it
    cut: bool  # whether a piece holds no more

    def serves(self, stop: int) -> bool:
        """Whether it is what a reader gets who may read to before ``stop``."""
        return self.end == stop or (self.cut and self.end < stop)


class Segments:
    """The segments of one log, as far as somebody has asked for them."""

    __slots__ = ("_segments",)

    def __init__(self) -> None:
        self._segments: dict[tuple[Encoding, int], _Segment] = {}  # by beginning

    @property
    def size(self) -> int:
        """About how many bytes of memory they take."""
        return sum(len(segment.data) + _OVERHEAD for segment in self._segments.values())

    def piece(self, recording: Recording, encoding: Encoding, start: int, stop: int) -> tuple[bytes, int]:
        """What `encode` gives, or a part of it, framed for all who come by."""
        stop = min((start // SEGMENT + 1) * SEGMENT, stop)
        segment = self._segments.get((encoding, start))
        if segment is None and start % SEGMENT:
            return encode(recording, encoding, start, stop)
        if segment is None or not segment.serves(stop):  # the last one grows
            segment = self._encode(recording, encoding, start, stop)
        return segment.data, segment.end

    def _encode(self, recording: Recording, encoding: Encoding, start: int, stop: int) -> _Segment:
        for key in [key for key in self._segments if key[1] < recording.log.first]:
            del self._segments[key]
        data, end = encode(recording, encoding, start, stop)
        segment = self._segments[encoding, start] = _Segment(data, end, cut=end < stop)
        if segment.cut:
            self._segments.setdefault((encoding, end), _Segment(b"", end, cut=False))  # here the next one begins
        return segment

    def clear(self) -> None:
        """Let go of them all; what is asked for from now on is framed again."""
        self._segments.clear()
