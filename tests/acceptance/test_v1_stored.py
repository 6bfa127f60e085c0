"""Answers that are over, as OpenAI's clients ask for them: one, its messages, the list of all."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from openai.types.chat import ChatCompletion
from support.http1 import request
from support.samples import SAMPLES
from support.sse import messages
from support.upstream import USAGE, play, say
from support.v1 import CHAT_PATH, assert_refused, id_of

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "u1"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f"}}]},
    {"role": "tool", "content": "7", "tool_call_id": "c"},
    {"role": "user", "content": "and?"},
]
CHAT = {"model": "test-model", "messages": MESSAGES}


async def complete(api, body=None, **further) -> dict:
    """A chat completion, as its caller gets it."""
    answer = await api.post(CHAT_PATH, CHAT | (body or {}) | further)
    assert answer.status == 200, answer
    completion: dict = answer.json()
    return completion


async def found(api, path, **query) -> dict:
    """The object at a path below the list of completions."""
    answer = await api.get(f"{CHAT_PATH}{path}", **query)
    assert (answer.status, answer.media_type) == (200, "application/json"), answer
    assert answer.headers["x-request-id"]
    body: dict = answer.json()
    return body


def assert_list(page, data, *, has_more=False):
    """Hold a page against OpenAI's shape for lists."""
    ids = [item["id"] for item in page["data"]]
    assert ids == data
    assert page["object"] == "list"
    assert (page["first_id"], page["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))
    assert page["has_more"] is has_more


@pytest.fixture
def tag() -> dict[str, str]:
    """Metadata that no other test uses."""
    return {"tag": uuid.uuid4().hex}


# One.


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("sample", ["03-usage-only-empty-choices", "09-tool_calls-parallel", "12-logprobs"])
async def test_a_completion_is_found_as_it_was_answered(service, other_service, upstream, sample, stream):
    # given an answer that is over
    upstream.script = play(SAMPLES[sample])
    body = CHAT | {"metadata": {"k": "v"}, "stream": stream}
    answer = await service.post(CHAT_PATH, body)
    id = id_of(answer)

    # when it is asked for, then it is the whole, under its id, with its metadata
    completion = await found(service, f"/{id}")
    ChatCompletion.model_validate(completion, strict=True)
    assert (completion["id"], completion["metadata"]) == (id, {"k": "v"})
    assert "replay" not in completion
    if not stream:
        assert answer.json().items() <= completion.items()
    assert await found(other_service, f"/{id}") == completion
    assert len(upstream.calls) == 1


async def test_a_generation_that_was_started_elsewhere_is_found_too(service, upstream):
    upstream.script = say("Val", "key", usage=USAGE)
    id = await service.run({"prompt": "Hi", "model": "test-model"}, metadata={"k": 1})
    completion = await found(service, f"/{id}")
    assert completion["choices"][0]["message"]["content"] == "Valkey"
    assert (completion["id"], completion["usage"], completion["metadata"]) == (id, USAGE, {"k": 1})


async def test_one_that_runs_says_so_and_shows_what_there_is(service, other_service, upstream):
    # given a generation whose upstream has not spoken
    id = (await service.start(CHAT))["id"]
    call = await upstream.called()
    completion = await found(service, f"/{id}")
    assert completion["replay"] == {"status": "queued", "error": None}
    assert not any(choice["finish_reason"] for choice in completion["choices"])

    # when it does, then its words are there, and no end is made up for them
    await call.say("Hel")
    await service.has(id, 2)
    for api in (service, other_service):
        completion = await found(api, f"/{id}")
        assert completion["replay"] == {"status": "streaming", "error": None}
        (choice,) = completion["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Hel", None)

    # and when it is over, then nothing of ours is
    await call.finish()
    await service.ended(id)
    completion = await found(service, f"/{id}")
    assert "replay" not in completion
    assert completion["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("how", ["failed", "refused", "cancelled"])
async def test_one_that_did_not_complete_says_so_and_has_no_finish_reason(service, other_service, upstream, how):
    # given a generation that ended in another way
    id = (await service.start(CHAT))["id"]
    call = await upstream.called()
    if how == "refused":
        await call.respond(429, {"error": {"message": "busy"}})
    else:
        await call.say("partial")
        await service.has(id, 2)
    if how == "failed":
        await call.cut()
    if how == "cancelled":
        await service.post(f"/generations/{id}/cancel")
    generation = await service.ended(id)

    # then that is what it says
    for api in (service, other_service):
        completion = await found(api, f"/{id}")
        assert completion["replay"] == {"status": generation["status"], "error": generation["error"]}
        assert completion["replay"]["status"] == ("cancelled" if how == "cancelled" else "failed")
        said = [(choice["message"]["content"], choice["finish_reason"]) for choice in completion["choices"]]
        assert said == ([] if how == "refused" else [("partial", None)])


async def test_one_of_two_choices_without_a_finish_reason_gets_none(service, upstream):
    upstream.script = play(SAMPLES["11-n2-interleaved"])
    id = await service.run(CHAT | {"n": 2})
    completion = await found(service, f"/{id}")
    assert "replay" not in completion  # it is complete
    assert [choice["finish_reason"] for choice in completion["choices"]] == ["length", None]


@pytest.mark.parametrize("path", ["/gen_nobody", "/gen_nobody/messages", "/a.b", f"/{'x' * 129}"])
async def test_one_that_is_not_here_is_a_404(service, path):
    assert_refused(await service.get(f"{CHAT_PATH}{path}"), 404, "generation_not_found")
    if not path.endswith("/messages"):
        assert_refused(await service.delete(f"{CHAT_PATH}{path}"), 404, "generation_not_found")


async def test_one_that_has_expired_is_a_404_and_on_no_list(service, upstream, tag):
    upstream.script = say("a")
    gone = (await complete(service, metadata=tag, replay={"ttl": 1}))["id"]
    kept = (await complete(service, metadata=tag))["id"]
    await asyncio.sleep(1.3)
    assert_refused(await service.get(f"{CHAT_PATH}/{gone}"), 404, "generation_not_found")
    assert_list(await found(service, "", **{"metadata[tag]": tag["tag"]}), [kept])
    assert_refused(await service.get(CHAT_PATH, after=gone), 400, "invalid_request", message="after")


# Its messages.


@pytest.mark.parametrize("started", ["at /v1", "at /generations"])
async def test_messages_are_those_of_the_request_in_their_order(service, other_service, upstream, started):
    upstream.script = say("a")
    id = (await complete(service))["id"] if started == "at /v1" else await service.run(CHAT)
    for api in (service, other_service):
        page = await found(api, f"/{id}/messages")
        ids = [message["id"] for message in page["data"]]
        assert len(set(ids)) == len(MESSAGES)
        assert_list(page, ids)
        assert page["data"] == [{"id": own, **message} for own, message in zip(ids, MESSAGES, strict=True)]
        backwards = await found(api, f"/{id}/messages", order="desc")
        assert_list(backwards, ids[::-1])


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 4, 5, 100])
async def test_messages_come_in_pages(service, upstream, order, limit):
    upstream.script = say("a")
    id = (await complete(service))["id"]
    whole = [message["id"] for message in (await found(service, f"/{id}/messages", order=order))["data"]]
    got: list[str] = []
    while len(got) < len(whole):
        page = await found(service, f"/{id}/messages", order=order, limit=limit, after=got[-1] if got else None)
        expected = whole[len(got) : len(got) + limit]
        got += expected
        assert_list(page, expected, has_more=len(got) < len(whole))
    assert_list(await found(service, f"/{id}/messages", order=order, after=whole[-1]), [])


async def test_a_bare_prompt_is_one_message(service, upstream):
    upstream.script = say("a")
    id = await service.run({"prompt": "What is Valkey?", "model": "test-model"})
    (message,) = (await found(service, f"/{id}/messages"))["data"]
    assert (message["role"], message["content"]) == ("user", "What is Valkey?")


@pytest.mark.parametrize("state", ["running", "failed"])
async def test_messages_are_there_whatever_became_of_the_answer(service, upstream, state):
    id = (await service.start(CHAT))["id"]
    call = await upstream.called()
    if state == "failed":
        await call.cut()
        await service.ended(id)
    assert len((await found(service, f"/{id}/messages"))["data"]) == len(MESSAGES)


@pytest.mark.parametrize("started", ["at /v1", "at /generations"])
async def test_messages_that_were_not_to_be_stored_are_a_404_that_says_why(service, upstream, started):
    upstream.script = say("a")
    body = CHAT | {"store": False}
    id = (await complete(service, body))["id"] if started == "at /v1" else await service.run(body)
    assert_refused(await service.get(f"{CHAT_PATH}/{id}/messages"), 404, "generation_not_found", message="store")
    assert upstream.calls[0].request["store"] is False
    assert (await found(service, f"/{id}"))["id"] == id  # the answer is recorded all the same


async def test_messages_that_are_too_large_to_be_kept_are_a_404_that_says_why(service, upstream):
    upstream.script = say("a")
    fits = [{"role": "user", "content": "x" * 200_000}]
    assert (await found(service, f"/{(await complete(service, messages=fits))['id']}/messages"))["data"]
    id = (await complete(service, messages=fits * 2))["id"]
    assert_refused(await service.get(f"{CHAT_PATH}/{id}/messages"), 404, "generation_not_found", message="bytes")
    assert (await found(service, f"/{id}"))["id"] == id


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": 101}, {"limit": "x"}, {"order": "up"}, {"after": "nobody"}], ids=str
)
@pytest.mark.parametrize("of", ["the list", "messages"])
async def test_a_page_that_cannot_be_is_a_400(service, upstream, query, of):
    upstream.script = say("a")
    path = CHAT_PATH if of == "the list" else f"{CHAT_PATH}/{(await complete(service))['id']}/messages"
    assert_refused(await service.get(path, **query), 400, "invalid_request", message=next(iter(query)))


