"""Ports that nobody else will take while a server is being restarted on them."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

# Below the ephemeral range: the kernel gives ports of that range to outgoing connections, and a client
# that keeps knocking at a dead port there ends up connected to itself.
_BLOCKS = range(12_000, 32_000, 200)


def _reserve_block() -> tuple[socket.socket, range]:
    """A block of ports for this process alone; a UDP socket says so to other test runs on this machine."""
    for start in random.sample(_BLOCKS, len(_BLOCKS)):
        flag = socket.socket(type=socket.SOCK_DGRAM)
        try:
            flag.bind(("127.0.0.1", start))
        except OSError:
            flag.close()
            continue
        return flag, range(start, start + _BLOCKS.step)
    raise OSError("no block of ports is free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_ports() -> Iterator[int]:
    _flag, block = _reserve_block()
    while True:
        yield from filter(_is_free, block)


_ports = _free_ports()


def free_port() -> int:
    """A free loopback port, another one each time."""
    return next(_ports)
