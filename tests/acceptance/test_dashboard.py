"""The dashboard in a real Chromium: what people see, do and hear of generations, whatever happens to the service.

Nothing here may complain on the console, violate the page's Content Security Policy, or scroll sideways on a phone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from playwright.async_api import BrowserContext, Route
from support.api import Api, event_id, text_of
from support.browser import Tab, chromium, open_tab
from support.deadlines import eventually
from support.fault_proxy import FaultProxy
from support.node import Node
from support.upstream import Call, ScriptedUpstream, generate

pytestmark = pytest.mark.slow  # all of it together takes more than a minute

MakeNode = Callable[..., Awaitable[Node]]
Open = Callable[..., Awaitable[Tab]]

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}

# A browser says itself, on the console, that a server was not there or had nothing, or that a head was cut in the
# middle of its content type; no page can keep it from that.
_BROWSERS_OWN = ("Failed to load resource", "EventSource's response has a MIME type")

# How the page is read: by the parts that its own script fills.
TEXT = "document.querySelector('[data-part=text]')?.textContent === wanted"
STANDING = "document.querySelector('[data-part=standing]')?.textContent.startsWith(wanted)"
STATUS = "document.querySelector('[data-part=status]')?.textContent === wanted"
PLAYABLE = "document.querySelector('[data-part=player]')?.hidden === false"


@pytest.fixture
async def browser() -> AsyncIterator[BrowserContext]:
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
        assert [each for each in tab.complaints if not each.startswith(_BROWSERS_OWN)] == []


async def begin(api: Api, upstream: ScriptedUpstream, *texts: str, **replay: Any) -> tuple[str, Call]:
    """A generation that has said these texts and goes on."""
    id = (await api.start(**replay))["id"]
    call = await upstream.called()
    for text in texts:
        await call.say(text)
    await api.has(id, 1 + len(texts))
    return id, call


async def think(call: Call, text: str) -> None:
    await call.send(call.chunk({"delta": {"reasoning_content": text}}))


async def call_tool(call: Call, name: str, *fragments: str, index: int = 0) -> None:
    """A tool call, its arguments in pieces."""
    opening = {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": ""}}
    await call.send(call.chunk({"delta": {"tool_calls": [opening]}}))
    for fragment in fragments:
        piece = {"index": index, "function": {"arguments": fragment}}
        await call.send(call.chunk({"delta": {"tool_calls": [piece]}}))


async def rows(tab: Tab) -> list[tuple[str, str]]:
    """Id and status of the rows that are shown, in their order."""
    found = await tab.page.evaluate(
        """[...document.querySelectorAll('.rows .row:not([hidden])')].map(
             (row) => [row.querySelector('a').textContent, row.querySelector('.chip').textContent])"""
    )
    return [(id, status) for id, status in found]


async def shows_rows(tab: Tab, *expected: tuple[str, str]) -> None:
    await eventually(f"the rows {expected}", lambda: rows(tab), lambda found: found == list(expected))


# The list.


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
    # then the button goes on, and what is asked for is found behind answers with nothing in them
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


# A generation.


async def test_page_that_joins_late_shows_all_at_once_and_then_follows(open_page, node, upstream):
    # given
    said = [f"word{count} " for count in range(500)]
    id, call = await begin(node.api, upstream, *said)

    # when
    tab = await open_page(f"/g/{id}")

    # then what was said is there in the moment anything is
    await tab.until("document.querySelector('[data-part=text]')?.textContent.length > 0")
    assert await tab.page.text_content("[data-part=text]") == "".join(said)
    await tab.until(STANDING, "Live")
    await tab.until(STATUS, "streaming")

    # and what comes follows
    await call.say("and on")
    await tab.until(TEXT, "".join(said) + "and on")
    await call.finish()
    await tab.until(STANDING, "Ended: the model was done")
    await tab.until(STATUS, "completed")


async def test_reload_and_cuts_lose_and_double_nothing(open_page, node, upstream):
    async with FaultProxy(node.url) as network:
        id, call = await begin(node.api, upstream, "one ")
        tab = await open_page(f"/g/{id}", url=network.url)
        await tab.until(TEXT, "one ")

        # when the page is loaded again, and then cut in the middle of what comes
        await tab.page.reload()
        await call.say("two ")
        await tab.until(TEXT, "one two ")
        for count in (40, 150, 300):
            network.cut_replies_after(count)
            await call.say(f"cut after {count} ")
            await network.reply_cut()
        await call.finish()

        # then
        transcript = await node.api.transcript(id, wait=10)
        await tab.until(TEXT, transcript["text"])
        await tab.until(STATUS, "completed")


async def test_page_outlives_a_restart_of_its_node_and_of_valkey(open_page, make_node, node, valkey, upstream):
    # given a generation that another node produces
    producer = await make_node()
    id, call = await begin(producer.api, upstream, "before, ")
    tab = await open_page(f"/g/{id}")
    await tab.until(TEXT, "before, ")

    # when
    node.kill()
    await tab.until(STANDING, "Reconnecting")
    await call.say("while the node is away, ")
    await node.restart()
    await tab.until(TEXT, "before, while the node is away, ")
    valkey.kill()
    await call.say("while Valkey is away, ")
    valkey.start()
    await call.say("after.")
    await call.finish()

    # then
    transcript = await producer.api.transcript(id, wait=10)
    assert transcript["text"] == "before, while the node is away, while Valkey is away, after."
    await tab.until(TEXT, transcript["text"])
    await tab.until(STATUS, "completed")


async def test_page_of_the_only_node_says_that_the_answer_was_interrupted(open_page, node, upstream):
    id, _ = await begin(node.api, upstream, "half an ans")
    tab = await open_page(f"/g/{id}")
    await tab.until(STANDING, "Live")

    await node.restart()

    await tab.until(STATUS, "interrupted")
    await tab.until(STANDING, "Ended: interrupted, node_lost")
    await tab.until(TEXT, "half an ans")


async def test_failure_is_shown_as_one_with_its_reason(open_page, node, upstream):
    id, call = await begin(node.api, upstream, "half an ans")
    tab = await open_page(f"/g/{id}")
    await tab.until(STANDING, "Live")

    await call.cut()

    await tab.until(STANDING, "Ended: failed, upstream_truncated")
    assert "upstream_truncated" in await tab.page.inner_text("[data-part=ending]")
    again = await open_page(f"/g/{id}")  # and to who comes later
    await again.until(STATUS, "failed")
    await again.until(TEXT, "half an ans")


async def test_tool_calls_and_reasoning_are_shown_apart_from_the_answer(open_page, node, upstream):
    id = (await node.api.start())["id"]
    call = await upstream.called()
    await think(call, "Where ")
    await think(call, "is it?")
    tab = await open_page(f"/g/{id}")
    await tab.until("document.querySelector('[data-part=reasoning-text]')?.textContent === wanted", "Where is it?")
    await call.say("Let me look.")
    await call_tool(call, "get_weather", '{"city"', ':"Paris"}')
    await call_tool(call, "get_time", '{"tz":"C', index=1)

    shown = "[...document.querySelectorAll('.call')].map((call) => call.querySelector('pre').textContent)"
    await tab.until(f"{shown}.length === 2 && {shown}[1] === wanted", '{"tz":"C')
    assert await tab.page.evaluate(shown) == [json.dumps({"city": "Paris"}, indent=2), '{"tz":"C']
    assert await tab.page.locator(".call h2").all_inner_texts() == ["Tool call get_weather", "Tool call get_time"]
    await tab.until(TEXT, "Let me look.")
    await call.finish("tool_calls")
    await tab.until(STANDING, "Ended: the model calls tools")

    later = await open_page(f"/g/{id}")
    await later.until("document.querySelectorAll('.call').length === 2")
    await later.until("document.querySelector('[data-part=reasoning-text]')?.textContent === wanted", "Where is it?")
    await later.until(TEXT, "Let me look.")


async def test_a_refusal_is_an_answer(open_page, node, upstream):
    id = (await node.api.start())["id"]
    call = await upstream.called()
    await call.send(call.chunk({"delta": {"refusal": "I will not."}}))
    await call.finish()
    tab = await open_page(f"/g/{id}")
    await tab.until(STANDING, "Ended: the model was done")
    assert await tab.page.inner_text("[data-part=refusal-text]") == "I will not."
    assert await tab.page.is_hidden("[data-part=waiting]")


async def test_what_a_model_says_is_text_and_nothing_else(open_page, node, upstream):
    # given
    said = [
        "<script>document.title = 'taken'</script>",
        "<img src=x onerror=\"document.title = 'taken'\">",
        "  two  spaces\n\n\tand a tab\n",
        "👩‍👩‍👧‍👦 \u2028 \x00 e\u0301 שלום",
        "\r\n&amp;</pre></div>",
    ]
    id, call = await begin(node.api, upstream, *said[:3])
    await think(call, "<b>bold</b>")
    await call_tool(call, "<i>name</i>", '{"a": "<script>1</script>"}', index=0)

    # when
    tab = await open_page(f"/g/{id}")
    for text in said[3:]:
        await call.say(text)
    await call.finish()

    # then
    await tab.until(TEXT, "".join(said))
    await tab.until(STATUS, "completed")
    assert "taken" not in await tab.page.title()
    assert await tab.page.locator(".answer :is(script, img, b, i)").count() == 0


async def test_unknown_generation_is_said_to_be_none(open_page):
    tab = await open_page("/g/gen_that_never_was")
    await tab.until("document.querySelector('h1')?.textContent === 'No such generation'")
    await tab.page.get_by_role("link", name="All generations").click()
    await tab.until("document.querySelector('h1')?.textContent === 'Generations'")


# Replay.


async def test_replay_shows_any_moment_and_keeps_the_pauses(open_page, node, upstream):
    # given an answer with a pause in it
    id, call = await begin(node.api, upstream, *[f"word{count} " for count in range(20)])
    await asyncio.sleep(1.2)  # what is replayed; nothing waits for it
    for count in range(20, 30):
        await call.say(f"word{count} ")
    await call.finish()
    await node.api.ended(id)
    log = await node.api.log(id)
    times = [event_id(event.last_event_id)[0] for event in log]
    tab = await open_page(f"/g/{id}")
    await tab.until(PLAYABLE)
    assert "1 stall" in await tab.page.inner_text("[data-part=caption]")

    # when the slider is moved into the pause
    paused_at = times[20] - times[0] + 600
    slider = tab.page.get_by_label("Moment of the recording")
    await slider.evaluate(
        "(slider, ms) => { slider.value = ms; slider.dispatchEvent(new Event('input', {bubbles: true})); }", paused_at
    )

    # then it shows what had been said by then
    await tab.until(TEXT, text_of(log[:21]))
    assert "of" in str(await slider.get_attribute("aria-valuetext"))

    # when the rest is played four times as fast
    await tab.page.get_by_text("4×").click()
    played = await tab.page.evaluate(
        """(whole) => new Promise((done) => {
             const begun = performance.now();
             const text = document.querySelector('[data-part=text]');
             new MutationObserver(() => text.textContent === whole && done(performance.now() - begun))
               .observe(text, {childList: true, characterData: true, subtree: true});
             document.querySelector('[data-part=play]').click();
           })""",
        text_of(log),
    )

    # then it takes a quarter of what was left
    left = times[-2] - times[0] - paused_at
    assert left / 4 - 60 <= played <= left / 4 + 1000
    await tab.until("document.querySelector('[data-part=play]').textContent === 'Replay'")


async def test_replay_goes_back_and_forth_over_tool_calls(open_page, node, upstream):
    id, call = await begin(node.api, upstream, "Look. ")
    await call_tool(call, "search", '{"q":', '"x"}')
    await call.say("Done.")
    await call.finish("tool_calls")
    await node.api.ended(id)
    tab = await open_page(f"/g/{id}")
    await tab.until(PLAYABLE)

    slider = tab.page.get_by_label("Moment of the recording")
    await slider.focus()
    await tab.page.keyboard.press("Home")
    await tab.until(TEXT, "")
    await tab.until("document.querySelectorAll('.call').length === 0")
    await tab.page.keyboard.press("End")
    await tab.until(TEXT, "Look. Done.")
    await tab.until("document.querySelector('.call pre').textContent.includes('\"q\": \"x\"')")


# What people do.


async def test_keyboard_is_enough(browser, open_page, node, upstream):
    await browser.grant_permissions(["clipboard-read", "clipboard-write"])
    tab = await open_page()
    await tab.until("document.querySelector('h1')?.textContent === 'Generations'")
    keyboard = tab.page.keyboard

    async def tab_to(name: str) -> None:
        for _ in range(30):
            await keyboard.press("Tab")
            text = await tab.page.evaluate("document.activeElement.textContent.trim()")
            if text == name:
                return
        raise AssertionError(f"Tab does not lead to {name!r}")

    # start
    await tab_to("New generation")
    await keyboard.press("Enter")
    await tab.until("document.activeElement.name === 'prompt'")
    await keyboard.type("Why is the sky blue?")
    await tab_to("Start")
    await keyboard.press("Enter")
    call = await upstream.called()
    assert call.request["messages"] == [{"role": "user", "content": "Why is the sky blue?"}]
    await call.say("Because of ")
    await tab.until(TEXT, "Because of ")

    # back to the list, and to it again
    await keyboard.press("Escape")
    await tab.until("document.querySelector('h1')?.textContent === 'Generations'")
    id = node.api.started[0] if node.api.started else (await rows(tab))[0][0]
    await tab_to(id)
    await keyboard.press("Enter")
    await tab.until(TEXT, "Because of ")

    # stop, copy
    await tab.until("document.querySelector('[data-part=stop]')?.hidden === false")
    await tab_to("Stop")
    await keyboard.press("Enter")
    await tab.until(STATUS, "cancelled")
    await tab_to("Copy answer")
    await keyboard.press("Enter")
    await tab.until("document.querySelector('[data-part=copy]').textContent === 'Copied'")
    assert await tab.page.evaluate("navigator.clipboard.readText()") == "Because of "


async def test_form_sends_what_is_filled_in_and_says_what_is_refused(open_page, node, upstream):
    tab = await open_page()
    await tab.page.get_by_role("button", name="New generation").click()
    await tab.page.get_by_label("Prompt", exact=True).fill("Hi")
    await tab.page.get_by_label("System prompt").fill("Be brief.")
    await tab.page.get_by_label("Model optional").fill("other-model")
    await tab.page.get_by_label("Token limit").fill("7")
    await tab.until("document.querySelectorAll('#models option').length === 2")
    await tab.page.get_by_role("button", name="Start", exact=True).click()

    call = await upstream.called()
    assert [message["role"] for message in call.request["messages"]] == ["system", "user"]
    assert (call.request["model"], call.request["max_tokens"]) == ("other-model", 7)
    await tab.until("location.pathname.startsWith('/g/gen_')")

    node.kill()
    await tab.page.get_by_role("button", name="New generation").click()
    await tab.page.get_by_label("Prompt", exact=True).fill("Hi")
    await tab.page.get_by_role("button", name="Start", exact=True).click()
    await tab.until("document.querySelector('#start [data-part=problem]').textContent.includes('cannot be reached')")


@pytest.mark.parametrize(
    ("name", "suffix", "beginning"), [("Text", "txt", "Hello"), ("Markdown", "md", "Hello"), ("JSON", "json", "{")]
)
async def test_transcript_is_downloaded(open_page, node, upstream, name, suffix, beginning):
    id, call = await begin(node.api, upstream, "Hello")
    await call.finish()
    await node.api.ended(id)
    tab = await open_page(f"/g/{id}")
    await tab.page.get_by_text("Download and follow elsewhere").click()
    async with tab.page.expect_download() as downloading:
        await tab.page.get_by_role("button", name=name, exact=True).click()
    download = await downloading.value
    assert download.suggested_filename == f"{id}.{suffix}"
    path = await download.path()
    assert path.read_text().startswith(beginning)
    assert f"/generations/{id}/transcript" in await tab.page.inner_text("[data-part=curl]")


async def test_stop_asks_where_others_watch(open_page, node, upstream):
    id, call = await begin(node.api, upstream, "Hello")
    other = await open_page(f"/g/{id}")
    tab = await open_page(f"/g/{id}")
    for each in (other, tab):
        await each.until("document.querySelector('[data-part=subscribers]')?.textContent === '2'")
    stop = tab.page.locator("[data-part=stop]")

    await stop.click()
    assert await stop.inner_text() == "Stop for one other too?"
    assert not call.disconnected.is_set()
    await stop.click()

    await other.until(STATUS, "cancelled")
    await tab.until(STATUS, "cancelled")


async def test_reader_who_scrolled_up_is_left_alone(open_page, node, upstream):
    id, call = await begin(node.api, upstream, *[f"line {count}\n" for count in range(100)])
    tab = await open_page(f"/g/{id}")
    await tab.until(STANDING, "Live")
    at_end = "document.scrollingElement.scrollHeight - scrollY - innerHeight < 60"
    await tab.until(at_end)
    await call.say("more\n" * 10)
    await tab.until("document.querySelector('[data-part=text]').textContent.endsWith('more\\n')")
    await tab.until(at_end)

    await tab.page.evaluate("scrollTo(0, 200)")
    await tab.until("scrollY === 200")
    await call.say("the last line\n")
    await tab.until("document.querySelector('[data-part=jump]').hidden === false")
    assert await tab.page.evaluate("scrollY") == 200
    await tab.page.get_by_role("button", name="Jump to latest").click()
    await tab.until(at_end)


# For everybody.


@contextlib.asynccontextmanager
async def all_views(open_page: Open, api: Api, upstream: ScriptedUpstream) -> AsyncIterator[list[str]]:
    """Addresses of a page of every kind."""
    live, _ = await begin(api, upstream, "Hello " * 50)
    ended, call = await begin(api, upstream, "https://example.com/" + "a" * 300)
    await think(call, "Hm. " * 100)
    await call_tool(call, "a_tool_with_quite_a_long_name_that_does_not_fit", json.dumps({"key": "value" * 50}))
    await call.finish("tool_calls")
    failed, call = await begin(api, upstream, "Hel")
    await call.cut()
    await api.ended(ended)
    await api.ended(failed)
    yield ["/", f"/g/{live}", f"/g/{ended}", f"/g/{failed}", "/g/none"]


async def all_there(tab: Tab, path: str) -> None:
    """Wait until the page shows what it is of, and will not be replaced by another."""
    await tab.until("document.querySelector('h1') && !document.querySelector('h1').textContent.includes('…')")
    if path.startswith("/g/gen"):
        await tab.until("!['', 'Connecting…'].includes(document.querySelector('[data-part=standing]').textContent)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_phone_scrolls_one_way_only(open_page, node, upstream, scheme):
    async with (
        chromium(watch=False, color_scheme=scheme, **PHONE) as phone,
        all_views(open_page, node.api, upstream) as paths,
    ):
        for path in paths:
            tab = await open_page(path, context=phone)
            await all_there(tab, path)
            for details in await tab.page.locator("details summary:visible").all():
                await details.click()
            await tab.page.get_by_role("button", name="New generation").click()
            too_wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert await tab.page.evaluate(too_wide) == 0, path
            await tab.page.close()


# Everything that can be pressed or filled in has a name, headings and landmarks are there, and ids are unique.
_FAULTS = """
() => {
  const faults = [];
  const visible = (each) => each.checkVisibility({ visibilityProperty: true });
  const named = (each) => each.ariaLabel || each.textContent.trim() || each.labels?.[0]?.textContent.trim()
    || document.getElementById(each.getAttribute('aria-labelledby'))?.textContent;
  for (const each of document.querySelectorAll('a, button, input, select, textarea, summary, [tabindex="0"]')) {
    if (!named(each)) faults.push(`no name: ${each.outerHTML.slice(0, 120)}`);
  }
  for (const each of document.querySelectorAll('[role=img], svg:not([aria-hidden])')) {
    if (!each.querySelector('title')) faults.push('a picture without words');
  }
  if ([...document.querySelectorAll('h1')].filter(visible).length !== 1) faults.push('not one h1');
  for (const name of ['main', 'header']) if (!document.querySelector(name)) faults.push(`no ${name}`);
  const ids = [...document.querySelectorAll('[id]')].map((each) => each.id);
  if (new Set(ids).size !== ids.length) faults.push('an id twice');
  const rows = document.querySelectorAll('[role=table] [role=row]');
  for (const row of rows) if (row.children.length !== 8) faults.push('a row without all its cells');
  if (document.documentElement.lang !== 'en') faults.push('no language');
  return faults;
}
"""

# WCAG's contrast of every visible text with what is behind it.
_PALE = """
() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = (color) => {
    const [r, g, b] = [...rgba(color)].map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (each) => {
    for (; each; each = each.parentElement) {
      const color = getComputedStyle(each).backgroundColor;
      if (rgba(color)[3] === 255) return color;
    }
    return 'white';
  };
  const pale = [];
  for (const each of document.querySelectorAll('body *')) {
    const own = [...each.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || !each.checkVisibility({ visibilityProperty: true }) || each.disabled) continue;
    const style = getComputedStyle(each);
    const color = each.namespaceURI.endsWith('svg') ? style.fill : style.color;
    const [dark, bright] = [light(color), light(ground(each))].sort((one, other) => one - other);
    const contrast = (bright + 0.05) / (dark + 0.05);
    if (contrast < 4.5) pale.push(`${contrast.toFixed(2)}: ${each.outerHTML.slice(0, 100)}`);
  }
  return pale;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_are_named_structured_and_legible(open_page, node, upstream, scheme):
    async with (
        chromium(watch=False, color_scheme=scheme) as context,
        all_views(open_page, node.api, upstream) as paths,
    ):
        for path in paths:
            tab = await open_page(path, context=context)
            await all_there(tab, path)
            assert await tab.page.evaluate(_FAULTS) == [], path
            assert await tab.page.evaluate(_PALE) == [], path
            await tab.page.close()


async def test_state_is_told_to_who_listens(open_page, node, upstream):
    id, call = await begin(node.api, upstream, "Hello")
    tab = await open_page(f"/g/{id}")
    await tab.until("document.getElementById('announcer').textContent.startsWith('Live')")
    await call.finish()
    await tab.until("document.getElementById('announcer').textContent.startsWith('Ended')")
    assert await tab.page.get_attribute("#announcer", "aria-live") == "polite"


# How the files are served.


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/g/anything", "text/html; charset=utf-8"),
        ("/replay.js", "text/javascript; charset=utf-8"),
        ("/dashboard/base.css", "text/css; charset=utf-8"),
        ("/dashboard/icon.svg", "image/svg+xml; charset=utf-8"),
    ],
)
async def test_files_come_with_their_type_policy_and_validator(service, path, content_type):
    answer = await service.get(path)
    assert (answer.status, answer.headers["content-type"]) == (200, content_type)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    again = await service.get(path, {"If-None-Match": answer.headers["etag"]})
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", answer.headers["etag"])