# The list.


async def test_the_list_is_oldest_first_and_paged_to_its_end(node, upstream):
    # given completions, some of which began in the same millisecond
    upstream.script = say("a")
    assert_list(await found(node.api, ""), [])
    ids = [(await complete(node.api))["id"] for _ in range(3)]
    at_once = {completion["id"] for completion in await asyncio.gather(*(complete(node.api) for _ in range(6)))}
    whole = [completion["id"] for completion in (await found(node.api, ""))["data"]]
    assert whole[:3] == ids
    assert len(whole) == 9
    assert set(whole[3:]) == at_once

    # when it is read in pages of any size, either way round, then each is there once
    for order, expected in (("asc", whole), ("desc", whole[::-1])):
        for limit in (1, 2, 4, 9, 100):
            got: list[str] = []
            while len(got) < len(expected):
                page = await found(node.api, "", order=order, limit=limit, after=got[-1] if got else None)
                assert_list(page, expected[len(got) : len(got) + limit], has_more=len(got) + limit < len(expected))
                got += [completion["id"] for completion in page["data"]]
            assert got == expected
            assert_list(await found(node.api, "", order=order, after=expected[-1]), [])


async def test_the_list_has_twenty_where_no_limit_is_given(node, upstream):
    upstream.script = say("a")
    ids = [(await complete(node.api))["id"] for _ in range(21)]
    assert_list(await found(node.api, ""), ids[:20], has_more=True)
    assert_list(await found(node.api, "", order="desc"), ids[:0:-1], has_more=True)


