"""Histograms count as Prometheus reads them: a bucket holds what is at most its bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.live.counters import Counters, Histogram

BOUNDS = (0.001, 0.01, 0.1, 1, 10)


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0, 0), (0.0005, 0), (0.001, 0), (0.0010001, 1), (0.01, 1), (0.5, 3), (1, 3), (10, 4), (10.01, 5), (1e9, 5)],
)
def test_observation_counts_below_its_bound(seconds, bucket):
    histogram = Histogram(*BOUNDS)
    histogram.add(seconds)
    assert histogram.counts == [int(place == bucket) for place in range(len(BOUNDS) + 1)]


@given(observations=st.lists(st.floats(0, 20) | st.sampled_from(BOUNDS)))
def test_histogram_counts_what_a_list_counts(observations):
    histogram = Histogram(*BOUNDS)
    for seconds in observations:
        histogram.add(seconds)
    for place, bound in enumerate(BOUNDS):
        assert sum(histogram.counts[: place + 1]) == sum(seconds <= bound for seconds in observations)
    assert sum(histogram.counts) == len(observations)
    assert histogram.total == pytest.approx(sum(observations))


def test_counters_do_not_share_their_histograms():
    first, second = Counters(), Counters()
    first.append_seconds.add(0.1)
    first.ended["failed"] = 1
    assert sum(second.append_seconds.counts) == sum(first.inter_token_seconds.counts) == 0
    assert second.ended == {}


@pytest.mark.parametrize("name", ["append_seconds", "first_token_seconds", "inter_token_seconds"])
def test_bounds_rise(name):
    bounds = getattr(Counters(), name).bounds
    assert list(bounds) == sorted(set(bounds))
