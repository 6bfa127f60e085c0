"""A call that says it is a retry gets what its first try has started; nobody else does."""

from __future__ import annotations

import asyncio
import hashlib
import uuid

import pytest
from support.api import Api
from support.deadlines import eventually
from support.logs import expiries
from support.upstream import say
from support.v1 import CALLS, CHAT, CHAT_PATH, id_of, streamed_or_whole

STREAMED = CHAT | {"stream": True}
KNOWN_S = 1.2  # after which every node knows of every reader, and does not hesitate for want of that


@pytest.fixture
def caller() -> dict[str, str]:
    """The headers of one caller."""
    return {"Authorization": f"Bearer sk-{uuid.uuid4()}"}


def again(caller: dict[str, str], count: int = 1) -> dict[str, str]:
    return caller | {"x-stainless-retry-count": str(count)}


async def given_up(api: Api, upstream, headers, path=CHAT_PATH, body=STREAMED):
    """A first try whose client has hung up: the upstream's call, and the generation's id."""
    trying = asyncio.ensure_future(api.post(path, body, headers))
    call = await upstream.called()
    trying.cancel()
    await asyncio.wait([trying])
    return call, await api.newest()


async def trying(api: Api, headers, path=CHAT_PATH, body=STREAMED):
    """A call under way."""
    task = asyncio.ensure_future(api.post(path, body, headers))
    await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("there", ["here", "elsewhere"])
@streamed_or_whole
@pytest.mark.parametrize("name", CALLS)
async def test_a_retry_gets_what_its_first_try_has_started(
    service, other_service, upstream, caller, name, stream, there
):
    # given a client that has given up waiting for the first word
    path, body = CALLS[name]
    body = body | {"stream": stream}
    call, id = await given_up(service, upstream, again(caller, 0), path, body)

    # when it tries again, at once, here or elsewhere
    retry = await trying(service if there == "here" else other_service, again(caller), path, body)
    await service.has_subscribers(id, 1)
    await call.say("Hel")
    await call.say("lo")
    await call.finish()

    # then it has all of that, and the upstream was called once
    answer = await retry
    assert (answer.status, id_of(answer)) == (200, id)
    assert b"Hel" in answer.body
    assert len(upstream.calls) == 1


async def test_a_retry_gets_what_was_said_before_it_came(service, other_service, upstream, caller):
    call, id = await given_up(service, upstream, caller)
    await call.say("Hel")
    await service.has(id, 2)
    retry = await other_service.open(CHAT_PATH, STREAMED, again(caller))
    await retry.until(b"Hel")
    await call.finish()
    await retry.to_end()
    assert len(upstream.calls) == 1


async def test_every_retry_gets_it_and_however_the_answer_is_to_be_sent(service, other_service, upstream, caller):
    # given a client that gives up twice
    call, id = await given_up(service, upstream, caller)
    retry = await trying(other_service, again(caller))
    await service.has_subscribers(id, 1)
    retry.cancel()
    await service.has_subscribers(id, 0)

    # when it asks for the whole in the end
    last = await trying(service, again(caller, 2), body=CHAT | {"stream_options": None})
    await service.has_subscribers(id, 1)
    await call.say("Hello")
    await call.finish()
    answer = await last
    assert (answer.status, id_of(answer)) == (200, id)
    assert answer.json()["choices"][0]["message"]["content"] == "Hello"
    assert len(upstream.calls) == 1


OTHERS = {
    "another key": {"Authorization": "Bearer sk-other"},
    "no key": {},
    "another organization": {"OpenAI-Organization": "org-2"},
    "another cookie": {"Cookie": "session=2"},
    "another user of a proxy": {"X-Forwarded-User": "eve"},
}


@pytest.mark.parametrize("other", OTHERS)
async def test_a_retry_of_another_caller_starts_its_own(service, upstream, caller, other):
    _, id = await given_up(service, upstream, caller)
    headers = OTHERS[other] if other == "no key" else caller | OTHERS[other]
    upstream.script = say("a")
    answer = await service.post(CHAT_PATH, STREAMED, again(headers))
    assert answer.status == 200
    assert id_of(answer) != id
    assert len(upstream.calls) == 2


@pytest.mark.parametrize("other", [{"seed": 1}, {"model": "other-model"}, {"replay": {"ttl": 60}}], ids=repr)
async def test_a_retry_with_another_body_starts_its_own(service, upstream, caller, other):
    _, id = await given_up(service, upstream, caller)
    upstream.script = say("a")
    answer = await service.post(CHAT_PATH, STREAMED | other, again(caller))
    assert id_of(answer) != id
    assert len(upstream.calls) == 2


@pytest.mark.parametrize("count", ["0", None, "", "-1", "x", "²"], ids=repr)
async def test_a_call_that_is_no_retry_starts_its_own(service, upstream, caller, count):
    _, id = await given_up(service, upstream, caller)
    upstream.script = say("a")
    headers = caller if count is None else caller | {"x-stainless-retry-count": count}
    answer = await service.post(CHAT_PATH, STREAMED, headers)
    assert id_of(answer) != id
    assert len(upstream.calls) == 2


@pytest.mark.parametrize("reader", ["its own caller", "somebody on another node"])
async def test_what_has_a_reader_is_not_taken_from_it(service, other_service, upstream, caller, reader):
    # given a call like the retry's that is read
    if reader == "its own caller":
        first = await trying(service, caller)
        call = await upstream.called()
        id = await service.newest()
    else:
        call, id = await given_up(service, upstream, caller)
        first = asyncio.ensure_future(other_service.read(id))
    await service.has_subscribers(id, 1)

    # when a retry comes, on either node
    for api in (service, other_service):
        retry = await trying(api, again(caller))
        own = await upstream.called()
        await own.finish()
        assert id_of(await retry) != id

    # then the reader has its answer for itself
    assert (await service.generation(id))["subscribers"] == 1
    await call.finish()
    await first


