"""Intervals over periods, and the choice of a best."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cltrain.backtest.statistics import block_length, circular_blocks, paired_by_period, pareto_front, reality_check

PERIODS = 30


def dependent(generator: np.random.Generator, count: int, rho: float = 0.5) -> np.ndarray:
    """A stationary series whose neighbours are correlated by `rho`."""
    noise = generator.normal(size=count + 50)
    for i in range(1, len(noise)):
        noise[i] = rho * noise[i - 1] + np.sqrt(1 - rho**2) * noise[i]
    return noise[50:]


def test_blocks_are_neighbours_and_draw_every_period_alike() -> None:
    drawn = circular_blocks(10, 3, 4_000, np.random.default_rng(0))
    assert drawn.shape == (4_000, 10)
    assert set(np.unique((drawn[:, 1] - drawn[:, 0]) % 10)) == {1}
    share = np.bincount(drawn.ravel(), minlength=10) / drawn.size
    np.testing.assert_allclose(share, 0.1, atol=0.006)


def test_the_mean_is_over_rows_and_not_over_periods() -> None:
    ours, theirs, rows = np.array([10.0, 1.0, 2.0]), np.array([5.0, 1.0, 2.0]), np.array([10, 1, 1])
    mean, low, high = paired_by_period(ours, theirs, rows, np.random.default_rng(0))
    assert mean == pytest.approx(5 / 12)
    assert low < mean < high
    assert paired_by_period(ours[:2], theirs[:2], rows[:2], np.random.default_rng(0))[1:] == (-np.inf, np.inf)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    rows = np.full(PERIODS, 100)
    missed = {0.0: 0, 0.5: 0}
    for rho in missed:
        for _ in range(400):
            losses = rows * (0.3 + 0.1 * dependent(generator, PERIODS, rho))
            _, low, high = paired_by_period(losses, rows * 0.3, rows, generator, 0.05, resamples=200)
            missed[rho] += not low <= 0 <= high
    assert missed[0.0] / 400 <= 0.10 + 0.03
    assert missed[0.5] / 400 <= 0.20, "neighbours that are alike"


def test_the_best_of_many_is_not_taken_for_better() -> None:
    generator = np.random.default_rng(1)
    rows = np.full(PERIODS, 100)
    reference = np.zeros(PERIODS)
    false = 0
    for _ in range(100):
        many = [generator.normal(size=PERIODS) for _ in range(20)]
        false += reality_check(many, reference, rows, generator, resamples=200) < 0.1
        assert min(many, key=np.sum).sum() < 0, "the best of them looks better"
    assert false <= 20
    good = [*many, generator.normal(size=PERIODS) - 3]
    assert reality_check(good, reference, rows, generator) < 0.01
    assert reality_check([], reference, rows, generator) == 1.0


@given(arrays.arrays(float, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(0, 4).map(float)))
def test_nothing_beats_what_is_on_the_front(points: np.ndarray) -> None:
    front = pareto_front(points)
    assert front.any()
    for point, stays in zip(points, front, strict=True):
        beaten = ((points <= point).all(axis=1) & (points < point).any(axis=1)).any()
        assert stays == (not beaten)


@given(st.integers(1, 500), st.one_of(st.none(), st.integers(1, 50)))
def test_a_block_is_never_more_than_half(periods: int, block: int | None) -> None:
    assert 1 <= block_length(periods, block) <= max(1, periods // 2)
