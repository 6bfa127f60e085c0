"""The commands as people and scripts run them: in a terminal, in a pipe, through cuts, and stopped in the middle.

The terminal is a real pseudo-terminal, and what it shows is told by an independent emulator (pyte).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pyte
import pytest
from support.api import Api
from support.deadlines import eventually, within
from support.fault_proxy import FaultProxy
from support.upstream import Call, generate, say

ROWS, COLUMNS = 24, 80
FOREIGN = re.compile(r"REPLAY_|OPENAI_|NO_COLOR|FORCE_COLOR|COLUMNS|LINES|.*_PROXY$", re.IGNORECASE)
EVIL = "a\x1b[31mb\x1b]0;title\x07c\x9b2Jd\x7f\re\tf" + "".join(
    map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A)))
)


class Command:
    """A running `replay …` with its output in pipes."""

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
        self.screen.feed(piece)

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

    def feed(self, output: bytes) -> None:
        self._stream.feed(output)

    @property
    def lines(self) -> list[str]:
        """All lines, without trailing blanks."""
        gone = ["".join(line[column].data for column in range(COLUMNS)) for line in self._screen.history.top]
        lines = [line.rstrip() for line in (*gone, *self._screen.display)]
        while lines and not lines[-1]:
            lines.pop()
        return lines


Run = Callable[..., Awaitable[Any]]


@pytest.fixture
async def run(service: Api, tmp_path: Any) -> AsyncIterator[Run]:
    """Run `replay …` with its output in pipes: `await run("ls", url=…, stdin=b"…", NO_COLOR="1")`."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(*words: str, url: str = service.url, stdin: bytes = b"", **env: str) -> Command:
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(
                *_replay(words), stdin=pipe, stdout=pipe, stderr=pipe, env=_environment(url, env), cwd=tmp_path
            )
            command = Command(process)
            stack.push_async_callback(command.close)
            assert process.stdin is not None
            process.stdin.write(stdin)
            process.stdin.close()
            return command

        yield start


