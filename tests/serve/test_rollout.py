"""What comes next in a roll-out, decided from evidence made by hand."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from cltrain.config import build
from cltrain.errors import ConfigError
from cltrain.online.design import Metric
from cltrain.online.moments import moments_of
from cltrain.registry.deployment import STAGING, Trial
from serve.rollout.controller import kind_of
from serve.rollout.controller import settings_of as settings_again
from serve.rollout.evidence import Counters, Seen
from serve.rollout.experiments import ABTest
from serve.rollout.guardrails import Guardrails, Reading
from serve.rollout.kinds import KINDS
from serve.rollout.machine import Evidence, decide
from serve.rollout.outcomes import Outcomes, Period
from serve.rollout.releases import Canary, Shadow, Swap

NOW = datetime(2024, 1, 1, tzinfo=UTC)
BREACH = Reading(name="error rate", kind="health", value=0.1, limit=0.001, samples=50, breach=True)


def trial(kind: str, step: int = 0, since_s: float = 0.0) -> Trial:
    at = NOW - timedelta(seconds=since_s)
    return Trial(id="t", kind=kind, settings={}, version="1.1", champion="1.0", started_at=at, since=at, step=step)


def saw(requests: int, step: int = 0, **more: Any) -> Seen:
    return Seen(steps={step: {"challenger": Counters(requests=requests, **more)}}, staged=frozenset("a"))


@pytest.mark.parametrize("kind", [Swap(), Canary(), Shadow(), ABTest()])
def test_nothing_has_traffic_before_every_replica_has_staged_it(kind: Any) -> None:
    staging = trial(kind.kind, STAGING)
    assert kind.shares(STAGING) == {"champion": 1.0} or kind.shares(STAGING)["challenger"] == 0.0
    assert decide(kind, staging, Evidence(saw(0), replicas=2), NOW).do == "hold"
    assert decide(kind, staging, Evidence(saw(0), replicas=1), NOW).to == 0
    broken = Seen(staged=frozenset("a"), problems=("DigestError: altered",))
    action = decide(kind, staging, Evidence(broken, replicas=2), NOW)
    assert (action.do, "altered" in action.reason) == ("roll_back", True)
    late = trial(kind.kind, STAGING, since_s=121)
    assert decide(kind, late, Evidence(saw(0), replicas=2), NOW).do == "stop"
    assert decide(kind, trial(kind.kind), Evidence(saw(50), breaches=(BREACH,)), NOW).do == "roll_back"


def test_a_canary_takes_each_step_after_samples_and_seconds() -> None:
    kind = Canary(steps=(0.1, 1.0), min_samples=100, min_s=10)
    assert kind.shares(0) == {"champion": 0.9, "challenger": 0.1}
    assert decide(kind, trial("canary", 0, 9), Evidence(saw(200)), NOW).do == "hold"
    assert decide(kind, trial("canary", 0, 11), Evidence(saw(99)), NOW).do == "hold"
    assert decide(kind, trial("canary", 0, 11), Evidence(saw(100)), NOW).to == 1
    assert decide(kind, trial("canary", 1, 11), Evidence(saw(100, 0)), NOW).do == "hold", "samples of another step"
    assert decide(kind, trial("canary", 1, 11), Evidence(saw(100, 1)), NOW).do == "promote"
    assert decide(kind, trial("canary", 0, 90_000), Evidence(saw(5)), NOW).do == "stop"


def test_a_shadow_reports_agreement_and_may_promote() -> None:
    seen = Evidence(saw(100, compared=100, agreed=90))
    assert decide(Shadow(min_samples=100, min_s=0), trial("shadow"), seen, NOW).do == "promote"
    assert decide(Shadow(min_samples=100, min_s=0, then="stop"), trial("shadow"), seen, NOW).do == "stop"
    strict = decide(Shadow(min_samples=100, min_s=0, min_agreement=0.95), trial("shadow"), seen, NOW)
    assert (strict.do, "90.00%" in strict.reason) == ("roll_back", True)
    assert decide(Shadow(min_samples=101, min_s=0), trial("shadow"), seen, NOW).do == "hold"


def test_a_watched_swap_is_final_after_its_time() -> None:
    kind = Swap(watch_s=60)
    assert (kind.roles(STAGING, "1.1"), kind.roles(0, "1.1")) == ({"challenger": "1.1"}, {"champion": "1.1"})
    assert decide(kind, trial("swap", 0, 59), Evidence(saw(9)), NOW).do == "hold"
    assert decide(kind, trial("swap", 0, 61), Evidence(saw(9)), NOW).do == "promote"


def labelled(better: float, champion: int = 1000, challenger: int = 1000) -> Evidence:
    rng = np.random.default_rng(0)
    moments = {
        "champion": {"loss": moments_of(rng.exponential(0.5, champion))},
        "challenger": {"loss": moments_of(rng.exponential(0.5, challenger) - better)},
    }
    return Evidence(saw(challenger), Outcomes((Period({"champion": champion, "challenger": challenger}, moments),)))


def test_an_ab_test_promotes_the_better_and_takes_back_the_worse() -> None:
    kind = ABTest(metrics=(Metric(name="loss", effect=0.05, better="lower"),), cycle="1h")
    after = trial("ab", 0, 3700)
    assert decide(kind, after, labelled(0.2), NOW).do == "promote"
    assert decide(kind, after, labelled(-0.2), NOW).do == "roll_back"
    assert decide(kind, trial("ab", 0, 3500), labelled(0.2), NOW).do == "hold", "a whole cycle must pass"
    assert decide(kind, after, labelled(0.0, 50, 50), NOW).do == "hold"
    assert decide(kind, trial("ab", 0, 3e6), labelled(0.0, 50, 50), NOW).do == "stop"
    leak = decide(kind, after, labelled(0.2, 3000, 2000), NOW)
    assert (leak.do, "sizes" in leak.reason) == ("hold", True)


@pytest.mark.parametrize("name", KINDS)
def test_settings_make_the_same_roll_out_again(name: str) -> None:
    kind = kind_of(name, {"guardrails": {"max_p99_ratio": 3.0}})
    assert build(settings_again(kind), "rollout") == kind
    assert kind.guardrails == Guardrails(max_p99_ratio=3.0)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("blue-green", {}, "kind must be swap"),
        ("canary", {"steps": [0.5, 0.1]}, r"rollout\.steps"),
        ("canary", {"steps": []}, r"rollout\.steps"),
        ("canary", {"min_sample": 1}, "did you mean rollout.min_samples"),
        ("canary", {"min_s": -1.0}, r"rollout\.min_s"),
        ("canary", {"_target_": "os.getcwd"}, "cannot name a _target_"),
        ("shadow", {"min_agreement": 2.0}, r"rollout\.min_agreement"),
        ("ab", {"share": 1.0}, r"rollout\.share"),
        ("ab", {"metrics": [{"name": "clicks", "effect": 0.1}]}, r"rollout\.metrics are loss and reward"),
        ("ab", {"metrics": [{"name": "reward", "effect": 0.1}]}, "reward_type"),
        ("swap", {"guardrails": {"alpha": 2.0}}, r"rollout\.guardrails\.alpha"),
    ],
)
def test_settings_name_what_is_wrong(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        kind_of(name, settings)


@pytest.mark.parametrize("name", KINDS)
def test_the_groups_options_build_with_the_defaults_of_the_guardrails(
    name: str, settings_of: Callable[..., dict[str, Any]]
) -> None:
    kind = build(settings_of(f"rollout={name}")["rollout"], "rollout")
    assert (kind.kind, kind.guardrails) == (name, Guardrails())
