"""Which online test to run: from what the model does, the traffic, the effect that matters and how late labels are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cltrain.clock import parse_duration
from cltrain.errors import ConfigError
from cltrain.online.design import information_needed, units_needed

OnlineTest = Literal["shadow", "interleave", "ab", "bandit", "canary"]

INTERLEAVING_GAIN = 6  # users of an A/B test for one of interleaving, where each comes once; more if they come back


@dataclass(frozen=True, kw_only=True)
class Situation:
    """answers: what users get, `prediction` if the label does not depend on it (an arrival time, tomorrow's demand),
    `ranking` of items, or `action` for anything else whose outcome it changes (an offer, a price, a decision).

    units_per_day: users, or requests of different users. effect, spread: the smallest difference that matters in the
    metric, and the metric's standard deviation over units. delay: until a label is there. versions: to compare, the
    champion among them. days: that one is ready to wait. pairing: correlation of two versions' errors on one row,
    which makes a shadow test quick. cycle: traffic repeats itself by, for tests whose arms see different users.
    """

    answers: Literal["prediction", "ranking", "action"]
    units_per_day: float
    effect: float
    spread: float
    delay: str = "1h"
    versions: int = 2
    days: float = 28
    level: float = 0.05
    power: float = 0.8
    pairing: float = 0.8
    cycle: str = "7d"

    def __post_init__(self) -> None:
        if self.answers not in ("prediction", "ranking", "action"):
            raise ConfigError(f"answers must be prediction, ranking or action, not {self.answers!r}")
        for name in ("units_per_day", "effect", "spread", "days"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.versions < 2:
            raise ConfigError(f"versions must be 2 or more, the champion among them, not {self.versions}")
        if not 0 < self.level < self.power < 1 or not -1 < self.pairing < 1:
            raise ConfigError("level must be below power, both between 0 and 1, and pairing between -1 and 1")


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """units: needed over all versions, 0 if the test proves no difference. days: with the labels' delay."""

    test: OnlineTest
    units: int
    days: int
    reason: str


def recommend(situation: Situation) -> Recommendation:
    """The quickest test that answers the question, or, if there is none, what to do instead.

    >>> s = Situation(answers="ranking", units_per_day=20_000, effect=0.005, spread=0.4)
    >>> recommend(s).test, recommend(s).units, recommend(s).days
    ('interleave', 35408, 2)
    """
    s, delay = situation, parse_duration(situation.delay).total_seconds() / 86_400
    cycle = parse_duration(s.cycle).total_seconds() / 86_400
    pairs = s.versions - 1
    two = units_needed(s.effect, s.spread, {"a": 0.5, "b": 0.5}, s.level / pairs, s.power)
    split = math.ceil(two * s.versions / 2)
    ab_days = _whole(split / s.units_per_day, cycle) + math.ceil(delay)
    if s.answers == "prediction":
        variance = 2 * s.spread**2 * (1 - s.pairing)
        units = math.ceil(information_needed(s.level / pairs, s.power, "horizon") * variance / s.effect**2)
        return Recommendation(
            test="shadow",
            units=units,
            days=math.ceil(units / s.units_per_day + delay),
            reason="labels do not depend on the answer, so versions are compared on the same rows without any risk",
        )
    if s.answers == "ranking" and pairs == 1 and delay <= s.days:
        units = math.ceil(split / INTERLEAVING_GAIN)
        days = math.ceil(units / s.units_per_day + delay)
        if days <= s.days:
            why = "users compare two rankings in one list; an A/B test of the winner then says by how much it is better"
            return Recommendation(test="interleave", units=units, days=days, reason=why)
    quick = delay <= s.days / 10
    if s.versions > 2 and quick:
        why = f"{s.versions} versions and quick labels: traffic leaves the worse ones while the test runs"
        return Recommendation(test="bandit", units=split, days=min(ab_days, math.ceil(s.days)), reason=why)
    if ab_days <= s.days:
        return Recommendation(
            test="ab", units=split, days=ab_days, reason="there is traffic enough to prove the effect in time"
        )
    if quick:
        why = f"an A/B test would take {ab_days} days: earn while learning, without proof of the effect"
        return Recommendation(test="bandit", units=0, days=math.ceil(s.days), reason=why)
    why = f"an A/B test would take {ab_days} days and labels are late: watch for harm, and decide offline"
    return Recommendation(test="canary", units=0, days=math.ceil(cycle), reason=why)


def _whole(days: float, cycle: float) -> int:
    return math.ceil(math.ceil(days / cycle - 1e-9) * cycle)