@pytest.mark.parametrize("path", ["/dashboard/index.html", "/dashboard/nothing.js", "/dashboard/..%2Fpages.py"])
async def test_nothing_else_is_served(service, path):
    assert (await service.get(path)).status == 404


async def test_page_loads_all_its_files_from_the_node_and_nothing_else(open_page, node, browser):
    asked: list[str] = []
    browser.on("request", lambda request: asked.append(request.url))
    tab = await open_page()
    await tab.until("document.querySelector('h1') !== null")
    assert asked
    assert [url for url in asked if not url.startswith(f"{node.url}/")] == []
    listed = await tab.page.evaluate(
        "[...document.querySelectorAll('link[rel=modulepreload]')].map((each) => each.href)"
    )
    loaded = {url for url in asked if url.endswith(".js")}
    assert set(listed) | {f"{node.url}/dashboard/main.js"} == loaded, "every module is loaded at once"


# Much of it.

_LONGEST_TASK = "window.longest = 0; new PerformanceObserver((list) => { for (const task of list.getEntries()) \
longest = Math.max(longest, task.duration); }).observe({ type: 'longtask', buffered: true });"


@pytest.mark.slow
async def test_list_of_a_thousand_stays_responsive(browser, open_page, node, upstream):
    upstream.script = generate(3)
    for _ in range(20):
        await asyncio.gather(*(node.api.start() for _ in range(50)))
    await browser.add_init_script(_LONGEST_TASK)
    tab = await open_page()
    await tab.until("document.querySelectorAll('.rows .row').length >= 100")
    more = tab.page.get_by_role("button", name="Load more")
    while await more.is_visible():
        shown = len(await rows(tab))
        await more.click()
        await tab.until("document.querySelectorAll('.rows .row').length > wanted", shown)
    assert len(await rows(tab)) == 1000

    filtering = await tab.page.evaluate(
        """async () => {
             const begun = performance.now();
             const input = document.querySelector('input[type=search]');
             input.value = 'zzz';
             input.dispatchEvent(new Event('input'));
             input.value = '';
             input.dispatchEvent(new Event('input'));
             await new Promise(requestAnimationFrame);
             return performance.now() - begun;
           }"""
    )
    longest = await tab.page.evaluate("longest")
    print(f"1,000 rows: the longest task took {longest:.0f} ms, filtering twice {filtering:.0f} ms")
    assert longest < 1000
    assert filtering < 1000


