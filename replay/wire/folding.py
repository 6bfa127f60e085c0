"""The transcript of a log, as far as the log goes."""

from __future__ import annotations

from replay.model.event import FILLED, WHOLES, Entry
from replay.model.transcript import Transcript
from replay.wire import json
from replay.wire.events import Recording
from replay.wire.normalizing import Normalizer
from replay.wire.openai import chunk_of, whole_chunk

_TEXT_ALONE = frozenset((Entry.TOKEN[0], Entry.DELTA[0]))


def fold(recording: Recording, stop: int | None = None) -> Transcript:
    """The transcript of a log's events before ``stop``."""
    folding = Folding()
    folding.go_on(recording, len(recording.log) if stop is None else stop)
    return folding.transcript


class Folding:
    """A transcript that grows with its log."""

    __slots__ = ("_normalizer", "stop", "transcript")

    def __init__(self) -> None:
        self._normalizer = Normalizer()
        self.transcript = Transcript()
        self.stop = 0  # the events before it are in the transcript

    def go_on(self, recording: Recording, stop: int) -> None:
        """Fold the events up to before ``stop``.

        A run of entries that are text alone is folded as one chunk, which costs one parse for all.
        """
        entries = recording.log.entries
        run: list[bytes] = []
        for seq in range(self.stop, stop):
            entry = entries[seq]
            if entry[0] in _TEXT_ALONE:
                run.append(entry[1:])
                continue
            self._add_run(recording, run, seq - 1)
            if entry[0] in WHOLES:
                self._add(whole_chunk(entry))
            elif entry[0] in FILLED:
                # Of what grows only the last is kept: to read it with each entry would take quadratic time.
                more = seq + 1 < stop and entries[seq + 1][0] in FILLED
                self._add(chunk_of(entry, recording.outline(seq) if more else recording.template(seq)))
        self._add_run(recording, run, stop - 1)
        self.stop = stop

    def _add_run(self, recording: Recording, run: list[bytes], last: int) -> None:
        template = recording.template(last) if run else None
        if template is not None:
            self._add(template.chunk(b"".join(run)))
            run.clear()

    def _add(self, raw: bytes) -> None:
        chunk = self._normalizer.normalize(json.loads(raw))
        if chunk is not None:
            self.transcript.add(chunk)