async def test_the_list_shows_the_completions_themselves(service, other_service, upstream, tag):
    upstream.script = say("Hel", "lo", usage=USAGE)
    ids = [(await complete(service, metadata=tag))["id"], await service.run(CHAT, metadata=tag)]
    for api in (service, other_service):
        page = await found(api, "", **{"metadata[tag]": tag["tag"]})
        assert_list(page, ids)
        assert page["data"] == [await found(api, f"/{id}") for id in ids]


async def test_the_list_has_completed_chats_alone(service, upstream, tag):
    # given generations of every kind and every end
    upstream.script = say("a")
    wanted = [(await complete(service, metadata=tag))["id"]]
    assert (
        await service.post("/v1/completions", {"model": "test-model", "prompt": "Hi", "metadata": tag})
    ).status == 200
    upstream.script = play(SAMPLES["20-error-object-midstream-no-DONE"])
    await service.run(CHAT, metadata=tag)
    upstream.script = None
    running = (await service.start(CHAT, metadata=tag))["id"]
    call = await upstream.called()
    await call.say("a")
    await service.has(running, 2)
    cancelled = (await service.start(CHAT, metadata=tag))["id"]
    await upstream.called()
    await service.post(f"/generations/{cancelled}/cancel")
    upstream.script = say("a")
    wanted.append(await service.run(CHAT, metadata=tag))
    query = {"metadata[tag]": tag["tag"]}

    # then only the chats that are complete are listed
    assert_list(await found(service, "", **query), wanted)

    # and another one as soon as it is, at the place where it began
    await call.finish()
    await service.ended(running)
    assert_list(await found(service, "", **query), [wanted[0], running, wanted[1]])

    # and pages go on from any generation that is there, listed or not
    assert_list(await found(service, "", after=cancelled, **query), wanted[1:])


