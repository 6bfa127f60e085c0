"""Where a node listens: whether it can, who is reached by that, and what somebody on this machine opens."""

from __future__ import annotations

import errno
import ipaddress
import socket
from contextlib import suppress
from functools import lru_cache

from replay.errors import AddressInUse, InvalidSetting, ReplayError


def check(host: str, port: int) -> None:
    """Find out whether this can be listened on; raises AddressInUse, and InvalidSetting where it never can."""
    try:
        candidates = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, *_, address in candidates:
            _bind(family, address)
    except (OSError, UnicodeError) as error:
        raise refusal(host, port, error) from error


def _bind(family: int, address: tuple[object, ...]) -> None:
    """Take an address and leave it, with the options of asyncio, which passes by families that the machine has not."""
    try:
        probe = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return
    with probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(address)


def refusal(host: str, port: int, error: OSError | UnicodeError) -> ReplayError:
    """The error for an address that cannot be listened on."""
    kind = AddressInUse if isinstance(error, OSError) and error.errno == errno.EADDRINUSE else InvalidSetting
    return kind(f"--host, --port: cannot listen on {host}:{port}", aside=getattr(error, "strerror", None) or str(error))


def url_here(host: str, port: int) -> str:
    """The URL by which this machine reaches who listens there; an address that stands for all cannot be opened."""
    name = "localhost" if is_any(host) else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def is_any(host: str) -> bool:
    """Whether it stands for all addresses of the machine: `0.0.0.0`, `::`."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_unspecified
    return False


@lru_cache(maxsize=256)
def is_loopback(name: str) -> bool:
    """Whether a name or an address is one of loopback's."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    with suppress(ValueError):
        address = ipaddress.ip_address(name)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    return False


def is_only_loopback(host: str) -> bool:
    """Whether who listens there is reached from this machine alone."""
    if is_loopback(host):
        return True
    with suppress(OSError):  # which listening will tell
        names = {str(address[0]) for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        return all(map(is_loopback, names))
    return False
