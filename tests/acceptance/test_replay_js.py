"""`replay.js` in a page of somebody else's, in a real Chromium: against a node, and against a server that misbehaves.

The page is this file's; it stands at the node's own origin, where a proxy would put it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
from playwright.async_api import BrowserContext, Route
from support.api import text_of
from support.browser import Tab
from support.fault_proxy import FaultProxy
from support.node import Node
from support.running import begin
from support.upstream import generate

pytestmark = pytest.mark.slow  # all of it together takes more than a minute

MakeNode = Callable[..., Awaitable[Node]]
Follow = Callable[..., Awaitable[Tab]]

# Notes everything that the module tells, per generation; `shown` is what a page would show.
PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Somebody's page</title>
<link rel="icon" href="data:,">
<script type="module">
  import { follow, followAll } from "/replay.js";
  window.shown = {}; window.thought = {}; window.calls = {}; window.states = {}; window.events = {};
  window.ends = {}; window.resets = {}; window.snapshots = {}; window.deliveries = []; window.details = [];
  const note = (where, id, what) => (where[id] ??= []).push(what);
  const told = {
    onText: (piece, id) => {
      shown[id] = (shown[id] ?? "") + piece;
      deliveries.push([performance.now(), shown[id].length]);
    },
    onReasoning: (piece, id) => { thought[id] = (thought[id] ?? "") + piece; },
    onToolCalls: (toolCalls, id) => { calls[id] = structuredClone(toolCalls); },
    onState: (state, detail, id) => { note(states, id, state); details.push(detail); },
    onEvent: (event, id) => note(events, id, { ...event, at: performance.now() }),
    onSnapshot: (snapshot, id) => note(snapshots, id, snapshot),
    onReset: (id) => { note(resets, id, true); shown[id] = ""; },
    onEnd: (end, id) => note(ends, id, { ...end, shown: shown[id] ?? "" }),
  };
  const { ids, options } = JSON.parse(decodeURIComponent(location.hash.slice(1)));
  const wanted = { ...told, ...options };
  window.stop = ids.length === 1 ? follow(ids[0], wanted) : followAll(ids, wanted);
</script>
"""

SHOWS = "shown[wanted[0]] === wanted[1]"
LAST_STATE = "states[wanted[0]]?.at(-1) === wanted[1]"
_BROWSERS_OWN = "Failed to load resource"


@pytest.fixture
async def follow(browser: BrowserContext, node: Node) -> AsyncIterator[Follow]:
    """Open a page that follows these generations."""
    tabs: list[Tab] = []

    async def follow(*ids: str, url: str | None = None, **options: Any) -> Tab:
        page = await browser.new_page()
        address = f"{url or node.url}/somebodys-page"
        await page.route(address + "**", lambda route: route.fulfill(body=PAGE, content_type="text/html"))
        tab = Tab(page)
        tabs.append(tab)
        await page.goto(f"{address}#{json.dumps({'ids': ids, 'options': options})}")
        await tab.until("window.stop")
        return tab

    yield follow
    for tab in tabs:
        assert [each for each in tab.complaints if not each.startswith(_BROWSERS_OWN)] == []


# Against a node.


async def test_snapshot_comes_first_and_then_the_exact_tail(follow, node, upstream):
    id, call = await begin(node.api, upstream, "one ", "two ")

    tab = await follow(id)
    await tab.until(SHOWS, [id, "one two "])
    await tab.until(LAST_STATE, [id, "live"])
    await call.say("three")
    await call.finish()

    await tab.until(LAST_STATE, [id, "ended"])
    assert await tab.page.evaluate("shown") == {id: "one two three"}
    assert await tab.page.evaluate("states") == {id: ["connecting", "catching-up", "live", "ended"]}
    (end,) = (await tab.page.evaluate("ends"))[id]
    assert (end["status"], end["finish_reason"], end["shown"]) == ("completed", "stop", "one two three")
    assert [snapshot["text"] for snapshot in (await tab.page.evaluate("snapshots"))[id]] == ["one two "]
    assert [event["type"] for event in (await tab.page.evaluate("events"))[id]] == ["token", "delta", "end"]


