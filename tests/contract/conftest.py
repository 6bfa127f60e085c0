"""Stores on the test's Valkey server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
from support.fault_proxy import FaultProxy
from support.stores import PATIENT_S, StartStore
from support.valkey import ValkeyServer

from replay.store import EventStore
from replay.store.valkey import ValkeyStore


@pytest.fixture
async def start_store(valkey: ValkeyServer) -> AsyncIterator[StartStore]:
    """Connect stores to the test's server, or to a URL."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(url: str | None = None, timeout_s: float = PATIENT_S) -> EventStore:
            store = ValkeyStore(valkey.url if url is None else url, timeout_s=timeout_s)
            await store.start(5.0)
            stack.push_async_callback(store.stop)
            return store

        yield start


@pytest.fixture
async def store(start_store: StartStore) -> EventStore:
    """A store."""
    return await start_store()


@pytest.fixture
async def other(start_store: StartStore) -> EventStore:
    """Another node's store, on the same server."""
    return await start_store()


@pytest.fixture
async def proxied(valkey_proxy: FaultProxy, start_store: StartStore) -> EventStore:  # the store stops before its proxy
    """A store whose connections can be held and cut."""
    return await start_store(valkey_proxy.url)
