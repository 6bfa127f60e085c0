"""Where a node listens, and what somebody on this machine opens for that."""

from __future__ import annotations

import pytest

from replay.addresses import is_any, is_only_loopback, url_here


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:81"),
        ("localhost", "http://localhost:81"),
        ("::1", "http://[::1]:81"),
        ("0.0.0.0", "http://localhost:81"),
        ("::", "http://localhost:81"),
        ("192.0.2.1", "http://192.0.2.1:81"),
    ],
)
def test_url_can_be_opened_on_this_machine(host, url):
    assert url_here(host, 81) == url


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "localhost", "a.localhost"])
def test_loopback_is_reached_from_this_machine_alone(host):
    assert is_only_loopback(host)
    assert not is_any(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "no-such-host.invalid"])
def test_other_addresses_are_reached_from_elsewhere(host):
    assert not is_only_loopback(host)
    assert is_any(host) == (host in ("0.0.0.0", "::"))
