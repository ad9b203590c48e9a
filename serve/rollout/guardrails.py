"""Guardrails: what a challenger may not do to those it answers. Health shows in seconds, quality when labels come.

Pure: counters and outcomes in, readings out. Every bound is always valid, so it may be read at each look and alarms for
nothing in a share `alpha` of roll-outs at most, for each guardrail. What the champion did at the same time is the
yardstick, since a bad hour hits both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np

from cltrain.errors import ConfigError
from cltrain.online.sequential import interval, rate_evidence
from cltrain.records import Json
from serve.logs.profiles import Shift
from serve.rollout.evidence import SCORE_BINS, Counters
from serve.rollout.outcomes import LOSS, REWARD, Contrast, Outcomes

CHAMPION_REQUESTS = 100  # of the same step, that make a yardstick; with fewer all steps are


@dataclass(frozen=True, kw_only=True)
class Guardrails:
    """None switches a guardrail off.

    alpha: chance of a false alarm of each. min_samples: requests of the challenger before any is read. sustain_s: how
    long a breach must last.
    max_error_rate, max_non_finite_rate: share of requests beyond the champion's. max_p99_ratio: p99 latency in the
    replica, to the champion's. max_repeat_rate: share of rows with the very score of the row before, beyond the
    champion's. max_score_shift: how far scores may move, as a share of their range (0 to 1, or 8 standard deviations of
    the label); of classes, how much of the rows may change theirs.
    max_loss_increase: of the mean loss on joined labels, relative to the champion's. reward_type, max_reward_drop: the
    feedback type whose numeric label is a business metric (more is better), and its drop relative to the champion's.
    max_metric_shift: by name, how far the mean of a metric of `serve.log.metrics` may move in either direction, in the
    metric's units, such as `{toxicity: 0.01}`; a shadow's answers have none.
    """

    alpha: float = 0.01
    min_samples: int = 20
    sustain_s: float = 0.2
    max_error_rate: float | None = 0.001
    max_non_finite_rate: float | None = 0.0005
    max_p99_ratio: float | None = 2.0
    max_repeat_rate: float | None = 0.5
    max_score_shift: float | None = 0.2
    max_loss_increase: float | None = 0.05
    reward_type: str | None = None
    max_reward_drop: float = 0.05
    max_metric_shift: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ConfigError(f"rollout.guardrails.alpha must be between 0 and 1, not {self.alpha}")
        if self.min_samples < 1:
            raise ConfigError(f"rollout.guardrails.min_samples must be 1 or more, not {self.min_samples}")
        if self.sustain_s < 0:
            raise ConfigError(f"rollout.guardrails.sustain_s must be 0 seconds or more, not {self.sustain_s}")
        for name in ("max_error_rate", "max_non_finite_rate", "max_repeat_rate", "max_score_shift"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ConfigError(f"rollout.guardrails.{name} must be between 0 and 1, or null for none, not {value}")
        for name, least in (("max_p99_ratio", 1.0), ("max_loss_increase", 0.0), ("max_reward_drop", 0.0)):
            value = getattr(self, name)
            if value is not None and not value > least:
                raise ConfigError(f"rollout.guardrails.{name} must be above {least:g}, not {value}")
        for name, value in self.max_metric_shift.items():
            if not 0 < value < math.inf:
                raise ConfigError(f"rollout.guardrails.max_metric_shift.{name} must be above 0, not {value}")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One guardrail at one look: `value` of the challenger against `limit`; `breach` when the bound is beyond doubt."""

    name: str
    kind: Literal["health", "quality"]
    value: float
    limit: float
    samples: int
    breach: bool

    @property
    def text(self) -> str:
        return f"{self.name} is {self.value:.4g}, beyond {self.limit:.4g}, in {self.samples} samples"


def readings(
    guard: Guardrails,
    ours: Counters,
    theirs: Counters,
    all_theirs: Counters,
    outcomes: Outcomes | None = None,
    ordered: bool = True,
) -> tuple[Reading, ...]:
    """Every guardrail that is on and has something to read. ours: the challenger's in this step; theirs: the champion's
    in this step, and all_theirs: in all steps. ordered: whether bins of scores lie on a line or are classes."""
    base = theirs if theirs.requests >= CHAMPION_REQUESTS else all_theirs
    found: list[Reading | None] = []
    if ours.requests >= guard.min_samples:
        found += [
            _rate("error rate", guard, ours.errors, ours.requests, base.errors, base.requests, guard.max_error_rate),
            _rate(
                "non-finite rate",
                guard,
                ours.non_finite,
                ours.requests,
                base.non_finite,
                base.requests,
                guard.max_non_finite_rate,
            ),
            _latency(guard, ours, base),
            _rate("constant score", guard, ours.repeats, ours.rows, base.repeats, base.rows, guard.max_repeat_rate),
            _shift(guard, ours, base, ordered),
        ]
    if outcomes is not None:
        found += [_loss(guard, outcomes.contrast(LOSS)), _reward(guard, outcomes.contrast(REWARD))]
        found += [
            _moved(guard, name, limit, outcomes.shifts.get(name)) for name, limit in guard.max_metric_shift.items()
        ]
    return tuple(one for one in found if one is not None)


