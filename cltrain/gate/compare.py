"""Rules that hold the challenger against the champion on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from cltrain.errors import ConfigError
from cltrain.gate.evidence import (
    LOSS,
    NO_CHAMPION,
    Harm,
    Outcome,
    absent,
    direction,
    harm,
    joined,
    places,
    without_champion,
)
from cltrain.records import Comparison, ReportCard

NO_ROWS = "there is no held-out row to compare it on with the champion"
_NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True)
class NotWorse:
    """Non-inferiority: the upper bound of how much worse the challenger is lies within a margin. A challenger that is
    worse by the margin passes no more often than the level of the card's intervals (`evaluate.level`); on several
    slices each must pass, so that this level needs no correction (Berger 1982).

    over: `window`, `past`, `slices`, or the name of a slice. margin: a share of the champion's value, or an amount of
    the metric if `relative` is false. floor: the margin at least: an amount, or for squared errors that share of them.
    With fewer than `min_rows` rows no bound is tight enough to say anything: the difference itself decides, and the
    reason says so. higher_is_better: of a metric of your own. exchange: where it is certain that the new window gains,
    how many times that gain, as measured, may be lost here beyond the margin: who follows a world that moves loses on
    the world that was, and it should be worth it."""

    metric: str = LOSS
    over: str = "window"
    margin: float = 0.02
    relative: bool = True
    floor: float = 0.0
    min_rows: int = 200
    higher_is_better: bool | None = None
    exchange: float = 0.0

    def __post_init__(self) -> None:
        for name in ("margin", "floor", "min_rows", "exchange"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"gate.{name} must be 0 or more, not {getattr(self, name)}")
        direction(self.metric, self.higher_is_better, "gate")

    def check(self, card: ReportCard) -> Outcome:
        gained = self._gained(card)
        return _on_each(card, self.over, lambda c: self.compare(c, gained))

    def compare(self, c: Comparison, gained: float = 0.0) -> Outcome:
        """On these rows, where so much is gained on the new window."""
        sign = direction(self.metric, self.higher_is_better, "gate")
        if not c.rows:
            return Outcome(passed=False, reason=NO_ROWS)
        if (found := harm(c, self.metric, sign)) is None:
            return absent(f"{self.metric} of the champion on {c.name}", "name it in evaluate.metrics")
        margin = self.margin_of(c, found)
        said = f"{_what(self.metric, self.over, c)}{found.text(sign)}, margin {margin:.4g}"
        if found.rows < self.min_rows:
            why = "too few rows for an interval, so the difference decides"
            passed, said = found.worse <= margin, f"{said}; {why}"
        elif found.high is None:
            return absent(f"interval of {self.metric} on {c.name}", "name it in evaluate.metrics")
        else:
            passed = found.high <= margin
        paid = self.exchange * gained
        if not passed and gained > 0 and found.worse <= paid:
            return Outcome(passed=True, reason=f"{said}, or {paid:.4g} for what is gained on the new window")
        return Outcome(passed=passed, reason=said)

    def _gained(self, card: ReportCard) -> float:
        """What is gained on the new window, if it is certain that anything is."""
        window = places(card, "window")
        if not self.exchange or not window:
            return 0.0
        found = harm(window[0], self.metric, direction(self.metric, self.higher_is_better, "gate"))
        return -found.worse if found is not None and found.high is not None and found.high < 0 else 0.0

    def margin_of(self, c: Comparison, found: Harm) -> float:
        """By how much the metric may be worse."""
        if not self.relative:
            return max(self.margin, self.floor)
        if self.metric == LOSS and "squared_error" in (c.champion or {}):
            return max(self.margin, self.floor) * found.base
        return max(self.margin * abs(found.base), self.floor)


@dataclass(frozen=True, kw_only=True)
class Better:
    """Superiority: the challenger is better by more than `by`, a share of the champion's value or with `relative` false
    an amount, with certainty: an equal one passes no more often than the level of the card's intervals."""

    metric: str = LOSS
    over: str = "window"
    by: float = 0.0
    relative: bool = True
    higher_is_better: bool | None = None

    def __post_init__(self) -> None:
        if not self.by >= 0:
            raise ConfigError(f"gate.by must be 0 or more, not {self.by}")
        direction(self.metric, self.higher_is_better, "gate")

    def check(self, card: ReportCard) -> Outcome:
        return _on_each(card, self.over, self._compare)

    def _compare(self, c: Comparison) -> Outcome:
        sign = direction(self.metric, self.higher_is_better, "gate")
        if not c.rows:
            return Outcome(passed=False, reason=NO_ROWS)
        found = harm(c, self.metric, sign)
        if found is None or found.high is None:
            return absent(f"interval of {self.metric} on {c.name}", "name it in evaluate.metrics")
        least = self.by * (abs(found.base) if self.relative else 1.0)
        said = f"{_what(self.metric, self.over, c)}{found.text(sign)}, must be better by more than {least:.4g}"
        return Outcome(passed=found.high < -least, reason=said)


