"""Fixtures that several tests of `/v1` need."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from openai import AsyncOpenAI
from support.api import Api
from support.both_ways import World
from support.sdk import ON_HTTPX
from support.upstream import ScriptedUpstream


@pytest.fixture
async def client(service: Api) -> AsyncIterator[AsyncOpenAI]:
    """The official client of a shared node."""
    async with ON_HTTPX.client(service.url) as client:
        yield client


@pytest.fixture(params=["translated", "passed"])
def world(
    request: pytest.FixtureRequest,
    service: Api,
    other_service: Api,
    speaking: Api,
    other_speaking: Api,
    upstream: ScriptedUpstream,
) -> World:
    """Two shared nodes in front of an upstream that only knows chats, and of one that speaks the Responses API."""
    upstream.speaks_responses = request.param == "passed"
    here, there = (speaking, other_speaking) if upstream.speaks_responses else (service, other_service)
    return World(request.param, here, there, upstream)
