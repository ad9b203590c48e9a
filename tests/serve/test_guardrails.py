"""Guardrails on counters made by hand: what they catch, when, and how rarely they alarm for nothing."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from cltrain.errors import ConfigError
from cltrain.online.moments import moments_of
from serve.rollout.evidence import SCORE_BINS, Counters, latency_bucket, upper_edge_s
from serve.rollout.guardrails import Guardrails, Reading, Sustained, psi, readings
from serve.rollout.outcomes import Outcomes, Period

GUARD = Guardrails()
NOW = datetime(2024, 1, 1, tzinfo=UTC)


def counters(rng: np.random.Generator, n: int, *, ms: float = 1.0, errors: float = 0.0, nan: float = 0.0) -> Counters:
    """`n` requests of one row with uniform scores."""
    found = Counters()
    for seconds, fate, score in zip(1e-3 * ms * rng.lognormal(0, 0.3, n), rng.random(n), rng.random(n), strict=True):
        if fate < errors + nan:
            found.failed(seconds, finite=fate < errors)
        else:
            found.answered(seconds, [score], [int(score * SCORE_BINS)])
    return found


def broken(ours: Counters, theirs: Counters, outcomes: Outcomes | None = None, guard: Guardrails = GUARD) -> set[str]:
    return {one.name for one in readings(guard, ours, theirs, theirs, outcomes) if one.breach}


def test_a_sound_challenger_breaks_nothing() -> None:
    rng = np.random.default_rng(0)
    theirs = counters(rng, 5000, errors=0.01)
    assert not broken(counters(rng, 500, errors=0.01), theirs)
    assert not readings(GUARD, Counters(), theirs, theirs)


@pytest.mark.parametrize(
    ("fault", "name", "requests"),
    [
        ({"errors": 0.02}, "error rate", 1000),
        ({"nan": 1.0}, "non-finite rate", 20),
        ({"nan": 0.05}, "non-finite rate", 200),
        ({"ms": 5.0}, "p99 latency in ms", 20),
    ],
)
def test_a_fault_shows_within_the_first_step(fault: dict[str, float], name: str, requests: int) -> None:
    rng = np.random.default_rng(1)
    theirs = counters(rng, 5000)

    def shows() -> bool:
        ours = Counters()
        for _ in range(0, requests, 20):
            ours = ours + counters(rng, 20, **fault)
            if name in broken(ours, theirs):
                return True
        return False

    assert sum(shows() for _ in range(50)) >= 49


def test_a_constant_score_and_a_shifted_one_show() -> None:
    rng = np.random.default_rng(2)
    theirs, constant, shifted = counters(rng, 5000), Counters(), Counters()
    for _ in range(30):
        constant.answered(1e-3, [0.5], [10])
    for score in rng.uniform(0.9, 1.0, 600):
        shifted.answered(1e-3, [score], [int(score * SCORE_BINS)])
    assert "constant score" in broken(constant, theirs)
    assert broken(shifted, theirs) == {"score shift"}
    near = Counters()
    for score in rng.uniform(0.52, 0.53, 600):
        near.answered(1e-3, [score], [int(score * SCORE_BINS)])
    assert not broken(near, Counters.from_json(near.to_json()) + near), "a bin further is no shift"
    assert (psi(shifted, theirs) or 0) > 0.25 > (psi(counters(rng, 3000), theirs) or 0)


def test_looks_at_every_request_alarm_rarely() -> None:
    """150 canaries as sound as their champion, read 40 times each: each of four guardrails may alarm in 1 %."""
    rng, alarms, tries = np.random.default_rng(3), 0, 150
    guard = Guardrails(max_score_shift=None)
    theirs = counters(rng, 20_000, errors=0.005)
    for _ in range(tries):
        ours = Counters()
        for seconds, fate, score in zip(1e-3 * rng.lognormal(0, 0.3, 200), *rng.random((2, 200)), strict=True):
            if fate < 0.005:
                ours.failed(seconds)
            else:
                ours.answered(seconds, [score], [int(score * SCORE_BINS)])
            if ours.requests % 5 == 0 and broken(ours, theirs, guard=guard):
                alarms += 1
                break
    assert alarms <= 0.04 * tries


def test_a_worse_loss_breaks_in_label_time_and_a_reward_is_a_metric_of_its_own() -> None:
    rng = np.random.default_rng(4)

    def outcomes(rise: float, drop: float) -> Outcomes:
        moments = {
            "champion": {"loss": moments_of(rng.exponential(0.5, 2000)), "reward": moments_of(rng.random(2000))},
            "challenger": {
                "loss": moments_of(rng.exponential(0.5 + rise, 2000)),
                "reward": moments_of(rng.random(2000) - drop),
            },
        }
        return Outcomes((Period({"champion": 2000, "challenger": 2000}, moments),))

    none = Counters()
    assert not broken(none, none, outcomes(0.0, 0.0))
    assert broken(none, none, outcomes(0.2, 0.2)) == {"loss increase"}
    rewarded = Guardrails(reward_type="implicit")
    assert broken(none, none, outcomes(0.0, 0.2), rewarded) == {"drop of implicit feedback"}


def test_a_breach_must_last() -> None:
    sustained = Sustained(1.0)
    reading = Reading(name="a", kind="health", value=1, limit=0, samples=1, breach=True)
    assert not sustained.update([reading], NOW)
    assert not sustained.update([], NOW + timedelta(seconds=1))
    assert not sustained.update([reading], NOW + timedelta(seconds=2))
    assert sustained.update([reading], NOW + timedelta(seconds=3)) == (reading,)


def test_counters_add_up_and_round_trip() -> None:
    rng = np.random.default_rng(5)
    one, other = counters(rng, 200, errors=0.1), counters(rng, 300, ms=10.0, nan=0.1)
    both = one + other
    assert (both.requests, both.rows) == (500, one.rows + other.rows)
    assert Counters.from_json(both.to_json()) == both
    assert one.quantile_s(0.5) == pytest.approx(1e-3, rel=0.15)
    assert both.slower_than(4e-3) == pytest.approx(300, abs=5)
    assert Counters().quantile_s(0.99) is None
    assert all(
        upper_edge_s(latency_bucket(s) - 1) <= s * (1 + 1e-9) < upper_edge_s(latency_bucket(s)) for s in (1e-5, 0.3)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", 0.0),
        ("min_samples", 0),
        ("sustain_s", -1.0),
        ("max_error_rate", 1.0),
        ("max_p99_ratio", 1.0),
        ("max_loss_increase", 0.0),
        ("max_score_shift", 2.0),
    ],
)
def test_settings_name_what_is_wrong(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"rollout\.guardrails\.{name}"):
        Guardrails(**{name: value})  # type: ignore[arg-type]
