"""JSON that survives, and how many values a text has, told without reading it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.chunk_streams import values

from replay.wire.json import has_more_values, loads, mended


@pytest.mark.parametrize(
    "number",
    [
        *(
            "9223372036854775807",
            "9223372036854775808",
            "-9223372036854775809",
            "18446744073709551616",
            "1" + "0" * 400,
        ),
        *("1e22", "1E22", "1e+22", "1e308", "1E+308", "1e-308", "1e-400", "0.1e0308", "123456789012345678"),
        *("0.12345678901234567890123456789", "-0.0", "-0", "1234567890123456789012.5"),
    ],
)
def test_a_number_is_read_as_it_is(number):
    for text in (number, f"[{number}]", '{"a":"' + "x" * 300_000 + f'","b":{number}}}'):
        assert repr(loads(text.encode())) == repr(json.loads(text))


@pytest.mark.parametrize("number", ["1e309", "1E309", "-1e+400", "1e999999", "NaN", "-Infinity", "1e0000309"])
def test_a_number_that_no_reader_could_hold_is_none(number):
    with pytest.raises(ValueError, match=r".+"):
        loads(f"[{number}]".encode())


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e309", "9" * 5000, "-" + "1" * 10_000])
def test_what_would_be_json_but_for_a_number_has_null_there(number):
    text = f'{{"NaN": "NaN Infinity", "b": [{number}, 1{"0" * 30}, 0.5], "c": "\\ud83d"}}'
    assert loads(mended(text.encode())) == {"NaN": "NaN Infinity", "b": [None, 10**30, 0.5], "c": "\ud83d"}


@pytest.mark.parametrize("raw", [b"{NaN}", b"NaN NaN", b"[" * 100_000 + b"NaN", b'"Infinity', b"\xff"])
def test_anything_else_is_as_it_was(raw):
    assert mended(raw) == raw


def number_of_separators(value: Any) -> int:
    """Commas, and what opens a list or an object."""
    if not isinstance(value, dict | list):
        return 0
    members = list(value.values()) if isinstance(value, dict) else value
    return 1 + max(0, len(members) - 1) + sum(map(number_of_separators, members))


@given(values, st.integers(1, 20))
def test_what_stands_between_values_is_counted_and_nothing_in_strings(value, most):
    for spelt in (json.dumps(value), json.dumps(value, indent=1, ensure_ascii=False)):
        assert has_more_values(spelt.encode(), most) == (number_of_separators(value) >= most)


@pytest.mark.parametrize(
    ("raw", "number"),
    [
        (rb"", 0),
        (rb'"', 0),
        (rb'",,,,', 0),
        (rb'",,\",,', 0),
        (rb'",,\"' + rb"\,", 0),
        (b'",,\\', 0),
        (rb'["a\\",","]', 2),
        (b'["\n,",[', 3),
        (rb',,"', 2),
    ],
)
def test_what_is_no_json_is_counted_all_the_same(raw, number):
    assert not has_more_values(raw, number + 1)
    assert number == 0 or has_more_values(raw, number)


@pytest.mark.parametrize("unit", [b'"', b'\\"', b'""', b'"\\', b'"\\"', b",", b'","', b'a"', b"\\", b'"[' + b"{" * 50])
def test_no_text_takes_more_than_a_look(unit):
    raw = b",[{" * 10 + unit * ((1 << 20) // len(unit)) + b"\\"
    has_more_values(raw, 10**7)
    has_more_values(raw, 10**5)
