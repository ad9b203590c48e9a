from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special
from ville import normal_mixture

from cltrain.online.sequential import (
    evidence,
    half_width,
    holm,
    horizon_half_width,
    horizon_interval,
    interval,
    rate_bound,
    rate_evidence,
    rate_excess,
    tuned,
)


@pytest.mark.parametrize("level", [0.001, 0.05, 0.2])
@pytest.mark.parametrize("side", ["two", "lower"])
def test_the_boundary_is_the_normal_mixture_of_ville(level: float, side: str) -> None:
    information = np.array([1.0, 10.0, 500.0, 1e5])
    spread = 0.1
    theirs = normal_mixture(information, level, 1 / spread**2, one_sided=side == "lower") / information
    np.testing.assert_allclose(half_width(information**-0.5, level, spread, side), theirs, rtol=1e-6)


def test_it_is_tightest_where_it_is_tuned() -> None:
    best = optimize.minimize_scalar(lambda s: half_width(0.1, 0.05, np.exp(s)), bounds=(-6, 2), method="bounded").x
    assert np.exp(best) == pytest.approx(tuned(0.05, 0.1), rel=0.02)


@pytest.mark.parametrize("side", ["two", "lower", "upper"])
def test_p_is_at_the_level_where_the_interval_ends_at_zero(side: str) -> None:
    half = float(half_width(0.1, 0.03, 0.2, side))
    found = interval(-half if side == "upper" else half, 0.1, 0.03, 0.2, side)
    assert found.p == pytest.approx(0.03)
    assert min(abs(found.low), abs(found.high)) == pytest.approx(0, abs=1e-9)
    assert np.exp(evidence(found.estimate, 0.1, 0.2, side)) == pytest.approx(1 / 0.03)


@pytest.mark.parametrize("side", ["two", "lower", "upper"])
def test_so_it_is_for_the_horizon(side: str) -> None:
    half = float(horizon_half_width(0.1, 0.3, 0.03, side))
    found = horizon_interval(-half if side == "upper" else half, 0.1, 0.3, 0.03, side)
    assert found.p == pytest.approx(0.03)
    assert min(abs(found.low), abs(found.high)) == pytest.approx(0, abs=1e-9)


def test_nothing_is_known_without_an_error() -> None:
    for found in (interval(1.0, np.inf, 0.05, 1.0), horizon_interval(1.0, 0.0, 0.5, 0.05)):
        assert (found.low, found.high, found.p) == (-np.inf, np.inf, 1.0)


def test_brownian_paths_seldom_cross_whenever_they_are_read() -> None:
    generator = np.random.default_rng(0)
    steps = np.arange(1, 2_001)
    mean = generator.normal(size=(1_000, 2_000)).cumsum(1) / steps
    error = steps**-0.5
    runs = {
        "always": abs(mean) > half_width(error, 0.05, tuned(0.05, 0.03)),
        "one side": mean > half_width(error, 0.05, tuned(0.05, 0.03, "lower"), "lower"),
        "horizon": abs(mean) > horizon_half_width(error, steps / 2_000, 0.05),
    }
    for name, crossed in runs.items():
        assert crossed.any(1).mean() < 0.066, name  # 0.05 and 2.3 standard errors
    reread = (abs(mean) > -special.ndtri(0.025) * error)[:, 99:].any(1).mean()
    assert reread > 0.25


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 300), st.integers(1, 300))
def test_rate_bounds_enclose_the_rate(events: int, n: int) -> None:
    events = min(events, n)
    low, high = rate_bound(events, n, 0.05, "lower"), rate_bound(events, n, 0.05, "upper")
    assert 0 <= low <= events / n <= high <= 1
    assert rate_bound(events, n, 0.01, "lower") <= low
    assert high == pytest.approx(1 - rate_bound(n - events, n, 0.05, "lower"))


@pytest.mark.parametrize("rate", [0.002, 0.3])
def test_rate_bounds_hold_after_every_request(rate: float) -> None:
    n = np.arange(1, 1_001)
    events = (np.random.default_rng(1).random((1_000, 1_000)) < rate).cumsum(1)
    # No mixture is above the likelihood of the rate that was seen, so most looks need not be taken.
    most = n * (special.rel_entr(events / n, rate) + special.rel_entr(1 - events / n, 1 - rate))
    run, look = np.nonzero((most >= -np.log(0.05)) & (events > n * rate))
    crossed = rate_evidence(events[run, look], n[look], rate) >= -np.log(0.05)
    assert len(np.unique(run[crossed])) / 1_000 <= 0.05
    assert rate_evidence(100, 1000, rate_bound(100, 1000, 0.05, "lower")) == pytest.approx(-np.log(0.05), abs=1e-6)


def test_a_canary_that_fails_more_often_is_found_and_one_that_does_not_is_not() -> None:
    assert rate_excess(40, 1_000, 20, 20_000, 0.01) > 0.01
    assert rate_excess(2, 1_000, 20, 20_000, 0.01) < 0
    assert rate_excess(0, 0, 0, 0, 0.01) == -1.0


def test_holm_spends_less_on_those_that_come_later() -> None:
    assert holm({"a": 0.02, "b": 0.04}, 0.05) == {"a": True, "b": True}
    assert holm({"a": 0.03, "b": 0.04}, 0.05) == {"a": False, "b": False}
    assert holm({}, 0.05) == {}
