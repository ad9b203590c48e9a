"""What a card says about one metric on one set of rows, turned so that more is always worse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from cltrain.errors import ConfigError
from cltrain.records import Comparison, ReportCard

LOSS = "loss"  # mean loss, in nats or squared units of the label: the metric that every card has an interval of
LOWER = frozenset({LOSS, "log_loss", "squared_error", "rmse", "mae", "brier", "ece", "quantile_loss", "pinball"})
HIGHER = frozenset({"accuracy", "auc", "pr_auc", "f1", "r2", "ndcg", "mrr", "recall", "precision"})
NO_CHAMPION = "there is no champion yet"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a rule says of a card. applies: False where there was nothing to hold the challenger against, which is no
    ground for refusal."""

    passed: bool
    reason: str
    applies: bool = True


class Rule(Protocol):
    """A pure function of the card."""

    def check(self, card: ReportCard) -> Outcome: ...


@dataclass(frozen=True, kw_only=True)
class Harm:
    """By how much the challenger is worse, with an interval where the card has one. base: the champion's value."""

    rows: int
    base: float
    worse: float
    low: float | None
    high: float | None

    def text(self, sign: float = 1.0) -> str:
        """As challenger minus champion; sign: -1 where higher is better."""
        if self.low is None or self.high is None:
            return f"{sign * self.worse:+.4g} on {self.rows} rows"
        low, high = sorted((sign * self.low, sign * self.high))
        return f"{sign * self.worse:+.4g} [{low:+.4g}, {high:+.4g}] on {self.rows} rows"


def direction(metric: str, higher_is_better: bool | None, setting: str) -> float:
    """1 where lower is better, -1 where higher is. Raises `ConfigError` for a metric that it does not know."""
    if higher_is_better is not None:
        return -1.0 if higher_is_better else 1.0
    stem = metric.split("@")[0]
    if stem in LOWER or stem in HIGHER:
        return 1.0 if stem in LOWER else -1.0
    raise ConfigError(f"{setting}.higher_is_better must be true or false, since {metric} is a metric of your own")


def places(card: ReportCard, on: str) -> tuple[Comparison, ...]:
    """The comparisons on `window`, on `past`, on all `slices`, or on the slice of that name; empty if there is none."""
    if on == "slices":
        return card.slices
    return tuple(c for c in (*card.comparisons, *card.slices) if c.name == on)


def harm(c: Comparison, metric: str, sign: float) -> Harm | None:
    """None where the card has no champion's value of it."""
    champion = c.champion or {}
    if metric == LOSS:
        base = champion.get("squared_error", champion.get("log_loss"))
        if base is None or c.difference is None:
            return None
        return Harm(rows=c.rows, base=float(base), worse=c.difference, low=c.low, high=c.high)
    base, now, found = champion.get(metric), c.challenger.get(metric), c.metrics.get(metric)
    if base is None or now is None:
        return None
    low = high = None
    worse = sign * (float(now) - float(base))
    if found is not None and found.get("low") is not None:
        worse = sign * float(found["difference"])
        low, high = sorted((sign * float(found["low"]), sign * float(found["high"])))
    return Harm(rows=c.rows, base=float(base), worse=worse, low=low, high=high)


def without_champion(card: ReportCard) -> bool:
    return all(c.champion is None for c in card.comparisons)


def absent(what: str, setting: str) -> Outcome:
    """A rule whose evidence is not on the card refuses, and says where it comes from."""
    return Outcome(passed=False, reason=f"the card has no {what}: {setting}")


def joined(outcomes: Iterable[Outcome], passed: bool) -> Outcome:
    """One outcome that tells all of them."""
    found = list(outcomes)
    told = "; ".join(o.reason if o.passed else f"refused, {o.reason}" for o in found)
    return Outcome(passed=passed, reason=told, applies=any(o.applies for o in found))
