"""How often to update: what each step to a faster cadence gains and costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np

from cltrain.clock import parse_duration
from cltrain.freshness.curve import Decay, bounds, simultaneous
from cltrain.records import Json

USUAL = ("28d", "14d", "7d", "1d", "1h")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Quality lost at `ages` (K,), in periods of `every`, and draws of it (D, K); fits of both."""

    every: str
    ages: tuple[int, ...]
    lost: np.ndarray
    draws: np.ndarray
    decay: Decay
    level: float


def choices(every: str, ages: Sequence[int], given: Sequence[str] | None) -> list[str]:
    """Cadences from slow to fast, the period among them; none that is slower than the oldest age can tell of."""
    period = parse_duration(every)
    kept = {parse_duration(c): c for c in (*(given or USUAL), every) if parse_duration(c) <= (max(ages) + 1) * period}
    return [kept[span] for span in sorted(kept, reverse=True)]


def mean_ages(ages: Sequence[int], periods: float) -> np.ndarray:
    """Weights (K,) of the ages in the mean loss of a model that is trained every `periods` periods, 1 or more, and thus
    is 0, 1, … periods old in turn. Between two ages the curve is a straight line.

    >>> mean_ages([0, 1, 2, 4], 4).tolist()
    [0.25, 0.25, 0.375, 0.125]
    """
    whole = math.floor(periods)
    turns = [(age, 1.0) for age in range(whole)] + [(whole, periods - whole)]
    weights = np.zeros(len(ages))
    for age, share in turns:
        if share > 1e-9:
            right = int(np.searchsorted(ages, age))
            if ages[right] == age:
                weights[right] += share
                continue
            part = (age - ages[right - 1]) / (ages[right] - ages[right - 1])
            weights[right - 1] += share * (1 - part)
            weights[right] += share * part
    return weights / periods


def within_period(plateau: np.ndarray, half_life: np.ndarray, periods: float) -> np.ndarray:
    """What a cadence of less than a period would lose less than one of a period, (D,), if the exponential holds there:
    what is measured at age k is the mean over staleness from k to k + 1."""

    def mean_left(span: float) -> np.ndarray:
        return (1 - 2.0 ** (-span / half_life)) * half_life / (span * math.log(2))

    whole = mean_left(1.0)
    return plateau / whole * (mean_left(periods) - whole)


def advised(curve: Curve, cadences: Sequence[str], *, cost: float, value: float | None) -> Json:
    """The cadence to choose from `cadences`, slow to fast, and a table with a line each.

    cost: of one training; value: of a loss lower by 1 for a period, in the same currency. Without a value, trainings
    cost nothing and gains are in units of the loss. From the slowest on, a faster cadence is chosen when the interval
    of its net gain over the one chosen so far is above 0; the intervals hold for all pairs of cadences at once. What is
    faster than a period was not measured, so that it is never chosen.
    """
    period = parse_duration(curve.every)
    spans = [parse_duration(c) / period for c in cadences]
    worth, price = (1.0, 0.0) if value is None else (value, cost)
    lost, draws = _losses(curve, spans)
    low_of, high_of = bounds(draws, curve.level)
    fees = np.array([price / span for span in spans])
    pairs = list(itertools.combinations(range(len(spans)), 2))
    gain = {pair: (lost[pair[0]] - lost[pair[1]]) * worth for pair in pairs}
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for group in (True, False):  # what is extrapolated must not widen the intervals of what is measured
        inside = [(i, j) for i, j in pairs if (spans[j] >= 1) == group]
        if inside:
            of = np.stack([(draws[:, i] - draws[:, j]) * worth for i, j in inside], axis=1)
            lows, highs = simultaneous(np.array([gain[p] for p in inside]), of, curve.level)
            found |= {p: (float(a), float(b)) for p, a, b in zip(inside, lows, highs, strict=True)}
    chosen, lines = 0, []
    for j, (cadence, span) in enumerate(zip(cadences, spans, strict=True)):
        line: Json = {
            "every": cadence,
            "periods": span,
            "measured": span >= 1,
            "loss_delta": float(lost[j]),
            "low": float(low_of[j]),
            "high": float(high_of[j]),
            "trainings_per_period": 1 / span,
            "cost_per_period": float(fees[j]),
        }
        if j:
            pair = (chosen, j)
            extra = float(fees[j] - fees[chosen])
            (low, high), steps = found[pair], 1 / span - 1 / spans[chosen]
            verdict = "pays" if low > extra else "does not pay" if high <= extra else "cannot tell"
            if verdict == "cannot tell" and value is None:
                verdict = "no gain seen"
            line |= {
                "against": cadences[chosen],
                "marginal_gain": float(gain[pair]),
                "gain_low": low,
                "gain_high": high,
                "marginal_cost": extra,
                "pays_below": max(0.0, float(gain[pair])) / steps,
                "verdict": verdict,
            }
            if verdict == "pays" and span >= 1:
                chosen = j
        lines.append(line)
    return {
        "recommended_every": cadences[chosen],
        "table": lines,
        "advice": _said(curve, lines, cadences[chosen], value),
    }


def _losses(curve: Curve, spans: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Loss of each cadence above that of a model of age 0, (C,), and draws of it, (D, C)."""
    decay, lost, draws = curve.decay, [], []
    for span in spans:
        if span >= 1:
            weights = mean_ages(curve.ages, span)
            lost.append(float(curve.lost @ weights))
            draws.append(curve.draws @ weights)
        else:
            lost.append(-float(within_period(np.array(decay.plateau), np.array(decay.half_life), span)))
            draws.append(-within_period(decay.plateaus, decay.half_lives, span))
    return np.array(lost), np.stack(draws, axis=1)


def _said(curve: Curve, lines: Sequence[Json], chosen: str, value: float | None) -> list[str]:
    """What to do, in sentences."""
    unit = "" if value is not None else " of loss"
    said = [f"Update every {chosen}."]
    steps = [line for line in lines if "verdict" in line]
    if value is None and not any(line["verdict"] == "pays" for line in steps):
        said[0] += " No gain from fresher models can be told from chance."
    for line in steps:
        interval = f"{line['marginal_gain']:.3g}{unit} a period, {line['gain_low']:.3g} to {line['gain_high']:.3g}"
        against = f" against a cost of {line['marginal_cost']:.3g}" if value is not None else ""
        how = {
            "pays": f"Going from {line['against']} to {line['every']} pays: it gains {interval}{against}.",
            "does not pay": f"Do not go from {line['against']} to {line['every']}: it does not pay, it gains {interval}"
            f"{against}.",
            "no gain seen": f"Going from {line['against']} to {line['every']} gains nothing that can be told "
            f"from chance: {interval}.",
            "cannot tell": f"The data cannot tell whether {line['every']} instead of {line['against']} pays: it gains "
            f"{interval}{against}.",
        }[line["verdict"]]
        if not line["measured"]:
            how += f" That is if the curve within a period goes on as between periods: freshness.every={line['every']} "
            how += "measures it."
        said.append(how)
    if value is None:
        said.append(
            "This takes trainings to cost nothing: set freshness.prices.value_per_unit and a price to weigh them."
        )
    return said


def duration(periods: float, every: str) -> str:
    """So many periods as one says it.

    >>> duration(2.0, "7d"), duration(0.5, "1d")
    ('14 days', '12 hours')
    """
    span = periods * parse_duration(every)
    for name, unit in (("days", timedelta(days=1)), ("hours", timedelta(hours=1)), ("minutes", timedelta(minutes=1))):
        if span >= unit:
            return f"{span / unit:.3g} {name}"
    return f"{span.total_seconds():.3g} seconds"
