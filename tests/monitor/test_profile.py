"""Profiles of parts add up to the profile of the whole."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cltrain.monitor import Profile, profile, profile_of

numbers = st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(math.nan), st.just(math.inf))
rows = st.lists(st.tuples(numbers, st.one_of(st.none(), st.sampled_from("abcde"))), max_size=40)


def table(values: list[tuple[float | None, str | None]]) -> pa.Table:
    x = pa.array([v for v, _ in values], pa.float64())
    return pa.table({"_event_id": [""] * len(x), "x": x, "k": pa.array([k for _, k in values], pa.string())})


def same(a: Profile, b: Profile) -> bool:
    exact = ("rows", "nulls", "low", "high")
    x, y = a.numeric["x"], b.numeric["x"]
    sums = all(math.isclose(getattr(x, s), getattr(y, s), rel_tol=1e-9, abs_tol=1e-6) for s in ("total", "squares"))
    return (
        a.rows == b.rows
        and a.categorical == b.categorical
        and sums
        and all(getattr(x, e) == getattr(y, e) for e in exact)
    )


@given(rows, rows, rows)
def test_the_sum_of_profiles_is_the_profile_of_all_rows(a: list, b: list, c: list) -> None:
    pa_, pb, pc = (profile_of(table(part)) for part in (a, b, c))
    assert same(pa_ + pb, profile_of(table(a + b)))
    assert same((pa_ + pb) + pc, profile_of(table(a + b + c)))
    assert same(pa_ + pb, pb + pa_)


def test_a_profile_by_hand() -> None:
    found = profile_of(table([(1.0, "a"), (3.0, "b"), (None, "a"), (math.inf, None)]))
    x, k = found.numeric["x"], found.categorical["k"]
    assert (x.rows, x.nulls, x.total, x.squares, x.low, x.high) == (4, 2, 4.0, 10.0, 1.0, 3.0)
    assert (k.rows, k.nulls, k.counts) == (4, 1, {"a": 2, "b": 1})
    assert (found.null_share("x"), found.null_share("k"), found.null_share("stranger")) == (0.5, 0.25, 0.0)
    assert "_event_id" not in found.categorical


def test_a_column_that_one_part_lacks_is_kept() -> None:
    both = profile_of(pa.table({"x": [1.0]})) + profile_of(pa.table({"z": [2.0]}))
    assert set(both.numeric) == {"x", "z"}


def test_of_very_many_categories_the_most_frequent_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "MAX_CATEGORIES", 2)
    found = profile_of(pa.table({"k": ["c", "a", "a", "b", "b", "b"]})).categorical["k"]
    assert found.counts == {"b": 3, "a": 2}
    more = found + profile_of(pa.table({"k": ["d"] * 4})).categorical["k"]
    assert more.counts == {"d": 4, "b": 3}


def test_numbers_of_any_size_do_not_warn() -> None:
    assert profile_of(pa.table({"x": [1e200, -1e200]})).numeric["x"].squares == math.inf
