"""Fixtures that several files of acceptance tests need."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

import pytest
from openai import AsyncOpenAI
from playwright.async_api import BrowserContext
from support.activity import ActivityWire
from support.api import Api
from support.both_ways import World
from support.browser import Tab, chromium, open_tab
from support.dashboard import BROWSERS_OWN, Open
from support.node import Node
from support.sdk import ON_HTTPX
from support.terminal import Command, RunCommand, ShowCommand, Window
from support.upstream import ScriptedUpstream
from support.valkey import ValkeyServer


@pytest.fixture
async def activity_wire(valkey: ValkeyServer) -> AsyncIterator[ActivityWire]:
    """The wire between a node and Valkey, for faults that hit the activity alone."""
    async with ActivityWire(valkey.url) as wire:
        yield wire


@pytest.fixture
async def browser() -> AsyncIterator[BrowserContext]:
    """A fresh Chromium."""
    async with chromium(watch=False) as context:
        yield context


@pytest.fixture
async def open_page(browser: BrowserContext, node: Node) -> AsyncIterator[Open]:
    """Open a page of the node; at the end of the test none of them may have complained."""
    tabs: list[Tab] = []

    async def open_page(path: str = "/", context: BrowserContext | None = None, url: str | None = None) -> Tab:
        tab = await open_tab(context or browser, f"{url or node.url}{path}")
        tabs.append(tab)
        return tab

    yield open_page
    for tab in tabs:
        assert [each for each in tab.complaints if not each.startswith(BROWSERS_OWN)] == []


@pytest.fixture
async def run_command(service: Api, tmp_path: Path) -> AsyncIterator[RunCommand]:
    """Run `replay …` with its output in pipes: `await run_command("ls", url=…, stdin=b"…", NO_COLOR="1")`."""
    async with contextlib.AsyncExitStack() as stack:

        async def run(*words: str, url: str = service.url, stdin: bytes = b"", **env: str) -> Command:
            command = await Command.start(*words, url=url, directory=tmp_path, stdin=stdin, env=env)
            stack.push_async_callback(command.close)
            return command

        yield run


@pytest.fixture
async def show_command(service: Api, tmp_path: Path) -> AsyncIterator[ShowCommand]:
    """Run `replay …` in a terminal."""
    async with contextlib.AsyncExitStack() as stack:

        async def show(*words: str, url: str = service.url, stdout: BinaryIO | None = None, **env: str) -> Window:
            window = await Window.start(*words, url=url, directory=tmp_path, stdout=stdout, env=env)
            stack.push_async_callback(window.close)
            return window

        yield show


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
