"""What a shell offers after `replay …`: bash is asked by its own function, what the others are told is looked at."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from pathlib import Path

import pytest
from support.deadlines import within
from support.upstream import say

BIN = Path(sys.executable).parent  # where the command `replay` is
ASK_BASH = """
eval "$(replay completion bash)"
COMP_LINE={line}; COMP_POINT=${{#COMP_LINE}}; COMP_TYPE=9
_python_argcomplete replay
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


async def offered(line: str, url: str = "http://127.0.0.1:9") -> list[str]:
    """What bash offers at the end of a line."""
    environment = {"PATH": f"{BIN}:{os.environ['PATH']}", "REPLAY_URL": url}
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", ASK_BASH.format(line=shlex.quote(line))), env=environment, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await within(f"what bash offers after {line!r}", process.communicate())
    assert process.returncode == 0
    return [word.strip() for word in printed.decode().split("\n") if word.strip()]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("replay tr", {"transcript"}),
        ("replay watch --fr", {"--from-start"}),
        ("replay transcript --format ", {"text", "markdown", "json"}),
        ("replay ls --status can", {"cancelled"}),
        ("replay serve --upstream-u", {"--upstream-url"}),
        ("replay completion ", {"bash", "zsh", "fish"}),
    ],
)
async def test_commands_flags_and_their_values_are_offered(line, expected):
    assert set(await offered(line)) == expected


async def test_ids_are_those_of_the_service(service, upstream):
    upstream.script = say("a")
    ids = [await service.run() for _ in range(2)]
    for command in ("watch", "cancel", "transcript", "delete"):
        assert set(ids) <= set(await offered(f"replay {command} ", service.url))
    assert await offered(f"replay watch {ids[0][:-1]}", service.url) == ids[:1]


async def test_a_service_that_is_away_costs_the_line_nothing():
    assert await offered("replay watch ge") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_each_shell_is_told_what_it_needs(shell, tmp_path):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "replay", "completion", shell), stdout=asyncio.subprocess.PIPE, cwd=tmp_path
    )
    printed, _ = await within("a script", process.communicate())
    assert {"bash": "complete ", "zsh": "compdef ", "fish": "complete --command replay"}[shell] in printed.decode()
