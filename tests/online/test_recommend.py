from __future__ import annotations

import pytest

from cltrain.errors import ConfigError
from cltrain.online.recommend import Situation, recommend

RATE = {"effect": 0.01, "spread": 0.3}


@pytest.mark.parametrize(
    ("situation", "test", "units", "days"),
    [
        # Delays of flights: the label comes whatever was said, so the two versions are paired.
        (dict(answers="prediction", units_per_day=1_000, effect=0.02, spread=0.5, delay="1d"), "shadow", 2_075, 4),
        # Labels a month late: shadow still, it only takes longer.
        (dict(answers="prediction", units_per_day=1_000, effect=0.02, spread=0.5, delay="30d"), "shadow", 2_075, 33),
        # A ranker with clicks at once.
        (dict(answers="ranking", units_per_day=5_000, delay="1h", **RATE), "interleave", 4_980, 2),
        # Three rankers: traffic leaves the worse ones.
        (dict(answers="ranking", units_per_day=5_000, versions=3, **RATE), "bandit", 53_600, 15),
        # An offer, with traffic enough: whole weeks, and the labels of the last day.
        (dict(answers="action", units_per_day=2_000, delay="2d", **RATE), "ab", 29_876, 23),
        # Too little traffic, quick labels.
        (dict(answers="action", units_per_day=200, delay="1h", **RATE), "bandit", 0, 28),
        # Too little traffic, late labels.
        (dict(answers="action", units_per_day=200, delay="10d", **RATE), "canary", 0, 7),
        # Ranking with sales that come too late to wait for.
        (dict(answers="ranking", units_per_day=5_000, delay="60d", **RATE), "canary", 0, 7),
    ],
)
def test_golden_cases(situation: dict, test: str, units: int, days: int) -> None:
    found = recommend(Situation(**situation))
    assert (found.test, found.days) == (test, days), found
    assert found.units == pytest.approx(units, rel=0.01)
    assert found.reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": "chat"}, "answers"),
        ({"units_per_day": 0}, "units_per_day"),
        ({"effect": -1}, "effect"),
        ({"versions": 1}, "versions"),
        ({"delay": "late"}, "duration"),
        ({"pairing": 1.0}, "pairing"),
    ],
)
def test_what_cannot_be_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recommend(Situation(**{"answers": "action", "units_per_day": 10, **RATE, **change}))
