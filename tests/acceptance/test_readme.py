"""The README's examples, run as they stand there but for the port."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest
from support.node import Node

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CODES = (Path(__file__).parents[2] / "replay" / "errors.py").read_text(encoding="utf-8")


@pytest.fixture
async def demo(tmp_path):
    """A node as `make run` starts it, but faster."""
    node = Node(tmp_path, data_dir=tmp_path / "data", demo_tokens_per_second=90)
    await node.start()
    yield node
    await node.stop()
    node.destroy()


async def run(node: Node, directory: Path, *command: str) -> str:
    """What a command prints when `localhost:8080` is the node."""
    words = [word.replace("localhost:8080", f"127.0.0.1:{node.port}") for word in command]
    environment = os.environ | {"REPLAY_URL": node.url}
    process = await asyncio.create_subprocess_exec(
        *words, cwd=directory, env=environment, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        printed, _ = await process.communicate()
    return printed.decode()


def ids(stream: str) -> list[str]:
    """The ids of the log's events that came whole."""
    blocks = [block for block in stream.split("\n\n")[:-1] if "event: live" not in block]
    return [line[4:] for block in blocks for line in block.split("\n") if line.startswith("id: ")]


@pytest.mark.slow
async def test_sixty_seconds_end_with_the_whole_answer(demo, tmp_path):
    # given the README's first three commands after `make run`
    start, resume, transcript = SHELL[1:4]
    for _ in range(2):  # whoever has seen it shows it to somebody
        # when they are run as they stand
        first = await run(demo, tmp_path, "bash", "-c", start)
        rest = await run(demo, tmp_path, "bash", "-c", resume)
        text = await run(demo, tmp_path, "bash", "-c", transcript)
        # then the two parts are the log, and the text is the whole answer
        log = [event.last_event_id for event in await demo.api.log("first")]
        assert 0 < len(ids(first)) < len(log)
        assert ids(first) + ids(rest) == log
        assert text.startswith("**This answer is a recording.**")
    # and the Python example prints the same
    assert await run(demo, tmp_path, sys.executable, "-c", PYTHON[2]) == text


@pytest.mark.slow
async def test_client_with_another_base_url_has_its_answer_again_and_so_has_ours(demo, tmp_path):
    # given the README's script with OpenAI's client, and the one with ours
    openai, ours = PYTHON[:2]
    # when the first is run twice
    once, again = [await run(demo, tmp_path, sys.executable, "-c", openai) for _ in range(2)]
    # then it is the same answer
    assert once == again
    assert once.startswith("**This answer is a recording.**")
    assert len((await demo.api.get("/generations")).json()["generations"]) == 1
    # and ours prints it too, and how it ended
    assert await run(demo, tmp_path, sys.executable, "-c", ours) == once + "completed\n"


@pytest.mark.parametrize(
    "code",
    sorted(
        set(re.findall(r'code = "(\w+)"', CODES))
        - {"invalid_setting", "address_in_use", "data_dir_in_use", "incompatible_library"}
    ),
)
def test_every_error_code_is_explained(code):
    assert f"`{code}`" in README
