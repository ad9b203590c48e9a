"""The paired interval covers what it says, also where losses are skewed."""

from __future__ import annotations

import numpy as np
import pytest

from cltrain.evaluate import bootstrap
from cltrain.evaluate.bootstrap import paired_interval

SERIES = 400


@pytest.mark.parametrize("kind", ["normal", "rare and bad", "rare and good"])
def test_each_bound_misses_no_more_often_than_its_level(kind: str) -> None:
    generator = np.random.default_rng(1)
    above = below = 0
    for _ in range(SERIES):
        if kind == "normal":
            difference = generator.normal(size=300)
        else:
            difference = (generator.exponential(size=300) - 1) * (1 if kind == "rare and bad" else -1)
        _, low, high = paired_interval(difference, np.zeros(300), generator, level=0.05, resamples=200)
        above, below = above + (high <= 0), below + (low >= 0)
    for missed in (above, below):
        assert 0.015 <= missed / SERIES <= 0.05 + 2.6 * (0.05 * 0.95 / SERIES) ** 0.5


def test_the_closed_form_agrees_with_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    a, b = generator.exponential(size=(2, 10_001))
    mean, *closed = paired_interval(a, b, generator)
    monkeypatch.setattr(bootstrap, "NORMAL_ROWS", 20_000)
    again, *resampled = paired_interval(a, b, generator, resamples=2_000)
    assert mean == again == pytest.approx((a - b).mean())
    assert np.allclose(closed, resampled, atol=0.08 * (closed[1] - closed[0]))


def test_it_is_paired_repeatable_and_exact_without_variation() -> None:
    b = np.random.default_rng(0).exponential(size=200)
    assert paired_interval(b, b, np.random.default_rng(0)) == (0.0, 0.0, 0.0)
    assert paired_interval(b[:1] + 1, b[:1], np.random.default_rng(0)) == (1.0, 1.0, 1.0)
    a = b + np.random.default_rng(1).normal(0, 0.01, 200)
    first, second = (paired_interval(a, b, np.random.default_rng(3)) for _ in range(2))
    assert first == second
    assert first[2] - first[1] < 0.01, "the spread of the losses themselves does not count"


def test_one_extreme_row_does_not_break_it() -> None:
    difference = np.zeros(50)
    difference[0] = 1e12
    mean, low, high = paired_interval(difference, np.zeros(50), np.random.default_rng(0))
    assert low <= mean <= high
