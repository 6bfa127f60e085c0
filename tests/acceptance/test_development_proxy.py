"""Vite's proxy, with the configuration that deploy/README.md shows, between a page and a node."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext
from support.browser import open_tab
from support.deadlines import DeadlineMissed, eventually
from support.http1 import request
from support.node import Node
from support.ports import free_port
from support.processes import Process
from support.proxies import DEPLOY, EVENT, Stub, program, stream
from support.sse import streaming
from support.upstream import ScriptedUpstream

VITE = Path(__file__).parent / "node_modules" / "vite" / "bin" / "vite.js"
MEND = re.compile(r"\n *configure: .*")
# A page of a project that Vite serves; it follows the generation that is named behind the `#`.
PAGE = """<!doctype html>
<link rel="icon" href="data:,">
<pre id="answer"></pre>
<script type="module">
  %s
  follow(location.hash.slice(1), {
    onText: (piece) => answer.append(piece),
    onEnd: ({ status }) => answer.append(` (${status})`),
  });
</script>
"""

pytestmark = pytest.mark.slow

StartVite = Callable[..., Awaitable[str]]
MakeNode = Callable[..., Awaitable[Node]]


class Vite(Process):
    """`vite` in a folder of its own."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.port = free_port()
        self._directory = directory

    def spawn(self, configuration: str) -> None:
        assert VITE.exists(), "Vite is not installed: sh tests/install-programs.sh"
        (self._directory / "vite.config.mjs").write_text(configuration)
        with (self._directory / "vite.log").open("ab") as output:
            self._popen = subprocess.Popen(
                [program("node"), VITE, "--host", "127.0.0.1", "--port", str(self.port), "--strictPort"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | {"NO_COLOR": "1"},
                cwd=self._directory,
                start_new_session=True,
            )

    async def answers(self) -> bool:
        """Whether it does, with whatever."""
        try:
            await request("GET", f"http://127.0.0.1:{self.port}/")
        except OSError:
            assert self.running, (self._directory / "vite.log").read_text()
            return False
        return True


@pytest.fixture
def start_vite(tmp_path: Path) -> Iterator[StartVite]:
    """Start Vite in front of a node; its address."""
    vite = Vite(tmp_path)

    async def start(node: Node | Stub, configuration: str) -> str:
        target = "http://127.0.0.1:8080"
        assert target in configuration
        vite.spawn(configuration.replace(target, f"http://127.0.0.1:{node.port}"))
        await eventually("Vite to answer", vite.answers)
        return f"http://127.0.0.1:{vite.port}"

    yield start
    vite.destroy()


def example(first_line: str) -> str:
    """The example in the README that begins so."""
    found = re.search(rf"```js\n({re.escape(first_line)}\n.*?)```", (DEPLOY / "README.md").read_text(), re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def shown() -> str:
    """The configuration in the README."""
    return example("// vite.config.js")


async def test_with_the_shown_lines_a_cut_reaches_the_page(start_vite: StartVite, shown: str) -> None:
    async with Stub(stream(EVENT)) as node:
        url = await start_vite(node, shown)

        async with streaming(f"{url}/feed") as reader:
            answer = await reader.to_end()

    assert (answer.status, answer.clean) == (200, False)


async def test_without_them_it_does_not(start_vite: StartVite, shown: str) -> None:
    without, mends = MEND.subn("", shown)
    assert mends == 1
    async with Stub(stream(EVENT)) as node:
        url = await start_vite(node, without)

        async with streaming(f"{url}/feed") as reader:
            await reader.until(EVENT)
            with pytest.raises(DeadlineMissed):  # should Vite learn it, the README has a line too many
                await reader.to_end(seconds=2)


async def test_each_event_comes_before_the_next_is_produced_and_a_page_that_leaves_is_noticed(
    start_vite: StartVite, shown: str, make_node: MakeNode, upstream: ScriptedUpstream
) -> None:
    node = await make_node()
    url = await start_vite(node, shown)
    generation = await node.api.start()
    call = await upstream.called()

    async with streaming(f"{url}/generations/{generation['id']}/events") as reader:
        for n in range(20):
            await call.say(f"token {n};")
            await reader.until(b"token %d;" % n)

    async def count() -> int:
        return (await node.api.generation(generation["id"]))["subscribers"]

    await eventually("nobody to subscribe", count, lambda subscribers: subscribers == 0)


async def test_page_of_the_project_follows_a_generation_with_replay_js(
    start_vite: StartVite,
    shown: str,
    make_node: MakeNode,
    upstream: ScriptedUpstream,
    browser: BrowserContext,
    tmp_path: Path,
) -> None:
    (tmp_path / "index.html").write_text(PAGE % example("// in a page of yours"))
    node = await make_node()
    url = await start_vite(node, shown)
    generation = await node.api.start()
    call = await upstream.called()
    await call.say("one ")

    tab = await open_tab(browser, f"{url}/#{generation['id']}")
    await tab.until("answer.textContent === wanted", "one ")
    await call.say("two")
    await call.finish()

    await tab.until("answer.textContent === wanted", "one two (completed)")
    assert tab.complaints == []


async def test_what_only_begins_like_a_path_of_the_service_is_the_projects_own(
    start_vite: StartVite, shown: str
) -> None:
    async with Stub(stream(EVENT)) as node:
        url = await start_vite(node, shown)

        for path in ("/generations-of-mine", "/feedback", "/events.js", "/replays/1", "/v1x", "/feed?after=1"):
            await request("GET", f"{url}{path}")

    assert node.requests == ["GET /feed?after=1"]
