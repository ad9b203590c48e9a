from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cltrain.errors import DataError
from cltrain.online.moments import Moments, by_unit, moments_of, ratio_moments


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=3, max_size=30), st.integers(0, 30))
def test_parts_add_up_to_the_whole(rows: list[tuple[float, float]], cut: int) -> None:
    y, x = np.array(rows).T
    whole, parts = moments_of(y, x), moments_of(y[:cut], x[:cut]) + moments_of(y[cut:], x[cut:])
    for name in ("n", "y", "yy", "x", "xx", "xy"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), abs=1e-8)
    assert whole.variance == pytest.approx(y.var(ddof=1))


def test_large_values_keep_their_digits() -> None:
    y = 1e9 + np.array([0.0, 1.0, 2.0, 3.0])
    assert (moments_of(y[:2]) + moments_of(y[2:])).variance == pytest.approx(y.var(ddof=1))


def test_too_few_units_say_nothing() -> None:
    assert moments_of(np.array([1.0])).variance == np.inf
    assert moments_of(np.array([])) == Moments()


def test_a_ratio_has_the_variance_that_resampling_units_gives() -> None:
    generator = np.random.default_rng(0)
    requests = generator.integers(1, 20, 500)
    clicks = generator.binomial(requests, generator.beta(2, 5, 500))
    found = ratio_moments(clicks, requests)
    rows = generator.integers(0, 500, (2_000, 500))
    assert found.y == clicks.sum() / requests.sum()
    assert (found.variance / 500) ** 0.5 == pytest.approx((clicks[rows].sum(1) / requests[rows].sum(1)).std(), rel=0.06)
    assert ratio_moments(np.array([]), np.array([])) == Moments()


def test_a_ratio_of_before_takes_variance_out_of_a_ratio() -> None:
    """The error is that of resampling units, who come more or less often; a third of them was not there before."""
    generator = np.random.default_rng(0)
    n = 600
    habit, rows, before = generator.normal(size=n), generator.integers(1, 9, n), generator.integers(1, 9, n)
    y, x = (k * habit + generator.normal(size=n) * k**0.5 for k in (rows, before))
    known = np.arange(n) % 3 > 0
    p, q = np.where(known, x, 0.0), np.where(known, before, 0)
    found = ratio_moments(y, rows, (p, q))
    theta = found.xy / found.xx
    variance = (found.yy - 2 * theta * found.xy + theta**2 * found.xx) / (n - 1) / n
    take = generator.integers(0, n, (4_000, n))
    again = y[take].sum(1) / rows[take].sum(1) - theta * p[take].sum(1) / q[take].sum(1)
    assert variance**0.5 == pytest.approx(again.std(), rel=0.06)
    assert variance < 0.7 * found.variance / n
    assert found.x == pytest.approx(p.sum() / q.sum())
    alone = ratio_moments(y, rows, (np.zeros(n), np.zeros(n)))
    assert alone == ratio_moments(y, rows)


def test_events_are_added_up_by_unit() -> None:
    assert by_unit(["b", "a", "b"], np.array([1.0, 2.0, 3.0])).tolist() == [2.0, 4.0]


@pytest.mark.parametrize("values", [[1.0, np.nan], [np.inf, 0.0]])
def test_values_that_are_not_finite_are_refused(values: list[float]) -> None:
    with pytest.raises(DataError, match="finite"):
        moments_of(np.array(values))
