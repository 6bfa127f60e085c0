"""What the chunks of a stream say, in whichever dialect its server speaks."""

from __future__ import annotations

from replay.wire.chat import ChatNormalizer
from replay.wire.dialect import Dialect, Object, Translator
from replay.wire.dialects import dialect_of


class Normalizer:
    """Makes the chunks of one stream, in their order, plain chat chunks (see `chat.py`)."""

    __slots__ = ("_chat", "_translators")

    def __init__(self) -> None:
        self._chat = ChatNormalizer()
        self._translators: dict[Dialect, Translator] = {}

    def normalize(self, chunk: Object, *, spoken: bool = False) -> Object | None:
        """A chunk as a plain one; None where it says nothing new.

        ``spoken`` tells that chunks before it, which were not read, had visible text.
        """
        dialect = dialect_of(chunk)
        if dialect not in self._translators:
            self._translators[dialect] = dialect.translator()
        chat = self._translators[dialect].read(chunk)
        return None if chat is None else self._chat.normalize(chat, spoken=spoken)
