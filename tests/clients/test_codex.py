"""OpenAI's Codex CLI as it ships, with the service in front of a server that only knows chat completions."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.api import Api
from support.deadlines import DEADLINE_S
from support.upstream import USAGE, Call

pytestmark = pytest.mark.clients

PROGRAM = Path(__file__).parent / "npm/node_modules/.bin/codex"
CONFIG = """
model = "test-model"
model_provider = "local"

[model_providers.local]
name = "local"
base_url = "{url}/v1"
wire_api = "responses"
env_key = "LOCAL_KEY"
"""

# A PNG of one pixel.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c6368000000820081"
    "77cd72b60000000049454e44ae426082"
)


async def codex(api: Api, home: Path, prompt: str) -> list[dict[str, Any]]:
    """The events of one turn that ends well."""
    assert PROGRAM.exists(), "the npm clients are not installed: npm ci --prefix tests/clients/npm"
    work = home / "work"
    work.mkdir()
    (home / "config.toml").write_text(CONFIG.format(url=api.url))
    process = await asyncio.create_subprocess_exec(
        *(PROGRAM, "exec", "--json", "--skip-git-repo-check", prompt),
        cwd=work,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "CODEX_HOME": str(home), "LOCAL_KEY": "k"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(6 * DEADLINE_S):
            stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, (stdout, stderr)
    return [json.loads(line) for line in stdout.splitlines()]


def calls(call: Call, **arguments: dict[str, Any]) -> dict[str, Any]:
    """A chunk with a call of each of these functions."""
    fragments = [
        {"index": index, "id": f"call_{name}", "type": "function"}
        | {"function": {"name": name, "arguments": json.dumps(given)}}
        for index, (name, given) in enumerate(arguments.items())
    ]
    return call.chunk({"delta": {"tool_calls": fragments}})


async def test_codex_completes_a_turn_that_uses_its_tools(service, upstream, tmp_path):
    # given a model that wants a command run, and something of a tool in a namespace
    async def script(call: Call) -> None:
        if len(upstream.calls) > 1:
            await call.say("It is 42.")
            await call.finish(usage=USAGE)
            return
        await call.say("Let me see.")
        asked = {"exec_command": {"cmd": "echo sum-$((40 + 2))"}, "multi_agent_v1__close_agent": {"target": "nobody"}}
        await call.send(calls(call, **asked))
        await call.finish("tool_calls")

    upstream.script = script

    # when Codex is asked something
    events = await codex(service, tmp_path, "How much is 40 and 2?")

    # then its tools have done what they were called for
    first, second = (call.request for call in upstream.calls)
    assert {"exec_command", "multi_agent_v1__close_agent"} <= {tool["function"]["name"] for tool in first["tools"]}
    outputs = {said["tool_call_id"]: said["content"] for said in second["messages"] if said["role"] == "tool"}
    assert "sum-42" in outputs["call_exec_command"]
    assert "invalid agent id nobody" in outputs["call_multi_agent_v1__close_agent"]

    # and the turn is complete
    texts = [event["item"]["text"] for event in events if event.get("item", {}).get("type") == "agent_message"]
    assert texts[:1] + texts[-1:] == ["Let me see.", "It is 42."]
    assert (events[-1]["type"], events[-1]["usage"]["output_tokens"]) == ("turn.completed", USAGE["completion_tokens"])


async def test_codex_sees_an_image_that_its_tool_shows(service, upstream, tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(PIXEL)

    async def script(call: Call) -> None:
        if len(upstream.calls) == 1:
            await call.send(calls(call, view_image={"path": str(image)}))
            await call.finish("tool_calls")
        else:
            await call.say("It is grey.")
            await call.finish()

    upstream.script = script
    events = await codex(service, tmp_path, "What is there?")
    assert events[-1]["type"] == "turn.completed"
    called, output, shown = upstream.calls[1].request["messages"][-3:]
    assert (called["role"], output["role"], shown["role"]) == ("assistant", "tool", "user")
    assert shown["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
