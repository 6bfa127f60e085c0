"""Chunks with more than their text in which something changes: every reader gets them as the upstream sent them."""

from __future__ import annotations

import json

import pytest
from support.http1 import open_stream
from support.sse import messages
from support.v1 import ask, id_of

TEXTS = ["Val", "key", ' "é"\n', "", " is", " fast", " 😀", "."]


def chunks():
    """Obfuscation, the usage so far, a time, reasoning under two names, and the message so far, all at once."""
    so_far = ""
    for place, text in enumerate(TEXTS):
        so_far += text
        yield {
            "id": f"chatcmpl-{place}",
            "created": 1_700_000_000 + place,
            "choices": [
                {
                    "index": 0,
                    "delta": {"content": text, "reasoning": f"r{place}", "reasoning_content": f"r{place}"},
                    "message": {"role": "assistant", "content": so_far},
                    "finish_reason": None,
                }
            ],
            "usage": {"prompt_tokens": 5, "completion_tokens": place, "total_tokens": 5 + place},
            "obfuscation": "aB3" * place,
        }
    yield {
        "id": "chatcmpl-x",
        "created": 1_700_000_100,
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
    }


async def play(call):
    for chunk in chunks():
        await call.send(chunk)
    await call.send_raw(b"data: [DONE]\n\n")
    await call.done()


def read(answer):
    *events, done = messages(answer.body)
    assert done.data == "[DONE]"
    return [(event.last_event_id, json.loads(event.data)) for event in events]


@pytest.mark.parametrize("elsewhere", [False, True], ids=["its node", "another node"])
async def test_chunks_come_as_they_were_sent_live_and_recorded_and_from_any_event(
    service, other_service, upstream, elsewhere
):
    # given a reader that follows from the first chunk on
    reader = other_service if elsewhere else service
    id = (await service.start({"prompt": "Hi"}))["id"]
    call = await upstream.called()
    following = await open_stream(reader.at(f"/generations/{id}/events", format="openai"))
    await play(call)
    live = read(await following.to_end())

    # when it is read again, as a whole and by readers that have a part already
    recorded = read(await reader.read(id, format="openai"))
    rests = [read(await reader.read(id, {"Last-Event-ID": event_id}, format="openai")) for event_id, _ in live]

    # then
    assert [chunk for _, chunk in live] == [chunk | {"id": id} for chunk in chunks()]
    assert recorded == live
    assert rests == [live[place:] for place in range(1, len(live) + 1)]


async def test_transcript_and_usage_are_those_of_the_chunks(service, other_service, upstream):
    upstream.script = play
    id = await service.run()
    for api in (service, other_service):
        transcript = await api.transcript(id)
        assert transcript["text"] == "".join(TEXTS)
        assert transcript["message"]["reasoning"] == "".join(f"r{place}" for place in range(len(TEXTS)))
        assert transcript["usage"] == {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


async def test_a_client_of_openai_gets_what_the_upstream_sent(service, upstream):
    upstream.script = play
    answer = await ask(service, stream=True)
    id = id_of(answer)
    assert [chunk for _, chunk in read(answer)] == [chunk | {"id": id} for chunk in chunks()]
