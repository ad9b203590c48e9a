"""Roll-outs as a state machine: what to do next with a version under trial, from what was seen. Pure: others act.

A trial begins at step -1, at which replicas load the version and it answers nobody; then it takes the steps of its
kind, and ends promoted, rolled back (it is not offered again) or stopped (nothing is said against it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Literal, Protocol

from cltrain.errors import ConfigError
from cltrain.registry.base import CHALLENGER
from cltrain.registry.deployment import SHADOW, STAGING, Trial
from serve.rollout.bandit import BANDIT
from serve.rollout.evidence import Counters, Seen
from serve.rollout.guardrails import Guardrails, Reading
from serve.rollout.outcomes import Outcomes
from serve.rollout.preference import INTERLEAVE

Then = Literal["promote", "stop"]


@dataclass(frozen=True)
class Action:
    """`to` is the step to take. roll_back: the champion from before answers everything and the version is refused from
    now on; stop: the same, without the refusal. version: the one to promote, if not the one under trial."""

    do: Literal["hold", "step", "promote", "roll_back", "stop"]
    reason: str
    to: int = STAGING
    version: str | None = None


@dataclass(frozen=True)
class Evidence:
    """What is known at one look. replicas: how many must have staged the version; breaches: those that lasted."""

    seen: Seen = field(default_factory=Seen)
    outcomes: Outcomes = field(default_factory=Outcomes)
    breaches: tuple[Reading, ...] = ()
    replicas: int = 1

    def challenger(self, step: int | None) -> Counters:
        return self.seen.arm(CHALLENGER, step)


class RollOutKind(Protocol):
    """A kind of roll-out of your own is a dataclass with these."""

    kind: ClassVar[str]
    wait_s: float
    stage_timeout_s: float
    guardrails: Guardrails

    def shares(self, step: int) -> Mapping[str, float]: ...
    def roles(self, step: int, version: str) -> Mapping[str, str]: ...
    def next(self, trial: Trial, evidence: Evidence, now: datetime) -> Action: ...


def decide(kind: RollOutKind, trial: Trial, evidence: Evidence, now: datetime) -> Action:
    """What comes next. A version that a replica cannot stage, be it one that started later, and one that breaks a
    guardrail, goes back at once."""
    if evidence.seen.problems:
        return Action("roll_back", f"it cannot be served: {evidence.seen.problems[0]}")
    if trial.step == STAGING:
        staged = len(evidence.seen.staged)
        if staged >= evidence.replicas:
            return Action("step", f"staged on {staged} replicas", 0)
        if seconds(trial.since, now) > kind.stage_timeout_s:
            return Action(
                "stop", f"{staged} of {evidence.replicas} replicas have loaded it after {kind.stage_timeout_s:g} s"
            )
        return Action("hold", f"staged on {staged} of {evidence.replicas} replicas")
    if evidence.breaches:
        return Action("roll_back", "; ".join(one.text for one in evidence.breaches))
    return kind.next(trial, evidence, now)


@dataclass(frozen=True, kw_only=True)
class Common:
    """stage_timeout_s: for the replicas to load the version. wait_s: how long the loop's round waits for the outcome;
    after it the roll-out goes on by itself."""

    stage_timeout_s: float = 120.0
    wait_s: float = 600.0
    guardrails: Guardrails = field(default_factory=Guardrails)

    def __post_init__(self) -> None:
        for name in ("stage_timeout_s", "max_s"):
            if not getattr(self, name, 1.0) > 0:
                raise ConfigError(f"rollout.{name} must be above 0 seconds, not {getattr(self, name)}")
        for name in ("wait_s", "watch_s", "min_s", "cycle_s"):
            if getattr(self, name, 0.0) < 0:
                raise ConfigError(f"rollout.{name} must be 0 seconds or more, not {getattr(self, name)}")
        if getattr(self, "min_samples", 1) < 1:
            raise ConfigError(f"rollout.min_samples must be 1 or more, not {self.min_samples}")  # type: ignore[attr-defined]
        if self.guardrails.max_metric_shift and getattr(self, "kind", "") in (SHADOW, INTERLEAVE, BANDIT):
            raise ConfigError(
                "rollout.guardrails.max_metric_shift compares what two versions answer people: it is for rollout=swap, "
                "canary and ab"
            )


def seconds(since: datetime, now: datetime) -> float:
    return (now - since).total_seconds()