async def test_without_snapshot_every_event_comes_with_its_id(follow, node, upstream):
    id, call = await begin(node.api, upstream, "one ", "two ")
    await call.finish()
    await node.api.ended(id)

    tab = await follow(id, snapshot=False)

    await tab.until(LAST_STATE, [id, "ended"])
    log = await node.api.log(id)
    events = (await tab.page.evaluate("events"))[id]
    assert [(event["id"], event["type"]) for event in events] == [(each.last_event_id, each.event) for each in log]
    assert await tab.page.evaluate("shown") == {id: text_of(log)}


async def test_after_begins_behind_a_cursor(follow, node, upstream):
    id, call = await begin(node.api, upstream, "one ", "two ")
    cursor = (await node.api.generation(id))["last_event_id"]
    await call.say("three")
    await call.finish()
    end = (await node.api.ended(id))["last_event_id"]

    tab = await follow(id, after=cursor)
    await tab.until(LAST_STATE, [id, "ended"])
    assert await tab.page.evaluate("shown") == {id: "three"}

    nothing_left = await follow(id, after=end)
    await nothing_left.until(LAST_STATE, [id, "ended"])
    assert (await nothing_left.page.evaluate("details")).pop()["status"] == "completed"


async def test_cursor_of_another_log_resets(follow, node, upstream):
    id, call = await begin(node.api, upstream, "one ", "two ")

    tab = await follow(id, after="1-1")

    await tab.until(SHOWS, [id, "one two "])
    assert await tab.page.evaluate("resets") == {id: [True]}
    await call.finish()
    await tab.until(LAST_STATE, [id, "ended"])


async def test_unknown_generation_is_lost_and_says_so(follow, node):
    tab = await follow("gen_that_never_was")

    await tab.until(LAST_STATE, ["gen_that_never_was", "lost"])
    detail = (await tab.page.evaluate("details")).pop()
    assert detail["status"] == 404
    assert "gen_that_never_was" in detail["reason"]


async def test_cuts_and_restarts_lose_and_double_nothing(follow, make_node, node, valkey, upstream):
    producer = await make_node()
    id, call = await begin(producer.api, upstream, "before, ")
    said = "before, "
    async with FaultProxy(node.url) as network:
        tab = await follow(id, url=network.url)
        for count in range(20, 400, 60):
            network.cut_replies_after(count)
            await call.say(f"𝕔𝕦𝕥 {count}, ")
            said += f"𝕔𝕦𝕥 {count}, "
            await network.reply_cut()
        node.kill()
        await tab.until(LAST_STATE, [id, "reconnecting"])
        await call.say("without the node, ")
        await node.restart()
        valkey.restart()
        await call.say("after.")
        await call.finish()

        await tab.until(LAST_STATE, [id, "ended"], seconds=20)
    assert await tab.page.evaluate("shown") == {id: said + "without the node, after."}
    assert len(await tab.page.evaluate(f"snapshots['{id}']")) == 1


async def test_twenty_generations_in_one_tab_on_one_connection(follow, browser, node, upstream):
    # given
    upstream.script = generate(200, per_second=100)
    ids = [(await node.api.start())["id"] for _ in range(20)]
    asked: list[str] = []
    browser.on("request", lambda request: asked.append(request.url) if "events" in request.url else None)

    # when
    async with FaultProxy(node.url) as network:
        tab = await follow(*ids, url=network.url)
        await tab.until("Object.keys(shown).length === 20")
        network.cut()
        for id in ids:
            await tab.until(LAST_STATE, [id, "ended"], seconds=30)

    # then
    shown = await tab.page.evaluate("shown")
    assert shown == {id: (await node.api.transcript(id))["text"] for id in ids}
    assert len({url.partition("?")[0] for url in asked}) == 1


