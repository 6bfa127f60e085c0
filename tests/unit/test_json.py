"""How many values a JSON text has, told without reading it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chunk_streams import values
from hypothesis import given
from hypothesis import strategies as st

from replay.wire.json import has_more_values


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
