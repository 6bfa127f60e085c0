"""The dashboard in a real Chromium: a generation as it comes and as it is replayed, whatever happens to the service."""

from __future__ import annotations

import asyncio
import json

import pytest
from support.api import event_id, text_of
from support.dashboard import PLAYABLE, STANDING, STATUS, TEXT, call_tool, think
from support.fault_proxy import FaultProxy
from support.running import begin

pytestmark = pytest.mark.slow  # all of it together takes more than a minute

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
