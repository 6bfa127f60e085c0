"""Where heads begin and end, held against what is known of bytes that were put together here."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from replay.http.heads import Heads

_BODIES = (b"", b"{}", b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", b"x" * 50)
_PARTS = (b"", b"\r\n", b"G", b"GET / HTTP/1.1\r\nHost: a\r\n")


def request(body: bytes, *, chunked: bool = False, blank: bytes = b"") -> tuple[bytes, SimpleNamespace]:
    """The bytes of a request, with empty lines in front of it, and what a parser says of it."""
    if chunked:
        coded = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        head, fields = b"Transfer-Encoding: chunked\r\n", {}
    else:
        coded, head, fields = body, b"Content-Length: %d\r\n" % len(body), {"Content-Length": str(len(body))}
    start = blank + b"POST / HTTP/1.1\r\n" + head + b"\r\n"
    said = SimpleNamespace(chunked=chunked, headers=fields, head_end=len(start))
    return start + coded, said


@pytest.mark.parametrize("seed", range(300))
def test_what_is_behind_requests_is_counted_wherever_packets_end(seed):
    # given requests of which a part may be missing at the end, in packets of any size
    chance = random.Random(seed)
    stream, heads_end, requests_end, said = b"", [], [], []
    for _ in range(chance.randint(0, 4)):
        blank = chance.choice((b"", b"", b"\r\n", b"\r\n\r\n\r\n"))
        text, one = request(chance.choice(_BODIES), chunked=chance.random() < 0.3, blank=blank)
        heads_end.append(len(stream) + one.head_end)
        stream += text
        requests_end.append(len(stream))
        said.append(one)
    part = chance.choice(_PARTS)
    stream += part

    # when they are followed
    heads, at = Heads(), 0
    while at < len(stream):
        to = min(len(stream), at + chance.choice((1, 2, 3, 7, 40, 1000)))
        new = [one for one, end in zip(said, heads_end, strict=True) if at < end <= to]
        before = sum(end <= at for end in heads_end)
        after = sum(end <= to for end in heads_end)
        heads.take(
            stream[at:to],
            new,
            within_body=before > 0 and requests_end[before - 1] > at,
            ended=after == 0 or requests_end[after - 1] <= to,
        )
        at = to

        # then what is said is right, and where nothing comes after but empty lines it is never a head
        whole = max([0, *(end for end in requests_end if end <= to)])
        begun = after == 0 or requests_end[after - 1] <= to
        right = len(stream[whole:to].lstrip(b"\r\n")) if begun else 0
        assert heads.unfinished in (None, right)


@pytest.mark.parametrize("part", _PARTS)
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("body", _BODIES)
def test_what_is_behind_one_request_can_be_said(body, chunked, part):
    text, said = request(body, chunked=chunked)
    for cut in range(said.head_end, len(text) + 1):
        heads = Heads()
        heads.take(text[:cut], [said], within_body=False, ended=cut == len(text))
        if cut == len(text):
            heads.take(part)
        else:
            heads.take(text[cut:] + part, within_body=True)
        assert heads.unfinished == len(part.lstrip(b"\r\n"))
