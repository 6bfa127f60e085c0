"""What has to be known of a dialect: of how a family of upstreams says things.

A chunk is recorded in the dialect in which it came, and passes so to readers who know that. All others read it as a
chat chunk that says the same; see `dialects.py` for those that there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

Object = dict[str, Any]
Path = tuple[str | int, ...]  # to a value in a chunk


class Translator(Protocol):
    """Reads the chunks of one stream, in their order."""

    def read(self, chunk: Object, /) -> Object | None:
        """The chat chunk that says the same; None where a chunk says nothing new."""


class Dialect(Protocol):
    """How chunks of a dialect are recognised, stored, read as chat, and judged."""

    @property
    def is_numbered(self) -> bool:
        """Whether each chunk has a number, so that no two are alike but for what they say."""

    def recognises(self, chunk: Object, /) -> bool:
        """Whether a chunk is of this dialect."""

    def translator(self) -> Translator:
        """What reads a stream as chat."""

    # As it is stored.

    def unnumbered(self, raw: bytes, /) -> bytes:
        """A chunk without the number that its `seq` says too."""

    def template_string(self, chunk: Object, /) -> tuple[str, bool] | None:
        """The string in which alone the chunks after this one may differ: its key, and whether it is visible text."""

    def growing_strings(self, chunk: Object, /) -> Iterator[str]:
        """All strings of a chunk that may repeat which go on from one to the next."""

    def may_repeat(self, chunk: Object, /) -> bool:
        """Whether a chunk is one of many: it says a piece of one text, finishes nothing and tells of no error."""

    def may_be_joined(self, chunk: Object, /) -> bool:
        """Whether a chunk with the strings of several joined says what each of them says in turn."""

    def is_judged(self, path: Path, /) -> bool:
        """Whether the value at a path says what a chunk is, whose it is, whether it is an error, or how it ends."""

    def is_replaced(self, path: Path, /) -> bool:
        """Whether a transcript keeps only the last of the values at a path."""

    # As it is shown.

    def visible_text(self, chunk: Object, /) -> str:
        """The text of choice 0 that a reader of the answer sees in a chunk by itself; empty where there is none."""

    def is_plain(self, chunk: Object, /) -> bool:
        """Whether a chunk with visible text carries nothing beside it."""

    def carried(self, chunk: Object, /) -> Object:
        """What a chunk carries, but for its envelope, with what it says as the `choices` of chat."""

    # As it is judged.

    def error_in(self, chunk: Object, name: bytes, /) -> Any:
        """The error that a chunk tells of, as `upstream_error` takes it; None where it tells of none.

        ``name`` is what the stream called it.
        """

    def is_kept(self, chunk: Object, name: bytes, /, *, is_error: bool) -> bool:
        """Whether a chunk belongs in the log: what only says that somebody is there does not."""

    def is_last(self, chunk: Object, /) -> bool:
        """Whether a chunk says that the whole was said."""

    def is_of_protocol(self, chunk: Object, /) -> bool:
        """Whether a chunk proves that the stream is one of chunks, and not of any other JSON."""
