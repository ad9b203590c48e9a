from __future__ import annotations

import json
from datetime import timedelta

import numpy as np
import pytest

from cltrain.errors import ConfigError, DataError
from cltrain.online.ab import Conclusion, Tally, conclude, difference
from cltrain.online.design import Experiment, Metric
from cltrain.online.moments import moments_of

HALVES = {"champion": 0.5, "challenger": 0.5}
WEEKS = timedelta(days=14)
SALES = Metric(name="sales", effect=0.1, spread=1.0)
ERRORS = Metric(name="errors", effect=0.02, better="lower", role="guardrail")
SPEC = Experiment(metrics=(SALES, ERRORS), salt="s", shares=HALVES)


def tally(sales: float = 0.0, errors: float = 0.0, n: int = 2_000, spec: Experiment = SPEC, seed: int = 0) -> Tally:
    found, generator = Tally(spec), np.random.default_rng(seed)
    for arm, lift, worse in (("champion", 0.0, 0.0), ("challenger", sales, errors)):
        noise = generator.normal(size=n)
        found.expose(arm, n)
        found.observe(arm, "sales", noise - noise.mean() + lift)
        found.observe(arm, "errors", (np.arange(n) < n * (0.01 + worse)).astype(float))
    return found


def test_a_better_challenger_is_promoted_after_whole_cycles() -> None:
    assert conclude(SPEC, tally(0.2), timedelta(days=6)).action == "go_on"
    found = conclude(SPEC, tally(0.2), WEEKS)
    assert found.action == "promote"
    assert "better sales: +0.2" in found.reasons[0]


@pytest.mark.parametrize("test", ["horizon", "always"])
@pytest.mark.parametrize(
    ("sales", "errors", "n", "action"),
    [
        (0.0, 0.0, 400, "go_on"),
        (0.0, 0.0, 8_000, "futility"),
        (-0.3, 0.0, 1_000, "harm"),
        (0.3, 0.3, 1_000, "harm"),
        (0.3, 0.0, 50, "go_on"),
    ],
)
def test_conclusions(test: str, sales: float, errors: float, n: int, action: str) -> None:
    spec = Experiment(metrics=(SALES, ERRORS), salt="s", shares=HALVES, test=test)
    assert conclude(spec, tally(sales, errors, n, spec), WEEKS).action == action


def test_harm_does_not_wait() -> None:
    assert conclude(SPEC, tally(-0.3), timedelta(0)).action == "harm"


def test_a_guardrail_beyond_its_margin_holds_back_a_winner() -> None:
    spec = Experiment(metrics=(SALES, ERRORS), salt="s", shares=HALVES, horizon_units=5_000)
    found = conclude(spec, tally(0.5, 0.025, 2_000, spec), WEEKS)
    assert found.action == "go_on"
    assert "errors is beyond its margin" in found.reasons[0]


def test_the_horizon_ends_it() -> None:
    spec = Experiment(metrics=(SALES, ERRORS), salt="s", shares=HALVES, horizon_units=1_000)
    assert conclude(spec, tally(0.05, n=500, spec=spec), WEEKS).action == "horizon"


def test_arms_of_wrong_sizes_block_conclusions_but_harm() -> None:
    spec = Experiment(metrics=(SALES, ERRORS), salt="s", shares=HALVES, horizon_units=5_000)
    for lift, action in ((0.3, "go_on"), (-0.5, "harm")):
        found = tally(lift, spec=spec)
        found.expose("champion", 900)
        conclusion = conclude(spec, found, WEEKS)
        assert conclusion.action == action
        assert conclusion.sample_ratio_p < 0.001


def test_phases_of_a_ramp_do_not_mix() -> None:
    # In the second phase everybody buys more and the challenger has more traffic: pooled means would differ by 0.4.
    spec = Experiment(metrics=(SALES,), salt="s", shares={"champion": 0.9, "challenger": 0.1})
    found, generator = Tally(spec), np.random.default_rng(0)
    for i, (level, sizes) in enumerate(((0.0, (9_000, 1_000)), (1.0, (5_000, 5_000)))):
        if i:
            found.begin(HALVES)
        for arm, n in zip(spec.arms, sizes, strict=True):
            found.expose(arm, n)
            found.observe(arm, "sales", level + generator.normal(size=n))
    conclusion = conclude(spec, found, WEEKS)
    assert conclusion.sample_ratio_p == 1.0
    assert conclusion.effects["sales"].estimate == pytest.approx(0, abs=0.06)


