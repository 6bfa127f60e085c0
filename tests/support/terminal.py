"""The commands as people and scripts run them: in a terminal, or with their output in pipes.

The terminal is a real pseudo-terminal, and what it shows is told by an independent emulator (pyte).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import termios
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, BinaryIO, Self

import pyte

from support.deadlines import eventually, within

RunCommand = Callable[..., Awaitable["Command"]]
ShowCommand = Callable[..., Awaitable["Window"]]

ROWS, COLUMNS = 24, 80

# What a model may say that a terminal would obey, or show in another order.
EVIL = "a\x1b[31mb\x1b]0;title\x07c\x9b2Jd\x7f\re\tf" + "".join(
    map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A)))
)

# Settings of whoever runs the tests.
_FOREIGN = re.compile(r"REPLAY_|OPENAI_|NO_COLOR|FORCE_COLOR|COLUMNS|LINES|.*_PROXY$", re.IGNORECASE)


class Command:
    """A running `replay …` with its output in pipes."""

    @classmethod
    async def start(cls, *words: str, url: str, directory: Path, stdin: bytes, env: dict[str, str]) -> Self:
        """Run it against the service at `url`; `stdin` is all that it can read."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *_replay(words), stdin=pipe, stdout=pipe, stderr=pipe, env=_environment(url, env), cwd=directory
        )
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        return cls(process)

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._readers = [
            asyncio.create_task(_read(pipe, into))
            for pipe, into in ((process.stdout, self.stdout), (process.stderr, self.stderr))
            if pipe is not None
        ]

    async def wrote(self, text: str) -> None:
        """Wait until stdout has this text."""
        await self._has(self.stdout, text)

    async def said(self, text: str) -> None:
        """Wait until stderr has this text."""
        await self._has(self.stderr, text)

    async def _has(self, output: bytearray, text: str) -> None:
        async def ask() -> bytes:
            return bytes(output)

        await eventually(f"{text!r}", ask, lambda written: text.encode() in written)

    async def id(self) -> str:
        """The id of the generation that it has started."""
        await self.said("\n")
        word, id = self.stderr.split(b"\n")[0].decode().split(" ")
        assert word == "generation"
        return id

    def interrupt(self) -> None:
        """What Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)

    async def exit(self) -> int:
        """The exit code, when everything has been read."""
        code = await within("the end of a command", self.process.wait())
        await within("the rest of its output", asyncio.gather(*self._readers))
        return code

    async def close_stdout(self) -> None:
        """Stop reading, as `head` does when it has enough; closed when this returns."""
        pipe: Any = self.process.stdout
        pipe._transport.close()
        await within("the end of a pipe", self._readers[0])

    async def close(self) -> None:
        """Kill it, where it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)


async def _read(pipe: asyncio.StreamReader, into: bytearray) -> None:
    while piece := await pipe.read(4096):
        into += piece


class Window:
    """A running `replay …` in a terminal of its own."""

    @classmethod
    async def start(cls, *words: str, url: str, directory: Path, stdout: BinaryIO | None, env: dict[str, str]) -> Self:
        """Run it against the service at `url`; with `stdout`, what it prints goes there."""
        ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (ROWS, COLUMNS))
        process = await asyncio.create_subprocess_exec(
            *_replay(words),
            stdin=theirs,
            stdout=stdout or theirs,
            stderr=theirs,
            env=_environment(url, env),
            cwd=directory,
        )
        os.close(theirs)
        return cls(process, ours)

    def __init__(self, process: asyncio.subprocess.Process, terminal: int) -> None:
        self.process = process
        self.bytes = bytearray()  # all that came
        self.screen = Screen()
        self._terminal = terminal
        self._over = asyncio.Event()
        asyncio.get_running_loop().add_reader(terminal, self._take)

    def _take(self) -> None:
        try:
            piece = os.read(self._terminal, 65536)
        except OSError:  # nobody has it open any more
            asyncio.get_running_loop().remove_reader(self._terminal)
            self._over.set()
            return
        self.bytes += piece
        self.screen.take(piece)

    async def shows(self, pattern: str) -> str:
        """Wait until a line of the screen fits; the line."""

        async def ask() -> list[str]:
            return [line for line in self.screen.lines if re.search(pattern, line)]

        return (await eventually(f"{pattern!r} on {self.screen.lines}", ask))[0]

    def interrupt(self) -> None:
        """What Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)

    async def exit(self) -> int:
        """The exit code, when everything has been read."""
        code = await within("the end of a command", self.process.wait())
        await within("the rest of its output", self._over.wait())
        return code

    async def close(self) -> None:
        """Kill it, where it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        asyncio.get_running_loop().remove_reader(self._terminal)
        os.close(self._terminal)


class Screen:
    """What a terminal shows, and what has been scrolled off it."""

    def __init__(self) -> None:
        self._screen = pyte.HistoryScreen(COLUMNS, ROWS, history=1000)
        self._stream = pyte.ByteStream(self._screen)

    def take(self, output: bytes) -> None:
        self._stream.feed(output)

    @property
    def lines(self) -> list[str]:
        """All lines, without trailing blanks."""
        gone = ["".join(line[column].data for column in range(COLUMNS)) for line in self._screen.history.top]
        lines = [line.rstrip() for line in (*gone, *self._screen.display)]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def _replay(words: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "replay", *words]


def _environment(url: str, further: dict[str, str]) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
    return {**clean, "TERM": "xterm-256color", "PYTHONUTF8": "1", "REPLAY_URL": url, **further}
