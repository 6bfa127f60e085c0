"""The commands about what there is, `watch`, `ls`, `transcript` and `delete`: what they print, and for whom."""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys

import pytest
from support.deadlines import eventually, within
from support.terminal import EVIL
from support.upstream import Call, say


async def test_watching_begins_at_the_start_or_now(run_command, service, upstream):
    # given a generation that has said something
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("one ")
    await service.has(id, 2)
    # when
    everything, rest = await run_command("watch", id), await run_command("watch", id, "--no-from-start")
    await everything.wrote("one ")
    await eventually("two who watch", lambda: service.generation(id), lambda seen: seen["subscribers"] == 2)
    await call.say("two")
    await call.finish()
    # then
    assert (await everything.exit(), everything.stdout, everything.stderr) == (0, b"one two", b"")
    assert (await rest.exit(), rest.stdout) == (0, b"two")
    again = await run_command("watch", id)
    assert (await again.exit(), again.stdout) == (0, b"one two")


async def test_a_list_is_lines_with_tabs_for_programs(run_command, service, upstream):
    upstream.script = say("a", "b")
    ids = [await service.run() for _ in range(3)]
    # when
    lines = await run_command("ls", "--limit", "2")
    # then
    assert await lines.exit() == 0
    rows = [line.split("\t") for line in lines.stdout.decode().splitlines()]
    assert [row[0] for row in rows] == ids[:0:-1]
    assert [[*row[1:3], *row[4:]] for row in rows] == [["completed", "test-model", "5", "0", ""]] * 2
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row[3]) for row in rows)


async def test_a_list_says_when_there_is_more_and_how_to_get_it(run_command, show_command, service, upstream):
    # given one more than a list has
    upstream.script = say("a")
    job = f"more-{random.getrandbits(64)}"
    ids = [await service.run(metadata={"job": job}) for _ in range(51)]

    async def listed(*words: str) -> tuple[list[str], str]:
        command = await run_command("ls", "--metadata", f"job={job}", *words)
        assert await command.exit() == 0, command.stderr
        return [line.split("\t")[0] for line in command.stdout.decode().splitlines()], command.stderr.decode()

    # then that is told, but no program that asked for so many
    more = "replay: there are more than {}: --limit N shows N, --all shows all"
    assert await listed() == (ids[:0:-1], more.format(50) + "\n")
    assert await listed("--limit", "2") == (ids[:-3:-1], "")
    window = await show_command("ls", "--limit", "2", "--metadata", f"job={job}")
    assert await window.exit() == 0
    assert window.screen.lines[-1] == more.format(2)
    # and nothing is told where there is no more
    for words in (("--limit", "51"), ("--all",)):
        assert await listed(*words) == (ids[::-1], "")


async def test_a_list_tells_the_reason_of_what_did_not_complete(run_command, show_command, service, upstream):
    async def script(call: Call) -> None:
        await call.say("a")
        await call.cut()

    upstream.script = script
    id = await service.run()
    lines = await run_command("ls", "--limit", "1")
    assert await lines.exit() == 0
    assert lines.stdout.decode().rstrip("\n").split("\t")[::6] == [id, "upstream_truncated"]
    window = await show_command("ls", "--q", id)
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
async def test_a_list_leaves_out_what_a_narrow_terminal_has_no_room_for(
    show_command, service, upstream, columns, names
):
    upstream.script = lambda call: call.cut()
    id = await service.run()
    window = await show_command("ls", "--q", id, COLUMNS=str(columns))
    assert await window.exit() == 0
    head, *rows = window.screen.lines
    assert head.split() == names
    assert "".join(row.split()[0] for row in rows) == id
    assert len(rows) == (1 if columns > 16 else 2)


async def test_what_is_deleted_is_gone_and_what_is_not_there_is_told(run_command, service, upstream):
    upstream.script = say("a")
    first, second = await service.run(), await service.run()
    # when one of three does not exist
    command = await run_command("delete", first, "nothing", second)
    # then the others are gone all the same
    assert (await command.exit(), command.stdout.decode()) == (4, f"{first}\n{second}\n")
    assert command.stderr.decode().startswith("replay: generation 'nothing' does not exist")
    for id in (first, second):
        assert (await service.get(f"/generations/{id}")).status == 404
    live = (await service.start())["id"]
    command = await run_command("delete", live)
    assert (await command.exit(), command.stdout.decode(), command.stderr) == (0, f"{live}\n", b"")


async def test_a_list_can_be_filtered(run_command, service, upstream):
    upstream.script = say("a")
    ids = [await service.run(metadata={"job": "ls", "n": str(n)}) for n in range(3)]

    async def listed(*words: str) -> list[str]:
        command = await run_command("ls", "--q", "LS", "--metadata", "job=ls", *words)
        assert await command.exit() == 0, command.stderr
        return [line.split("\t")[0] for line in command.stdout.decode().splitlines()]

    assert await listed() == ids[::-1]
    assert await listed("--metadata", "n=1", "--model", "test-model") == ids[1:2]
    assert await listed("--since", "2020-01-31", "--until", "2021-01-31T18:00") == []


async def test_a_list_is_json_where_that_is_asked_for(run_command, service, upstream):
    id = (await service.start())["id"]
    await upstream.called()
    listing = await run_command("ls", "--status", "queued,streaming", "--json")
    assert await listing.exit() == 0
    first = json.loads(listing.stdout.splitlines()[0])
    assert first == (await service.generation(id)) | {"subscribers": first["subscribers"]}


async def test_a_transcript_comes_in_three_forms(run_command, service, upstream):
    async def script(call: Call) -> None:
        await call.send(call.chunk({"delta": {"reasoning_content": "Hm"}}))
        await call.say(EVIL)
        await call.finish()

    upstream.script = script
    id = await service.run()
    text, markdown, document = [
        await run_command("transcript", id, *words) for words in ((), ("--format=markdown",), ("--format=json",))
    ]
    assert [await command.exit() for command in (text, markdown, document)] == [0, 0, 0]
    assert text.stdout.decode() == EVIL
    assert markdown.stdout.decode() == f"> Hm\n\n{EVIL}\n"
    assert json.loads(document.stdout) == await service.transcript(id)


async def test_a_transcript_so_far_says_so_and_can_wait(run_command, service, upstream):
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("one ")
    await service.has(id, 2)
    so_far, whole = await run_command("transcript", id), await run_command("transcript", id, "--wait")
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
