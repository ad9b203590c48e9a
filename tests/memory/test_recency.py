"""Shares by age follow the half-life."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from cltrain.errors import ConfigError
from cltrain.memory import Recency, Reservoir
from cltrain.memory.recency import arrivals, forward_decay
from tests.memory.made import admitted, rows


def test_shares_halve_with_the_half_life() -> None:
    """4,000 events, one an hour, in five parts; the last half-life has 1/2 of the memory, the one before 1/4, ...
    Chi-square over 60 lineages; the expected shares are those of draws with replacement, as 40 of 4,000 nearly are."""
    hour = 3_600_000_000
    found = np.zeros(4)
    for salt in range(60):
        parts = [rows(i * 800, i * 800 + 800, step_us=hour) for i in range(5)]
        kept = admitted(Recency(capacity_rows=40, half_life="800h", salt=salt), parts)
        age = (4_000 - np.asarray(kept.column("x"))) // 800
        found += np.bincount(np.minimum(age, 3).astype(int), minlength=4)
    weights = 0.5 ** np.arange(5)
    expected = np.append(weights[:3], weights[3:].sum()) / weights.sum() * 40 * 60
    assert ((found - expected) ** 2 / expected).sum() < 16.3, "3 degrees of freedom, p = 0.001"


def test_a_long_half_life_is_a_reservoir_and_a_short_one_a_ring() -> None:
    events = rows(0, 300)
    uniform, latest = (Recency(capacity_rows=20, half_life=span).admit(None, events) for span in ("500000w", "1ms"))
    same = set(uniform["x"].to_pylist()) & set(Reservoir(capacity_rows=20).admit(None, events)["x"].to_pylist())
    assert len(same) >= 19
    assert sorted(latest["x"].to_pylist()) == list(range(280, 300))


def test_no_time_is_too_far_away() -> None:
    times = np.array([-(2**62), -1, 0, 1, 2**62])
    order = arrivals(np.full(5, 0.5), forward_decay(times, timedelta(microseconds=1)))
    assert np.isfinite(order).all()
    assert (np.diff(order) < 0).all()
    assert arrivals(np.array([0.0, 1 - 2.0**-53]), np.zeros(2)).tolist()[0] == -np.inf


def test_weights_are_inclusion_odds() -> None:
    """Of two rows, one that weighs three times as much comes first three times of four."""
    keys = np.random.default_rng(0).random((2, 20_000))
    first = arrivals(keys[0], np.log(np.full(20_000, 3.0))) < arrivals(keys[1], np.zeros(20_000))
    assert abs(first.mean() - 0.75) < 4.5 * (0.75 * 0.25 / 20_000) ** 0.5


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="'soon' is not a duration"):
        Recency(half_life="soon")
