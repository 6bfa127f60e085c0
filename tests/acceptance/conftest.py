"""Fixtures that several files of acceptance tests need."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.activity import ActivityWire
from support.valkey import ValkeyServer


@pytest.fixture
async def activity_wire(valkey: ValkeyServer) -> AsyncIterator[ActivityWire]:
    """The wire between a node and Valkey, for faults that hit the activity alone."""
    async with ActivityWire(valkey.url) as wire:
        yield wire
