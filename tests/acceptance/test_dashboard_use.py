"""The dashboard in a real Chromium: what people do, and that everybody can, by keyboard, on a phone, and by ear."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator

import pytest
from support.api import Api
from support.browser import Tab, chromium
from support.dashboard import STANDING, STATUS, TEXT, Open, call_tool, rows, think
from support.running import begin
from support.upstream import ScriptedUpstream

pytestmark = pytest.mark.slow  # all of it together takes more than a minute

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}

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