def test_the_pre_period_takes_away_the_variance_that_it_explains() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2, 4_000))
    y = 0.8 * x + 0.6 * generator.normal(size=(2, 4_000))
    plain = difference([moments_of(y[0])], [moments_of(y[1])])
    adjusted = difference([moments_of(y[0], x[0])], [moments_of(y[1], x[1])])
    assert (adjusted[1] / plain[1]) ** 2 == pytest.approx(1 - 0.64, abs=0.02)
    assert abs(adjusted[0]) < 3 * adjusted[1]
    same = np.ones((2, 4_000))
    assert difference([moments_of(y[0], same[0])], [moments_of(y[1], same[1])]) == pytest.approx(plain)


def test_two_primary_metrics_share_the_level() -> None:
    other = Metric(name="visits", effect=0.1, spread=1.0)
    spec = Experiment(metrics=(SALES, other), salt="s", shares=HALVES, horizon_units=4_000)
    alone = Experiment(metrics=(SALES,), salt="s", shares=HALVES, horizon_units=4_000)
    found, single = Tally(spec), Tally(alone)
    noise = np.random.default_rng(0).normal(size=2_000)
    noise = (noise - noise.mean()) / noise.std()
    for arm in spec.arms:
        sales = noise + 0.073 * (arm == "challenger")  # 2.31 standard errors: enough alone (2.24), not one of two
        found.observe(arm, "sales", sales)
        found.observe(arm, "visits", noise)
        single.observe(arm, "sales", sales)
    assert conclude(alone, single, WEEKS).action == "promote"
    assert conclude(spec, found, WEEKS).action == "horizon"


def test_a_stopped_experiment_goes_on_from_its_state() -> None:
    found = tally(0.07)
    again = Tally.load(SPEC, json.loads(json.dumps(found.state_dict())))
    for t in (found, again):
        t.begin({"champion": 0.2, "challenger": 0.8})
        t.observe("challenger", "sales", np.array([1.0, 2.0]), np.array([0.5, 1.0]))
    assert again.state_dict() == found.state_dict()
    assert conclude(SPEC, again, WEEKS) == conclude(SPEC, found, WEEKS)


def test_nobody_edits_a_running_experiment() -> None:
    edited = Experiment(metrics=(SALES, ERRORS), salt="s", shares=HALVES, level=0.1)
    with pytest.raises(ConfigError, match="cannot be edited while it runs"):
        Tally.load(edited, tally().state_dict())


def test_an_empty_tally_is_an_answer() -> None:
    found = conclude(SPEC, Tally(SPEC), WEEKS)
    assert found == Conclusion(action="go_on", reasons=found.reasons)
    assert "fewer than 100 units" in found.reasons[0]


def test_an_arm_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match="no arm 'c'"):
        Tally(SPEC).expose("c")


def test_false_wins_with_daily_looks_stay_within_the_level() -> None:
    spec = Experiment(metrics=(SALES,), salt="s", shares=HALVES, min_cycles=0)
    wrong = 0
    for seed in range(80):
        found, generator = Tally(spec), np.random.default_rng(seed)
        for _ in range(14):
            for arm in spec.arms:
                found.observe(arm, "sales", generator.normal(size=spec.horizon // 28))
            if (action := conclude(spec, found, WEEKS).action) in ("promote", "harm"):
                wrong += 1
            if action != "go_on":
                break
    assert wrong / 80 < 0.106  # 0.05 and 2.3 standard errors


def test_how_odd_the_sizes_of_the_arms_may_be() -> None:
    sizes = {"champion": 2_000, "challenger": 2_230}
    for level, blocked in ((0.001, False), (0.05, True)):
        spec = Experiment(metrics=(SALES,), salt="s", shares=HALVES, sample_ratio_level=level)
        found = Tally(spec)
        for arm, n in sizes.items():
            found.expose(arm, n)
            found.observe(arm, "sales", np.tile([-1.0, 1.0], n // 2) + 0.3 * (arm == "challenger"))
        said = conclude(spec, found, WEEKS)
        assert 0.002 < said.sample_ratio_p < 0.05
        assert (said.action != "promote") == blocked