@pytest.mark.slow
@pytest.mark.parametrize("text", ["word{} ", "a line with word {}\n"], ids=["one-paragraph", "lines"])
async def test_50_000_tokens_stay_responsive(browser, open_page, node, upstream, text):
    # given a page that follows 50,000 tokens as fast as they come
    upstream.script = generate(50_000, text=text)
    id = (await node.api.start())["id"]
    await browser.add_init_script(_LONGEST_TASK)
    tab = await open_page(f"/g/{id}")
    await tab.until(STATUS, "completed", seconds=120)
    whole = (await node.api.transcript(id))["text"]
    await tab.until(TEXT, whole)
    live = await tab.page.evaluate("longest")

    # when it is opened again, and replayed
    await tab.page.reload()
    await tab.until(TEXT, whole)
    shown_after = await tab.page.evaluate("performance.now()")
    await tab.until(PLAYABLE, seconds=60)
    loaded_after = await tab.page.evaluate("performance.now()")
    await tab.page.evaluate("longest = 0")
    seeking = await tab.page.evaluate(
        """async () => {
             const slider = document.querySelector('[data-part=slider]');
             let longest = 0;
             for (const part of [0.9, 0.1, 0.5, 0.51, 0.52, 0.2, 1]) {
               const begun = performance.now();
               slider.value = part * slider.max;
               slider.dispatchEvent(new Event('input'));
               await new Promise(requestAnimationFrame);
               longest = Math.max(longest, performance.now() - begun);
             }
             return longest;
           }"""
    )
    await tab.until(TEXT, whole)

    # then
    print(
        f"50,000 tokens: longest task live {live:.0f} ms; opened again, all text after {shown_after:.0f} ms, "
        f"recording after {loaded_after:.0f} ms; longest seek {seeking:.0f} ms"
    )
    assert live < 2000
    assert seeking < 2000


