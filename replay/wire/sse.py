"""Server-Sent Events, both ways, after the WHATWG HTML standard, section 9.2.

In: bytes in pieces of any size. A line ends with CR, LF or CRLF and with nothing else (U+2028,
which `splitlines` would take for an end, occurs raw inside JSON). An empty line dispatches what
the lines before it gathered; a line that starts with a colon is a comment.

Beside the standard, since servers send it: JSON that stands where a field should is a message, so that lines of JSON
(NDJSON) are read too, and an error that a proxy put between the events; so is a field `error`, as llama.cpp's was.
Where the blank lines are missing, the next `data:` after a whole object begins another message.

Out: blocks of whole lines, as client libraries of many languages need them. `id:` is the last line of a block: some
take it for the cursor before they have the data, and would lose an event in a cut. A keep-alive is a comment line
without the blank line after it, since a comment block of its own becomes an empty event in several of them, and has a
letter, since one swallows the line after a bare colon. What some loops over "lines" take for an end is escaped.
"""

from __future__ import annotations

from typing import NamedTuple

from replay.wire import json

KEEPALIVE = b":k\n"
_BOM = b"\xef\xbb\xbf"
_FIELDS = (b"event", b"id", b"retry")
_JSON = (b"{", b"[")


class Message(NamedTuple):
    """One dispatched event of an upstream."""

    event: bytes  # empty where the stream named none
    data: bytes  # its data lines, joined by LF
    bare: bool = False  # it is JSON that was no field


class Decoder:
    """Turns the bytes of an event stream into messages, however they are cut.

    `foreign` is the first line that no event stream has, such as HTML; `overflow` tells that the event which
    is being received is larger than it may be, after which there is no use in going on.
    """

    __slots__ = (
        "_bare",
        "_data",
        "_event",
        "_max_bytes",
        "_size",
        "_skip_lf",
        "_started",
        "_tail",
        "foreign",
        "overflow",
    )

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._tail = bytearray()  # the last line, as far as it has come
        self._data: list[bytes] = []
        self._size = 0  # bytes in _data, with the LFs that will join them
        self._bare = bytearray()  # JSON over several lines, none of them a field, as far as it has come
        self._event = b""
        self._skip_lf = False  # the last piece ended with CR; a LF now belongs to it
        self._started = False
        self.foreign = b""
        self.overflow = False

    def decode(self, piece: bytes) -> list[Message]:
        """The messages that ``piece`` completes."""
        if self._skip_lf and piece:
            self._skip_lf = False
            piece = piece.removeprefix(b"\n")
        if not self._started:
            piece = self._take_tail() + piece
            self._started = len(piece) >= len(_BOM) or not _BOM.startswith(piece)
            piece = piece.removeprefix(_BOM) if self._started else piece
        messages: list[Message] = []
        # A line of megabytes comes in thousands of pieces, and is looked through once.
        if b"\n" in piece or b"\r" in piece:
            text = self._take_tail() + piece if self._tail else piece
            if b"\r" in text:
                self._skip_lf = text.endswith(b"\r")
                text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            lines = text.split(b"\n")
            piece = lines.pop()
            messages = self._take(lines)
        if piece:
            self._tail.extend(piece)
        self.overflow = len(self._tail) + self._size + len(self._bare) > self._max_bytes
        return messages

    def _take_tail(self) -> bytes:
        tail = bytes(self._tail)
        self._tail.clear()
        return tail

    def finish(self) -> list[Message]:
        """What the end of the stream cut off before its blank line or in the middle of JSON, if it has data."""
        messages = self._take([self._take_tail(), b""])
        if self._bare:
            messages.append(Message(b"", bytes(self._bare), bare=True))
            self._bare.clear()
        return messages

    def _take(self, lines: list[bytes]) -> list[Message]:
        messages = []
        data = self._data
        for line in lines:
            if line[:5] == b"data:":
                if data and _is_object(data):
                    messages += self._take([b""])
                    data = self._data
                value = line[6:] if line[5:6] == b" " else line[5:]
                data.append(value)
                self._size += len(value) + 1
            elif line:
                message = self._other(line)
                if message is not None:
                    messages += self._take([b""]) if data else []
                    messages.append(message)
                    data = self._data
            elif data:
                messages.append(Message(self._event, data[0] if len(data) == 1 else b"\n".join(data)))
                data = self._data = []
                self._event, self._size = b"", 0
            else:
                self._event = b""
        return messages

    def _other(self, line: bytes) -> Message | None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(b"")
            self._size += 1
        elif name == b"event":
            self._event = value.removeprefix(b" ")
        elif name == b"error" and value:
            return Message(name, value.removeprefix(b" "))
        elif name and name not in _FIELDS:
            return self._no_field(line)
        return None

    def _no_field(self, line: bytes) -> Message | None:
        if self._bare or line.lstrip().startswith(_JSON):
            if not self._bare and _is_json(line):
                return Message(self._event, line, bare=True)
            self._bare += line + b"\n"
        self.foreign = self.foreign or line
        return None


def _is_object(data: list[bytes]) -> bool:
    """Whether data is an object of JSON to its end; nothing but blanks could follow."""
    return len(data) == 1 and data[0].startswith(b"{") and data[0].endswith(b"}") and _is_json(data[0])


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def block(event: bytes, data: bytes, *, event_id: bytes | None = None) -> bytes:
    """One event as an `EventSource` reads it; without ``event_id`` it leaves the cursor where it is."""
    if event_id is None:
        return b"event: %b\ndata: %b\n\n" % (event, data)
    return b"event: %b\ndata: %b\nid: %b\n\n" % (event, data, event_id)


def one_line(data: bytes) -> bytes:
    """JSON of one line, or several such, without what is an end of a line somewhere: U+0085, U+2028 and U+2029.

    They can stand in strings only, so an escape means the same.
    """
    if b"\xe2" in data:  # one byte is found at once; the searches take a third of the time of encoding
        data = data.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return data.replace(b"\xc2\x85", b"\\u0085") if b"\xc2" in data else data
