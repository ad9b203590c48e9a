from __future__ import annotations

import numpy as np
import pytest

from cltrain.config import build
from cltrain.errors import ConfigError
from cltrain.online.design import Experiment, Metric, design_spread, information_needed, power_at, units_needed
from cltrain.online.sequential import half_width, horizon_half_width

HALVES = {"champion": 0.5, "challenger": 0.5}
CLICKS = Metric(name="clicks", effect=0.01, spread=0.3)


def test_units_of_a_test_that_is_read_once_are_those_of_the_books() -> None:
    # 2 (1.960 + 0.842)² 0.5² / 0.02² an arm
    assert units_needed(0.02, 0.5, HALVES, test="once") == pytest.approx(2 * 9_811, abs=2)
    uneven = units_needed(0.02, 0.5, {"a": 0.9, "b": 0.1}, test="once")
    assert uneven == pytest.approx(2 * 9_811 * (1 / 0.9 + 1 / 0.1) / 4, abs=2)
    assert units_needed(0.02, 0.5, HALVES, test="once", correlation=0.6) == pytest.approx(2 * 9_811 * 0.64, abs=2)


def test_what_looking_costs() -> None:
    once = information_needed(0.05, 0.8, "once")
    assert information_needed(0.05, 0.8, "horizon") / once == pytest.approx(1.06, abs=0.01)
    assert information_needed(0.05, 0.8, "always") / once == pytest.approx(1.64, abs=0.02)
    assert power_at(once, 0.05, 0.8, "once") == pytest.approx(0.8)


@pytest.mark.parametrize("test", ["horizon", "always"])
def test_the_planned_information_finds_the_effect(test: str) -> None:
    information = information_needed(0.05, 0.8, test)
    time = np.linspace(0, information, 2_001)[1:]
    steps = np.random.default_rng(0).normal(1.0 * time[0], time[0] ** 0.5, (2_000, 2_000)).cumsum(1) / time
    bound = (
        half_width(time**-0.5, 0.05, design_spread(1.0, 0.05, 0.8))
        if test == "always"
        else horizon_half_width(time**-0.5, time / information, 0.05)
    )
    assert (steps > bound).any(1).mean() == pytest.approx(0.8, abs=0.03)


def test_the_horizon_is_planned_for_the_slowest_metric() -> None:
    slow = Metric(name="sales", effect=0.01, spread=0.6)
    one = Experiment(metrics=(CLICKS,), salt="s", shares=HALVES)
    assert one.horizon == units_needed(0.01, 0.3, HALVES)
    assert Experiment(metrics=(CLICKS, slow), salt="s", shares=HALVES).horizon == units_needed(0.01, 0.6, HALVES, 0.025)
    assert Experiment(metrics=(CLICKS,), salt="s", shares=HALVES, horizon_units=77).horizon == 77


def test_the_digest_is_of_everything_agreed() -> None:
    spec = Experiment(metrics=(CLICKS,), salt="s", shares=HALVES)
    assert spec.digest == Experiment(metrics=(CLICKS,), salt="s", shares=dict(HALVES)).digest
    for change in ({"level": 0.04}, {"horizon_units": 5_000}, {"shares": {"champion": 0.4, "challenger": 0.6}}):
        assert Experiment(**{"metrics": (CLICKS,), "salt": "s", "shares": HALVES, **change}).digest != spec.digest


def test_it_is_built_from_settings() -> None:
    settings = {
        "_target_": "cltrain.online.design.Experiment",
        "salt": "s",
        "shares": HALVES,
        "metrics": [{"_target_": "cltrain.online.design.Metric", "name": "clicks", "effect": 0.01, "spread": 0.3}],
    }
    assert build(settings) == Experiment(metrics=(CLICKS,), salt="s", shares=HALVES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shares": {"a": 1.0}}, "two arms"),
        ({"shares": {"a": 1.0, "b": 0.0}}, "two arms"),
        ({"shares": {"a": 0.7, "b": 0.7}}, "add up to 1"),
        ({"salt": ""}, "salt"),
        ({"level": 0.6}, "level"),
        ({"power": 0.01}, "power"),
        ({"test": "often"}, "test"),
        ({"metrics": ()}, "one primary"),
        ({"metrics": (CLICKS, CLICKS)}, "names of their own"),
        ({"metrics": (Metric(name="clicks", effect=0.1),)}, "spread"),
        ({"cycle": "a week"}, "duration"),
        ({"correlation": 1.0}, "correlation"),
        ({"min_units": 1}, "min_units"),
    ],
)
def test_settings_out_of_range_name_the_fix(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Experiment(**{"metrics": (CLICKS,), "salt": "s", "shares": HALVES, **change})


def test_a_metric_has_an_effect() -> None:
    with pytest.raises(ConfigError, match=r"metrics\.effect of m must be above 0"):
        Metric(name="m", effect=0)
