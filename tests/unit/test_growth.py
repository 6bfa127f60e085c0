"""What a message comes to, kind by kind."""

from __future__ import annotations

from base64 import b64decode, b64encode
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.model.growth import IN_MESSAGE, Base64, Blocks, Fields, Gathered, Growth


def grown(growth: Growth, *pieces: Any) -> Any:
    for piece in pieces:
        growth.add(piece)
    return growth.shown


def blocks(*fragments: dict[str, Any]) -> Any:
    """What these fragments of one type come to, each sent by itself."""
    return grown(Blocks(), *([{"type": "t", **fragment}] for fragment in fragments))


@given(st.lists(st.binary(max_size=5)))
def test_bytes_that_were_encoded_piece_by_piece_are_joined_as_bytes(pieces):
    assert b64decode(grown(Base64(), *(b64encode(piece).decode() for piece in pieces))) == b"".join(pieces)


@given(st.binary(max_size=40), st.lists(st.integers(0, 60), max_size=5))
def test_base64_that_was_cut_anywhere_is_joined_as_it_was(data, cuts):
    whole = b64encode(data).decode()
    edges = [0, *sorted(cuts), len(whole)]
    assert grown(Base64(), *(whole[start:end] for start, end in pairwise(edges))) == whole


@pytest.mark.parametrize("pieces", [("a=", "b!"), ("=", "="), ("QQ==", None, 7, {}), ("é=", "QQ==")])
def test_what_is_no_base64_is_kept_as_it_came(pieces):
    assert grown(Base64(), *pieces) == "".join(piece for piece in pieces if isinstance(piece, str))


@pytest.mark.parametrize(
    ("fragments", "expected"),
    [
        ([{"index": 0, "text": "a"}, {"index": 1, "text": "b"}, {"index": 0, "text": "c"}], ["ac", "b"]),
        ([{"id": "x", "text": "a"}, {"id": "y", "text": "b"}, {"id": "x", "text": "c"}], ["ac", "b"]),
        ([{"index": 0, "text": "a"}, {"index": 0, "id": "x", "text": "b"}], ["ab"]),
        ([{"index": 0, "id": "x", "text": "a"}, {"index": 0, "text": "b"}], ["ab"]),
        ([{"index": 0, "id": "x", "text": "a"}, {"index": 0, "id": "y", "text": "b"}], ["a", "b"]),
        ([{"text": "a"}, {"text": "b"}], ["ab"]),
        ([{"text": "a"}, {"type": "u", "text": "b"}, {"text": "c"}], ["a", "b", "c"]),
        ([{"index": 0, "text": "a", "signature": "s"}, {"index": 0, "text": "b"}], ["a", "b"]),
        ([{"index": 0, "text": "a"}, {"index": 0, "signature": "s"}, {"index": 0, "format": "f"}], ["a"]),
        ([{"index": [0], "id": {}, "text": "a"}, {"index": [0], "id": {}, "text": None}], ["a"]),
    ],
)
def test_blocks_are_told_apart(fragments, expected):
    assert [block["text"] for block in blocks(*fragments)] == expected


def test_what_is_encrypted_is_whole_without_an_index_and_in_pieces_with_one():
    assert [block["data"] for block in blocks({"data": "QQ"}, {"data": "QQ"}, {"data": "Qg"})] == ["QQ", "QQ", "Qg"]
    assert blocks({"index": 0, "data": "QU"}, {"index": 0, "data": "JD"}) == [{"type": "t", "index": 0, "data": "QUJD"}]
    again = blocks({"index": 0, "data": "QUJD"}, {"index": 0, "data": "QUJD", "format": "f"})
    assert again == [{"type": "t", "index": 0, "data": "QUJD", "format": "f"}]


def test_a_list_grows_by_what_is_new_in_it():
    assert grown(Gathered(), [{"a": 1, "b": 2}, "x"], [{"b": 2, "a": 1}, {"a": 1}], "y", ["x"]) == [
        {"a": 1, "b": 2},
        "x",
        {"a": 1},
    ]


@pytest.mark.parametrize("odd", [7, "x", True, ["x", 7], {"x": 7}])
@pytest.mark.parametrize("name", [*IN_MESSAGE, "annotations", "provider_specific_fields"])
def test_what_was_said_is_not_undone_by_a_piece_of_another_type(name, odd):
    said = {"annotations": [{"url": "a"}], "provider_specific_fields": {"a": 1}, "audio": {"id": "a"}}
    said |= {"reasoning_details": [{"text": "a"}], "thinking_blocks": [{"thinking": "a"}]}
    said |= {"function_call": {"name": "f", "arguments": "{"}}
    if name == "tool_calls":  # which are read before
        return
    message = grown(Fields(IN_MESSAGE), {name: said.get(name, "a")}, {name: odd})
    assert str(said.get(name, "a"))[:-1] in str(message[name])
