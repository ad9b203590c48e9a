from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cltrain.errors import ConfigError
from cltrain.online.ab import difference
from cltrain.online.assignment import arm_of, bucket, check_shares, is_held_out
from cltrain.online.moments import moments_of

UNITS = [f"user-{i}" for i in range(20_000)]


def test_buckets_are_uniform_and_stay() -> None:
    places = np.array([bucket(u, "ranker") for u in UNITS])
    assert stats.kstest(places, "uniform").pvalue > 0.01
    assert places.min() >= 0
    assert places.max() < 1
    assert bucket("user-1", "ranker") == pytest.approx(0.16001483386830506, abs=0)


def test_salt_and_unit_do_not_run_into_each_other() -> None:
    assert bucket("bc", "a") != bucket("c", "ab")


def test_two_experiments_in_layers_are_independent() -> None:
    one = np.array([arm_of(u, "ranker", {"a": 0.5, "b": 0.5}) == "b" for u in UNITS])
    two = np.array([arm_of(u, "price", {"a": 0.8, "b": 0.2}) == "b" for u in UNITS])
    table = [[np.sum(one & two), np.sum(one & ~two)], [np.sum(~one & two), np.sum(~one & ~two)]]
    assert stats.chi2_contingency(table).pvalue > 0.01


def test_what_one_experiment_does_is_not_seen_in_the_other() -> None:
    """Two at once, over the same 20,000 units: each finds its own effect, and nothing of the other's, which with one
    salt for both would be taken for its own."""
    rng = np.random.default_rng(0)

    def z(salts: tuple[str, str], effects: tuple[float, float]) -> np.ndarray:
        arms = [np.array([arm_of(u, salt, {"a": 0.5, "b": 0.5}) == "b" for u in UNITS]) for salt in salts]
        y = sum(effect * arm for effect, arm in zip(effects, arms, strict=True)) + rng.normal(size=len(UNITS))
        found = [difference([moments_of(y[~arm])], [moments_of(y[arm])]) for arm in arms]
        return np.array([(estimate - effect) / error for (estimate, error), effect in zip(found, effects, strict=True)])

    both = np.array([z((f"ranker-{i}", f"price-{i}"), (0.5, 0.0)) for i in range(12)])
    assert np.abs(both.mean(axis=0)).max() < 3.5 / 12**0.5
    assert np.abs(both).max() < 4
    assert z(("same", "same"), (0.5, 0.0))[1] > 20


def test_a_ramp_only_adds_units_of_the_champion() -> None:
    before = [arm_of(u, "s", {"champion": 0.99, "challenger": 0.01}) for u in UNITS[:3000]]
    for share in (0.05, 0.25, 0.5, 1.0):
        after = [arm_of(u, "s", {"champion": 1 - share, "challenger": share}) for u in UNITS[:3000]]
        assert all(new == "challenger" for old, new in zip(before, after, strict=True) if old == "challenger")
        assert np.mean([arm == "challenger" for arm in after]) == pytest.approx(share, abs=0.03)
        before = after


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 10), min_size=2, max_size=5).filter(lambda w: sum(w) > 0))
def test_shares_are_kept_whatever_they_are(weights: list[int]) -> None:
    shares = {f"arm{i}": w / sum(weights) for i, w in enumerate(weights)}
    check_shares(shares)
    arms = [arm_of(u, "s", shares) for u in UNITS[:2000]]
    for arm, share in shares.items():
        assert np.mean([a == arm for a in arms]) == pytest.approx(share, abs=0.05)


def test_a_second_challenger_keeps_its_units_while_the_first_grows() -> None:
    small = [arm_of(u, "s", {"base": 0.8, "a": 0.1, "b": 0.1}) for u in UNITS[:3000]]
    large = [arm_of(u, "s", {"base": 0.2, "a": 0.7, "b": 0.1}) for u in UNITS[:3000]]
    assert all(new == old for old, new in zip(small, large, strict=True) if old != "base")


def test_a_holdout_is_apart_from_every_experiment() -> None:
    out = np.array([is_held_out(u, 0.1) for u in UNITS])
    arm = np.array([arm_of(u, "ranker", {"a": 0.5, "b": 0.5}) == "b" for u in UNITS])
    assert out.mean() == pytest.approx(0.1, abs=0.01)
    assert arm[out].mean() == pytest.approx(0.5, abs=0.04)
    assert not is_held_out("user-1", 0.0)


@pytest.mark.parametrize("shares", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": float("nan"), "b": 1.0}])
def test_shares_that_are_none_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="shares"):
        check_shares(shares)
