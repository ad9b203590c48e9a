from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from hydra.utils import get_class

from cltrain.errors import ConfigError
from cltrain.online.recommend import Situation, recommend

ROLLOUTS = Path(__file__).resolve().parents[2] / "conf" / "rollout"
RATE = {"effect": 0.01, "spread": 0.3}


@pytest.mark.parametrize(
    ("situation", "test", "units", "days"),
    [
        # Delays of flights: the label comes whatever was said, so the two versions are paired.
        (dict(answers="prediction", units_per_day=1_000, effect=0.02, spread=0.5, delay="1d"), "shadow", 2_075, 4),
        # Labels a month late: shadow still, it only takes longer.
        (dict(answers="prediction", units_per_day=1_000, effect=0.02, spread=0.5, delay="30d"), "shadow", 2_075, 33),
        # A ranker with clicks at once.
        (dict(answers="ranking", units_per_day=5_000, delay="1h", **RATE), "interleave", 9_960, 3),
        # Three rankers: traffic leaves the worse ones.
        (dict(answers="ranking", units_per_day=5_000, versions=3, **RATE), "bandit", 53_600, 15),
        # Three rankers, labels too late for a bandit: one test after another, at half the level each.
        (dict(answers="ranking", units_per_day=20_000, versions=3, delay="4d", **RATE), "ab", 71_470, 22),
        # Two challengers in shadow, one after another.
        (dict(answers="prediction", units_per_day=1_000, versions=3, effect=0.02, spread=0.5), "shadow", 4_982, 6),
        # Little traffic, but nothing is quicker than pairs.
        (dict(answers="prediction", units_per_day=10, effect=0.02, spread=0.5), "shadow", 2_075, 208),
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
    target = yaml.safe_load((ROLLOUTS / f"{found.test}.yaml").read_text())["_target_"]
    names = {name.removeprefix("rollout.") for name in found.settings} - {"rollout"}
    assert names <= {field.name for field in dataclasses.fields(get_class(target))}


def test_what_is_recommended_is_set() -> None:
    offer = dict(answers="action", units_per_day=2_000, delay="2d", **RATE)
    assert recommend(Situation(**offer)).settings == {
        "rollout": "ab",
        "rollout.test": "horizon",
        "rollout.horizon_units": 29_876,
        "rollout.cycle": "7d",
        "rollout.max_s": 23 * 86_400,
    }
    shadows = recommend(Situation(answers="prediction", units_per_day=1_000, versions=3, effect=0.02, spread=0.5))
    assert shadows.settings["rollout.min_samples"] == shadows.units / 2
    assert shadows.settings["rollout.max_s"] == shadows.days * 86_400 / 2
    late = recommend(Situation(answers="action", units_per_day=200, delay="10d", **RATE))
    assert late.settings == {"rollout": "canary", "rollout.min_s": 7 * 86_400 // 5, "rollout.max_s": 14 * 86_400}
    assert "longer than 28 days" in recommend(Situation(answers="prediction", units_per_day=1, **RATE)).reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": "chat"}, "answers"),
        ({"units_per_day": 0}, "units_per_day"),
        ({"effect": -1}, "effect"),
        ({"versions": 1}, "versions"),
        ({"delay": "late"}, "duration"),
        ({"pairing": 1.0}, "pairing"),
        ({"cycle": "0s"}, "duration"),
    ],
)
def test_what_cannot_be_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recommend(Situation(**{"answers": "action", "units_per_day": 10, **RATE, **change}))
