"""What ends a bandit, what its settings refuse, and what its log must hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from cltrain.errors import ConfigError
from cltrain.online.bandits import UCB, EpsilonGreedy, LinUCB, Thompson
from cltrain.registry.deployment import STAGING, Trial
from serve.rollout import controller as controllers
from serve.rollout.bandit import BanditOutcomes, Weighed, require_log
from serve.rollout.controller import kind_of
from serve.rollout.evidence import Counters, Seen
from serve.rollout.experiments import BanditTest
from serve.rollout.machine import Evidence, decide
from serve.rollout.outcomes import LOSS
from serve.settings import LogSettings

NOW = datetime(2024, 1, 1, tzinfo=UTC)


def trial(step: int = 0, since_s: float = 100.0) -> Trial:
    at = NOW - timedelta(seconds=since_s)
    settings: dict[str, Any] = {}
    return Trial(
        id="t", kind="bandit", settings=settings, version="1.1", champion="1.0", started_at=at, since=at, step=step
    )


def found(best: float, labelled: int = 500, **more: Any) -> Evidence:
    arms = ("champion", "challenger")
    chosen = np.repeat([0, 1], labelled)
    half, none = np.full(2 * labelled, 0.5), np.zeros((2 * labelled, 0))
    weighed = {LOSS: Weighed(arms, chosen, half, half, none)}
    outcomes = BanditOutcomes(arms=arms, best={"champion": 1 - best, "challenger": best}, weighed=weighed)
    return Evidence(Seen(staged=frozenset("a"), **more), outcomes)


def test_what_comes_next_is_what_is_known() -> None:
    kind = BanditTest()
    assert kind.shares(STAGING) == {"champion": 1.0, "challenger": 0.0}
    assert kind.shares(0) == {"champion": 0.5, "challenger": 0.5}
    assert decide(kind, trial(STAGING), Evidence(Seen()), NOW).do == "hold"
    assert decide(kind, trial(), Evidence(), NOW).reason == "nothing is learned yet"
    promoted = decide(kind, trial(), found(0.995), NOW)
    assert (promoted.do, promoted.version) == ("promote", "1.1")
    assert decide(kind, trial(), found(0.005), NOW).do == "roll_back"
    assert decide(kind, trial(), found(0.98), NOW).do == "hold"
    assert decide(kind, trial(), found(0.995, labelled=99), NOW).do == "hold", "too few labels"
    assert decide(kind, trial(since_s=59), found(0.995), NOW).do == "hold", "too early"
    assert decide(kind, trial(since_s=3e6), found(0.6), NOW).do == "stop"
    assert decide(dataclasses.replace(kind, at_end="promote"), trial(since_s=3e6), found(0.6), NOW).do == "promote"


def test_a_version_beside_the_one_under_trial_that_fails_stops_the_bandit() -> None:
    kind = BanditTest(versions=("1.2",))
    assert kind.roles(0, "1.1") == {"challenger": "1.1", "challenger-2": "1.2"}
    broken = {0: {"challenger-2": Counters(requests=200, errors=50), "champion": Counters(requests=200)}}
    action = decide(kind, trial(), Evidence(Seen(steps=broken, staged=frozenset("a"))), NOW)
    assert (action.do, "1.2, tried beside it" in action.reason) == ("stop", True)


def test_estimates_are_weighed_by_propensities() -> None:
    """Traffic goes to whom the world is kind: means of what each arm got are wrong by the world's share of it."""
    draw = np.random.default_rng(0)
    kindness = draw.normal(size=20_000)
    chance = 1 / (1 + np.exp(-2 * kindness))
    chosen = (draw.random(20_000) < chance).astype(int)
    value = kindness + 0.3 * chosen + draw.normal(size=20_000)
    propensity = np.where(chosen == 1, chance, 1 - chance)
    weighed = Weighed(("champion", "challenger"), chosen, value, propensity, np.zeros((20_000, 0)))
    assert value[chosen == 1].mean() - value[chosen == 0].mean() > 1.0
    contrast = weighed.contrast("challenger")
    assert contrast is not None
    assert contrast.difference == pytest.approx(0.3, abs=4 * contrast.error)
    with_context = dataclasses.replace(weighed, context=kindness[:, None]).contrast("challenger")
    assert with_context is not None
    assert with_context.error < 0.7 * contrast.error
    assert with_context.n < 10_000
    assert weighed.estimates("champion")["aipw"].value == pytest.approx(0.0, abs=0.15)
    assert dataclasses.replace(weighed, chosen=np.zeros(20_000, int)).contrast("challenger") is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_share": 0.6}, r"rollout\.min_share"),
        ({"versions": ["1.2", "1.2"]}, "twice"),
        ({"level": 0.4}, r"rollout\.level"),
        ({"min_units": 0}, r"rollout\.min_units"),
        ({"max_loss": 0.0}, r"rollout\.max_loss"),
        ({"features": ["age"]}, "has no context"),
        ({"at_end": "wait"}, r"rollout\.at_end"),
        ({"label_horizon": "long"}, "duration"),
        ({"guardrails": {"max_metric_shift": {"length": 0.1}}}, r"guardrails\.max_metric_shift"),
        ({"policy": "annealing"}, r"rollout\.policy must be thompson"),
        ({"policy": {"width": 1.0}}, r"rollout\.policy must be thompson"),
        ({"policy": {"name": "ucb", "width": -1.0}}, r"policy\.width must be above 0"),
        ({"policy": {"name": "ucb", "wide": 1.0}}, "did you mean"),
    ],
)
def test_settings_name_what_is_wrong(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        kind_of("bandit", settings)


def test_a_policy_is_chosen_by_name(settings_of: Callable[..., dict[str, Any]]) -> None:
    from cltrain.config import build

    assert kind_of("bandit", {"policy": "lin_ucb", "features": ["distance"]}).policy == LinUCB()
    kind = kind_of("bandit", {"policy": {"name": "epsilon_greedy", "explore": 0.2}})
    assert kind.policy == EpsilonGreedy(explore=0.2)
    assert kind.floored.explore == 0.2
    assert build(controllers.settings_of(kind), "rollout") == kind
    assert BanditTest(min_share=0.1).floored == Thompson(explore=0.2)
    assert build(settings_of("rollout=bandit", "policy@rollout.policy=ucb")["rollout"], "rollout").policy == UCB()


@pytest.mark.parametrize("log", [LogSettings(keep="profiles"), LogSettings(rates={"arm is challenger": 0.5})])
def test_a_log_that_says_too_little_is_refused(log: LogSettings) -> None:
    with pytest.raises(ConfigError, match=r"serve\.log\.keep=full"):
        require_log(log)
    require_log(LogSettings(rate=0.5))
