"""What a web page shows: native `EventSource` in a real Chromium, through everything networks and operators do.

The page is `pages/generation.html`, three lines of script. Browser and page stand behind `network`, which the
tests cut and refuse; behind it `Site` gives page and node one origin, as a user's web server would.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext
from support.browser import CLOSED, CONNECTING, OPEN, Tab, chromium, open_tab
from support.deadlines import eventually
from support.fault_proxy import FaultProxy
from support.node import Node
from support.running import begin
from support.site import Site
from support.sse import Message

MakeNode = Callable[..., Awaitable[Node]]

PAGES = {"pages": Path(__file__).parent / "pages"}

# Everything that has been known to be shown wrongly: astral characters, joined emoji, both separators that
# JavaScript once took for line ends, what HTML and SSE have a meaning for, leading and trailing space.
TEXTS = (
    "  leading space",
    "\n\nid: 1-1\nevent: end\ndata: {}\n\n",
    "👩‍👩‍👧‍👦 𝕍𝕒𝕝𝕜𝕖𝕪 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ",
    "\u2028between separators\u2029",
    "\x00\x0b\x0c\x1f\x7f\x85\ufeff\ufffd\U0010ffff",
    "\r",
    "\r\n",
    ": no comment, [DONE]",
    "e\u0301 שלום 日本語",
    '<b>"bold"</b> &amp; \\u0041 ',
)


@pytest.fixture
async def browser() -> AsyncIterator[BrowserContext]:
    async with chromium() as context:
        yield context


@pytest.fixture
def alone() -> bool:
    """Whether the node has a Valkey server of its own, embedded; overridden by a parameter of that name."""
    return False


@pytest.fixture
async def node(alone: bool, make_node: MakeNode) -> Node:
    """The node behind the site."""
    return await make_node(valkey_url=None, data_dir="data") if alone else await make_node()


@pytest.fixture
async def site(node: Node) -> AsyncIterator[Site]:
    """The origin of the page, in front of `node`."""
    async with Site(node.url, PAGES) as site:
        yield site


@pytest.fixture
async def network(site: Site) -> AsyncIterator[FaultProxy]:
    """The wire between the browser and the site."""
    async with FaultProxy(site.url) as proxy:
        yield proxy


@pytest.fixture
def show(browser: BrowserContext, network: FaultProxy) -> Callable[..., Awaitable[Tab]]:
    """Open a page that shows a generation."""

    async def show(id: str, page: str = "generation.html") -> Tab:
        return await open_tab(browser, f"{network.url}/pages/{page}#{id}")

    return show


async def log_of(tab: Tab) -> list[Message]:
    """The events of the log that this page load has seen."""
    return [
        Message(each.name, each.data, each.last_event_id) for each in await tab.seen("start", "token", "delta", "end")
    ]


# A generation is shown.


async def test_text_is_shown_exactly(show, node, upstream):
    # given a generation with one token of every awkward text, half of them before the page is opened
    id, call = await begin(node.api, upstream, *TEXTS[:5])

    # when
    tab = await show(id)
    await tab.shows("".join(TEXTS[:5]))
    for text in TEXTS[5:]:
        await call.say(text)
    await call.finish()

    # then
    await tab.shows("".join(TEXTS))
    await tab.ended("completed")
    await tab.becomes(CLOSED)
    assert await log_of(tab) == await node.api.log(id)
    assert (tab.complaints, tab.network_errors) == ([], [])


async def test_204_after_the_end_stops_event_source(show, site, node, upstream):
    # given a page that does not close its EventSource at `end`
    id, call = await begin(node.api, upstream, "Hello")
    tab = await show(id)
    await tab.shows("Hello")

    # when
    await call.finish()

    # then it comes back once, with the cursor of `end`, and never again
    await tab.becomes(CLOSED)
    assert site.cursors() == [None, (await node.api.generation(id))["last_event_id"]]
    retry_ms = node.settings["retry_ms"]
    await tab.page.evaluate("(ms) => new Promise((done) => setTimeout(done, ms))", 10 * retry_ms)
    assert len(site.cursors()) == 2
    names = [each.name for each in await tab.seen()]
    assert names == ["open", "start", "token", "live", "delta", "end", "error", "error"]
    assert [each.ready_state for each in await tab.seen("error")] == [CONNECTING, CLOSED]
    assert tab.complaints == []


async def test_live_comes_once_per_connection_and_leaves_the_cursor(show, network, site, node, upstream):
    # given a page that is connected three times, the second time with nothing new
    id, call = await begin(node.api, upstream, "one ")
    tab = await show(id)
    await tab.shows("one ")
    network.cut()
    await tab.failed(1)
    await eventually("the second `live`", lambda: tab.seen("live"), lambda lives: len(lives) == 2)
    network.cut()
    await call.say("two ")
    await tab.shows("one two ")
    await eventually("the third `live`", lambda: tab.seen("live"), lambda lives: len(lives) == 3)

    # when
    await call.finish()
    await tab.becomes(CLOSED)

    # then
    first, second, _, end = (event.last_event_id for event in (await node.api.log(id))[1:])
    lives = await tab.seen("live")
    assert [live.last_event_id for live in lives] == [first, first, second], "`live` leaves the cursor where it is"
    assert len(await tab.seen("open")) == len(lives)
    assert site.cursors() == [None, first, first, end]
    assert await log_of(tab) == await node.api.log(id)


async def test_failed_generation_is_shown_as_one_and_is_not_asked_for_again(show, node, upstream):
    # given
    id, call = await begin(node.api, upstream, "half an ans")
    tab = await show(id)

    # when
    await call.cut()

    # then
    await tab.ended("failed")
    await tab.becomes(CLOSED)
    await tab.shows("half an ans")
    assert tab.complaints == []


async def test_unknown_generation_closes_event_source(show, node):
    # when
    tab = await show("gen_that_never_was")

    # then
    await tab.becomes(CLOSED)
    assert [each.name for each in await tab.seen()] == ["error"]


# The network goes away.


@contextlib.asynccontextmanager
async def cut_and_refused(browser: BrowserContext, network: FaultProxy) -> AsyncIterator[None]:
    """The connection is reset, and there is no other until it is over."""
    await network.refuse()
    network.cut()
    yield
    await network.accept()


@contextlib.asynccontextmanager
async def offline(browser: BrowserContext, network: FaultProxy) -> AsyncIterator[None]:
    """The browser is told that it has no network."""
    await browser.set_offline(True)
    network.cut()  # what is open stays open in a browser that is offline; a changed network would end it
    yield
    await browser.set_offline(False)


@pytest.mark.parametrize("outage", [cut_and_refused, offline], ids=lambda outage: outage.__name__)
async def test_page_catches_up_after_an_outage(show, browser, network, node, upstream, outage):
    # given
    id, call = await begin(node.api, upstream, "before, ")
    tab = await show(id)
    await tab.shows("before, ")

    # when the network is away for some tries of the browser, while the model goes on
    async with outage(browser, network):
        await call.say("during, ")
        await tab.failed(3)
    await call.say("after")
    await call.finish()

    # then
    await tab.shows("before, during, after")
    await tab.ended("completed")
    await tab.becomes(CLOSED)
    assert await log_of(tab) == await node.api.log(id)
    assert tab.complaints == []


async def test_connections_cut_anywhere_cost_nothing(show, network, node, upstream):
    # given
    id, call = await begin(node.api, upstream, "before, ")
    tab = await show(id)
    await tab.shows("before, ")

    # when connections end in their headers and in the middle of events
    cuts = range(5, 600, 45)
    texts = [f"𝕔𝕦𝕥 {count} " for count in cuts]
    for count, text in zip(cuts, texts, strict=True):
        network.cut_replies_after(count)
        await call.say(text)
        await network.reply_cut()
    await call.finish()

    # then
    await tab.shows("before, " + "".join(texts))
    await tab.becomes(CLOSED)
    assert await log_of(tab) == await node.api.log(id)
    assert tab.complaints == []


# The page is loaded again.


async def test_page_that_keeps_its_cursor_reads_nothing_twice(show, site, network, node, upstream):
    # given a page that keeps text and cursor in the session's storage
    id, call = await begin(node.api, upstream, "one ", "two ")
    tab = await show(id, page="resuming.html")
    await tab.shows("one two ")
    seen = await log_of(tab)

    # when it is loaded again, and cut when it has heard of no more than `live`, whose id is the cursor, and cut again
    await tab.page.reload()
    await eventually("`live`", lambda: tab.seen("live"))
    network.cut()
    await call.say("three ")
    await tab.shows("one two three ")
    network.cut()
    await call.say("four")
    await call.finish()

    # then
    await tab.shows("one two three four")
    await tab.becomes(CLOSED)
    assert seen + await log_of(tab) == await node.api.log(id)
    two, three = seen[-1].last_event_id, (await log_of(tab))[0].last_event_id
    asked = [(request.target.partition("=")[2], request.headers.get("last-event-id")) for request in site.requests]
    assert asked[:4] == [("-1", None), (two, None), (two, two), (two, three)]


# A node goes away.


async def stop_by_sigterm(node: Node) -> None:
    assert await node.stop() == 0


async def stop_by_sigkill(node: Node) -> None:
    node.kill()


stopped = pytest.mark.parametrize("stop", [stop_by_sigterm, stop_by_sigkill], ids=["sigterm", "sigkill"])


@stopped
async def test_restart_of_the_node_that_serves_the_page_costs_nothing(show, node, make_node, upstream, stop):
    # given a generation that another node produces
    producer = await make_node()
    id, call = await begin(producer.api, upstream, "before, ")
    tab = await show(id)
    await tab.shows("before, ")

    # when
    await stop(node)
    await call.say("during, ")
    await tab.failed(2)
    await node.restart()
    await call.say("after")
    await call.finish()

    # then
    await tab.shows("before, during, after")
    await tab.ended("completed")
    await tab.becomes(CLOSED)
    assert await log_of(tab) == await producer.api.log(id)
    assert tab.complaints == []


@stopped
@pytest.mark.parametrize("alone", [False, True], ids=["with-a-valkey-server", "with-its-own-valkey"])
async def test_restart_of_the_only_node_ends_as_interrupted(show, node, upstream, stop):
    # given
    id, _ = await begin(node.api, upstream, *TEXTS[:4])
    tab = await show(id)
    await tab.shows("".join(TEXTS[:4]))

    # when
    await stop(node)
    await node.restart()

    # then the page says so, and shows what was said until then
    await tab.ended("interrupted")
    await tab.becomes(CLOSED)
    await tab.shows("".join(TEXTS[:4]))
    log = await node.api.log(id)
    assert await log_of(tab) == log
    assert log[-1].json()["error"]["code"] in ("shutdown", "node_lost")
    assert tab.complaints == []


# Valkey goes away.


async def test_page_outlives_valkey(show, network, node, valkey, upstream):
    # given
    id, call = await begin(node.api, upstream, "before, ")
    tab = await show(id)
    await tab.shows("before, ")

    # when Valkey is away, and the page is cut and comes back for some tries
    valkey.kill()
    network.cut()
    await tab.failed(4)
    assert CLOSED not in {each.ready_state for each in await tab.seen()}, "one answer had ended the EventSource"
    valkey.start()
    await call.say("after")
    await call.finish()

    # then
    await tab.shows("before, after")
    await tab.ended("completed")
    await tab.becomes(CLOSED)
    assert await log_of(tab) == await node.api.log(id)
    assert tab.complaints == []


async def test_page_opened_without_valkey_is_shown_what_comes(show, node, valkey, upstream):
    # given
    id, call = await begin(node.api, upstream, "before, ")
    valkey.kill()

    # when the page is opened, and tries once (and then again after 3 s: nobody has told this Chromium another pause)
    tab = await show(id)
    await tab.failed(1)
    assert CLOSED not in {each.ready_state for each in await tab.seen()}, "one answer had ended the EventSource"
    valkey.start()
    await call.say("after")
    await call.finish()

    # then
    await tab.shows("before, after")
    await tab.ended("completed")
    await tab.becomes(CLOSED)
    assert await log_of(tab) == await node.api.log(id)
    assert tab.complaints == []


# All of it, in one life of a page.


@pytest.mark.slow
async def test_page_outlives_reload_outage_and_restarts(show, network, node, make_node, upstream):
    # given a generation that another node produces
    producer = await make_node()
    id, call = await begin(producer.api, upstream, "It begins. ")
    tab = await show(id)
    await tab.shows("It begins. ")

    # when the page is loaded again
    await tab.page.reload()
    await call.say("Loaded again 👩‍👩‍👧‍👦. ")
    await tab.shows("It begins. Loaded again 👩‍👩‍👧‍👦. ")

    # and has no network for five seconds
    back_at = time.monotonic() + 5
    await network.refuse()
    network.cut()
    while time.monotonic() < back_at:
        await call.say("Away. ")
        await asyncio.sleep(0.25)
    await tab.becomes(CONNECTING)
    await network.accept()
    await call.say("Back. ")

    # and its node is killed, started, told to stop, and started
    for stop in (stop_by_sigkill, stop_by_sigterm):
        await tab.becomes(OPEN)
        await stop(node)
        await call.say("Alone. ")
        await node.restart()
        await call.say("With a node. ")
    await call.finish()

    # then
    text = (await producer.api.transcript(id))["text"]
    assert text.startswith("It begins. Loaded again 👩‍👩‍👧‍👦. Away. Away. ")
    assert text.endswith("Back. " + 2 * "Alone. With a node. ")
    await tab.shows(text)
    await tab.ended("completed")
    await tab.becomes(CLOSED)
    assert await log_of(tab) == await producer.api.log(id)
    assert tab.complaints == []
