"""The dashboard's files: how they are served, and that a page loads nothing else."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow  # all of it together takes more than a minute


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
