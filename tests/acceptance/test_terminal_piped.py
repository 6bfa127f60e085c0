"""The commands as scripts run them: in a pipe, through cuts, and stopped in the middle."""

from __future__ import annotations

import random

import pytest
from support.fault_proxy import FaultProxy
from support.terminal import EVIL
from support.upstream import Call, say

# In a pipe.


async def test_piped_output_is_the_text_and_nothing_else(run_command, service, upstream):
    # given a model that sends what would do things to a terminal
    texts = ("Hello ", "👩‍👩‍👧‍👦 \u2028\r\n", EVIL, " no newline")
    upstream.script = say(*texts)
    # when
    command = await run_command("generate", "Hi", "--model", "test-model")
    # then
    assert await command.exit() == 0
    assert command.stdout.decode() == "".join(texts)
    assert command.stderr.decode() == f"generation {await command.id()}\n"
    assert (await service.transcript(await command.id()))["text"] == "".join(texts)


async def test_piped_output_is_written_as_it_comes(run_command, upstream):
    command = await run_command("generate", "Hi")
    call = await upstream.called()
    await call.say("one")
    await command.wrote("one")
    await call.say(" two")
    await command.wrote("one two")
    await call.finish()
    assert await command.exit() == 0


async def test_quiet_says_nothing_beside_the_text(run_command, upstream):
    upstream.script = say("ok")
    command = await run_command("generate", "Hi", "--quiet")
    assert (await command.exit(), command.stdout, command.stderr) == (0, b"ok", b"")


async def test_half_a_character_does_not_cost_the_rest(run_command, upstream):
    async def script(call: Call) -> None:
        await call.send_raw(b'data: {"choices":[{"index":0,"delta":{"content":"a\\ud83d"}}]}\n\n')
        await call.say("b")
        await call.finish()

    upstream.script = script
    command = await run_command("generate", "Hi")
    assert (await command.exit(), command.stdout) == (0, b"a?b")


@pytest.mark.parametrize(
    ("words", "stdin", "prompt"),
    [
        (("Hi",), b"ignored", "Hi"),
        (("-",), "Grüße\n".encode(), "Grüße"),
        ((), b"two\nlines\n", "two\nlines"),
    ],
)
async def test_the_prompt_is_an_argument_or_stdin(words, stdin, prompt, run_command, upstream):
    upstream.script = say("ok")
    command = await run_command("generate", *words, stdin=stdin)
    assert await command.exit() == 0
    assert upstream.calls[-1].request["messages"] == [{"role": "user", "content": prompt}]


async def test_what_is_asked_for_arrives(run_command, service, upstream):
    # when
    upstream.script = say("ok")
    id = f"given-{random.getrandbits(64)}"
    options = ("--model=other-model", "--system=Be brief", "--id", id, "--ttl=60", "--max-tokens=5", "--temperature=0")
    command = await run_command("generate", *options, "--metadata=a=1", "--metadata", "b=x=y", "--", "-5 degrees?")
    # then
    assert await command.exit() == 0
    generation = await service.generation(id)
    assert (generation["model"], generation["metadata"]) == ("other-model", {"a": "1", "b": "x=y"})
    assert 0 < generation["expires_at"] - generation["ended"] <= 61
    asked = upstream.calls[-1].request
    assert (asked["max_tokens"], asked["temperature"]) == (5, 0)
    assert [message["content"] for message in asked["messages"]] == ["Be brief", "-5 degrees?"]


async def test_the_same_key_shows_the_same_answer(run_command, upstream):
    upstream.script = say("ok")
    key = f"key-{random.getrandbits(64)}"
    commands = [await run_command("generate", "Hi", "--idempotency-key", key) for _ in range(2)]
    assert [await command.exit() for command in commands] == [0, 0]
    assert commands[0].stderr == commands[1].stderr
    assert commands[1].stdout == b"ok"


# What goes wrong on the way.


async def test_generating_survives_a_connection_that_is_cut(run_command, service, upstream):
    async with FaultProxy(service.url) as network:
        command = await run_command("generate", "Hi", url=network.url)
        call = await upstream.called()
        for place, text in enumerate(("one ", "two ", "three ", "four")):
            await call.say(text)
            await command.wrote(text)
            network.cut_replies_after(5 + 20 * place)
        await call.finish()
        assert await command.exit() == 0
    assert command.stdout == b"one two three four"


