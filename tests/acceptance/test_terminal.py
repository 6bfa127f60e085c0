"""The commands as people run them: in a terminal.

It is a real pseudo-terminal, and what it shows is told by an independent emulator (pyte).
"""

from __future__ import annotations

import asyncio
import random
import re

import pytest
from support.deadlines import eventually
from support.fault_proxy import FaultProxy
from support.terminal import COLUMNS, EVIL, Screen
from support.upstream import Call, generate, say


async def test_a_terminal_shows_the_text_and_beneath_it_what_is_going_on(show_command, upstream):
    # given a generation that goes on
    window = await show_command("generate", "Hi", "--model", "test-model")
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


async def test_time_goes_by_also_in_silence(show_command, upstream):
    window = await show_command("generate", "Hi")
    await upstream.called()
    first = await window.shows(r"^queued")
    await eventually("another line", lambda: window.shows(r"^queued"), lambda line: line != first)


@pytest.mark.parametrize("seed", range(2))
async def test_a_terminal_ends_up_as_if_the_text_alone_had_been_written(seed, show_command, service, upstream):
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
    window = await show_command("generate", "Hi")
    assert await window.exit() == 0
    # then
    expected, text = Screen(), "".join(texts)
    *_, summary = window.screen.lines
    written = f"{window.screen.lines[0]}\n{text}" + "\n" * (not text.endswith("\n")) + summary
    expected.take(written.replace("\n", "\r\n").encode())
    assert window.screen.lines == expected.lines


async def test_who_comes_late_sees_everything_and_the_rate_of_it(show_command, service, upstream):
    # given an answer that took its time
    upstream.script = generate(20, per_second=100)
    id = await service.run()
    window = await show_command("watch", id)
    assert await window.exit() == 0
    text, summary = " ".join(window.screen.lines[:-1]), window.screen.lines[-1]
    assert text.split() == [f"word{n}" for n in range(20)]
    rate = (await service.transcript(id))["timing"]["tokens_per_second"]
    assert f"completed · test-model · 20 tokens · {rate:.1f} tokens/s" in summary


async def test_a_model_cannot_steer_the_terminal(show_command, upstream):
    upstream.script = say(EVIL, "\x1b", "[2Jg")
    window = await show_command("generate", "Hi")
    assert await window.exit() == 0
    assert window.screen.lines[1] == "a[31mb]0;titlec2Jde     f[2Jg"
    assert b"a[31mb]0;titlec2Jde\tf" in window.bytes
    assert b"\x1b[2J" not in window.bytes
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", window.bytes.decode())


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}])
async def test_what_is_beside_the_answer_is_dimmed(env, show_command, upstream):
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
    window = await show_command("generate", "Hi", **env)
    # then
    assert await window.exit() == 0
    assert window.screen.lines[1:-1] == ["(thinking) Let me see[0m", "", '-> weather {"in":1}', "", "Sunny"]
    dimmed = bytes(window.bytes).count(b"\x1b[2m")
    assert (dimmed == 0) == bool(env)
    assert bool(env) or b"\x1b[2msee[0m\x1b[0m" in window.bytes
    assert not env or not re.search(rb"\x1b\[[0-9;]*m", window.bytes)


async def test_a_lost_connection_is_seen_and_survived(show_command, service, upstream):
    async with FaultProxy(service.url) as network:
        window = await show_command("generate", "Hi", url=network.url)
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


async def test_ctrl_c_leaves_a_terminal_clean(show_command, service, upstream):
    window = await show_command("generate", "Hi")
    await (await upstream.called()).say("one")
    await window.shows(r"^streaming")
    window.interrupt()
    assert await window.exit() == 130
    _, text, hint = "\n".join(window.screen.lines).replace("replay w\natch", "replay watch").split("\n", 2)
    assert text == "one"
    assert hint.replace("\n", "").startswith("replay: the generation goes on; come back with: replay watch gen_")
    assert b"\x1b[?" not in window.bytes


async def test_a_list_is_a_table_with_whole_ids(show_command, service, upstream):
    # given an id as the service makes them, and one as long as they may be
    upstream.script = say("ok")
    usual, long = await service.run(), await service.run(id=f"{random.getrandbits(64):0128}")
    # when
    window = await show_command("ls", "--limit", "2")
    # then
    assert await window.exit() == 0
    head, *rows, last = [line for line in window.screen.lines if not line.startswith("replay: there are more")]
    assert head.split() == ["id", "status", "model", "age", "events", "watching"]
    assert re.fullmatch(rf"{usual} +completed +test-model +\d+ s +4 +0", last)
    assert "".join(row.split()[0] for row in rows) == long


async def test_a_prompt_has_to_come_from_somewhere(show_command):
    window = await show_command("generate")
    assert await window.exit() == 2
    assert window.screen.lines == ["replay: no prompt: expected one as an argument, or on stdin"]


async def test_the_status_line_is_there_when_the_text_goes_into_a_file(show_command, upstream, tmp_path):
    with (tmp_path / "answer").open("wb") as file:
        window = await show_command("generate", "Hi", stdout=file)
    call = await upstream.called()
    await call.say("one\x1b")
    await window.shows(r"^streaming · test-model · 1 token · ")
    await call.finish()
    assert await window.exit() == 0
    assert [line.split(" ")[0] for line in window.screen.lines] == ["generation", "completed"]
    assert (tmp_path / "answer").read_bytes() == b"one\x1b"


async def test_a_dumb_terminal_gets_the_text_plain(show_command, upstream):
    upstream.script = say("ok")
    window = await show_command("generate", "Hi", TERM="dumb")
    assert await window.exit() == 0
    assert b"\x1b" not in window.bytes
    assert window.screen.lines[1:] == ["ok"]
