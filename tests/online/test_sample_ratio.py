from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cltrain.online.sample_ratio import Phase, always_valid, chi_square, mismatch_evidence

EVEN = {"a": 0.5, "b": 0.5}


def test_a_leak_is_found_and_an_even_split_is_not_blamed() -> None:
    leak, even = (
        Phase(shares=EVEN, exposed={"a": 10_400, "b": 9_600}),
        Phase(shares=EVEN, exposed={"a": 10_040, "b": 9_960}),
    )
    assert chi_square(leak) == pytest.approx(stats.chisquare([10_400, 9_600]).pvalue)
    assert always_valid([leak]) < 0.001
    assert chi_square(even) > 0.5
    assert always_valid([even]) == 1.0


def test_phases_are_judged_by_their_own_shares() -> None:
    ramp = [
        Phase(shares={"a": 0.95, "b": 0.05}, exposed={"a": 9_500, "b": 500}),
        Phase(shares=EVEN, exposed={"a": 5_000, "b": 5_000}),
    ]
    assert always_valid(ramp) == 1.0
    assert chi_square(Phase(shares=EVEN, exposed={"a": 14_500, "b": 5_500})) < 1e-10


def test_units_of_an_arm_without_traffic_are_a_leak() -> None:
    lost = Phase(shares={"a": 1.0, "b": 0.0}, exposed={"a": 100, "b": 1})
    assert always_valid([lost]) == chi_square(lost) == 0.0
    assert always_valid([Phase(shares={"a": 1.0, "b": 0.0}, exposed={"a": 100})]) == 1.0


def test_no_units_say_nothing() -> None:
    assert chi_square(Phase(shares=EVEN)) == always_valid([Phase(shares=EVEN)]) == 1.0


def test_it_may_be_read_all_the_time() -> None:
    n = np.arange(10, 5_001, 10)
    one = np.random.default_rng(0).binomial(10, 0.3, (2_000, len(n))).cumsum(1).astype(float)
    log = mismatch_evidence(np.stack([one, n - one], -1), np.array([0.3, 0.7]))
    assert (log >= -np.log(0.01)).any(1).mean() < 0.01
