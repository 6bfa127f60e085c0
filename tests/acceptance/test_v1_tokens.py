"""`/v1/completions/stream`: a generation for a plain page, whose `EventSource` resumes it by itself."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import random
import re

import pytest
from support.api import Api
from support.deadlines import eventually
from support.fault_proxy import FaultProxy
from support.http1 import open_stream, request
from support.samples import SAMPLES
from support.sse import EventSourceClient, messages, read_stream, streaming
from support.upstream import generate, play, say
from support.v1 import DONE, PROMPT_S, TOKENS_PATH, assert_refused, id_of

TOKEN = rb"data: \{[^\r\n\0]*\}\nid: [\w-]+:\d+-\d+\n\n"
LAST = rb"data: \[DONE\]\nid: [\w-]+:\d+-\d+\n\n"


def url(api, **query) -> str:
    """Where a page listens."""
    return api.at(TOKENS_PATH, **({"prompt": "What is Valkey?"} | query))


async def read(api, cursor=None, **query):
    """One connection, read to its end."""
    headers = {} if cursor is None else {"Last-Event-ID": cursor}
    answer = await read_stream(url(api, **query), headers, PROMPT_S)
    api.note(answer)
    return answer


async def post(api, body, headers=None):
    """The same with a body, read to its end."""
    answer = await api.post(TOKENS_PATH, body, headers)
    api.note(answer)
    return answer


def opening(api, headers=None, **query):
    """A connection whose head has not come yet."""
    return asyncio.create_task(
        open_stream(url(api, **query), headers={"Accept": "text/event-stream", **(headers or {})})
    )


async def block_with(stream, text):
    """The body up to the end of the block that has a text."""
    return await stream.until(b"\n\n", after=(await stream.until(text)).index(text))


def parts(event) -> tuple[str, str]:
    """The generation's id and the event's, of an id on the wire."""
    generation_id, _, event_id = event.last_event_id.partition(":")
    return generation_id, event_id


def tokens(events) -> list:
    return [event.json()["token"] for event in events if event.data != DONE]


# What a page sees.


async def test_a_page_sees_the_words_and_then_that_it_was_all(service, upstream):
    # given an upstream with a role, words and usage
    upstream.script = play(SAMPLES["02-role-and-content-together"])

    # when a page listens
    answer = await read(service)

    # then it is tokens, and [DONE], each under the generation's id and the event's
    assert (answer.status, answer.clean) == (200, True)
    assert re.fullmatch(rb"retry: 1000\n(?:" + TOKEN + rb")+" + LAST, answer.body)
    *said, last = messages(answer.body)
    assert [event.json() for event in said] == [{"token": token} for token in ("Hel", "lo ", "caf", "é 😀")]
    assert (last.event, last.data) == ("message", DONE)
    id = id_of(answer)
    log = await service.log(id)
    wanted = [event.last_event_id for event in log if event.event in ("token", "end")]
    assert [parts(event) for event in (*said, last)] == [(id, event_id) for event_id in wanted]


async def test_the_head_is_that_of_an_event_stream_and_names_the_generation(service, upstream):
    upstream.script = say("a")
    answer = await read(service)
    id = id_of(answer)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["link"] == f'</generations/{id}/events>; rel="monitor"'
    assert answer.headers["x-request-id"]


async def test_each_word_arrives_before_the_next_is_produced(service, upstream):
    starting = opening(service)
    call = await upstream.called()
    await call.say("word0")
    stream = await starting
    for number in range(1, 10):
        await stream.until(b"word%d" % (number - 1))
        await call.say(f"word{number}")
    await call.finish()
    answer = await stream.to_end()
    assert tokens(messages(answer.body)) == [f"word{number}" for number in range(10)]


async def test_words_are_one_line_whatever_they_are(service, upstream):
    texts = [" lead", "\r\n", "\n\ndata: x\n\n", "\r", "a\0b", "\u2028", '"\\', "\ufeff", "😀é", DONE, " "]
    upstream.script = say(*texts)
    answer = await read(service)
    assert re.fullmatch(rb"retry: 1000\n(?:" + TOKEN + rb")+" + LAST, answer.body)
    assert tokens(messages(answer.body)) == texts


@pytest.mark.parametrize("sample", ["07-reasoning_content", "08-tool_calls", "49-vllm-finish-with-content"])
async def test_a_page_sees_visible_text_alone(service, upstream, sample):
    upstream.script = play(SAMPLES[sample])
    answer = await read(service)
    assert answer.clean
    id = id_of(answer)
    said = tokens(messages(answer.body))
    assert "".join(said) == (await service.transcript(id))["text"]
    assert "" not in said
    assert messages(answer.body)[-1].data == DONE


async def test_the_parameters_of_the_url_are_the_upstreams(service, upstream):
    upstream.script = say("a")
    wanted = {"model": "other-model", "max_tokens": 7, "temperature": 0.5, "top_p": 0.25, "seed": 3}
    assert (await read(service, **wanted)).status == 200
    (call,) = upstream.calls
    assert call.path == "/v1/chat/completions"
    assert call.request["messages"] == [{"role": "user", "content": "What is Valkey?"}]
    assert {name: call.request[name] for name in wanted} == wanted
    assert set(call.request) == {*wanted, "messages", "stream", "stream_options"}


async def test_without_a_model_the_first_of_the_upstream_is_taken(service, upstream):
    upstream.script = say("a")
    await read(service)
    assert upstream.calls[0].request["model"] == "test-model"


async def test_a_post_says_the_same_in_json(service, upstream):
    upstream.script = say("Hel", "lo")
    body = {"prompt": "Hi", "model": "other-model", "stop": ["x"], "replay": {"metadata": {"k": "v"}}}
    answer = await post(service, body)
    assert (answer.status, answer.clean) == (200, True)
    assert tokens(messages(answer.body)) == ["Hel", "lo"]
    (call,) = upstream.calls
    assert call.request["messages"] == [{"role": "user", "content": "Hi"}]
    assert (call.request["model"], call.request["stop"], call.request["stream"]) == ("other-model", ["x"], True)
    assert {"prompt", "replay"}.isdisjoint(call.request)
    id = id_of(answer)
    assert (await service.generation(id))["metadata"] == {"k": "v"}

    # and resumes as a GET does, whatever its body says
    cursor = messages(answer.body)[0].last_event_id
    another = {"prompt": "another"}
    for again in (
        await post(service, another, {"Last-Event-ID": cursor}),
        await request("POST", service.at(TOKENS_PATH, after=cursor), json_body=another),
        await request("POST", service.at(TOKENS_PATH, lastEventId=cursor), json_body=another),
    ):
        assert messages(again.body) == messages(answer.body)[1:]
    assert len(upstream.calls) == 1


async def test_every_visit_starts_a_generation_of_its_own(service, upstream):
    upstream.script = say("a")
    first, second = await read(service), await read(service)
    assert id_of(first) != id_of(second)
    assert len(upstream.calls) == 2


# Coming back.


async def test_each_cursor_leads_to_exactly_what_comes_after_it(service, other_service, upstream):
    # given an answer that is over
    upstream.script = say(*"abcde")
    whole = messages((await read(service)).body)

    # when readers come back with any of its ids, to any node, in the header or in the URL
    for place, event in enumerate(whole[:-1], start=1):
        for api in (service, other_service):
            for answer in (
                await read(api, event.last_event_id),
                await read(api, last_event_id=event.last_event_id),
                await read(api, event.last_event_id, last_event_id=whole[0].last_event_id),
            ):
                # then each gets the rest
                assert (answer.status, answer.clean) == (200, True)
                assert messages(answer.body) == whole[place:]

    # and after the end there is nothing to come back for
    for api in (service, other_service):
        answer = await read(api, whole[-1].last_event_id)
        assert (answer.status, answer.body) == (204, b"")
    assert len(upstream.calls) == 1


async def test_a_cursor_on_what_a_page_does_not_see_is_as_good(service, upstream):
    # given a generation whose first event is no token
    upstream.script = play(SAMPLES["07-reasoning_content"])
    whole = messages((await read(service)).body)
    id, _ = parts(whole[0])
    for event in (await service.log(id))[:3]:
        answer = await read(service, f"{id}:{event.last_event_id}")
        after = [seen for seen in whole if int(parts(seen)[1].split("-")[1]) > int(event.last_event_id.split("-")[1])]
        assert messages(answer.body) == after


async def test_a_generation_that_started_elsewhere_is_resumed_too(service, upstream):
    upstream.script = say("a", "b")
    id = await service.run()
    start = (await service.log(id))[0]
    assert tokens(messages((await read(service, f"{id}:{start.last_event_id}")).body)) == ["a", "b"]


@pytest.mark.parametrize("seed", range(3))
async def test_a_page_whose_connection_is_cut_anywhere_sees_every_word_once(make_node, upstream, seed):
    # given a page behind a bad network, that has seen the first word
    chance = random.Random(seed)
    node, other = await make_node(), await make_node()
    words = [f"word{number} " for number in range(120)]
    upstream.script = generate(len(words), per_second=100)
    async with FaultProxy(node.url) as proxy:
        async with EventSourceClient(url(Api(proxy.url))) as source:
            await source.next()

            # when it is cut again and again, after any number of bytes
            while source.events[-1].data != DONE and len(source.connections) < 12:
                proxy.cut_replies_after(chance.randrange(600))
                await eventually("a cut or the end", functools.partial(cut_or_over, source, len(source.connections)))

            # then it sees every word once, and the end, and does not come back
            closing = await source.closed()
        assert tokens(source.events) == words
        assert source.events[-1].data == DONE
        assert closing.status == 204
        assert len(source.connections) > 3
    assert len(upstream.calls) == 1

    # and all of it is one generation
    (id,) = {parts(event)[0] for event in source.events}
    everything = await read(other.api, f"{id}:{(await other.api.log(id))[0].last_event_id}")
    assert messages(everything.body) == source.events


async def cut_or_over(source, connections) -> bool:
    """Whether a source has had to come back since it had so many connections, or need not any more."""
    return len(source.connections) > connections or source.events[-1].data == DONE


async def test_a_page_that_comes_back_to_another_node_goes_on_live(service, other_service, upstream):
    # given a page that has seen a word
    starting = opening(service)
    call = await upstream.called()
    await call.say("Hel")
    stream = await starting
    first = messages(await block_with(stream, b'Hel"}'))
    stream.hang_up()

    # when it comes back elsewhere while the model goes on
    async with streaming(url(other_service), {"Last-Event-ID": first[-1].last_event_id}) as again:
        await call.say("lo")
        await again.until(b"lo")
        await call.finish()
        answer = await again.to_end()

    # then it has everything once
    assert tokens([*first, *messages(answer.body)]) == ["Hel", "lo"]
    assert len(upstream.calls) == 1


async def test_a_page_survives_its_node(make_node, upstream):
    # given a page on one node, of a generation that another produces
    producing, watching = await make_node(), await make_node()
    starting = opening(producing.api)
    call = await upstream.called()
    await call.say("a")
    stream = await starting
    first = messages(await block_with(stream, b'a"}'))
    async with EventSourceClient(url(watching.api), last_event_id=first[-1].last_event_id) as source:
        await source.opened()
        await call.say("b")
        assert (await source.next()).json() == {"token": "b"}

        # when its node is killed and comes back
        await watching.restart()
        await call.say("c")
        await call.finish()

        # then it misses nothing
        assert (await source.next()).json() == {"token": "c"}
        assert (await source.next()).data == DONE
        assert (await source.closed()).status == 204
    assert len(upstream.calls) == 1


async def test_a_page_that_comes_back_while_valkey_is_away_is_asked_to_try_again(node, valkey, upstream):
    # given an answer that is over
    upstream.script = say("a", "b")
    whole = messages((await read(node.api)).body)

    # when Valkey is away, then whoever comes back is not sent away for good, and whoever starts anew is refused
    valkey.kill()
    answer = await read(node.api, whole[0].last_event_id)
    assert (answer.status, answer.body, answer.clean) == (200, b":k\n", False)
    assert_refused(await read(node.api), 503, "store_unavailable")

    # and it goes on as soon as Valkey is back
    async with EventSourceClient(url(node.api), last_event_id=whole[0].last_event_id) as source:
        valkey.start()
        assert (await source.closed()).status == 204
        assert source.events == whole[1:]
    assert len(upstream.calls) == 1


# Failures.


@pytest.mark.parametrize("how", ["error", "cut", "cancel"])
async def test_a_failure_is_told_once_and_not_come_back_for(make_node, upstream, how):
    # given a page that has seen a word
    node = await make_node()
    async with EventSourceClient(url(node.api)) as source:
        call = await upstream.called()
        await call.say("partial")
        id, _ = parts(await source.next())

        # when the generation breaks
        if how == "error":
            await call.send({"error": "on fire"})
        elif how == "cut":
            await call.cut()
        else:
            await node.api.post(f"/generations/{id}/cancel")

        # then the page is told, under the id of the end
        told = await source.next()
        error = told.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == {"error": "upstream_error", "cut": "upstream_truncated", "cancel": "cancelled"}[how]
        assert parts(told) == (id, (await node.api.ended(id))["last_event_id"])
        assert told.event == "message"

        # and does not come back
        assert (await source.closed()).status == 204
        assert [connection.clean for connection in source.connections] == [True, None]
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_refusal_of_the_upstream_is_answered_as_it_came(service, upstream, method):
    body = {"error": {"message": "busy", "type": "rate_limit_error", "param": None, "code": "slow_down"}}
    for status in (400, 401, 429, 500):
        headers = {"content-type": "application/json", "retry-after": "7"}
        upstream.script = lambda call, status=status, headers=headers: call.respond(status, body, headers)
        if method == "GET":
            answer = await read(service)
        else:
            answer = await request(method, service.at(TOKENS_PATH), json_body={"prompt": "Hi"}, seconds=PROMPT_S)
        assert (answer.status, answer.json(), answer.headers["retry-after"]) == (status, body, "7")
        assert answer.headers["x-request-id"]
    assert len(upstream.calls) == 4


async def test_an_upstream_that_says_nothing_is_a_502(service, upstream):
    upstream.script = play(SAMPLES["21-empty-200"])
    assert_refused(await read(service), 502, "upstream_truncated")


async def test_a_model_that_says_no_word_is_done_all_the_same(service, upstream):
    async def wordless(call):
        await call.finish()

    upstream.script = wordless
    answer = await read(service)
    assert (answer.status, answer.clean) == (200, True)
    (only,) = messages(answer.body)
    assert only.data == DONE
    assert (await read(service, only.last_event_id)).status == 204


# A slow first word.


@pytest.mark.parametrize("answered", [True, False], ids=["accepted", "not even accepted"])
async def test_a_slow_first_word_can_be_waited_for_and_resumed(make_node, upstream, answered):
    # given an upstream that thinks
    node = await make_node(keepalive_s=0.2)
    starting = opening(node.api)
    call = await upstream.called()
    if answered:
        await call.answer()

    # when that takes longer than a keep-alive, then the head comes, with no more than where the reader is
    stream = await starting
    block, _, rest = (await stream.until(b"\n\n:k\n:k\n")).partition(b"\n\n")
    retry, cursor = re.fullmatch(rb"retry: (\d+)\nid: ([^\r\n]+)", block).groups()
    id, _, event_id = cursor.decode().partition(":")
    assert retry == b"50"
    assert (id, event_id) == (id_of(stream), (await node.api.generation(id))["last_event_id"])
    assert re.fullmatch(rb"(?::k\n)+", rest)

    # and whoever is cut there, comes back for all of it
    stream.hang_up()
    async with streaming(url(node.api), {"Last-Event-ID": cursor.decode()}) as again:
        await call.say("a")
        await again.until(b'"a"')
        await call.finish()
        answer = await again.to_end()
    assert tokens(messages(answer.body)) == ["a"]
    assert messages(answer.body)[-1].data == DONE
    assert len(upstream.calls) == 1


async def test_a_slow_refusal_is_told_in_the_stream(make_node, upstream):
    node = await make_node(keepalive_s=0.2)
    starting = opening(node.api)
    call = await upstream.called()
    stream = await starting
    await call.respond(429, {"error": {"message": "busy", "code": "slow_down"}})
    answer = await stream.to_end(PROMPT_S)
    (told,) = messages(answer.body)
    assert "busy" in told.json()["error"]["message"]
    assert (await read(node.api, told.last_event_id)).status == 204


async def test_a_slow_first_word_goes_on_in_the_same_connection(make_node, upstream):
    # given an upstream that first reasons for longer than a keep-alive
    node = await make_node(keepalive_s=0.2)
    starting = opening(node.api)
    call = await upstream.called()
    await call.send(call.chunk({"delta": {"reasoning_content": "hm"}}))
    stream = await starting
    await stream.until(b"\n\n:k\n")
    await call.say("a")
    await call.finish()
    answer = await stream.to_end()
    assert answer.clean
    assert [event.data for event in messages(answer.body)] == ['{"token":"a"}', DONE]
    assert not re.search(rb"(?m)^:k?\n\n", answer.body)
    assert b"event:" not in answer.body


async def test_a_page_that_waits_for_its_first_word_is_a_subscriber(service, upstream):
    # given a generation that is given up when nobody watches it, and that has not spoken
    body = json.dumps({"prompt": "Hi", "replay": {"abandon_after": 0.3}}).encode()
    for answered in (False, True):
        starting = asyncio.create_task(open_stream(service.at(TOKENS_PATH), method="POST", body=body))
        call = await upstream.called()
        if answered:
            await call.answer()

        # when its reader waits for longer than that, then it goes on
        await asyncio.sleep(1)
        assert not call.disconnected.is_set()
        await call.say("a")
        await call.finish()
        answer = await (await starting).to_end()
        assert tokens(messages(answer.body)) == ["a"]


# Requests that cannot be.


@pytest.mark.parametrize(
    "query",
    [
        {"prompt": None},
        {"messages": "x"},
        {"stream": "true"},
        {"max_tokens": "x"},
        {"max_tokens": "1.5"},
        {"seed": ""},
        {"temperature": "hot"},
        {"temperature": "nan"},
        {"top_p": "inf"},
        {"model": ""},
        {"model": "x" * 600},
    ],
    ids=str,
)
async def test_a_url_that_cannot_be_is_a_400(service, upstream, query):
    assert_refused(await read(service, **query), 400, "invalid_request")
    assert upstream.calls == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"prompt":7}',
        b'{"prompt":["a"]}',
        b'{"prompt":"a","messages":[]}',
        b'{"messages":[]}',
    ],
)
async def test_a_body_that_cannot_be_is_a_400(service, upstream, body):
    answer = await service.post(TOKENS_PATH, headers={"Content-Type": "application/json"}, body=body)
    assert_refused(answer, 400, "invalid_request")
    assert upstream.calls == []


@pytest.mark.parametrize(
    "cursor", ["x", "1-1", "gen_x:", "gen_x:1", "gen_x:1-x", "gen_x:-1", "gen_x:1-2-3", "gen_x 1-1"]
)
async def test_a_malformed_cursor_is_a_400(service, upstream, cursor):
    for answer in (await read(service, cursor), await read(service, last_event_id=cursor)):
        assert_refused(answer, 400, "invalid_event_id")
    assert upstream.calls == []


@pytest.mark.parametrize("cursor", ["gen_nobody:1-1", "gen_nobody:1-0", ":1-1", "a.b:1-1", "a:b:1-1"])
async def test_a_cursor_of_a_generation_that_is_not_here_is_a_404(service, upstream, cursor):
    for answer in (await read(service, cursor), await read(service, last_event_id=cursor)):
        assert_refused(answer, 404, "generation_not_found")
    assert upstream.calls == []


@pytest.mark.parametrize("ended", [True, False])
async def test_a_cursor_on_an_event_that_never_was_is_a_reset_and_everything(service, upstream, ended):
    # given a generation
    starting = opening(service)
    call = await upstream.called()
    await call.say("a")
    stream = await starting
    whole = messages(await block_with(stream, b'"a"}'))
    if ended:
        await call.finish()
        whole = messages((await stream.to_end()).body)
    id, _ = parts(whole[0])

    # when somebody comes with a cursor on another log of that name
    cursor = f"{id}:1-1"
    async with streaming(url(service), {"Last-Event-ID": cursor}) as again:
        await block_with(again, b'"a"}')
        if not ended:
            await call.finish()
            whole = messages((await stream.to_end()).body)
        answer = await again.to_end()

    # then it is told, and gets everything
    reset, *rest = messages(answer.body)
    assert reset.event == "reset"
    assert reset.json() == {"type": "reset", "reason": "unknown_event_id", "asked": cursor}
    assert rest == whole
    assert answer.body.count(b"retry:") == 1
    assert len(upstream.calls) == 1


async def test_a_page_of_another_site_may_not_start_anything_but_may_go_on(service, upstream):
    # given a browser that was led here by another site
    cross_site = {"Sec-Fetch-Site": "cross-site"}
    assert_refused(await service.get(TOKENS_PATH, cross_site, prompt="Hi"), 403, "cross_site_request")
    assert_refused(await service.post(TOKENS_PATH, {"prompt": "Hi"}, cross_site), 403, "cross_site_request")
    assert upstream.calls == []

    # then what somebody else has started may be read, as anywhere
    upstream.script = say("a", "b")
    whole = messages((await read(service)).body)
    answer = await service.get(TOKENS_PATH, cross_site | {"Last-Event-ID": whole[0].last_event_id}, prompt="Hi")
    assert messages(answer.body) == whole[1:]


@pytest.mark.parametrize("site", ["same-origin", "none"])
async def test_a_page_of_our_own_may(service, upstream, site):
    upstream.script = say("a")
    answer = await service.get(TOKENS_PATH, {"Sec-Fetch-Site": site}, prompt="Hi")
    assert tokens(messages(answer.body)) == ["a"]


async def test_a_head_request_starts_nothing(service, upstream):
    stream = await open_stream(url(service), method="HEAD")
    assert stream.status == 405
    stream.hang_up()
    assert upstream.calls == []


async def test_a_page_that_leaves_cancels_nothing(service, upstream):
    starting = opening(service)
    call = await upstream.called()
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting
    await call.say("a")
    await call.finish()
    (generation,) = (await service.get("/generations", limit=1)).json()["generations"]
    assert (await service.ended(generation["id"]))["status"] == "completed"
