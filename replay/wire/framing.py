"""How the blocks of a stream stand on a connection, and how its reader tells the end from a cut.

                 around blocks            the end                    a cut
    CHUNKED      chunks of whole blocks   the last chunk             the connection closes before that
    UNTIL_CLOSE  nothing                  the connection closes      it is reset, as it must not close

A framing that has an end of its own leaves the connection open for another request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

_CHUNK = 8 << 10  # bytes


@dataclass(frozen=True, slots=True, eq=False)
class Framing:
    """What goes around whole blocks, and what comes after the last one."""

    frame: Callable[[bytes, bytes], bytes]  # blocks, and what each of them ends with
    end: bytes  # empty: there is no other than that the connection closes

    @property
    def ends_by_closing(self) -> bool:
        """Whether a connection that closes is the end, so that a cut has to reset it."""
        return not self.end


def _chunked(blocks: bytes, block_end: bytes) -> bytes:
    """HTTP/1.1's transfer coding (RFC 9112, 7.1); some libraries hand on nothing of a chunk that is cut."""
    if len(blocks) <= _CHUNK:
        return b"%x\r\n%b\r\n" % (len(blocks), blocks) if blocks else b""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in _chunks(blocks, block_end))


def _chunks(blocks: bytes, block_end: bytes) -> Iterator[bytes]:
    """Blocks, as many together as a chunk holds, or one that is larger."""
    start = 0
    while len(blocks) - start > _CHUNK:
        last = blocks.rfind(block_end, start, start + _CHUNK)
        stop = (last if last >= 0 else blocks.index(block_end, start)) + len(block_end)
        yield blocks[start:stop]
        start = stop
    if start < len(blocks):
        yield blocks[start:]


def _plain(blocks: bytes, block_end: bytes) -> bytes:
    return blocks


CHUNKED = Framing(_chunked, b"0\r\n\r\n")
UNTIL_CLOSE = Framing(_plain, b"")  # HTTP/1.0, which some proxies still speak
