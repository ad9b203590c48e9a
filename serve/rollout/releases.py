"""Roll-outs that ask whether a version is sound: at once, in growing steps, or on copies of requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from cltrain.errors import ConfigError
from cltrain.registry.base import CHALLENGER, CHAMPION
from cltrain.registry.deployment import SHADOW, STAGING, Trial
from serve.rollout.machine import Action, Common, Evidence, Then, seconds


@dataclass(frozen=True, kw_only=True)
class Swap(Common):
    """All traffic at once, as soon as every replica holds the version. For `watch_s` seconds after it the guardrails
    hold it against what the champion before it did, and may take it back; 0 does not watch."""

    kind: ClassVar[str] = "swap"
    watch_s: float = 0.0

    def shares(self, step: int) -> Mapping[str, float]:
        return {CHAMPION: 1.0}

    def roles(self, step: int, version: str) -> Mapping[str, str]:
        return {CHALLENGER: version} if step == STAGING else {CHAMPION: version}

    def next(self, trial: Trial, evidence: Evidence, now: datetime) -> Action:
        if seconds(trial.since, now) >= self.watch_s:
            return Action("promote", f"no guardrail was broken in {self.watch_s:g} s")
        return Action("hold", "it is being watched")


@dataclass(frozen=True, kw_only=True)
class Canary(Common):
    """A growing share of units, step by step, each of `min_samples` requests to the challenger and `min_s` seconds at
    least; after the last step it is promoted. One that is not through after `max_s` seconds is stopped."""

    kind: ClassVar[str] = "canary"
    steps: tuple[float, ...] = (0.01, 0.05, 0.25, 0.5, 1.0)
    min_samples: int = 1000
    min_s: float = 60.0
    max_s: float = 86_400.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            not self.steps
            or list(self.steps) != sorted(set(self.steps))
            or not 0 < self.steps[0] <= self.steps[-1] <= 1
        ):
            raise ConfigError(f"rollout.steps must be growing shares above 0 and up to 1, not {list(self.steps)}")

    def shares(self, step: int) -> Mapping[str, float]:
        share = self.steps[step] if step >= 0 else 0.0
        return {CHAMPION: 1.0 - share, CHALLENGER: share}

    def roles(self, step: int, version: str) -> Mapping[str, str]:
        return {CHALLENGER: version}

    def next(self, trial: Trial, evidence: Evidence, now: datetime) -> Action:
        requests = evidence.challenger(trial.step).requests
        share = f"{100 * self.steps[trial.step]:g} %"
        if requests >= self.min_samples and seconds(trial.since, now) >= self.min_s:
            if trial.step + 1 == len(self.steps):
                return Action("promote", f"sound in {requests} requests at {share}")
            return Action("step", f"sound in {requests} requests at {share}", trial.step + 1)
        if seconds(trial.started_at, now) > self.max_s:
            return Action("stop", f"not through after {self.max_s:g} s: {requests} requests at {share}")
        return Action("hold", f"{requests} of {self.min_samples} requests at {share}")


@dataclass(frozen=True, kw_only=True)
class Shadow(Common):
    """Copies of requests, which nobody waits for and no client sees, until `min_samples` were compared over `min_s`
    seconds. Then it is promoted if it agrees with the champion in `min_agreement` of the rows (null: in any), or `then`
    stops with the report."""

    kind: ClassVar[str] = "shadow"
    min_samples: int = 500
    min_s: float = 60.0
    max_s: float = 86_400.0
    min_agreement: float | None = None
    then: Then = "promote"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise ConfigError(
                f"rollout.min_agreement must be between 0 and 1, or null for any, not {self.min_agreement}"
            )

    def shares(self, step: int) -> Mapping[str, float]:
        return {CHAMPION: 1.0}

    def roles(self, step: int, version: str) -> Mapping[str, str]:
        return {SHADOW: version}

    def next(self, trial: Trial, evidence: Evidence, now: datetime) -> Action:
        found = evidence.challenger(None)
        if found.compared >= self.min_samples and seconds(trial.since, now) >= self.min_s:
            agreement = found.agreed / found.compared
            report = f"agrees with the champion in {agreement:.2%} of {found.compared} rows"
            if self.min_agreement is not None and agreement < self.min_agreement:
                return Action("roll_back", f"it {report}, fewer than {self.min_agreement:.2%}")
            return Action(self.then, f"it {report}")
        if seconds(trial.started_at, now) > self.max_s:
            return Action("stop", f"only {found.compared} rows were compared in {self.max_s:g} s")
        return Action("hold", f"{found.compared} of {self.min_samples} rows are compared")
