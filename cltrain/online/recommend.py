"""Which online test to run: from what the model does, the traffic, the effect that matters and how late labels are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from cltrain.clock import parse_duration
from cltrain.errors import ConfigError
from cltrain.online.design import information_needed, units_needed

Answers = Literal["prediction", "ranking", "action"]
OnlineTest = Literal["shadow", "interleave", "ab", "bandit", "canary"]

INTERLEAVING_GAIN = 3  # users of an A/B test for one of interleaving, where `benchmarks/run.py online` finds few
CANARY_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Situation:
    """answers: what users get, `prediction` if the label does not depend on it (an arrival time, tomorrow's demand),
    `ranking` of items, or `action` for anything else whose outcome it changes (an offer, a price, a decision).

    units_per_day: users, or requests of different users. effect, spread: the smallest difference that matters in the
    metric, and the metric's standard deviation over units. delay: until a label is there. versions: to compare, the
    champion among them. days: that one is ready to wait. pairing: correlation of two versions' errors on one row,
    which makes a shadow test quick. cycle: traffic repeats itself by, for tests whose arms see different users.
    """

    answers: Answers
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
        if self.answers not in get_args(Answers):
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
    """test: of `conf/rollout`. units: needed over all versions, 0 if the test proves no difference. days: with the
    labels' delay. settings: by which the roll-out, or each of several, takes that many units and days."""

    test: OnlineTest
    units: int
    days: int
    reason: str
    settings: Mapping[str, str | int]


def recommend(situation: Situation) -> Recommendation:
    """The quickest test that answers the question, or, if there is none, what to do instead.

    >>> s = Situation(answers="ranking", units_per_day=20_000, effect=0.005, spread=0.4)
    >>> recommend(s).test, recommend(s).units, recommend(s).days
    ('interleave', 70815, 4)
    """
    s, delay = situation, parse_duration(situation.delay).total_seconds() / 86_400
    cycle = parse_duration(s.cycle).total_seconds() / 86_400
    pairs = s.versions - 1
    two = units_needed(s.effect, s.spread, {"a": 0.5, "b": 0.5}, s.level / pairs, s.power)
    ab_days = pairs * (_whole(two / s.units_per_day, cycle) + math.ceil(delay))
    in_turn = "" if pairs == 1 else f"; the {pairs} challengers one after another"
    if s.answers == "prediction":
        variance = 2 * s.spread**2 * (1 - s.pairing)
        each = math.ceil(information_needed(s.level / pairs, s.power, "horizon") * variance / s.effect**2)
        days = pairs * math.ceil(each / s.units_per_day + delay)
        longer = f"; it takes longer than {s.days:g} days, and nothing else is quicker" if days > s.days else ""
        why = f"labels do not depend on the answer, so versions are compared on the same rows without any risk{in_turn}"
        return _recommended("shadow", pairs * each, days, why + longer, pairs, min_samples=each)
    if s.answers == "ranking" and pairs == 1 and delay <= s.days:
        units = math.ceil(two / INTERLEAVING_GAIN)
        days = math.ceil(units / s.units_per_day + delay)
        if days <= s.days:
            why = "users compare two rankings in one list; an A/B test of the winner then says by how much it is better"
            return _recommended("interleave", units, days, why)
    quick = delay <= s.days / 10
    if s.versions > 2 and quick:
        split = math.ceil(two * s.versions / 2)
        days = min(_whole(split / s.units_per_day, cycle) + math.ceil(delay), math.ceil(s.days))
        why = f"{s.versions} versions and quick labels: traffic leaves the worse ones while the test runs"
        return _recommended("bandit", split, days, why)
    if ab_days <= s.days:
        why = f"there is traffic enough to prove the effect in time{in_turn}"
        plan: dict[str, str | int] = {"test": "horizon", "horizon_units": two, "cycle": s.cycle}
        return _recommended("ab", pairs * two, ab_days, why, pairs, **plan)
    if quick:
        why = f"an A/B test would take {ab_days} days: earn while learning, without proof of the effect"
        return _recommended("bandit", 0, math.ceil(s.days), why)
    why = f"an A/B test would take {ab_days} days and labels are late: watch for harm, and decide offline"
    return _recommended("canary", 0, math.ceil(cycle), why)


def _recommended(
    rollout: OnlineTest, units: int, days: int, reason: str, in_turn: int = 1, **settings: str | int
) -> Recommendation:
    limit = days * 86_400 // in_turn
    if rollout == "canary":  # its steps share the days, and one that has little traffic takes longer
        settings, limit = {"min_s": limit // CANARY_STEPS}, 2 * limit
    settings = {f"rollout.{name}": value for name, value in {**settings, "max_s": limit}.items()}
    return Recommendation(
        test=rollout, units=units, days=days, reason=reason, settings={"rollout": rollout, **settings}
    )


def _whole(days: float, cycle: float) -> int:
    return math.ceil(math.ceil(days / cycle - 1e-9) * cycle)
