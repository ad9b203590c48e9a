"""Metrics by name, those of a user among them, and how sure their difference between two versions is."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cltrain.errors import ConfigError
from cltrain.evaluate import influence, ranking
from cltrain.evaluate.bootstrap import paired_interval, paired_shares_interval
from cltrain.evaluate.metrics import MetricSums
from cltrain.evaluate.sample import Sample
from cltrain.records import Json

NORMAL_ROWS = 500  # below, the bounds of a metric are resampled; above, they have a closed form
Values = Callable[[Sample], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A metric and how to find it. influence: (N,) of which the metric is the mean, where `MetricSums` has its sums.
    Else per_row or per_group: (N,) or (G,) values whose sums are added up, NaN where a group has none."""

    name: str
    higher_is_better: bool
    influence: Callable[[Sample], np.ndarray | None] | None = None
    per_row: Values | None = None
    per_group: Values | None = None

    def sums(self, rows: Sample) -> tuple[float, float] | None:
        """Sum of values and of weights, which `MetricSums` adds up; None where it has sums of its own."""
        if self.per_row:
            w = np.ones(len(rows)) if rows.weights is None else rows.weights
            return float((w * self.per_row(rows)).sum()), float(w.sum())
        if self.per_group:
            values = self.per_group(rows)
            known = ~np.isnan(values)
            return float(values[known].sum()), float(known.sum())
        return None

    def terms(self, rows: Sample) -> np.ndarray | None:
        """Values whose mean is the metric and whose spread is its own; None where it is not defined."""
        if self.per_row:
            return influence.mean(self.per_row(rows), rows.shares)
        if self.per_group:
            values = self.per_group(rows)
            known = values[~np.isnan(values)]
            return known if len(known) else None
        return self.influence(rows) if self.influence else None


TASKS: dict[str, dict[str, Measure]] = {
    "binary": {
        m.name: m
        for m in (
            Measure(name="auc", higher_is_better=True, influence=influence.auc),
            Measure(name="pr_auc", higher_is_better=True, influence=influence.pr_auc),
            Measure(name="accuracy", higher_is_better=True, influence=lambda s: influence.mean(s.right, s.shares)),
            Measure(name="f1", higher_is_better=True, influence=influence.f1),
            Measure(
                name="brier",
                higher_is_better=False,
                influence=lambda s: influence.mean(np.square(s.predictions - s.target), s.shares),
            ),
            Measure(name="ece", higher_is_better=False, influence=influence.ece),
        )
    },
    "multiclass": {
        m.name: m
        for m in (
            Measure(name="accuracy", higher_is_better=True, influence=lambda s: influence.mean(s.right, s.shares)),
            Measure(name="f1", higher_is_better=True, influence=influence.f1),
        )
    },
    "regression": {
        m.name: m
        for m in (
            Measure(name="rmse", higher_is_better=False, influence=influence.rmse),
            Measure(
                name="mae",
                higher_is_better=False,
                influence=lambda s: influence.mean(np.abs(s.predictions - s.target), s.shares),
            ),
            Measure(name="r2", higher_is_better=True, influence=influence.r2),
        )
    },
}
WITH_NUMBER = {"pinball": "regression", "ndcg": None, "recall": None, "mrr": None}  # and the task they are for


def parse(metric: Any) -> Callable[[str], Measure]:
    """What makes the measure for a task, which raises `ConfigError` where it is not one of that task.

    metric: a name of `TASKS`; `pinball@0.9`, the quantile loss of a regression; `ndcg@10`, `recall@10` or `mrr`, of the
    lists that `evaluate.group` names; or an object of a user's own class, with `name`, `higher_is_better` and
    `per_row(predictions, target)` or `per_row(predictions, target, weights)`, which returns (N,) values whose mean,
    weighted with the weights of the rows, is the metric: so it adds up over windows, ranks and slices.

    >>> class Missed:
    ...     "Minutes of delay that nobody was told of."
    ...     name, higher_is_better = "missed_minutes", False
    ...     def per_row(self, predictions, target):
    ...         return np.maximum(target - predictions, 0)
    >>> three = np.array([1.0, 2.0, 3.0])
    >>> measured(Sample("regression", three, three + 1, np.ones(3)), [parse(Missed())("regression")])["missed_minutes"]
    1.0
    """
    if not isinstance(metric, str):
        own = _own(metric)
        return lambda task: own
    name, _, number = metric.partition("@")
    if name in WITH_NUMBER:
        made = _numbered(metric, name, number)
        return lambda task: _of_task(metric, task, {metric: made} if WITH_NUMBER[name] in (None, task) else {})
    known = {name for measures in TASKS.values() for name in measures}
    if metric not in known:
        close = difflib.get_close_matches(metric, [*known, *WITH_NUMBER], n=1)
        there = ", ".join(sorted(known))
        raise ConfigError(
            f"evaluate.metrics: there is no metric {metric!r}; {f'did you mean {close[0]}? ' if close else ''}"
            f"there are {there}, pinball@Q, ndcg@K, recall@K, mrr, and settings with a _target_"
        )
    return lambda task: _of_task(metric, task, TASKS[task])


def needs_groups(metric: Any) -> bool:
    return isinstance(metric, str) and metric.partition("@")[0] in ("ndcg", "recall", "mrr")