async def test_an_outage_is_told_once_where_there_is_no_status_line(run_command, service, upstream):
    async with FaultProxy(service.url) as network:
        command = await run_command("generate", "Hi", url=network.url)
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


async def test_ctrl_c_leaves_the_generation_running_and_says_how_to_come_back(run_command, service, upstream):
    # given
    command = await run_command("generate", "Hi")
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
    watching = await run_command("watch", id, "--url", service.url, url="http://127.0.0.1:1")
    await watching.wrote("one ")
    await call.say("two")
    await call.finish()
    assert (await watching.exit(), watching.stdout) == (0, b"one two")


async def test_coming_back_leads_to_the_same_service(run_command, service, upstream):
    command = await run_command("generate", "Hi", "--url", service.url, url="http://127.0.0.1:1")
    await (await upstream.called()).say("one ")
    await command.wrote("one ")
    command.interrupt()
    assert await command.exit() == 130
    assert command.stderr.decode().endswith(f"replay watch {await command.id()} --url {service.url}\n")


async def test_ctrl_c_before_the_service_has_answered(run_command, service):
    async with FaultProxy(service.url) as network:
        network.hold_requests()
        command = await run_command("generate", "Hi", url=network.url)
        await network.request_held()
        command.interrupt()
        assert await command.exit() == 130
    assert b"`replay ls`" in command.stderr


async def test_a_reader_that_has_read_enough_is_nothing_to_complain_about(run_command, service, upstream):
    # given a pipe as in `| head -c 5`
    command = await run_command("generate", "Hi")
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


async def test_a_full_disk_is_told(show_command, run_command, service, upstream):
    upstream.script = say("ok")
    id = await service.run()
    with open("/dev/full", "wb") as full:  # noqa: ASYNC230 nothing waits for it
        window = await show_command("transcript", id, stdout=full)
    assert await window.exit() == 1
    assert window.screen.lines == ["replay: cannot write: No space left on device"]


@pytest.mark.parametrize("ending", ["cut", "finish"])
async def test_exit_code_tells_how_it_ended(ending, run_command, upstream):
    command = await run_command("generate", "Hi")
    call = await upstream.called()
    await call.say("one")
    await getattr(call, ending)()
    assert await command.exit() == {"cut": 1, "finish": 0}[ending]
    assert ("upstream_truncated" in command.stderr.decode()) == (ending == "cut")
    assert command.stdout == b"one"


async def test_a_cancelled_generation_is_told_to_who_watches(run_command, service, upstream):
    command = await run_command("generate", "Hi")
    await (await upstream.called()).say("one")
    await command.wrote("one")
    cancelling = await run_command("cancel", await command.id())
    assert (await cancelling.exit(), cancelling.stdout) == (0, b"cancelled\n")
    assert await command.exit() == 3
    assert command.stderr.decode().splitlines()[1:] == ["replay: the generation was cancelled"]


async def test_what_does_not_exist_is_not_found(run_command):
    for words in (("watch",), ("transcript",), ("transcript", "--wait"), ("cancel",), ("delete",)):
        command = await run_command(*words, "nothing")
        assert await command.exit() == 4
        assert command.stdout == b""
        assert command.stderr.decode().startswith("replay: generation 'nothing' does not exist")


async def test_a_service_that_is_away_is_not_reachable(run_command, service):
    async with FaultProxy(service.url) as network:
        await network.refuse()
        calls = (("generate", "Hi"), ("watch", "g"), ("ls",), ("transcript", "g"), ("cancel", "g"), ("delete", "g"))
        for command in [await run_command(*words, url=network.url) for words in calls]:
            assert await command.exit() == 5
            assert command.stdout == b""
            complaint = f"replay: no answer from {network.url}: [Errno 111] Connection refused\n"
            assert command.stderr.decode() == complaint


async def test_wrong_usage_is_told(run_command):
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
        command = await run_command(*words)
        assert await command.exit() == 2
        assert command.stdout == b""
        assert b"--help)\n" in command.stderr or b"expected http" in command.stderr
        assert command.stderr.count(b"\n") == 1


async def test_a_refusal_is_told(run_command, service, upstream):
    id = (await service.start())["id"]
    command = await run_command("generate", "Hi", "--id", id)
    assert (await command.exit(), command.stderr.decode()) == (1, f"replay: generation {id!r} exists\n")