@pytest.mark.slow
async def test_twenty_dashboards_cost_valkey_no_more_than_one(open_page, node, valkey, upstream):
    # given 50 live generations
    upstream.script = generate(1_000_000, per_second=5)
    for _ in range(50):
        await node.api.start()

    async def commands(seconds: float = 5.0) -> int:
        """What Valkey executes in some seconds."""
        async with valkey.client() as client:
            before = (await client.info("stats"))["total_commands_processed"]
            await asyncio.sleep(seconds)
            return (await client.info("stats"))["total_commands_processed"] - before

    async with contextlib.AsyncExitStack() as stack:
        # A browser has six connections to a host; each context has its own.
        one = await stack.enter_async_context(chromium(watch=False))
        assert one.browser is not None
        await live_list(open_page, one)
        cost_of_one = await commands()
        for _ in range(19):
            await live_list(open_page, await one.browser.new_context())
        cost_of_twenty = await commands()

    print(f"in 5 s, one dashboard: {cost_of_one} commands, twenty: {cost_of_twenty}")
    assert cost_of_twenty < 1.2 * cost_of_one


async def live_list(open_page: Open, context: BrowserContext) -> None:
    tab = await open_page("/", context=context)
    await tab.until("document.querySelectorAll('.chip[data-status=streaming]').length === 50", seconds=30)
    await tab.until("document.getElementById('connection').textContent === 'Connected'", seconds=30)