async def test_a_retry_that_hangs_up_before_it_got_anything_starts_nothing(service, upstream, caller):
    # given a call that is read, and a retry that waits for that to change, and is given up
    first = await trying(service, caller)
    call = await upstream.called()
    id = await service.newest()
    await service.has_subscribers(id, 1)
    retry = await trying(service, again(caller))
    await service.has_subscribers(id, 1)
    retry.cancel()
    await asyncio.wait([retry])

    # when the next one has waited long enough to start its own
    last = await trying(service, again(caller, 2))
    own = await upstream.called()

    # then that is its own, and the one before has started none
    await own.say("mine")
    await own.finish()
    assert b"mine" in (await last).body
    assert len(upstream.calls) == 2
    await call.finish()
    await first


async def test_of_retries_that_come_together_each_gets_another(service, other_service, upstream, caller):
    # given calls that are alike, as for several samples, and were given up together
    calls = {}
    for _ in range(3):
        call, id = await given_up(service, upstream, caller)
        calls[id] = call
    await asyncio.sleep(KNOWN_S)
    # when each is tried again, on any node
    retries = [await trying(api, again(caller)) for api in (service, other_service, service)]
    for id in calls:
        await service.has_subscribers(id, 1)
    for call in calls.values():
        await call.say("a")
        await call.finish()
    # then no two of them get the same
    answers = await asyncio.gather(*retries)
    assert {id_of(answer) for answer in answers} == calls.keys()
    assert len(upstream.calls) == 3


async def test_of_two_retries_of_one_call_one_starts_its_own(service, other_service, upstream, caller):
    call, id = await given_up(service, upstream, caller)
    await asyncio.sleep(KNOWN_S)
    retries = [await trying(api, again(caller)) for api in (service, other_service)]
    own = await upstream.called()
    for each in (call, own):
        await each.say("a")
        await each.finish()
    ids = {id_of(answer) for answer in await asyncio.gather(*retries)}
    assert len(ids) == 2
    assert id in ids
    assert len(upstream.calls) == 2


async def test_what_has_ended_is_not_attached_to(make_node, valkey, upstream, caller):
    # given a first try that has ended, and is still noted, as when its node could not say so
    nodes = [await make_node(), await make_node()]
    call, id = await given_up(nodes[0].api, upstream, caller)
    names = await eventually("the note", lambda: expiries(valkey), lambda found: any(":tries:" in key for key in found))
    await asyncio.sleep(KNOWN_S)
    await call.finish()
    await nodes[0].api.ended(id)
    async with valkey.client() as client:
        (note,) = [name for name in names if ":tries:" in name]
        await eventually("its end", lambda: client.exists(note), lambda there: not there)
        upstream.script = say("a")
        for node in nodes:
            await client.zadd(note, {id: 1})
            answer = await node.api.post(CHAT_PATH, STREAMED, again(caller))
            assert id_of(answer) != id


async def test_a_node_that_was_killed_keeps_no_retry_waiting(make_node, upstream, caller):
    # given a first try on a node that is killed, and whose lease goes on
    here, there = await make_node(lease_s=60), await make_node(lease_s=60)
    _, lost = await given_up(here.api, upstream, caller)
    await asyncio.sleep(KNOWN_S)
    here.kill()
    # when the client tries again on another node
    upstream.script = say("a")
    answer = await there.api.post(CHAT_PATH, STREAMED, again(caller))
    # then it gets an answer
    assert answer.status == 200
    assert id_of(answer) != lost
    assert b"[DONE]" in answer.body


async def test_it_can_be_turned_off(make_node, upstream, caller):
    node = await make_node(attach_retries="off")
    _, id = await given_up(node.api, upstream, caller)
    upstream.script = say("a")
    answer = await node.api.post(CHAT_PATH, STREAMED, again(caller))
    assert id_of(answer) != id


async def test_valkey_holds_nothing_of_the_credentials_and_nothing_of_what_has_ended(
    make_node, valkey, upstream, caller
):
    node = await make_node()
    call, id = await given_up(node.api, upstream, caller)
    secret = caller["Authorization"].encode()
    digests = [hash(text).hexdigest() for hash in (hashlib.sha256, hashlib.md5) for text in (secret, secret[7:])]
    names = await eventually("the note", lambda: expiries(valkey), lambda found: any(":tries:" in key for key in found))
    async with valkey.client(decode_responses=True) as client:
        held = " ".join([*names, repr(await client.xrange(f"replay:{{{id}}}:events"))])
    assert not [text for text in (secret.decode(), *digests) if text in held or text[:32] in held]
    assert ":tries:" in held

    # when it has ended
    await call.finish()
    await node.api.ended(id)
    await eventually("the end", lambda: expiries(valkey), lambda found: not any(":tries:" in key for key in found))


async def test_a_retry_is_found_again_when_valkey_has_lost_the_note(make_node, valkey, upstream, caller):
    node = await make_node()
    call, id = await given_up(node.api, upstream, caller)
    async with valkey.client() as client:
        await client.flushall()
    await call.say("a")  # its node finds out, and puts everything back
    await eventually("the note", lambda: expiries(valkey), lambda found: any(":tries:" in key for key in found))
    retry = await trying(node.api, again(caller))
    await node.api.has_subscribers(id, 1)
    await call.finish()
    assert id_of(await retry) == id