class Sustained:
    """Which breaches have lasted for `sustain_s` seconds, and were there at every look in between."""

    def __init__(self, sustain_s: float) -> None:
        self._sustain_s = sustain_s
        self._since: dict[str, datetime] = {}

    def update(self, found: Sequence[Reading], now: datetime) -> tuple[Reading, ...]:
        broken = {one.name: one for one in found if one.breach}
        self._since = {name: self._since.get(name, now) for name in broken}
        return tuple(
            broken[name] for name, since in self._since.items() if (now - since).total_seconds() >= self._sustain_s
        )


def about(found: Sequence[Reading]) -> Mapping[str, Json]:
    return {
        one.name: {"value": one.value, "limit": one.limit, "samples": one.samples, "breach": one.breach}
        for one in found
    }


def _rate(
    name: str, guard: Guardrails, events: int, n: int, base_events: int, base_n: int, bound: float | None
) -> Reading | None:
    """The champion's rate is taken two standard errors up; that it is an estimate is not otherwise accounted for."""
    if bound is None or not n:
        return None
    rate = base_events / base_n if base_n else 0.0
    limit = min(rate + 2 * math.sqrt(rate * (1 - rate) / max(base_n, 1)) + bound, 1 - 1e-9)
    return Reading(
        name=name,
        kind="health",
        value=events / n,
        limit=limit,
        samples=n,
        breach=_exceeds(events, n, limit, guard.alpha),
    )


def _latency(guard: Guardrails, ours: Counters, base: Counters) -> Reading | None:
    """More than one request in a hundred is slower than `max_p99_ratio` times the champion's p99."""
    p99 = base.quantile_s(0.99)
    if guard.max_p99_ratio is None or p99 is None or not ours.timed or base.requests < CHAMPION_REQUESTS:
        return None
    limit = guard.max_p99_ratio * p99
    return Reading(
        name="p99 latency in ms",
        kind="health",
        value=1e3 * (ours.quantile_s(0.99) or 0.0),
        limit=1e3 * limit,
        samples=ours.timed,
        breach=_exceeds(ours.slower_than(limit), ours.timed, 0.01, guard.alpha),
    )


def _shift(guard: Guardrails, ours: Counters, base: Counters, ordered: bool) -> Reading | None:
    """How far scores have moved, less what chance explains; the level is shared out over the doublings of n, so that it
    may be read at all of them.

    Of scores on a line, the area between the two distribution functions, which is how far they moved on average
    (Wasserstein); each function is off by more than sqrt(ln(2 / a) / 2n) with chance `a` at most (Dvoretzky, Kiefer &
    Wolfowitz 1956, Massart 1990). Of classes, the total variation; with k classes each side is off by more than
    sqrt((k ln 2 + ln(1 / a)) / 2n) with chance `a` at most (Weissman et al. 2003)."""
    if guard.max_score_shift is None or not ours.rows or not base.rows:
        return None
    p, q = np.array(ours.scores) / ours.rows, np.array(base.scores) / base.rows
    value = float(np.abs(np.cumsum(p - q)).mean() if ordered else 0.5 * np.abs(p - q).sum())
    complexity = math.log(2) * (1 if ordered else max(int(np.count_nonzero(p + q)), 2))
    slack = sum(
        math.sqrt((complexity + math.log(2 * (2 + math.log2(n)) ** 2 / guard.alpha)) / (2 * n))
        for n in (ours.rows, base.rows)
    )
    return Reading(
        name="score shift",
        kind="health",
        value=value,
        limit=guard.max_score_shift,
        samples=ours.rows,
        breach=value - slack > guard.max_score_shift,
    )


def _loss(guard: Guardrails, found: Contrast | None) -> Reading | None:
    if guard.max_loss_increase is None or found is None:
        return None
    limit = guard.max_loss_increase * abs(found.level)
    return _quality("loss increase", guard, found.difference, found, limit)


def _reward(guard: Guardrails, found: Contrast | None) -> Reading | None:
    if guard.reward_type is None or found is None:
        return None
    limit = guard.max_reward_drop * abs(found.level)
    return _quality(f"drop of {guard.reward_type} feedback", guard, -found.difference, found, limit)


def _moved(guard: Guardrails, name: str, limit: float, found: Shift | None) -> Reading | None:
    """Both directions share the level."""
    if found is None:
        return None
    value, low = abs(found.difference), -math.inf
    if found.n >= guard.min_samples:
        low = interval(value, found.error, guard.alpha / 2, 2 * limit, "lower").low
    return Reading(
        name=f"shift of {name}", kind="health", value=value, limit=limit, samples=found.n, breach=low > limit
    )


def _quality(name: str, guard: Guardrails, value: float, found: Contrast, limit: float) -> Reading:
    """Beyond the limit with a confidence sequence's lower bound, tuned to effects of the size of the limit."""
    enough = found.n >= guard.min_samples and limit > 0
    low = interval(value, found.error, guard.alpha, 2 * limit, "lower").low if enough else -math.inf
    return Reading(name=name, kind="quality", value=value, limit=limit, samples=found.n, breach=low > limit)


def _exceeds(events: int, n: int, rate: float, alpha: float) -> bool:
    """Whether a rate of `rate` or less is refuted at level `alpha`, at whichever look."""
    if events <= n * rate:
        return False
    return float(rate_evidence(events, n, rate)) >= -math.log(alpha)


def psi(ours: Counters, theirs: Counters) -> float | None:
    """Population stability index of the two distributions of scores; half a row is added to each bin."""
    if not ours.rows or not theirs.rows:
        return None
    p, q = ((np.array(c.scores) + 0.5) / (c.rows + 0.5 * SCORE_BINS) for c in (ours, theirs))
    return float(((p - q) * np.log(p / q)).sum())