async def test_the_list_can_be_narrowed_to_a_model_and_to_metadata(service, other_service, upstream, tag):
    # given completions of two models, with metadata of several keys
    upstream.script = say("a")
    kinds = [("test-model", "x"), ("other-model", "x"), ("test-model", "y"), ("test-model", "x"), ("test-model", "é&=")]
    ids = [(await complete(service, model=model, metadata=tag | {"kind of": kind}))["id"] for model, kind in kinds]
    ours = {"metadata[tag]": tag["tag"]}

    for query, places in [
        ({}, [0, 1, 2, 3, 4]),
        ({"model": "test-model"}, [0, 2, 3, 4]),
        ({"model": "other-model"}, [1]),
        ({"model": "unheard-of"}, []),
        ({"metadata[kind of]": "x"}, [0, 1, 3]),
        ({"metadata[kind of]": "x", "model": "test-model"}, [0, 3]),
        ({"metadata[kind of]": "é&="}, [4]),
        ({"metadata[kind of]": "z"}, []),
        ({"metadata[unheard]": "x"}, []),
    ]:
        for api in (service, other_service):
            assert_list(await found(api, "", **ours, **query), [ids[place] for place in places])

    # and in pages, too
    page = await found(service, "", **ours, limit=2, **{"metadata[kind of]": "x"})
    assert_list(page, [ids[0], ids[1]], has_more=True)
    page = await found(service, "", **ours, limit=2, after=page["last_id"], **{"metadata[kind of]": "x"})
    assert_list(page, [ids[3]])


# Deleting.


async def test_deleting_leaves_no_trace(service, other_service, upstream, tag):
    # given a completion
    upstream.script = say("a")
    id = (await complete(service, metadata=tag))["id"]
    kept = (await complete(service, metadata=tag))["id"]

    # when it is deleted on another node
    answer = await other_service.delete(f"{CHAT_PATH}/{id}")
    assert (answer.status, answer.media_type) == (200, "application/json")
    assert answer.json() == {"id": id, "object": "chat.completion.deleted", "deleted": True}

    # then it is nowhere any more, and what is beside it is
    for api in (service, other_service):
        for path in (f"{CHAT_PATH}/{id}", f"{CHAT_PATH}/{id}/messages"):
            assert_refused(await api.get(path), 404, "generation_not_found")
        assert (await api.get(f"/generations/{id}")).status == 404
        assert_list(await found(api, "", **{"metadata[tag]": tag["tag"]}), [kept])
    assert_refused(await service.delete(f"{CHAT_PATH}/{id}"), 404, "generation_not_found")


async def test_deleting_one_that_runs_cancels_it(service, other_service, upstream):
    # given a streamed call that is under way
    starting = asyncio.create_task(service.open(CHAT_PATH, CHAT | {"stream": True}))
    call = await upstream.called()
    await call.say("partial")
    stream = await starting
    await stream.until(b"partial")

    # when it is deleted
    id = id_of(stream)
    assert (await other_service.delete(f"{CHAT_PATH}/{id}")).status == 200

    # then the upstream is let go, its client is told, and it is gone
    await call.hung_up()
    answer = await stream.to_end()
    assert not answer.clean
    assert messages(answer.body)[-1].json()["error"]["code"] == "cancelled"
    assert_refused(await service.get(f"{CHAT_PATH}/{id}"), 404, "generation_not_found")


async def test_a_page_of_another_site_may_not_delete(service, upstream):
    upstream.script = say("a")
    id = (await complete(service))["id"]
    answer = await request("DELETE", service.at(f"{CHAT_PATH}/{id}"), headers={"Sec-Fetch-Site": "cross-site"})
    assert_refused(answer, 403, "cross_site_request")
    assert (await found(service, f"/{id}"))["id"] == id