@dataclass(frozen=True, kw_only=True)
class Unharmed:
    """No slice is shown to be worse by more than a margin. Most slices are too small to prove that nothing is worse
    there (that is `NotWorse` on slices), but what is certainly worse can be told. The more slices one looks at, the
    more look worse by chance: they share `level` (Holm 1979), so that a challenger that is worse by no more than the
    margin anywhere is refused for it no more often than that.

    margin: as a share of the champion's loss, `floor` at least, as in `NotWorse`. level: of the card's intervals, which
    is `evaluate.level`. required: refuse where the card has no slices."""

    margin: float = 0.1
    floor: float = 0.002
    level: float = 0.05
    required: bool = True

    def __post_init__(self) -> None:
        for name in ("margin", "floor"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"gate.{name} must be 0 or more, not {getattr(self, name)}")
        if not 0 < self.level < 0.5:
            raise ConfigError(f"gate.level must be between 0 and 0.5, not {self.level}")

    def check(self, card: ReportCard) -> Outcome:
        if without_champion(card):
            return Outcome(passed=True, reason=NO_CHAMPION, applies=False)
        bounds = NotWorse(margin=self.margin, floor=self.floor)
        found = [(c, h) for c in card.slices if c.rows and (h := harm(c, LOSS, 1.0)) and h.low is not None]
        if not found:
            if self.required:
                return _nothing_on("slices")
            return Outcome(passed=True, reason="no slice was looked at", applies=False)
        p_values = [self._p_value(h, bounds.margin_of(c, h)) for c, h in found]
        worse = [found[i] for i in rejected(p_values, self.level)]
        told = f"{len(found)} slices share the level of {self.level:g} (Holm)"
        if not worse:
            return Outcome(passed=True, reason=f"none is shown to be worse than its margin; {told}")
        named = "; ".join(
            f"{c.name} {h.text()}, margin {bounds.margin_of(c, h):.4g}"
            for c, h in sorted(worse, key=lambda pair: -pair[1].worse)
        )
        return Outcome(passed=False, reason=f"{named}; {told}")

    def _p_value(self, found: Harm, margin: float) -> float:
        """Of being worse by no more than the margin, one-sided; the spread is that of the interval's lower half."""
        assert found.low is not None
        spread = (found.worse - found.low) / _NORMAL.inv_cdf(1 - self.level)
        if spread <= 0:
            return 0.0 if found.worse > margin else 1.0
        return 1 - _NORMAL.cdf((found.worse - margin) / spread)


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """On the held-out rows of all past windows, `metric` fell by no more than `most` points: the loss rose, the
    accuracy sank. With an interval on the card its bound decides, else the difference."""

    most: float
    metric: str = "accuracy"
    higher_is_better: bool | None = None

    def __post_init__(self) -> None:
        if not self.most >= 0:
            raise ConfigError(f"gate.most must be 0 or more, not {self.most}")
        direction(self.metric, self.higher_is_better, "gate")

    def check(self, card: ReportCard) -> Outcome:
        if without_champion(card):
            return Outcome(passed=True, reason=NO_CHAMPION, applies=False)
        past = places(card, "past")
        if not past:
            return Outcome(passed=True, reason="there is no past window yet", applies=False)
        sign = direction(self.metric, self.higher_is_better, "gate")
        if (found := harm(past[0], self.metric, sign)) is None:
            return absent(f"{self.metric} of the champion on past windows", "name it in evaluate.metrics")
        bound = found.worse if found.high is None else found.high
        said = f"{self.metric} on past windows {found.text(sign)}, may be worse by {self.most:.4g}"
        return Outcome(passed=bound <= self.most, reason=said)


@dataclass(frozen=True, kw_only=True)
class Flips:
    """At most this share of rows is right by the champion and wrong by the challenger: the negative flip rate (Yan et
    al. 2021). over: as in `NotWorse`."""

    most: float = 0.05
    over: str = "window"

    def __post_init__(self) -> None:
        if not 0 <= self.most <= 1:
            raise ConfigError(f"gate.most must be a share between 0 and 1, not {self.most}")

    def check(self, card: ReportCard) -> Outcome:
        if without_champion(card):
            return Outcome(passed=True, reason=NO_CHAMPION, applies=False)
        compared = places(card, self.over)
        if not compared or any(c.flips is None for c in compared):
            return absent(f"flips on {self.over}", "they are counted for binary and multiclass tasks with a champion")
        shares = {c.name: float((c.flips or {})["negative"]) for c in compared}
        name, worst = max(shares.items(), key=lambda pair: pair[1])
        said = f"{worst:.2%} of rows of {name} were right and are wrong now, at most {self.most:.2%}"
        return Outcome(passed=worst <= self.most, reason=said)


def rejected(p_values: Sequence[float], level: float) -> list[int]:
    """Places of the hypotheses that Holm's procedure rejects; it errs on any of them no more often than `level`.

    >>> rejected([0.03, 0.01, 0.4], 0.05)
    [1]
    """
    found: list[int] = []
    for step, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[place] > level / (len(p_values) - step):
            break
        found.append(place)
    return sorted(found)


def _what(metric: str, on: str, c: Comparison) -> str:
    named = "" if metric == LOSS else f"{metric} "
    return f"{c.name} {named}" if on == "slices" else named


def _on_each(card: ReportCard, over: str, compare: Callable[[Comparison], Outcome]) -> Outcome:
    """What a rule finds wherever it is to be held."""
    if without_champion(card):
        return Outcome(passed=True, reason=NO_CHAMPION, applies=False)
    outcomes = [compare(c) for c in places(card, over)]
    if not outcomes:
        return _nothing_on(over)
    return joined(outcomes, all(o.passed for o in outcomes)) if len(outcomes) > 1 else outcomes[0]


def _nothing_on(on: str) -> Outcome:
    setting = {
        "past": "there is no past window yet; any_of with a rule on window lets the first update through",
        "window": "no window had a held-out row",
    }.get(on, "name slices in evaluate.slices")
    return absent(f"comparison on {on}", setting)
