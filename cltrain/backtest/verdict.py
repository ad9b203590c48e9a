"""What the trials came to: a table, a front, a choice, and whether the choice holds on what it was not made on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cltrain.backtest.advice import Iteration, advise
from cltrain.backtest.settings import Backtest
from cltrain.backtest.statistics import paired_by_period, pareto_front, reality_check
from cltrain.errors import UpdateError
from cltrain.evaluate import headline
from cltrain.records import Json
from cltrain.seeding import numpy_generator

ODD = 0.25  # share of periods in which a strategy may have predicted other rows than the present settings


@dataclass(frozen=True)
class Judgement:
    """Judges the lines of the trials (see `Trials.table`) of a task, of which the first `ranked` periods rank and the
    others confirm. Lower is better in all metrics. Intervals are those of a mean difference in loss: the log loss, or
    the squared error."""

    backtest: Backtest
    task: str
    ranked: int
    seed: int

    def choose(self, lines: Sequence[Json]) -> int | None:
        """The trial of the fewest row visits among those whose loss is, by the upper bound of the interval, not above
        that of the reference by more than the margin; of those that cost the same, the better one. With a budget, the
        trial of the least loss among those that keep to it. The reference is among them, and is chosen if nothing else
        is eligible. None if the reference has no result."""
        compared = self._comparable(lines, range(self.ranked))
        reference = self._reference(compared)
        if reference is None:
            return None
        periods = _common(compared, range(self.ranked))
        if self.backtest.budget is not None:
            most = self.backtest.budget * reference["ranked"]["rows"]
            within = [line for line in compared if line["ranked"]["rows"] <= most]
            return int(min(within or [reference], key=lambda line: (_loss(line, periods), line["trial"]))["trial"])
        eligible = [
            line
            for line in compared
            if self._difference(line, reference, periods)[2] <= self._margin(reference, periods)
        ]
        best = min(eligible, key=lambda line: (line["ranked"]["rows"], _loss(line, periods), line["trial"]))
        return int(best["trial"])

    def judge(self, lines: Sequence[Json]) -> Json:
        """What `summary.json` says: the chosen strategy, the table (best first) and its front, `confirmation` on the
        last part, `luck` (see `reality_check`) and `iteration` (see `advise`). Raises `UpdateError` when the present
        settings or the baseline have no result."""
        compared = self._comparable(lines, range(self.ranked))
        by_name = {line["name"]: line for line in compared}
        current = by_name.get("current")
        if current is None:
            why = next((line for line in lines if line["name"] == "current"), {})
            raise UpdateError(f"the present settings have no result: {why.get('error') or 'their trial was lost'}")
        if self._reference(compared) is None:
            why = next((line for line in lines if line["name"] == self.backtest.baseline), {})
            raise UpdateError(f"{self.backtest.baseline} has no result: {why.get('error') or 'its trial was lost'}")
        periods = _common(compared, range(self.ranked))
        chosen = self.choose(lines)
        front = dict(
            zip([line["trial"] for line in compared], pareto_front(self._objectives(compared, periods)), strict=True)
        )
        table = [self._row(line, current, periods, compared, bool(front.get(line["trial"], False))) for line in lines]
        table.sort(key=lambda row: (row["loss"] is None, row["loss"], row["trial"]))
        picked = next(line for line in compared if line["trial"] == chosen)
        others = [line for line in compared if line["name"] not in ("current", self.backtest.baseline)]
        luck = reality_check(
            [np.array(line["periods"]["losses"])[periods] for line in others],
            np.array(current["periods"]["losses"])[periods],
            np.array(current["periods"]["rows"])[periods],
            numpy_generator(self.seed, "reality"),
            self.backtest.resamples,
            self.backtest.block,
        )
        return {
            "metric": headline(self.task),
            "chosen": picked["name"],
            "budget": self.backtest.budget,
            "table": table,
            "front": [row["name"] for row in table if row["front"]],
            "threshold": self._threshold(current, periods),
            "ranked_periods": len(periods),
            "confirm_periods": len(current["periods"]["rows"]) - self.ranked,
            "tried": len(compared),
            "luck": luck,
            "confirmation": self._confirm(picked, compared),
            "iteration": advise(self._iterations(compared, current, periods)),
        }

    def _comparable(self, lines: Sequence[Json], of: range) -> list[Json]:
        """Lines with a result that predicted the rows of the present settings, but for a few periods."""
        whole = [line for line in lines if line["ranked"] and line["periods"]]
        current = next((line for line in whole if line["name"] == "current"), None)
        if current is None:
            return []
        rows = np.array(current["periods"]["rows"])[list(of)]
        same = [(np.array(line["periods"]["rows"])[list(of)] == rows).mean() for line in whole]
        return [line for line, share in zip(whole, same, strict=True) if share >= 1 - ODD]

    def _reference(self, compared: Sequence[Json]) -> Json | None:
        name = "current" if self.backtest.no_worse_than == "current" else self.backtest.baseline
        return next((line for line in compared if line["name"] == name), None)

    def _margin(self, reference: Json, periods: np.ndarray) -> float:
        return self.backtest.margin * _loss(reference, periods)

    def _difference(self, ours: Json, theirs: Json, periods: np.ndarray) -> tuple[float, float, float]:
        a, b = (np.array(line["periods"]["losses"])[periods] for line in (ours, theirs))
        rows = np.array(ours["periods"]["rows"])[periods]
        b_ = self.backtest
        return paired_by_period(a, b, rows, numpy_generator(self.seed, "periods"), b_.level, b_.resamples, b_.block)

    def _objectives(self, compared: Sequence[Json], periods: np.ndarray) -> np.ndarray:
        found = [
            {
                "quality": _loss(line, periods),
                "retention": line["ranked"]["retention"].get(headline(self.task), np.inf),
                "rows": line["ranked"]["rows"],
                "updates": line["ranked"]["updates"],
            }
            for line in compared
        ]
        return np.array([[values[name] for name in self.backtest.objectives] for values in found], np.float64)

    def _metric(self, loss: float | None) -> float | None:
        return None if loss is None else loss**0.5 if self.task == "regression" else loss

    def _threshold(self, current: Json, periods: np.ndarray) -> float:
        if self.backtest.threshold is not None:
            return self.backtest.threshold
        return 1.1 * float(self._metric(_loss(current, periods)) or 0.0)

    def _row(self, line: Json, current: Json, periods: np.ndarray, compared: Sequence[Json], front: bool) -> Json:
        ranked = line["ranked"] or {}
        there = line in compared
        status = "ranked" if there else "given up" if line["stopped"] else "not comparable" if ranked else "failed"
        row: Json = {key: line[key] for key in ("trial", "name", "changes", "kind")} | {
            "status": status,
            "why": line["stopped"] or line["error"],
            "front": front,
            "loss": None,
            "metric": None,
            "worst": None,
            "bad_time": None,
            "difference": None,
            "low": None,
            "high": None,
            "retention": (ranked.get("retention") or {}).get(headline(self.task)),
        }
        if there:
            losses, rows = (np.array(line["periods"][key], np.float64)[periods] for key in ("losses", "rows"))
            each = [self._metric(value) for value in (losses / rows).tolist()]
            difference, low, high = self._difference(line, current, periods)
            row |= {
                "loss": _loss(line, periods),
                "metric": self._metric(_loss(line, periods)),
                "worst": max(each),  # type: ignore[type-var]
                "bad_time": sum(value > self._threshold(current, periods) for value in each) / len(each),  # type: ignore[operator]
                "difference": difference,
                "low": low,
                "high": high,
            }
        for key in ("rows", "rows_replayed", "updates", "rejected", "labels", "work"):
            row[key] = ranked.get(key)
        row["false_updates"] = ranked["rejected"] / ranked["updates"] if ranked.get("updates") else None
        return row | _price(ranked.get("train_seconds"), self.backtest)

    def _confirm(self, picked: Json, compared: Sequence[Json]) -> Json:
        """The choice against the present settings and the baseline on the last part, which nothing was chosen on."""
        named = {line["name"]: line for line in compared if line["all"]}
        if not picked["all"]:
            return {"verdict": "the trial of the choice over the last part was lost", "holds": None, "against": {}}
        found: Json = {}
        for name in ("current", self.backtest.baseline):
            other = named.get(name)
            if other is None or other["trial"] == picked["trial"]:
                continue
            places = range(self.ranked, len(picked["periods"]["rows"]))
            periods = _common([picked, other], places)
            if not len(periods):
                continue
            difference, low, high = self._difference(picked, other, periods)
            found[name] = {
                "difference": difference,
                "low": low,
                "high": high,
                "margin": self._margin(other, periods),
                "ours": self._metric(_loss(picked, periods)),
                "theirs": self._metric(_loss(other, periods)),
                "periods": len(periods),
                "rows_ratio": other["all"]["rows"] / max(1, picked["all"]["rows"]),
                "retention": [line["all"]["retention"].get(headline(self.task)) for line in (picked, other)],
            }
        reference = "current" if self.backtest.no_worse_than == "current" else self.backtest.baseline
        verdict, holds = _said(found.get(reference), reference)
        return {"verdict": verdict, "holds": holds, "against": found, "rows": picked["all"]["rows"]}

    def _iterations(self, compared: Sequence[Json], current: Json, periods: np.ndarray) -> list[Iteration]:
        made = []
        for line in compared:
            if line["kind"]:
                difference, low, high = self._difference(line, current, periods)
                extra = line["ranked"]["train_seconds"] - current["ranked"]["train_seconds"]
                made.append(
                    Iteration(name=line["name"], kind=line["kind"], gain=-difference, low=-high, high=-low, extra=extra)
                )
        return made


def _common(lines: Sequence[Json], of: range) -> np.ndarray:
    """Periods in which all predicted as many rows, which are then the same: what one knows at the end of a window the
    others knew at the end of a later one."""
    rows = np.stack([np.array(line["periods"]["rows"])[list(of)] for line in lines])
    return np.array(of)[(rows == rows[0]).all(axis=0) & (rows[0] > 0)]


def _loss(line: Json, periods: np.ndarray) -> float:
    losses, rows = (np.array(line["periods"][key], np.float64)[periods] for key in ("losses", "rows"))
    return float(losses.sum() / rows.sum())


def _said(against: Json | None, name: str) -> tuple[str, bool | None]:
    if against is None:
        return f"the choice is {name} itself: go on with it", True
    shown = f"{against['difference']:+.4g} [{against['low']:+.4g}, {against['high']:+.4g}] in mean loss"
    about = f"on the last {against['periods']} periods, which nothing was chosen on, {shown} against {name}"
    if against["high"] < 0:
        return f"confirmed, and better: {about}", True
    if against["high"] <= against["margin"]:
        return f"confirmed, no worse: {about}", True
    if against["low"] > against["margin"]:
        return f"not confirmed: {about}; keep {name}", False
    return f"the last part cannot tell: {about}", None


def _price(seconds: float | None, backtest: Backtest) -> Json:
    """Device-seconds of training, and the energy and emissions that they are estimated to take."""
    if seconds is None:
        return {"device_seconds": None, "watt_hours": None, "grams_co2": None}
    watt_hours = seconds * backtest.watts / 3600
    return {
        "device_seconds": seconds,
        "watt_hours": watt_hours,
        "grams_co2": watt_hours / 1000 * backtest.grams_per_kwh,
    }
