"""What an A/B test is for and how long it takes, written down before it starts and not changed afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy import optimize, special

from cltrain.clock import parse_duration
from cltrain.errors import ConfigError
from cltrain.online.assignment import check_shares
from cltrain.online.sequential import half_width, tuned
from cltrain.records import to_json
from cltrain.storage import digest_json

Test = Literal["always", "horizon", "once"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number a unit, such as whether it clicked, what it spent, or the error of what it was told.

    effect: in the metric's units, above 0. Of a primary metric, the smallest improvement that matters (the minimum
    detectable effect); of a guardrail, by how much it may get worse. spread: the metric's standard deviation over
    units, for planning: sqrt(rate (1 - rate)) for a rate.
    """

    name: str
    effect: float
    better: Literal["higher", "lower"] = "higher"
    role: Literal["primary", "guardrail"] = "primary"
    spread: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.effect < math.inf:
            raise ConfigError(f"metrics.effect of {self.name} must be above 0, in the metric's units: {self.effect}")
        if self.spread is not None and not 0 < self.spread < math.inf:
            raise ConfigError(f"metrics.spread of {self.name} must be above 0, or null: {self.spread}")
        if self.better not in ("higher", "lower") or self.role not in ("primary", "guardrail"):
            raise ConfigError(
                f"metrics.better of {self.name} must be higher or lower, and role primary or guardrail,"
                f" not {self.better!r} and {self.role!r}"
            )

    @property
    def sign(self) -> int:
        return 1 if self.better == "higher" else -1


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An A/B test of two arms.

    metrics: primary ones decide, with Holm's correction if there are several; each guardrail can stop the test.
    shares: of the arms, the champion's first. salt: of the assignment; a new test takes a new one. level: chance of any
    false win or loss of a primary metric, and of any false alarm of a guardrail. test: both may be read as often as
    one likes; `horizon` up to the horizon, for 6 % more units than a test that is read once; `always` for ever, for
    64 % more, though it is quicker where the effect is several times the one that it was designed for.
    horizon_units: over both arms; 0 plans it from the metrics' `spread`. correlation: of a metric with its pre-period
    covariate, for planning. cycle, min_cycles: nothing but harm is concluded before so many whole cycles. min_units:
    of each arm, before anything is. sample_ratio_level: at which a mismatch of the arms' sizes blocks every conclusion
    but harm.
    """

    metrics: tuple[Metric, ...]
    salt: str
    shares: Mapping[str, float]
    level: float = 0.05
    power: float = 0.8
    test: Literal["always", "horizon"] = "horizon"
    horizon_units: int = 0
    correlation: float = 0.0
    cycle: str = "7d"
    min_cycles: int = 1
    min_units: int = 100
    sample_ratio_level: float = 0.001

    def __post_init__(self) -> None:
        check_shares(self.shares)
        if len(self.shares) != 2 or not all(self.shares.values()):
            raise ConfigError(f"shares must name two arms, each with some traffic, not {dict(self.shares)}")
        if not self.salt:
            raise ConfigError("salt is empty: give each experiment its own, such as its name and its date")
        for name in ("level", "sample_ratio_level"):
            if not 0 < getattr(self, name) < 0.5:
                raise ConfigError(f"{name} must be between 0 and 0.5, such as 0.05, not {getattr(self, name)}")
        if not self.level < self.power < 1:
            raise ConfigError(f"power must be above the level and below 1, such as 0.8, not {self.power}")
        if self.test not in ("always", "horizon"):
            raise ConfigError(f"test must be always or horizon, not {self.test!r}")
        if not -1 < self.correlation < 1:
            raise ConfigError(f"correlation must be between -1 and 1, not {self.correlation}")
        if self.horizon_units < 0 or self.min_cycles < 0 or self.min_units < 2:
            raise ConfigError("horizon_units and min_cycles must be 0 or more, and min_units 2 or more")
        names = [metric.name for metric in self.metrics]
        if len(set(names)) < len(names) or not self.primaries:
            raise ConfigError(f"metrics must have names of their own and one primary at least, not {names}")
        if not self.horizon_units and any(metric.spread is None for metric in self.primaries):
            raise ConfigError("horizon_units=0 plans the horizon: give each primary metric its spread, or set it")
        parse_duration(self.cycle)

    @property
    def primaries(self) -> tuple[Metric, ...]:
        return tuple(metric for metric in self.metrics if metric.role == "primary")

    @property
    def guardrails(self) -> tuple[Metric, ...]:
        return tuple(metric for metric in self.metrics if metric.role == "guardrail")

    @property
    def arms(self) -> tuple[str, str]:
        base, arm = self.shares
        return base, arm

    @property
    def digest(self) -> str:
        """Name of what was agreed before the start: a tally knows it, and belongs to no other experiment."""
        agreed = {f.name: getattr(self, f.name) for f in fields(self)}
        return digest_json(to_json({**agreed, "shares": dict(self.shares)}))

    @cached_property
    def horizon(self) -> int:
        """Units over both arms after which the test ends."""
        if self.horizon_units:
            return self.horizon_units
        level = self.level / len(self.primaries)
        return max(
            units_needed(
                m.effect, m.spread or 0.0, self.shares, level, self.power, test=self.test, correlation=self.correlation
            )
            for m in self.primaries
        )

    @property
    def shortest(self) -> timedelta:
        return parse_duration(self.cycle) * self.min_cycles


def units_needed(
    effect: float,
    spread: float,
    shares: Mapping[str, float],
    level: float = 0.05,
    power: float = 0.8,
    test: Test = "horizon",
    correlation: float = 0.0,
) -> int:
    """Units over both arms by which `effect` is found with chance `power`, by a two-sided test at `level`. Variance
    reduction takes away the part of the variance that the pre-period explains, `correlation` squared.

    >>> units_needed(0.01, 0.3, {"a": 0.5, "b": 0.5}, test="once")
    28256
    """
    per_unit = spread**2 * (1 - correlation**2) * sum(1 / share for share in shares.values())
    return math.ceil(information_needed(level, power, test) * per_unit / effect**2)


def information_needed(level: float, power: float, test: Test) -> float:
    """How much information, as a multiple of 1 / effect², finds the effect with chance `power`."""
    if test == "once":
        return float((special.ndtri(1 - level / 2) + special.ndtri(power)) ** 2)
    once = information_needed(level, power, "once")
    return float(optimize.brentq(lambda t: power_at(t, level, power, test) - power, 0.5 * once, 5 * once, xtol=1e-6))


def power_at(information: float, level: float, power: float, test: Test) -> float:
    """The chance to have found an effect of 1 by an amount of information, with a test designed for `power`."""
    if test == "once":
        return float(special.ndtr(math.sqrt(information) - special.ndtri(1 - level / 2)))
    if test == "horizon":
        return float(_crosses(-special.ndtri(level / 4) * math.sqrt(information), 0.0, information))
    # The boundary is concave, so it lies below each of its tangents: the best of them bounds the chance from below.
    t = np.linspace(0.05, 1, 96) * information
    spread = design_spread(1.0, level, power)
    bound = t * half_width(t**-0.5, level, spread)
    slope = (bound - t * (1 - 1e-6) * half_width((t * (1 - 1e-6)) ** -0.5, level, spread)) / (t * 1e-6)
    return float(_crosses(bound - slope * t, slope, information).max())


def design_spread(effect: float, level: float, power: float) -> float:
    """Spread of the mixture that is tightest when a test that is read once would be read."""
    return float(tuned(level, effect / math.sqrt(information_needed(level, power, "once"))))


def _crosses(start: Any, slope: Any, time: Any) -> Any:
    """Chance that a Brownian motion of drift 1 is above the line `start + slope * t` at some time up to `time`."""
    drift, root = slope - 1.0, np.sqrt(time)
    end = special.ndtr(-(start + drift * time) / root)
    return end + np.exp(-2 * start * drift + special.log_ndtr((drift * time - start) / root))
