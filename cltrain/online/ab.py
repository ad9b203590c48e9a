"""An A/B test as it runs: sums in, a conclusion out. Looked at as often as one likes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal

import numpy as np

from cltrain.errors import ConfigError, DataError
from cltrain.online.design import Experiment, Metric, design_spread
from cltrain.online.moments import Moments, moments_of
from cltrain.online.sample_ratio import Phase, always_valid
from cltrain.online.sequential import Interval, holm, horizon_interval, interval

Action = Literal["go_on", "promote", "harm", "futility", "horizon"]


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """go_on; promote the challenger; stop for harm; stop for futility (the effect that matters is ruled out); or the
    horizon is reached without either: but for `promote` the champion stays.

    effects: of each metric, challenger minus champion, with bounds that hold at all times and for all metrics of its
    role at once. sample_ratio_p: always-valid."""

    action: Action
    reasons: tuple[str, ...]
    effects: Mapping[str, Interval] = field(default_factory=dict)
    sample_ratio_p: float = 1.0
    units: int = 0


class Tally:
    """What an experiment has seen: units exposed to each arm, and moments of each metric, by phase of its ramp. Phases
    are kept apart because the shares of traffic and the world change together: pooled, the arm which grew when times
    were good would look good."""

    def __init__(self, experiment: Experiment) -> None:
        self.digest = experiment.digest
        self.phases: list[Phase] = [Phase(shares=dict(experiment.shares))]
        self.moments: list[dict[str, dict[str, Moments]]] = [{}]

    def begin(self, shares: Mapping[str, float]) -> None:
        """Go on with other shares of traffic."""
        self.phases.append(Phase(shares=dict(shares)))
        self.moments.append({})

    def expose(self, arm: str, units: int = 1) -> None:
        """Units that have entered the experiment in this phase, each counted when it is first seen, labelled or not."""
        phase = self.phases[-1]
        if arm not in phase.shares:
            raise DataError(f"the experiment has no arm {arm!r}, but {', '.join(phase.shares)}")
        exposed = {**phase.exposed, arm: phase.exposed.get(arm, 0) + units}
        self.phases[-1] = replace(phase, exposed=exposed)

    def observe(
        self, arm: str, metric: str, values: np.ndarray | Moments, covariate: np.ndarray | None = None, phase: int = -1
    ) -> None:
        """Values of a metric, one a unit and each unit once (`by_unit` adds up its events), in the phase in which the
        unit was exposed. covariate: of the same units, from before the experiment, such as the same metric then."""
        new = values if isinstance(values, Moments) else moments_of(values, covariate)
        of_arm = self.moments[phase].setdefault(arm, {})
        of_arm[metric] = of_arm.get(metric, Moments()) + new

    def of(self, arm: str, metric: str) -> list[Moments]:
        return [phase.get(arm, {}).get(metric, Moments()) for phase in self.moments]

    def state_dict(self) -> dict[str, Any]:
        return {
            "experiment": self.digest,
            "phases": [{"shares": dict(p.shares), "exposed": dict(p.exposed)} for p in self.phases],
            "moments": [
                {arm: {name: asdict(m) for name, m in of.items()} for arm, of in phase.items()}
                for phase in self.moments
            ],
        }

    @classmethod
    def load(cls, experiment: Experiment, state: Mapping[str, Any]) -> Tally:
        """Raises `ConfigError` if the experiment is not the one that was started."""
        if state["experiment"] != experiment.digest:
            raise ConfigError(
                f"the experiment is {experiment.digest[:12]}, but {state['experiment'][:12]} was started: its metrics,"
                " horizon and shares cannot be edited while it runs; end it, and start another with a new salt"
            )
        tally = cls(experiment)
        tally.phases = [Phase(**phase) for phase in state["phases"]]
        tally.moments = [
            {arm: {name: Moments(**m) for name, m in of.items()} for arm, of in phase.items()}
            for phase in state["moments"]
        ]
        return tally


def difference(base: list[Moments], arm: list[Moments]) -> tuple[float, float]:
    """Mean of `arm` minus mean of `base` and its standard error, from their moments in each phase. Phases are weighted
    by their information, with each arm's variance pooled over them.

    Where there is a covariate, the part of the metric that it explains is taken out (CUPED: Deng, Xu, Kohavi & Walker
    2013), its slope pooled over arms and phases, so that it has the same expectation in both; the variance falls by
    the square of their correlation. The error is infinite while an arm has fewer than two units.
    """
    pairs = [(b, a) for b, a in zip(base, arm, strict=True) if b.n and a.n]
    both = [m for pair in pairs for m in pair]
    xx = sum(m.xx for m in both)
    theta = sum(m.xy for m in both) / xx if xx > 0 else 0.0
    variance = []
    for side in (0, 1):
        parts = [pair[side] for pair in pairs]
        freedom = sum(m.n - 1 for m in parts)
        squares = sum(m.yy - 2 * theta * m.xy + theta**2 * m.xx for m in parts)
        variance.append(squares / freedom if freedom > 0 else math.inf)
    information = total = 0.0
    for b, a in pairs:
        error2 = variance[0] / b.n + variance[1] / a.n
        if not 0 < error2 < math.inf:
            return a.y - b.y, math.inf
        information += 1 / error2
        total += (a.y - b.y - theta * (a.x - b.x)) / error2
    return (total / information, information**-0.5) if information else (0.0, math.inf)


def conclude(experiment: Experiment, tally: Tally, elapsed: timedelta) -> Conclusion:
    """What can be said after `elapsed`. Promotion needs a primary metric that is better, by Holm's rule, none that is
    worse, and guardrails whose estimates are within their margins. Harm is a guardrail that is beyond its margin, or a
    primary metric that is worse, for certain; it is the one conclusion that waits neither for whole cycles nor for
    sizes of arms that are as planned."""
    base, arm = experiment.arms
    ratio_p = always_valid(tally.phases)
    seen = {m.name: (tally.of(base, m.name), tally.of(arm, m.name)) for m in experiment.metrics}
    sizes = [min(sum(x.n for x in side) for side in seen[m.name]) for m in experiment.metrics]
    units = min(sum(x.n for side in seen[m.name] for x in side) for m in experiment.primaries)
    effects = {
        m.name: _effect(experiment, m, *seen[m.name], units)
        for m, size in zip(experiment.metrics, sizes, strict=True)
        if size >= experiment.min_units
    }
    said: dict[str, Any] = {"effects": effects, "sample_ratio_p": ratio_p, "units": units}
    known = [m for m in experiment.metrics if m.name in effects]
    if harmed := [why for m in known if (why := _harm(m, effects[m.name]))]:
        return Conclusion(action="harm", reasons=tuple(harmed), **said)
    if ratio_p <= experiment.sample_ratio_level:
        why = f"the arms' sizes are not as planned (p = {ratio_p:.2g}): find the leak, nothing can be concluded"
        return Conclusion(action="horizon" if units >= experiment.horizon else "go_on", reasons=(why,), **said)
    if elapsed < experiment.shortest:
        why = f"{experiment.min_cycles} whole cycles of {experiment.cycle} must pass first"
        return Conclusion(action="go_on", reasons=(why,), **said)
    if waiting := [m.name for m in experiment.metrics if m.name not in effects]:
        why = f"fewer than {experiment.min_units} units in an arm: {', '.join(waiting)}"
        return Conclusion(action="go_on", reasons=(why,), **said)
    action, reasons = _verdict(experiment, effects, units)
    return Conclusion(action=action, reasons=reasons, **said)


def _verdict(experiment: Experiment, effects: Mapping[str, Interval], units: int) -> tuple[Action, tuple[str, ...]]:
    primaries = {m.name: m for m in experiment.primaries}
    found = holm({name: effects[name].p for name in primaries}, experiment.level)
    wins = [name for name, m in primaries.items() if found[name] and effects[name].estimate * m.sign > 0]
    beyond = [m.name for m in experiment.guardrails if -effects[m.name].estimate * m.sign > m.effect]
    reasons = tuple(_said(name, effects[name]) for name in primaries)
    if wins and not beyond:
        return "promote", tuple(f"better {_said(name, effects[name])}" for name in wins)
    if all(_best(effects[name], m) < m.effect for name, m in primaries.items()):
        return "futility", tuple(
            f"{why}: less than the {primaries[n].effect:g} that matter"
            for n, why in zip(primaries, reasons, strict=True)
        )
    if units >= experiment.horizon:
        return "horizon", (f"{units} of {experiment.horizon} units are there", *reasons)
    late = tuple(f"{name} is beyond its margin: {_said(name, effects[name])}" for name in beyond if wins)
    return "go_on", (*late, *reasons)


def _effect(experiment: Experiment, metric: Metric, base: list[Moments], arm: list[Moments], units: int) -> Interval:
    estimate, error = difference(base, arm)
    if metric.role == "guardrail":
        level = experiment.level / len(experiment.guardrails)
        harm = interval(
            -estimate * metric.sign, error, level, design_spread(metric.effect, level, experiment.power), "lower"
        )
        low, high = (-math.inf, -harm.low) if metric.sign > 0 else (harm.low, math.inf)
        return Interval(estimate=estimate, low=low, high=high, p=harm.p)
    level = experiment.level / len(experiment.primaries)
    if experiment.test == "horizon":
        return horizon_interval(estimate, error, units / experiment.horizon, level)
    return interval(estimate, error, level, design_spread(metric.effect, level, experiment.power))


def _best(effect: Interval, metric: Metric) -> float:
    """The largest improvement, of a primary metric, that is not ruled out."""
    return effect.high if metric.sign > 0 else -effect.low


def _harm(metric: Metric, effect: Interval) -> str:
    least = -effect.high if metric.sign > 0 else effect.low
    if metric.role == "guardrail" and least > metric.effect:
        return f"worse by more than {metric.effect:g}: {_said(metric.name, effect)}"
    if metric.role == "primary" and least > 0:
        return f"worse {_said(metric.name, effect)}"
    return ""


def _said(name: str, effect: Interval) -> str:
    return f"{name}: {effect.estimate:+.4g} [{effect.low:+.4g}, {effect.high:+.4g}]"