def measured(rows: Sample, measures: Sequence[Measure]) -> Json:
    """All metrics of the rows by name: those of the task, and `measures`."""
    return sums_of(rows, measures).values()


def sums_of(rows: Sample, measures: Sequence[Measure]) -> MetricSums:
    if not len(rows):
        return MetricSums.empty(rows.task)
    further = {m.name: sums for m in measures if (sums := m.sums(rows)) is not None}
    return MetricSums.of(rows, rows.weights, further)


def differences(
    ours: Sample,
    theirs: Sample,
    measures: Sequence[Measure],
    generator: np.random.Generator,
    level: float,
    resamples: int,
) -> Json:
    """Of each metric that both versions have: `difference`, ours minus theirs, `low` and `high`, each one-sided at
    `level`, and whether `higher_is_better`. That of the accuracy is a score interval where rows count alike, the others
    are normal with a correction for skewness, and resampled below `NORMAL_ROWS` rows or lists."""
    found: Json = {}
    for measure in measures:
        if measure.name == "accuracy" and ours.weights is None:
            bounds = paired_shares_interval(ours.right, theirs.right, level)
        else:
            a, b = measure.terms(ours), measure.terms(theirs)
            if a is None or b is None:
                continue
            bounds = paired_interval(a, b, generator, level, resamples, NORMAL_ROWS)
        named = dict(zip(("difference", "low", "high"), bounds, strict=True))
        found[measure.name] = named | {"higher_is_better": measure.higher_is_better}
    return found


def flips(ours: Sample, theirs: Sample, tolerance: float) -> Json:
    """Shares of rows: `negative`, that the champion (`theirs`) has right and the challenger wrong, and `positive`, the
    reverse (Yan et al. 2021). Of a regression: whose error grew or shrank by more than `tolerance` standard deviations
    of the label."""
    if ours.task == "regression":
        grown = np.abs(ours.predictions - ours.target) - np.abs(theirs.predictions - theirs.target)
        step = tolerance * float(ours.target.std())
        worse, better = grown > step, grown < -step
    else:
        worse, better = theirs.right & ~ours.right, ours.right & ~theirs.right
    w = ours.shares
    return {"negative": float((w * worse).mean()), "positive": float((w * better).mean())}


def _of_task(name: str, task: str, measures: dict[str, Measure]) -> Measure:
    if name not in measures:
        raise ConfigError(
            f"evaluate.metrics: {name} is not a metric of a {task} task, which has {', '.join(TASKS[task])}"
        )
    return measures[name]


def _numbered(metric: str, name: str, number: str) -> Measure:
    if name == "mrr":
        if number:
            raise ConfigError(f"evaluate.metrics: mrr takes no number, not {metric}")
        return Measure(name=metric, higher_is_better=True, per_group=lambda s: ranking.mrr(*_lists(s)))
    if name == "pinball":
        quantile = _number(metric, number, float)
        if not 0 < quantile < 1:
            raise ConfigError(f"evaluate.metrics: the quantile of {metric} must be between 0 and 1, as in pinball@0.9")
        return Measure(name=metric, higher_is_better=False, per_row=functools.partial(_pinball, quantile))
    k = int(_number(metric, number, int))
    if k < 1:
        raise ConfigError(f"evaluate.metrics: the length of {metric} must be 1 or more, as in {name}@10")
    rank = ranking.ndcg if name == "ndcg" else ranking.recall
    return Measure(name=metric, higher_is_better=True, per_group=lambda s: rank(*_lists(s), k))


def _number(metric: str, number: str, kind: Callable[[str], float]) -> float:
    try:
        return kind(number)
    except ValueError as error:
        raise ConfigError(f"evaluate.metrics: {metric} needs a number, as in pinball@0.9 or ndcg@10") from error


def _pinball(quantile: float, rows: Sample) -> np.ndarray:
    """(N,) the loss whose least mean a prediction of the quantile has (Koenker and Bassett 1978)."""
    short = rows.target - rows.predictions
    return np.maximum(quantile * short, (quantile - 1) * short)


def _lists(rows: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    assert rows.groups is not None, "evaluate.group is set where a metric of lists is"
    return rows.predictions, rows.target, rows.groups


def _own(metric: Any) -> Measure:
    name, per_row = getattr(metric, "name", None), getattr(metric, "per_row", None)
    if not isinstance(name, str) or not isinstance(getattr(metric, "higher_is_better", None), bool) or per_row is None:
        raise ConfigError(
            f"evaluate.metrics: {type(metric).__name__} must have name, higher_is_better and "
            "per_row(predictions, target)"
        )
    weighted = "weights" in inspect.signature(per_row).parameters

    def values(rows: Sample) -> np.ndarray:
        weights = np.ones(len(rows)) if rows.weights is None else rows.weights
        given = (rows.predictions, rows.target, weights) if weighted else (rows.predictions, rows.target)
        found = np.asarray(per_row(*given), np.float64)
        if found.shape != (len(rows),) or not np.isfinite(found).all():
            raise ConfigError(
                f"evaluate.metrics: per_row of {name} must return a finite number for each of {len(rows)} rows, not "
                f"shape {found.shape}"
            )
        return found

    return Measure(name=name, higher_is_better=metric.higher_is_better, per_row=values)
