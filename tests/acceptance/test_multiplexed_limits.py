"""What can be asked of a multiplexed stream, and how everything else is refused: too many, none, and rubbish."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

import pytest
from support.api import assert_problem
from support.deadlines import DEADLINE_S, within
from support.http1 import Answer
from support.multiplexed import (
    NEVER_WAS,
    WHOLE_BODY,
    alone,
    closed_by_204,
    many,
    notices,
    path_of,
    read_many,
    recorded,
    shares,
)
from support.sse import messages
from support.upstream import generate, say

MOST = 100


async def test_a_hundred_are_read_at_once_and_one_more_is_refused(service, other_service, upstream):
    # given a hundred, with the longest names there can be
    upstream.script = generate(5)
    ids = [f"{place:03}-" + "x" * 124 for place in range(MOST)]
    for place in range(0, MOST, 20):
        await asyncio.gather(*(service.start(id=id) for id in ids[place : place + 20]))
    await asyncio.gather(*(service.ended(id) for id in ids))
    assert len(path_of(service, ids)) > 13_000
    expected = await alone(service, ids)
    for api in (service, other_service):
        # when
        answer = await read_many(api, [*ids, *ids[:5]])
        told = messages(answer.body)
        # then
        assert (answer.status, answer.clean) == (200, True)
        assert shares(told, ids) == expected
        # and it is resumed as any other, be the cursor in a header or in the URL
        for place in (0, 17, len(told) // 2, len(told) - 2):
            cursor = told[place].last_event_id
            for headers, query in (({"Last-Event-ID": cursor}, {}), ({}, {"after": cursor})):
                rest = await read_many(api, ids, headers, **query)
                assert shares(messages(rest.body), ids) == shares(told[place + 1 :], ids)
        assert (await read_many(api, ids, {"Last-Event-ID": told[-1].last_event_id})).status == 204
        assert_problem(await read_many(api, [*ids, NEVER_WAS]), 400, "invalid_request")
        assert_problem(await read_many(api, [*ids, NEVER_WAS], {"Last-Event-ID": told[3].last_event_id}), 400)


@pytest.mark.slow
async def test_a_hundred_that_go_on_come_whole_through_one_connection(service, other_service, upstream):
    upstream.script = generate(10, per_second=10)
    started = [await (service, other_service)[place % 2].start() for place in range(MOST)]
    ids = [generation["id"] for generation in started]
    async with many(service, ids) as source:
        await closed_by_204(source, 20)
    assert shares(source.events, ids) == await alone(other_service, ids)
    assert len(source.connections) == 2


async def test_none_and_only_unknown_ones_are_problems(service, other_service):
    for api in (service, other_service):
        assert_problem(await api.get("/events"), 400, "invalid_request")
        assert_problem(await api.get("/events", generations="a"), 400, "invalid_request")
        assert_problem(await read_many(api, [NEVER_WAS]), 404, "generation_not_found")
        assert_problem(await read_many(api, [NEVER_WAS, "x" * 200, ":feed", ":progress"]), 404, "generation_not_found")
        assert_problem(await read_many(api, [""]), 404, "generation_not_found")
        assert_problem(await read_many(api, [NEVER_WAS], after="-1"), 404, "generation_not_found")


async def test_cursors_of_something_else_are_problems_and_end_the_source(service, upstream):
    one, two, three = await recorded(service, upstream, say("a"), say("b"), say("c"))
    ids = [one, two]
    own = messages((await read_many(service, ids)).body)[3].last_event_id
    other = messages((await read_many(service, [one, three])).body)[3].last_event_id
    turned = messages((await read_many(service, [two, one])).body)[3].last_event_id
    more = messages((await read_many(service, [one, two, three])).body)[3].last_event_id
    single = messages((await service.read(one)).body)[1].last_event_id
    wrong = [other, turned, more, single, own + "x", own[:-1] + ",1.1", own[:20], "abc", "-2", "0", "1-1", own.upper()]
    for cursor in wrong:
        for headers, query in (
            ({"Last-Event-ID": cursor}, {}),
            ({}, {"after": cursor}),
            ({}, {"last_event_id": cursor}),
        ):
            assert_problem(await read_many(service, ids, headers, **query), 400)
    for cursor in (other, "nonsense"):
        async with many(service, ids, last_event_id=cursor) as source:
            assert (await source.closed()).status == 400
    # the cursor of several is none of a single generation's
    assert_problem(await service.read(one, {"Last-Event-ID": own}), 400)
    assert_problem(await read_many(service, ids, mode="snapshots"), 400)


async def talk_raw(port: int, data: bytes) -> Answer:
    """Send these bytes, and read what is answered, while they are sent: a client that does not wait its turn."""

    def exchange() -> bytes:
        received = b""
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:

            def send() -> None:
                with contextlib.suppress(OSError):
                    connection.sendall(data)

            sender = threading.Thread(target=send)
            sender.start()
            with contextlib.suppress(ConnectionError):
                while piece := connection.recv(65_536):
                    received += piece
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            sender.join()
        return received

    received = await within("an answer", asyncio.to_thread(exchange), DEADLINE_S + 5)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1."), received[:300]
    lines = head.decode("latin-1").split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return Answer(int(lines[0].split()[1]), fields, body, clean=len(body) == int(fields["content-length"]))


HOST = b"Host: localhost\r\n"
RUBBISH = {
    "URL of 10 MB": b"GET /events?" + b"generation=abcdefgh&" * 500_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "id of 10 MB": b"GET /events?generation=" + b"x" * 10_000_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "URL of 40 kB": b"GET /events?" + b"generation=abcdefgh&" * 2000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "header of 10 MB": b"GET /events?generation=a HTTP/1.1\r\n"
    + HOST
    + b"Last-Event-ID: "
    + b"1" * 10_000_000
    + b"\r\n\r\n",
    "cursor of 40 kB": b"GET /events?generation=a HTTP/1.1\r\n"
    + HOST
    + b"Last-Event-ID: "
    + b"1," * 20_000
    + b"\r\n\r\n",
    "10 MB and no line": b"x" * 10_000_000,
    "TLS": bytes.fromhex("16030100a5010000a10303") + bytes(range(256)) * 4 + b"\r\n\r\n",
    "NUL": b"\0" * 1000 + b"\r\n\r\n",
    "version 9": b"GET /events?generation=a HTTP/9.9\r\n" + HOST + b"\r\n",
    "no method": b" /events?generation=a HTTP/1.1\r\n" + HOST + b"\r\n",
    "no URL": b"GET  HTTP/1.1\r\n" + HOST + b"\r\n",
    "header without a colon": b"GET /events?generation=a HTTP/1.1\r\n" + HOST + b"rubbish\r\n\r\n",
    "length that is none": b"GET /events?generation=a HTTP/1.1\r\n" + HOST + b"Content-Length: x\r\n\r\n",
    "two lengths": b"GET /events HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "NUL in a header": b"GET /events?generation=a HTTP/1.1\r\n" + HOST + b"Last-Event-ID: 1\x00-1\r\n\r\n",
    "CR in a header": b"GET /events?generation=a HTTP/1.1\r\n" + HOST + b"Last-Event-ID: 1\r-1\r\n\r\n",
    "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("rubbish", RUBBISH)
async def test_what_cannot_be_read_gets_a_problem_document(service, rubbish):
    port = int(service.url.rpartition(":")[2])
    answer = await talk_raw(port, RUBBISH[rubbish])
    assert_problem(answer, 400, "invalid_request")
    assert answer.clean
    assert len(answer.body) < 2000
    assert (await service.get("/healthz")).status == 200


ODD = {
    "percent and no digits": b"GET /events?generation=%ZZ%0 HTTP/1.1\r\n",
    "encoded NUL": b"GET /events?generation=%00 HTTP/1.1\r\n",
    "bytes that are no UTF-8": b"GET /events?generation=%ff%fe HTTP/1.1\r\n",
    "raw bytes": b"GET /events?generation=\xff\xfe HTTP/1.1\r\n",
    "id of 20 kB": b"GET /events?generation=" + b"x" * 20_000 + b" HTTP/1.1\r\n",
    "line feeds": b"GET /events?generation=a%0d%0aevent:x HTTP/1.1\r\n",
}


@pytest.mark.parametrize("odd", ODD)
async def test_what_can_be_read_and_names_nothing_gets_a_problem_document_too(service, odd):
    port = int(service.url.rpartition(":")[2])
    answer = await talk_raw(port, ODD[odd] + HOST + b"Connection: close\r\n\r\n")
    assert answer.status in (400, 404)
    assert_problem(answer, answer.status)


async def test_odd_names_are_told_back_without_breaking_the_stream(service, upstream):
    (known,) = await recorded(service, upstream, say("a"))
    odd = ["a\r\n\r\ndata: x", "\0", "\u2028", '"', "😀", "data: x\n\n", "\ud7ff"]
    answer = await read_many(service, [*odd, known])
    assert WHOLE_BODY.fullmatch(answer.body)
    assert notices(messages(answer.body), "expired") == odd
    assert shares(messages(answer.body), [known]) == await alone(service, [known])