@pytest.fixture
async def show(service: Api, tmp_path: Any) -> AsyncIterator[Run]:
    """Run `replay …` in a terminal."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(*words: str, url: str = service.url, stdout: Any = None, **env: str) -> Window:
            ours, theirs = os.openpty()
            termios.tcsetwinsize(theirs, (ROWS, COLUMNS))
            process = await asyncio.create_subprocess_exec(
                *_replay(words),
                stdin=theirs,
                stdout=stdout or theirs,
                stderr=theirs,
                env=_environment(url, env),
                cwd=tmp_path,
            )
            os.close(theirs)
            window = Window(process, ours)
            stack.push_async_callback(window.close)
            return window

        yield start


def _replay(words: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "replay", *words]


def _environment(url: str, further: dict[str, str]) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    return {**clean, "TERM": "xterm-256color", "PYTHONUTF8": "1", "REPLAY_URL": url, **further}


# In a pipe.


async def test_piped_output_is_the_text_and_nothing_else(run, service, upstream):
    # given a model that sends what would do things to a terminal
    texts = ("Hello ", "👩‍👩‍👧‍👦 \u2028\r\n", EVIL, " no newline")
    upstream.script = say(*texts)
    # when
    command = await run("generate", "Hi", "--model", "test-model")
    # then
    assert await command.exit() == 0
    assert command.stdout.decode() == "".join(texts)
    assert command.stderr.decode() == f"generation {await command.id()}\n"
    assert (await service.transcript(await command.id()))["text"] == "".join(texts)


async def test_piped_output_is_written_as_it_comes(run, upstream):
    command = await run("generate", "Hi")
    call = await upstream.called()
    await call.say("one")
    await command.wrote("one")
    await call.say(" two")
    await command.wrote("one two")
    await call.finish()
    assert await command.exit() == 0


async def test_quiet_says_nothing_beside_the_text(run, upstream):
    upstream.script = say("ok")
    command = await run("generate", "Hi", "--quiet")
    assert (await command.exit(), command.stdout, command.stderr) == (0, b"ok", b"")


async def test_half_a_character_does_not_cost_the_rest(run, upstream):
    async def script(call: Call) -> None:
        await call.send_raw(b'data: {"choices":[{"index":0,"delta":{"content":"a\\ud83d"}}]}\n\n')
        await call.say("b")
        await call.finish()

    upstream.script = script
    command = await run("generate", "Hi")
    assert (await command.exit(), command.stdout) == (0, b"a?b")


@pytest.mark.parametrize(
    ("words", "stdin", "prompt"),
    [
        (("Hi",), b"ignored", "Hi"),
        (("-",), "Grüße\n".encode(), "Grüße"),
        ((), b"two\nlines\n", "two\nlines"),
    ],
)
async def test_the_prompt_is_an_argument_or_stdin(words, stdin, prompt, run, upstream):
    upstream.script = say("ok")
    command = await run("generate", *words, stdin=stdin)
    assert await command.exit() == 0
    assert upstream.calls[-1].request["messages"] == [{"role": "user", "content": prompt}]


async def test_what_is_asked_for_arrives(run, service, upstream):
    # when
    upstream.script = say("ok")
    id = f"given-{random.getrandbits(64)}"
    options = ("--model=other-model", "--system=Be brief", "--id", id, "--ttl=60", "--max-tokens=5", "--temperature=0")
    command = await run("generate", *options, "--metadata=a=1", "--metadata", "b=x=y", "--", "-5 degrees?")
    # then
    assert await command.exit() == 0
    generation = await service.generation(id)
    assert (generation["model"], generation["metadata"]) == ("other-model", {"a": "1", "b": "x=y"})
    assert 0 < generation["expires_at"] - generation["ended"] <= 61
    asked = upstream.calls[-1].request
    assert (asked["max_tokens"], asked["temperature"]) == (5, 0)
    assert [message["content"] for message in asked["messages"]] == ["Be brief", "-5 degrees?"]


async def test_the_same_key_shows_the_same_answer(run, upstream):
    upstream.script = say("ok")
    key = f"key-{random.getrandbits(64)}"
    commands = [await run("generate", "Hi", "--idempotency-key", key) for _ in range(2)]
    assert [await command.exit() for command in commands] == [0, 0]
    assert commands[0].stderr == commands[1].stderr
    assert commands[1].stdout == b"ok"


# What goes wrong on the way.


async def test_generating_survives_a_connection_that_is_cut(run, service, upstream):
    async with FaultProxy(service.url) as network:
        command = await run("generate", "Hi", url=network.url)
        call = await upstream.called()
        for place, text in enumerate(("one ", "two ", "three ", "four")):
            await call.say(text)
            await command.wrote(text)
            network.cut_replies_after(5 + 20 * place)
        await call.finish()
        assert await command.exit() == 0
    assert command.stdout == b"one two three four"


async def test_an_outage_is_told_once_where_there_is_no_status_line(run, service, upstream):
    async with FaultProxy(service.url) as network:
        command = await run("generate", "Hi", url=network.url)
        call = await upstream.called()
        await call.say("one ")
        await command.wrote("one ")
        # when it is cut, and then nobody is there for a while
        network.cut()
        await call.say("two ")
        await command.wrote("two ")
        await network.refuse()
        network.cut()
        told = "connection lost (no answer from "
        await command.said(told)
        await network.accept()
        await call.say("three")
        await command.wrote("three")
        await call.finish()
        assert await command.exit() == 0
    # then a cut alone is not worth a word
    assert command.stderr.decode().count(told) == 1
    assert "trying again for up to 5 min 00 s\n" in command.stderr.decode()


async def test_ctrl_c_leaves_the_generation_running_and_says_how_to_come_back(run, service, upstream):
    # given
    command = await run("generate", "Hi")
    call = await upstream.called()
    await call.say("one ")
    await command.wrote("one ")
    # when
    command.interrupt()
    # then
    assert await command.exit() == 130
    id = await command.id()
    assert command.stderr.decode().splitlines()[1:] == [
        f"replay: the generation goes on; come back with: replay watch {id}"
    ]
    assert (await service.generation(id))["status"] == "streaming"
    # and whoever comes back, from wherever, gets everything
    watching = await run("watch", id, "--url", service.url, url="http://127.0.0.1:1")
    await watching.wrote("one ")
    await call.say("two")
    await call.finish()
    assert (await watching.exit(), watching.stdout) == (0, b"one two")


async def test_coming_back_leads_to_the_same_service(run, service, upstream):
    command = await run("generate", "Hi", "--url", service.url, url="http://127.0.0.1:1")
    await (await upstream.called()).say("one ")
    await command.wrote("one ")
    command.interrupt()
    assert await command.exit() == 130
    assert command.stderr.decode().endswith(f"replay watch {await command.id()} --url {service.url}\n")


async def test_ctrl_c_before_the_service_has_answered(run, service):
    async with FaultProxy(service.url) as network:
        network.hold_requests()
        command = await run("generate", "Hi", url=network.url)
        await network.request_held()
        command.interrupt()
        assert await command.exit() == 130
    assert b"`replay ls`" in command.stderr


async def test_a_reader_that_has_read_enough_is_nothing_to_complain_about(run, service, upstream):
    # given a pipe as in `| head -c 5`
    command = await run("generate", "Hi")
    call = await upstream.called()
    await call.say("12345")
    await command.wrote("12345")
    # when its other end is closed
    await command.close_stdout()
    await call.say("67890")
    # then
    assert await command.exit() == 141
    id = await command.id()
    assert command.stderr.decode() == f"generation {id}\n"
    assert (await service.generation(id))["status"] == "streaming"


async def test_a_full_disk_is_told(show, run, service, upstream):
    upstream.script = say("ok")
    id = await service.run()
    with open("/dev/full", "wb") as full:  # noqa: ASYNC230 nothing waits for it
        window = await show("transcript", id, stdout=full)
    assert await window.exit() == 1
    assert window.screen.lines == ["replay: cannot write: No space left on device"]


@pytest.mark.parametrize("ending", ["cut", "finish"])
async def test_exit_code_tells_how_it_ended(ending, run, upstream):
    command = await run("generate", "Hi")
    call = await upstream.called()
    await call.say("one")
    await getattr(call, ending)()
    assert await command.exit() == {"cut": 1, "finish": 0}[ending]
    assert ("upstream_truncated" in command.stderr.decode()) == (ending == "cut")
    assert command.stdout == b"one"


async def test_a_cancelled_generation_is_told_to_who_watches(run, service, upstream):
    command = await run("generate", "Hi")
    await (await upstream.called()).say("one")
    await command.wrote("one")
    cancelling = await run("cancel", await command.id())
    assert (await cancelling.exit(), cancelling.stdout) == (0, b"cancelled\n")
    assert await command.exit() == 3
    assert command.stderr.decode().splitlines()[1:] == ["replay: the generation was cancelled"]


async def test_what_does_not_exist_is_not_found(run):
    for words in (("watch",), ("transcript",), ("transcript", "--wait"), ("cancel",), ("delete",)):
        command = await run(*words, "nothing")
        assert await command.exit() == 4
        assert command.stdout == b""
        assert command.stderr.decode().startswith("replay: generation 'nothing' does not exist")


async def test_a_service_that_is_away_is_not_reachable(run, service):
    async with FaultProxy(service.url) as network:
        await network.refuse()
        calls = (("generate", "Hi"), ("watch", "g"), ("ls",), ("transcript", "g"), ("cancel", "g"), ("delete", "g"))
        for command in [await run(*words, url=network.url) for words in calls]:
            assert await command.exit() == 5
            assert command.stdout == b""
            complaint = f"replay: no answer from {network.url}: [Errno 111] Connection refused\n"
            assert command.stderr.decode() == complaint


async def test_wrong_usage_is_told(run):
    for words in (
        (),
        ("generate", "--metadata", "x", "Hi"),
        ("generate", "--ttl", "soon", "Hi"),
        ("ls", "--status", "happy"),
        ("ls", "--since", "yesterday"),
        ("ls", "--limit", "-1"),
        ("delete",),
        ("completion", "csh"),
        ("transcript", "g", "--format", "pdf"),
        ("ls", "--url", "localhost:8080"),
    ):
        command = await run(*words)
        assert await command.exit() == 2
        assert command.stdout == b""
        assert b"--help)\n" in command.stderr or b"expected http" in command.stderr
        assert command.stderr.count(b"\n") == 1


async def test_a_refusal_is_told(run, service, upstream):
    id = (await service.start())["id"]
    command = await run("generate", "Hi", "--id", id)
    assert (await command.exit(), command.stderr.decode()) == (1, f"replay: generation {id!r} exists\n")


# Looking at what there is.


async def test_watching_begins_at_the_start_or_now(run, service, upstream):
    # given a generation that has said something
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("one ")
    await service.has(id, 2)
    # when
    everything, rest = await run("watch", id), await run("watch", id, "--no-from-start")
    await everything.wrote("one ")
    await eventually("two who watch", lambda: service.generation(id), lambda seen: seen["subscribers"] == 2)
    await call.say("two")
    await call.finish()
    # then
    assert (await everything.exit(), everything.stdout, everything.stderr) == (0, b"one two", b"")
    assert (await rest.exit(), rest.stdout) == (0, b"two")
    again = await run("watch", id)
    assert (await again.exit(), again.stdout) == (0, b"one two")


async def test_a_list_is_lines_with_tabs_for_programs(run, service, upstream):
    upstream.script = say("a", "b")
    ids = [await service.run() for _ in range(3)]
    # when
    lines = await run("ls", "--limit", "2")
    # then
    assert await lines.exit() == 0
    rows = [line.split("\t") for line in lines.stdout.decode().splitlines()]
    assert [row[0] for row in rows] == ids[:0:-1]
    assert [[*row[1:3], *row[4:]] for row in rows] == [["completed", "test-model", "5", "0", ""]] * 2
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row[3]) for row in rows)


async def test_a_list_says_when_there_is_more_and_how_to_get_it(run, show, service, upstream):
    # given one more than a list has
    upstream.script = say("a")
    job = f"more-{random.getrandbits(64)}"
    ids = [await service.run(metadata={"job": job}) for _ in range(51)]

    async def listed(*words: str) -> tuple[list[str], str]:
        command = await run("ls", "--metadata", f"job={job}", *words)
        assert await command.exit() == 0, command.stderr
        return [line.split("\t")[0] for line in command.stdout.decode().splitlines()], command.stderr.decode()

    # then that is told, but no program that asked for so many
    more = "replay: there are more than {}: --limit N shows N, --all shows all"
    assert await listed() == (ids[:0:-1], more.format(50) + "\n")
    assert await listed("--limit", "2") == (ids[:-3:-1], "")
    window = await show("ls", "--limit", "2", "--metadata", f"job={job}")
    assert await window.exit() == 0
    assert window.screen.lines[-1] == more.format(2)
    # and nothing is told where there is no more
    for words in (("--limit", "51"), ("--all",)):
        assert await listed(*words) == (ids[::-1], "")


async def test_a_list_tells_the_reason_of_what_did_not_complete(run, show, service, upstream):
    async def script(call: Call) -> None:
        await call.say("a")
        await call.cut()

    upstream.script = script
    id = await service.run()
    lines = await run("ls", "--limit", "1")
    assert await lines.exit() == 0
    assert lines.stdout.decode().rstrip("\n").split("\t")[::6] == [id, "upstream_truncated"]
    window = await show("ls", "--q", id)
    assert await window.exit() == 0
    # on a terminal before what else there is no room for: ids and reasons are there to be copied
    head, row = window.screen.lines
    assert head.split() == ["id", "status", "model", "age", "reason"]
    assert re.fullmatch(rf"{id} +failed +test-model +\d+ s +upstream_truncated", row)


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        (80, ["id", "status", "model", "age", "reason"]),
        (42, ["id", "status"]),
        (31, ["id"]),
        (16, ["id"]),
    ],
)
async def test_a_list_leaves_out_what_a_narrow_terminal_has_no_room_for(show, service, upstream, columns, names):
    upstream.script = lambda call: call.cut()
    id = await service.run()
    window = await show("ls", "--q", id, COLUMNS=str(columns))
    assert await window.exit() == 0
    head, *rows = window.screen.lines
    assert head.split() == names
    assert "".join(row.split()[0] for row in rows) == id
    assert len(rows) == (1 if columns > 16 else 2)


async def test_what_is_deleted_is_gone_and_what_is_not_there_is_told(run, service, upstream):
    upstream.script = say("a")
    first, second = await service.run(), await service.run()
    # when one of three does not exist
    command = await run("delete", first, "nothing", second)
    # then the others are gone all the same
    assert (await command.exit(), command.stdout.decode()) == (4, f"{first}\n{second}\n")
    assert command.stderr.decode().startswith("replay: generation 'nothing' does not exist")
    for id in (first, second):
        assert (await service.get(f"/generations/{id}")).status == 404
    live = (await service.start())["id"]
    command = await run("delete", live)
    assert (await command.exit(), command.stdout.decode(), command.stderr) == (0, f"{live}\n", b"")


async def test_a_list_can_be_filtered(run, service, upstream):
    upstream.script = say("a")
    ids = [await service.run(metadata={"job": "ls", "n": str(n)}) for n in range(3)]

    async def listed(*words: str) -> list[str]:
        command = await run("ls", "--q", "LS", "--metadata", "job=ls", *words)
        assert await command.exit() == 0, command.stderr
        return [line.split("\t")[0] for line in command.stdout.decode().splitlines()]

    assert await listed() == ids[::-1]
    assert await listed("--metadata", "n=1", "--model", "test-model") == ids[1:2]
    assert await listed("--since", "2020-01-31", "--until", "2021-01-31T18:00") == []


async def test_a_list_is_json_where_that_is_asked_for(run, service, upstream):
    id = (await service.start())["id"]
    await upstream.called()
    listing = await run("ls", "--status", "queued,streaming", "--json")
    assert await listing.exit() == 0
    first = json.loads(listing.stdout.splitlines()[0])
    assert first == (await service.generation(id)) | {"subscribers": first["subscribers"]}


async def test_a_transcript_comes_in_three_forms(run, service, upstream):
    async def script(call: Call) -> None:
        await call.send(call.chunk({"delta": {"reasoning_content": "Hm"}}))
        await call.say(EVIL)
        await call.finish()

    upstream.script = script
    id = await service.run()
    text, markdown, document = [
        await run("transcript", id, *words) for words in ((), ("--format=markdown",), ("--format=json",))
    ]
    assert [await command.exit() for command in (text, markdown, document)] == [0, 0, 0]
    assert text.stdout.decode() == EVIL
    assert markdown.stdout.decode() == f"> Hm\n\n{EVIL}\n"
    assert json.loads(document.stdout) == await service.transcript(id)


async def test_a_transcript_so_far_says_so_and_can_wait(run, service, upstream):
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("one ")
    await service.has(id, 2)
    so_far, whole = await run("transcript", id), await run("transcript", id, "--wait")
    assert (await so_far.exit(), so_far.stdout, so_far.stderr) == (0, b"one ", b"replay: the generation goes on\n")
    await call.say("two")
    await call.cut()
    assert (await whole.exit(), whole.stdout) == (1, b"one two")


async def test_the_commands_start_without_the_server(tmp_path):
    probe = "import sys, replay.__main__; print(*sys.modules)"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", probe, stdout=asyncio.subprocess.PIPE, cwd=tmp_path
    )
    printed, _ = await within("a probe", process.communicate())
    assert not {"aiohttp", "uvloop", "valkey", "openai", "rich"} & set(printed.decode().split())


# In a terminal.


async def test_a_terminal_shows_the_text_and_beneath_it_what_is_going_on(show, upstream):
    # given a generation that goes on
    window = await show("generate", "Hi", "--model", "test-model")
    call = await upstream.called()
    await window.shows(r"^queued · test-model · 0 tokens · \d+\.\d s$")
    # when it says something
    await call.say("one ")
    await call.say("two")
    # then
    await window.shows(r"^one two$")
    await window.shows(r"^streaming · test-model · 2 tokens · (\d+\.\d tokens/s · )?\d+\.\d s$")
    assert re.match(r"generation gen_", window.screen.lines[0])
    assert [line[:9] for line in window.screen.lines[1:]] == ["one two", "streaming"]
    # and in the end it stays
    await call.finish()
    assert await window.exit() == 0
    assert [line[:9] for line in window.screen.lines[1:]] == ["one two", "completed"]


async def test_time_goes_by_also_in_silence(show, upstream):
    window = await show("generate", "Hi")
    await upstream.called()
    first = await window.shows(r"^queued")
    await eventually("another line", lambda: window.shows(r"^queued"), lambda line: line != first)


@pytest.mark.parametrize("seed", range(2))
async def test_a_terminal_ends_up_as_if_the_text_alone_had_been_written(seed, show, service, upstream):
    # given a text that fills rows to the last column, and more than a screen
    random_text = random.Random(seed)
    words = ["a", "word ", "日本語", "\n", "\t", "x" * COLUMNS, "y" * (COLUMNS - 1), "語" * (COLUMNS // 2), " the "]
    texts = [random_text.choice(words) * random_text.choice((1, 1, 2)) for _ in range(150)]

    async def script(call: Call) -> None:
        for text in texts:
            await call.say(text)
            await asyncio.sleep(0.002)
        await call.finish()

    upstream.script = script
    # when
    window = await show("generate", "Hi")
    assert await window.exit() == 0
    # then
    expected, text = Screen(), "".join(texts)
    *_, summary = window.screen.lines
    written = f"{window.screen.lines[0]}\n{text}" + "\n" * (not text.endswith("\n")) + summary
    expected.feed(written.replace("\n", "\r\n").encode())
    assert window.screen.lines == expected.lines


async def test_who_comes_late_sees_everything_and_the_rate_of_it(show, service, upstream):
    # given an answer that took its time
    upstream.script = generate(20, per_second=100)
    id = await service.run()
    window = await show("watch", id)
    assert await window.exit() == 0
    text, summary = " ".join(window.screen.lines[:-1]), window.screen.lines[-1]
    assert text.split() == [f"word{n}" for n in range(20)]
    rate = (await service.transcript(id))["timing"]["tokens_per_second"]
    assert f"completed · test-model · 20 tokens · {rate:.1f} tokens/s" in summary


async def test_a_model_cannot_steer_the_terminal(show, upstream):
    upstream.script = say(EVIL, "\x1b", "[2Jg")
    window = await show("generate", "Hi")
    assert await window.exit() == 0
    assert window.screen.lines[1] == "a[31mb]0;titlec2Jde     f[2Jg"
    assert b"a[31mb]0;titlec2Jde\tf" in window.bytes
    assert b"\x1b[2J" not in window.bytes
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", window.bytes.decode())


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}])
async def test_what_is_beside_the_answer_is_dimmed(env, show, upstream):
    # given a model that thinks, calls a tool, and answers
    async def script(call: Call) -> None:
        await call.send(call.chunk({"delta": {"reasoning_content": "Let me "}}))
        await call.send(call.chunk({"delta": {"reasoning_content": "see\x1b[0m"}}))
        weather = {"index": 0, "id": "c", "type": "function", "function": {"name": "weather", "arguments": ""}}
        await call.send(call.chunk({"delta": {"tool_calls": [weather]}}))
        await call.send(call.chunk({"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"in":1}'}}]}}))
        await call.say("Sunny")
        await call.finish()

    upstream.script = script
    # when
    window = await show("generate", "Hi", **env)
    # then
    assert await window.exit() == 0
    assert window.screen.lines[1:-1] == ["(thinking) Let me see[0m", "", '-> weather {"in":1}', "", "Sunny"]
    dimmed = bytes(window.bytes).count(b"\x1b[2m")
    assert (dimmed == 0) == bool(env)
    assert bool(env) or b"\x1b[2msee[0m\x1b[0m" in window.bytes
    assert not env or not re.search(rb"\x1b\[[0-9;]*m", window.bytes)


async def test_a_lost_connection_is_seen_and_survived(show, service, upstream):
    async with FaultProxy(service.url) as network:
        window = await show("generate", "Hi", url=network.url)
        call = await upstream.called()
        await call.say("one ")
        await window.shows(r"^one$")
        # when
        await network.refuse()
        network.cut()
        await window.shows(r"^connection lost, back in \d+\.\d s")
        await call.say("two")
        await network.accept()
        # then
        await window.shows(r"^one two$")
        await window.shows(r"^streaming")
        await call.finish()
        assert await window.exit() == 0


async def test_ctrl_c_leaves_a_terminal_clean(show, service, upstream):
    window = await show("generate", "Hi")
    await (await upstream.called()).say("one")
    await window.shows(r"^streaming")
    window.interrupt()
    assert await window.exit() == 130
    _, text, hint = "\n".join(window.screen.lines).replace("replay w\natch", "replay watch").split("\n", 2)
    assert text == "one"
    assert hint.replace("\n", "").startswith("replay: the generation goes on; come back with: replay watch gen_")
    assert b"\x1b[?" not in window.bytes


async def test_a_list_is_a_table_with_whole_ids(show, service, upstream):
    # given an id as the service makes them, and one as long as they may be
    upstream.script = say("ok")
    usual, long = await service.run(), await service.run(id=f"{random.getrandbits(64):0128}")
    # when
    window = await show("ls", "--limit", "2")
    # then
    assert await window.exit() == 0
    head, *rows, last = [line for line in window.screen.lines if not line.startswith("replay: there are more")]
    assert head.split() == ["id", "status", "model", "age", "events", "watching"]
    assert re.fullmatch(rf"{usual} +completed +test-model +\d+ s +4 +0", last)
    assert "".join(row.split()[0] for row in rows) == long


async def test_a_prompt_has_to_come_from_somewhere(show):
    window = await show("generate")
    assert await window.exit() == 2
    assert window.screen.lines == ["replay: no prompt: expected one as an argument, or on stdin"]


async def test_the_status_line_is_there_when_the_text_goes_into_a_file(show, upstream, tmp_path):
    with (tmp_path / "answer").open("wb") as file:
        window = await show("generate", "Hi", stdout=file)
    call = await upstream.called()
    await call.say("one\x1b")
    await window.shows(r"^streaming · test-model · 1 token · ")
    await call.finish()
    assert await window.exit() == 0
    assert [line.split(" ")[0] for line in window.screen.lines] == ["generation", "completed"]
    assert (tmp_path / "answer").read_bytes() == b"one\x1b"


async def test_a_dumb_terminal_gets_the_text_plain(show, upstream):
    upstream.script = say("ok")
    window = await show("generate", "Hi", TERM="dumb")
    assert await window.exit() == 0
    assert b"\x1b" not in window.bytes
    assert window.screen.lines[1:] == ["ok"]
