"""The examples of the documentation, run as they stand there but for the port."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.browser import chromium, open_tab
from support.node import Node
from support.pages import PAGES, TOP, Example, examples, read
from support.site import Site

REFERENCE = "replay/http/README.md"
CODES = set(re.findall(r'code = "(\w+)"', (TOP / "replay" / "errors.py").read_text(encoding="utf-8")))
AT_THE_START = {"invalid_setting", "incompatible_library", "address_in_use", "data_dir_in_use"}  # no client sees them
WITH_COMMANDS = [page for page in PAGES if examples(page, "sh", "python")]
HTML = [example for page in PAGES for example in examples(page, "html")]


@pytest.fixture
def tokens_per_second() -> float:
    """How fast the model `demo` is here; overridden by a parameter of that name."""
    return 400


@pytest.fixture
async def demo(tmp_path: Path, tokens_per_second: float) -> AsyncIterator[Node]:
    """A node as `make run` starts it, but faster."""
    node = Node(tmp_path, data_dir=tmp_path / "data", demo_tokens_per_second=tokens_per_second)
    await node.start()
    yield node
    await node.stop()
    node.destroy()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A directory that looks like the top of a clone after `make run`, for whoever types commands in it."""
    directory = tmp_path / "clone"
    directory.mkdir()
    (directory / ".venv").symlink_to(sys.prefix)
    (directory / "tests").symlink_to(TOP / "tests")
    (directory / ".curlrc").write_text("fail-with-body\n")  # or curl would not mind a 404
    return directory


async def run(node: Node, directory: Path, example: Example) -> str:
    """What an example prints when `localhost:8080` is the node; AssertionError where it fails."""
    text = example.text.replace("localhost:8080", f"127.0.0.1:{node.port}")
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {
        "REPLAY_URL": node.url,
        "PATH": programs,
        "PYTHONPATH": str(TOP),
        "CURL_HOME": str(directory),
    }
    command = ["bash", "-e", "-c"] if example.language == "sh" else [sys.executable, "-c"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, text, cwd=directory, env=environment, stdout=pipe, stderr=pipe
    )
    async with asyncio.timeout(60):
        printed, complaints = await process.communicate()
    assert process.returncode == 0, f"{example}\n{complaints.decode()}\n{printed.decode()}"
    return printed.decode()


def ids(stream: str) -> list[str]:
    """The ids of the log's events that came whole."""
    blocks = [block for block in stream.split("\n\n")[:-1] if "event: live" not in block]
    return [line[4:] for block in blocks for line in block.split("\n") if line.startswith("id: ")]


async def been_here(node: Node) -> None:
    """Leave behind what the README's first commands leave."""
    await node.api.run({"prompt": "Hello"}, id="first")


@pytest.mark.slow
@pytest.mark.parametrize("tokens_per_second", [90])
async def test_sixty_seconds_end_with_the_whole_answer(demo, clone):
    # given the README's first three commands after `make run`
    start, resume, transcript = examples("README.md", "sh", heading="Sixty seconds to see it")
    await been_here(demo)
    for _ in range(2):  # whoever has seen it shows it to somebody
        # when they are run as they stand
        first = await run(demo, clone, start)
        rest = await run(demo, clone, resume)
        text = await run(demo, clone, transcript)
        # then the two parts are the log, and the text is the whole answer
        log = [event.last_event_id for event in await demo.api.log("first")]
        assert 0 < len(ids(first)) < len(log)
        assert ids(first) + ids(rest) == log
        assert text.startswith("**This answer is a recording.**")
    # and the Python example prints the same
    (script,) = examples(REFERENCE, "python", heading="Without any client")
    assert await run(demo, clone, script) == text


async def test_client_with_another_base_url_has_its_answer_again_and_so_has_ours(demo, clone):
    # given the README's script with OpenAI's client, and the one with ours
    (openai,) = examples("README.md", "python", heading="Change your base URL")
    (ours,) = examples("README.md", "python", heading="From Python")
    # when the first is run twice
    once, again = [await run(demo, clone, openai) for _ in range(2)]
    # then it is the same answer
    assert once == again
    assert once.startswith("**This answer is a recording.**")
    assert len((await demo.api.get("/generations")).json()["generations"]) == 1
    # and ours prints it too, and how it ended
    assert await run(demo, clone, ours) == once + "completed\n"


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS)
async def test_page_can_be_followed_from_top_to_bottom(demo, clone, page):
    await been_here(demo)
    for example in examples(page, "sh", "python"):
        await run(demo, clone, example)  # which fails where the example does


@pytest.mark.parametrize("example", HTML, ids=lambda example: example.heading.replace(" ", "-"))
async def test_page_of_an_example_shows_the_whole_answer(demo, tmp_path, example):
    # given
    await been_here(demo)
    (tmp_path / "index.html").write_text(example.text, encoding="utf-8")
    async with Site(demo.url, {"pages": tmp_path}) as site, chromium() as browser:
        # when the page is opened
        tab = await open_tab(browser, f"{site.url}/pages/index.html")
        await tab.until("answer.textContent")
        # then it shows what was said by the generation that it follows, or has started
        (newest, *_) = (await demo.api.get("/generations")).json()["generations"]
        await demo.api.ended(newest["id"])
        await tab.until("answer.textContent === wanted", (await demo.api.transcript(newest["id"]))["text"])


@pytest.mark.parametrize("code", sorted(CODES - AT_THE_START))
def test_every_error_code_is_explained(code):
    assert f"`{code}`" in read(REFERENCE)
