"""What comes of streams that no standard has; `tests/samples/README.md` says of each what is right."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.raw_upstream import END, RawUpstream, chunk
from support.samples import DIRECTORY, Sample
from support.sse import messages
from support.upstream import play, respond, said
from support.v1 import CHAT, CHAT_PATH, INPUT, LEGACY, LEGACY_PATH, RESPONSES_PATH, ask

BODIES = {CHAT_PATH: CHAT, LEGACY_PATH: LEGACY, RESPONSES_PATH: INPUT}
_ROW = re.compile(r"\| (?P<file>[\w-]+\.\w+) \|.*\| (?P<right>[^|]+) \|")


@dataclass(frozen=True)
class Odd:
    """A row of the tables."""

    path: Path
    right: str

    def word(self, name: str, otherwise: str = "") -> str:
        """What the row says behind a name."""
        found = re.search(f"{name} `([^`]*)`", self.right)
        return otherwise if found is None else found[1]

    @property
    def status(self) -> str:
        return self.right.split("`")[1]

    @property
    def asked_at(self) -> str:
        return self.word("asked at", CHAT_PATH)

    @property
    def sample(self) -> Sample:
        headers = {"content-type": self.word("sent as", "text/event-stream")}
        return Sample(self.path.stem, 200, headers, self.path.read_bytes())

    def holds(self, error):
        """Hold an error, as a generation has it, against the row."""
        if self.status == "completed":
            assert error is None
            return
        assert error["code"] == self.word("code", "upstream_error")
        assert self.word("says") in error["message"]


TABLES, _ = (DIRECTORY / "README.md").read_text().split("## Shapes of their own")
ROWS = filter(None, map(_ROW.fullmatch, TABLES.splitlines()))
ODD = [Odd(DIRECTORY / "odd" / row["file"], row["right"]) for row in ROWS]


def each(odd):
    return pytest.mark.parametrize("odd", [pytest.param(each, id=each.path.stem) for each in odd])


async def stream(api, path):
    """A streamed call, read to its end, and its id."""
    answer = await ask(api, BODIES[path], stream=True)
    return answer, answer.headers.get("replay-generation-id")


def test_every_stream_is_in_a_table():
    assert sorted(odd.path.name for odd in ODD) == sorted(path.name for path in (DIRECTORY / "odd").iterdir())


@each(odd for odd in ODD if odd.asked_at == CHAT_PATH)
async def test_odd_stream_becomes_what_is_right(service, upstream, odd):
    upstream.script = play(odd.sample)
    id = await service.run()
    generation = await service.generation(id)
    assert generation["status"] == odd.status
    odd.holds(generation["error"])
    assert (await service.transcript(id))["text"] == odd.word("text")
    if "finish reason" in odd.right:
        assert generation["finish_reason"] == odd.word("finish reason")
    if "total tokens" in odd.right:
        assert generation["usage"]["total_tokens"] == int(odd.word("total tokens"))


@each(odd for odd in ODD if odd.asked_at == CHAT_PATH)
async def test_odd_stream_in_pieces_reaches_a_client_of_openais_api(service, upstream, odd):
    # given an upstream that sends it a few bytes at a time
    upstream.script = play(odd.sample, 11)

    # when it is asked for
    answer, id = await stream(service, CHAT_PATH)

    # then what failed before its first word is refused, what failed later has an error and a cut, the rest its end mark
    if answer.status != 200:
        error = answer.json()["error"]
        assert (odd.status, odd.word("text")) == ("failed", "")
        assert odd.word("says") in error["message"]
        return
    *chunks, last = [message.data for message in messages(answer.body)]
    deltas = [choice["delta"] for each in chunks for choice in json.loads(each)["choices"] if not choice["index"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == odd.word("text")
    assert answer.clean == (odd.status == "completed") == (last == "[DONE]")
    if odd.status == "failed":
        assert odd.word("says") in json.loads(last)["error"]["message"]
    assert (await service.generation(id))["status"] == odd.status


@each(odd for odd in ODD if odd.asked_at != CHAT_PATH)
async def test_odd_stream_of_another_api_becomes_what_is_right(make_node, upstream, odd):
    node = await make_node()
    upstream.speaks_responses = True
    upstream.script = play(odd.sample)
    _, id = await stream(node.api, odd.asked_at)
    generation = await node.api.generation(id)
    assert generation["status"] == odd.status
    odd.holds(generation["error"])
    assert (await node.api.transcript(id))["text"] == odd.word("text")
    if "finish reason" in odd.right:
        assert generation["finish_reason"] == odd.word("finish reason")


# Labels.


async def test_stream_without_a_content_type_is_read(make_node):
    async with RawUpstream() as raw:
        events = (DIRECTORY / "odd" / "120-sse-under-text-plain.sse").read_bytes()
        raw.play = lambda asked: [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", chunk(events), END]
        node = await make_node(upstream_url=f"http://127.0.0.1:{raw.port}/v1")
        assert (await node.api.ended(await node.api.run()))["status"] == "completed"


async def test_endless_page_is_read_no_further_than_its_first_line(service, upstream):
    async def page(call):
        await call.answer(headers={"content-type": "text/html"})
        await call.send_raw(b"<html>\n")
        await call.hung_up()

    upstream.script = page
    assert (await service.ended(await service.run()))["error"]["code"] == "upstream_invalid"


async def test_completion_to_a_call_without_stream_comes_back_as_it_was(service, upstream):
    odd = next(odd for odd in ODD if odd.path.stem == "128-whole-tool-calls")
    upstream.script = play(odd.sample)
    answer = await service.post(CHAT_PATH, BODIES[CHAT_PATH])
    sent, got = json.loads(odd.sample.body), answer.json()
    assert got["choices"][0]["message"]["tool_calls"] == sent["choices"][0]["message"]["tool_calls"]
    assert (got["usage"], got["choices"][0]["finish_reason"]) == (sent["usage"], "tool_calls")
    assert got["object"] == "chat.completion"


async def test_whole_response_is_told_in_the_events_that_lead_to_it(make_node, upstream):
    # given an upstream that answers with a whole response, and one that streams
    node = await make_node()
    upstream.speaks_responses = True
    events = said("whole")
    upstream.script = respond(events)
    streamed, _ = await stream(node.api, "/v1/responses")
    upstream.script = lambda call: call.respond(200, events[-1]["response"])

    # when it is asked
    answer, id = await stream(node.api, "/v1/responses")

    # then a client sees the same, but for a second event that says nothing new
    def told(answer):
        parsed = [message.json() for message in messages(answer.body)]
        return [(event["type"], event.get("delta")) for event in parsed if event["type"] != "response.in_progress"]

    assert told(answer) == told(streamed)
    assert (await node.api.get(f"/v1/responses/{id}")).json()["output"] == events[-1]["response"]["output"]


# Signs of life.


async def test_heartbeats_are_a_sign_of_life_and_noted_once(make_node, upstream):
    # given an upstream that beats for longer than it may be silent
    node = await make_node(upstream_idle_timeout_s=1)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    for _ in range(8):
        await call.send_raw(b"data: ping\n\n")
        await asyncio.sleep(0.2)
    await call.say("a")
    await call.finish()

    # then it is not given up, and the node's log says once what came
    assert (await node.api.ended(id))["status"] == "completed"
    noted = [line for line in node.stderr.splitlines() if "no chunk" in line]
    assert len(noted) == 1
    assert "ping" in noted[0]


# Failures behind a cut.


@pytest.mark.parametrize("how", ["clean end", "cut"])
@pytest.mark.parametrize(
    "piece", [b'event: error\ndata: {"message": "the model is on fire"}', b"error: the model is on fire"]
)
async def test_last_words_count_though_the_line_or_the_connection_breaks(service, upstream, how, piece):
    async def fail(call):
        await call.say("a")
        await call.send_raw(piece)
        await (call.cut() if how == "cut" else call.done())

    upstream.script = fail
    error = (await service.ended(await service.run()))["error"]
    assert (error["code"], error["message"]) == ("upstream_error", "the model is on fire")


async def test_finish_reason_that_means_failure_counts_though_the_connection_breaks(service, upstream):
    async def fail(call):
        await call.say("a")
        await call.send(call.chunk({"delta": {}, "finish_reason": "abort"}))
        await call.cut()

    upstream.script = fail
    generation = await service.ended(await service.run())
    assert (generation["status"], generation["error"]["code"]) == ("failed", "upstream_error")
    assert generation["error"]["upstream"] == {"code": "abort"}
