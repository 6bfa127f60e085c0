"""The dashboard in a real Chromium: the list of generations, whatever happens to the service."""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qsl, urlsplit

import pytest
from playwright.async_api import Route
from support.dashboard import STANDING, rows, shows_rows, think
from support.running import begin
from support.upstream import generate

pytestmark = pytest.mark.slow  # all of it together takes more than a minute


async def test_empty_list_says_how_to_start(open_page):
    tab = await open_page()
    await tab.until("document.body.innerText.includes('No generations yet')")
    assert "/generations -d" in await tab.page.inner_text("main")


async def test_list_shows_live_ones_first_and_follows_the_feed(open_page, node, upstream):
    # given one that has ended after a live one was started
    live, live_call = await begin(node.api, upstream, "still ")
    ended, ended_call = await begin(node.api, upstream, "over")
    await ended_call.finish()
    await node.api.ended(ended)

    # when
    tab = await open_page()

    # then
    await shows_rows(tab, (live, "streaming"), (ended, "completed"))

    # when one begins, is answered, and another ends, while the page is open
    begun = (await node.api.start())["id"]
    await shows_rows(tab, (begun, "queued"), (live, "streaming"), (ended, "completed"))
    call = await upstream.called()
    await call.say("Hello")
    await shows_rows(tab, (begun, "streaming"), (live, "streaming"), (ended, "completed"))
    await live_call.cut()

    # then
    await shows_rows(tab, (begun, "streaming"), (ended, "completed"), (live, "failed"))
    # and who points at what failed is told why, now and after a reload
    assert await tab.page.get_attribute("[data-status=failed]", "title") == "upstream_truncated"
    await tab.page.reload()
    await shows_rows(tab, (begun, "streaming"), (ended, "completed"), (live, "failed"))
    assert await tab.page.get_attribute("[data-status=failed]", "title") == "upstream_truncated"


async def test_list_tells_how_far_the_live_ones_are_and_who_watches(open_page, node, upstream):
    upstream.script = generate(10_000, per_second=50)
    id = (await node.api.start())["id"]
    await node.api.has(id, 20)
    watching = await open_page(f"/g/{id}")
    await watching.until(STANDING, "Live")

    tab = await open_page()

    cell = "document.querySelector('.rows .row .{}')?.textContent"
    await tab.until("Number({}) === 1".format(cell.format("subscribers")))
    await tab.until(
        "Number({}) > 20".format(cell.format("tokens").replace("textContent", "textContent?.replace(',', '')"))
    )
    await tab.until("Number({}) > 5".format(cell.format("rate")))
    await tab.until("{}?.endsWith('s')".format(cell.format("first")))


async def test_list_claims_no_tokens_that_nobody_has_counted(browser, open_page, node, upstream):
    # given a live one with events of which none is a token, and no feed that tells how far it is
    id = (await node.api.start())["id"]
    call = await upstream.called()
    await think(call, "Hm")
    await node.api.has(id, 2)
    await browser.route("**/feed?*", lambda route: route.abort())

    tab = await open_page()

    await shows_rows(tab, (id, "streaming"))
    assert await tab.page.inner_text(".rows .row .tokens") == "–"


async def test_list_is_filtered_by_status_and_text(open_page, node, upstream):
    good, call = await begin(node.api, upstream, "a", metadata={"ticket": "ACME-42"})
    await call.finish()
    bad, call = await begin(node.api, upstream, "b")
    await call.cut()
    await node.api.ended(good)
    await node.api.ended(bad)
    tab = await open_page()
    await shows_rows(tab, (bad, "failed"), (good, "completed"))

    await tab.page.get_by_label("Status").select_option(label="Failed")
    await shows_rows(tab, (bad, "failed"))
    await tab.page.get_by_label("Status").select_option(label="All statuses")
    await shows_rows(tab, (bad, "failed"), (good, "completed"))
    await tab.page.get_by_label("Search by id, model or metadata").fill("acme-42")
    await shows_rows(tab, (good, "completed"))
    await tab.page.get_by_label("Search by id, model or metadata").fill("nothing has this")
    await tab.until("document.body.innerText.includes('Nothing matches')")
    await tab.page.get_by_role("button", name="Show all").click()
    await shows_rows(tab, (bad, "failed"), (good, "completed"))


async def test_list_finds_what_is_not_on_the_page(open_page, node, upstream):
    # given more generations than the page has loaded, among them an old one that failed
    old, call = await begin(node.api, upstream, "a", metadata={"ticket": "ACME-42"})
    await call.cut()
    await node.api.ended(old)
    upstream.script = generate(1)
    for _ in range(3):
        await asyncio.gather(*(node.api.start() for _ in range(40)))
    tab = await open_page()
    await tab.until("document.querySelectorAll('.rows .row').length >= 100")
    assert old not in dict(await rows(tab))
    # then
    await tab.page.get_by_label("Search by id, model or metadata").fill("acme-42")
    await shows_rows(tab, (old, "failed"))
    await tab.page.get_by_label("Search by id, model or metadata").fill("")
    await tab.until("document.querySelectorAll('.rows .row:not([hidden])').length >= 100")


async def test_list_follows_short_and_empty_answers_of_the_node(browser, open_page, node, upstream):
    # given a node that looks at no more than one generation for an answer
    bad, call = await begin(node.api, upstream, "a")
    await call.cut()
    await node.api.ended(bad)
    upstream.script = generate(1)
    good = [await node.api.run() for _ in range(3)]

    async def shorten(route: Route) -> None:
        query = dict(parse_qsl(urlsplit(route.request.url).query))
        wanted = query.pop("status", None)
        page = (await node.api.get("/generations", **query | {"limit": "1"})).json()
        if wanted is not None:
            page["generations"] = [each for each in page["generations"] if each["status"] in wanted.split(",")]
        await route.fulfill(json=page)

    await browser.route("**/generations?*", shorten)
    tab = await open_page()
    # then the button goes on, and what is asked for is found after answers with nothing in them
    await shows_rows(tab, (good[2], "completed"))
    await tab.page.get_by_role("button", name="Load more").click()
    await shows_rows(tab, (good[2], "completed"), (good[1], "completed"))
    await tab.page.get_by_label("Status").select_option(label="Failed")
    await shows_rows(tab, (bad, "failed"))


async def test_list_comes_back_after_a_restart_of_the_node(open_page, make_node, node, upstream):
    # given a page of one node, and a generation of another
    other = await make_node()
    first, _ = await begin(other.api, upstream, "one")
    tab = await open_page()
    await shows_rows(tab, (first, "streaming"))

    # when its node is away, and something begins meanwhile
    node.kill()
    await tab.until("document.getElementById('connection').textContent.startsWith('Reconnecting')")
    second, _ = await begin(other.api, upstream, "two")
    await node.restart()

    # then
    await shows_rows(tab, (second, "streaming"), (first, "streaming"))
    await tab.until("document.getElementById('connection').textContent === 'Connected'")
