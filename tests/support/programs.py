"""Other programs that a test runs and reads line by line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from support.deadlines import within

ACCEPTANCE = Path(__file__).parents[1] / "acceptance"
MODULES = ACCEPTANCE / "node_modules"

_FOREIGN = re.compile(r"OPENAI_|.*_PROXY$", re.IGNORECASE)  # settings of whoever runs the tests


@dataclass
class Program:
    """A program that prints lines."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)

    async def has(self, count: int) -> None:
        """Wait until it has printed so many lines."""
        while len(self.lines) < count:
            line = await self._line(f"line {len(self.lines) + 1}")
            assert line, f"the program ended after {self.lines}: {await self._stderr()}"

    async def prints(self, wanted: str, times: int = 1) -> None:
        """Wait until it has printed a line so many times more."""
        for _ in range(times):
            while (line := await self._line(repr(wanted))) != f"{wanted}\n":
                assert line, f"the program ended after {self.lines}: {await self._stderr()}"

    async def ended(self) -> list[str]:
        """Everything it printed, when it has ended, and well."""
        while await self._line("a line or the end"):
            pass
        assert await within("the end of a program", self.process.wait()) == 0, await self._stderr()
        return self.lines

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def _line(self, what: str) -> str:
        """The next line, with its end; empty when there is none."""
        assert self.process.stdout is not None
        line = (await within(f"{what} of a program; has {self.lines}", self.process.stdout.readline())).decode()
        if line:
            self.lines.append(line.removesuffix("\n"))
        return line

    async def _stderr(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()


@contextlib.asynccontextmanager
async def running(program: str, *arguments: str) -> AsyncIterator[Program]:
    """A program, as long as the test is interested."""
    pipe = asyncio.subprocess.PIPE
    environ = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
    started = Program(
        await asyncio.create_subprocess_exec(
            program, *arguments, stdout=pipe, stderr=pipe, cwd=ACCEPTANCE, env=environ, limit=1 << 20
        )
    )
    try:
        yield started
    finally:
        await started.kill()


def node_js() -> str:
    """The program `node`; fails where it, or what npm has to bring, is not installed."""
    program = shutil.which("node")
    assert program, "node is not installed; on Debian, as root: apt-get install nodejs npm"
    assert MODULES.is_dir(), "the npm clients are not installed: npm ci --prefix tests/acceptance"
    return program