async def test_one_of_many_that_is_unknown_is_lost_and_the_others_go_on(follow, node, upstream):
    id, call = await begin(node.api, upstream, "Hello")

    tab = await follow(id, "gen_that_never_was")

    await tab.until(LAST_STATE, ["gen_that_never_was", "lost"])
    await tab.until(LAST_STATE, [id, "live"])
    await call.finish()
    await tab.until(LAST_STATE, [id, "ended"])


async def test_reasoning_and_tool_calls_are_told_apart(follow, node, upstream):
    id, call = await begin(node.api, upstream)
    await call.send(call.chunk({"delta": {"reasoning_content": "Hm."}}))
    tab = await follow(id)
    await tab.until("thought[wanted] === 'Hm.'", id)
    await call.send(
        call.chunk({"delta": {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}}]}})
    )
    await call.send(call.chunk({"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}}))
    await call.say("Done.")
    await call.finish("tool_calls")
    await tab.until(LAST_STATE, [id, "ended"])
    assert await tab.page.evaluate("calls") == {id: [{"index": 0, "id": "a", "name": "f", "arguments": "{}"}]}
    assert await tab.page.evaluate("shown") == {id: "Done."}


async def test_stop_stops(follow, node, upstream):
    id, call = await begin(node.api, upstream, "one ")
    tab = await follow(id)
    await tab.until(LAST_STATE, [id, "live"])

    await tab.page.evaluate("stop()")
    await call.say("two ")
    await call.finish()
    await node.api.ended(id)

    later = await follow(id)
    await later.until(LAST_STATE, [id, "ended"])
    assert await tab.page.evaluate("[shown, states]") == [{id: "one "}, {id: ["connecting", "catching-up", "live"]}]


async def test_delivery_is_paced_and_never_far_behind(follow, node, upstream):
    # given a page that is there from the first token on
    id, call = await begin(node.api, upstream)
    tab = await follow(id)
    await tab.until(LAST_STATE, [id, "live"])

    # when tokens come by the hundred
    for burst in range(10):
        for count in range(100):
            await call.say(f"{burst}.{count} ")
        shown_by_then = f"{burst}.99 "
        await tab.until("shown[wanted[0]]?.endsWith(wanted[1])", [id, shown_by_then])
    await call.finish()
    await tab.until(LAST_STATE, [id, "ended"])

    # then no two deliveries are closer than 50 ms, and none shows what came more than a quarter of a second before
    deliveries = await tab.page.evaluate("deliveries")
    tokens = [event for event in (await tab.page.evaluate("events"))[id] if event["type"] == "token"]
    gaps = [later[0] - earlier[0] for earlier, later in pairwise(deliveries[:-1])]  # the end hurries the last one
    assert min(gaps) >= 45
    lags, length, place = [], 0, 0
    for token in tokens:
        length += len(token["content"])
        while deliveries[place][1] < length:
            place += 1
        lags.append(deliveries[place][0] - token["at"])
    print(f"{len(tokens)} tokens in {len(deliveries)} deliveries; the longest lag {max(lags):.0f} ms")
    assert len(deliveries) < len(tokens) / 3
    assert max(lags) < 250 + 150  # a busy machine's frames


# Against a server that misbehaves.


def sse(*events: tuple[int, str, dict[str, Any]]) -> str:
    blocks = [
        f"event: {name}\ndata: {json.dumps({'type': name, **data})}\nid: 1000-{seq}\n\n" for seq, name, data in events
    ]
    return "retry: 10\n" + "".join(blocks)


START = (0, "start", {"generation_id": "g", "model": "m", "created": 1})
A, B, C = ((seq, "token", {"content": text, "index": seq}) for seq, text in ((1, "a"), (2, "b"), (3, "c")))
END = (4, "end", {"status": "completed", "finish_reason": "stop", "error": None})
STREAM = {"content-type": "text/event-stream"}


@pytest.fixture
def answers(browser: BrowserContext) -> Callable[..., Awaitable[list[str]]]:
    """Let events requests be answered by these, one after the other, the last one again and again.

    Their queries are in the list; the browser's own Last-Event-ID is not shown to tests.
    """

    async def answers(*script: dict[str, Any]) -> list[str]:
        asked: list[str] = []
        left = list(script)

        async def answer(route: Route) -> None:
            asked.append(route.request.url.partition("?")[2])
            given = left.pop(0) if len(left) > 1 else left[0]
            await (route.abort() if given == {} else route.fulfill(**given))

        await browser.route("**/generations/g/events*", answer)
        return asked

    return answers


async def test_event_that_comes_twice_is_dropped(follow, answers):
    await answers(
        {"headers": STREAM, "body": sse(START, A, A, B)}, {"headers": STREAM, "body": sse(START, A, B, C, END)}
    )
    tab = await follow("g", snapshot=False)
    await tab.until(LAST_STATE, ["g", "ended"])
    assert await tab.page.evaluate("shown") == {"g": "abc"}


async def test_missing_event_is_fetched(follow, answers):
    asked = await answers(
        {"headers": STREAM, "body": sse(START, A, C, END)}, {"headers": STREAM, "body": sse(B, C, END)}
    )
    tab = await follow("g", snapshot=False)
    await tab.until(LAST_STATE, ["g", "ended"])
    assert await tab.page.evaluate("shown") == {"g": "abc"}
    assert asked == ["", "after=1000-1"]


async def test_refusal_of_a_proxy_is_tried_again(follow, answers):
    gateway = {"status": 502, "body": "Bad Gateway"}
    asked = await answers(
        *({"headers": STREAM, "body": sse(START, A)}, gateway, gateway, {}, gateway),
        {"headers": STREAM, "body": sse(B, C, END)},
    )
    tab = await follow("g", snapshot=False)
    await tab.until(LAST_STATE, ["g", "ended"], seconds=20)
    assert await tab.page.evaluate("shown") == {"g": "abc"}
    assert "reconnecting" in (await tab.page.evaluate("states"))["g"]
    assert set(asked[2:]) == {"after=1000-1"}, "the first two are the browser's own"


@pytest.mark.parametrize(("status", "detail"), [(404, "it is gone"), (400, "a bad cursor"), (403, "not for you")])
async def test_refusal_for_good_is_told_with_its_reason(follow, answers, status, detail):
    problem = {"status": status, "content_type": "application/problem+json", "body": json.dumps({"detail": detail})}
    await answers({"headers": STREAM, "body": sse(START, A)}, problem, problem)
    tab = await follow("g", snapshot=False)
    await tab.until(LAST_STATE, ["g", "lost"])
    assert (await tab.page.evaluate("details")).pop() == {"status": status, "reason": detail}
    assert await tab.page.evaluate("shown") == {"g": "a"}


async def test_callback_that_throws_costs_no_event(follow, answers):
    stream = {"headers": STREAM, "body": sse(START, A, B, C, END)}
    await answers(stream, stream)
    tab = await follow("g", snapshot=False)
    await tab.until(LAST_STATE, ["g", "ended"])

    text, thrown = await tab.page.evaluate(
        """async () => {
             const { follow } = await import("/replay.js");
             let text = "";
             let thrown = 0;
             addEventListener("error", (event) => { thrown++; event.preventDefault(); });
             await new Promise((done) => follow("g", {
               snapshot: false,
               onText: (piece) => (text += piece),
               onEvent: (event) => { if (event.type === "token") throw new Error("the page's own"); },
               onEnd: done,
             }));
             return [text, thrown];
           }"""
    )

    assert (text, thrown) == ("abc", 3)
