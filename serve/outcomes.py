"""What became of the answers of a roll-out: losses and rewards of those whose label has come, unit by unit, by arm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.online.ab import difference
from cltrain.online.moments import Moments, moments_of, ratio_moments
from cltrain.records import Json
from cltrain.registry.base import CHALLENGER, CHAMPION
from cltrain.storage import Storage
from cltrain.task import LOG_LOSS_FLOOR
from serve.feedback import join_feedback, read_feedback
from serve.prediction_log import SHADOW_FOLDER, read_predictions

LOSS, REWARD = "loss", "reward"


@dataclass(frozen=True)
class Contrast:
    """Challenger minus champion in a mean, with its standard error; `level` is the champion's mean, `n` the units of
    the smaller arm, or the pairs."""

    n: int
    difference: float
    error: float
    level: float


@dataclass(frozen=True)
class Period:
    """Rows answered at one epoch, so with the same shares: units exposed to each arm, and moments by arm and metric."""

    exposed: Mapping[str, int]
    moments: Mapping[str, Mapping[str, Moments]]


@dataclass(frozen=True)
class Outcomes:
    """Metrics are `loss` (nats, or squared units of the label, a row) and `reward` (the sum of a unit's numeric
    labels of the type that the guardrails name). paired: losses of a shadow less those of the live answers
    to the same rows."""

    periods: tuple[Period, ...] = ()
    paired: Moments = field(default_factory=Moments)
    paired_level: float = 0.0

    def contrast(self, metric: str) -> Contrast | None:
        """Only rows of one period are compared with each other: shares and the world change together."""
        if metric == LOSS and self.paired.n > 1:
            return Contrast(
                self.paired.n, self.paired.y, math.sqrt(self.paired.variance / self.paired.n), self.paired_level
            )
        base, arm = ([p.moments.get(name, {}).get(metric, Moments()) for p in self.periods] for name in ARMS)
        n = min(sum(m.n for m in base), sum(m.n for m in arm))
        if not n:
            return None
        estimate, error = difference(base, arm)
        level = sum(m.n * m.y for m in base) / sum(m.n for m in base)
        return Contrast(n, estimate, error, level) if math.isfinite(error) else None

    def to_json(self) -> Json:
        found = {metric: self.contrast(metric) for metric in (LOSS, REWARD)}
        return {metric: vars(one) for metric, one in found.items() if one is not None}


ARMS = (CHAMPION, CHALLENGER)


def read_outcomes(
    storage: Storage, model: str, *, version: str, since: datetime, reward_type: str | None, kind: str
) -> Outcomes:
    """Of the rows answered since `since`. A row belongs to the challenger if its unit was given to it, even where the
    champion stood in; of a swap, if the version answered it."""
    live = _since(read_predictions(storage, model), since)
    feedback = read_feedback(storage)
    is_reward = pc.equal(feedback["type"], reward_type or "")
    labels = _labelled(live, feedback.filter(pc.invert(is_reward)))
    if kind == "shadow":
        mirrored = _since(read_predictions(storage, model, SHADOW_FOLDER), since)
        mirrored = mirrored.filter(pc.equal(mirrored["version"], version))
        return _paired(_labelled(mirrored, feedback.filter(pc.invert(is_reward))), labels)
    rewards = _labelled(live, feedback.filter(is_reward)) if reward_type else labels.slice(0, 0)
    tables = [_Rows.of(table, version, kind) for table in (live, labels, rewards)]
    exposed, losses_of, rewards_of = tables
    values = {LOSS: (losses_of, losses(labels)), REWARD: (rewards_of, _numbers(rewards, "label_value"))}
    return Outcomes(tuple(_period(epoch, exposed, values) for epoch in np.unique(exposed.epochs)))


def losses(joined: pa.Table) -> np.ndarray:
    """(N,) losses of labelled predictions, NaN where the label is not of the model's kind. Of a multiclass model the
    log holds the class answered and its probability: the loss is that of the question whether it is this class."""
    score, value = _numbers(joined, "prediction"), _numbers(joined, "label_value")
    answered, label = joined["label_answer"].to_pylist(), joined["label"].to_pylist()
    if not answered or answered[0] is None:
        return (score - value) ** 2
    binary = set(answered) <= {"0", "1"}
    right = value == 1 if binary else np.array([a == b for a, b in zip(answered, label, strict=True)], dtype=bool)
    loss = -np.log(np.clip(np.where(right, score, 1 - score), LOG_LOSS_FLOOR, 1.0))
    return np.where(np.isnan(value), np.nan, loss) if binary else loss


@dataclass(frozen=True)
class _Rows:
    """Arms, units and epochs of N rows, (N,) each."""

    ours: np.ndarray
    units: np.ndarray
    epochs: np.ndarray

    @classmethod
    def of(cls, table: pa.Table, version: str, kind: str) -> _Rows:
        is_swap = kind == "swap"
        arm, wanted = (table["version"], version) if is_swap else (table["arm"], CHALLENGER)
        epochs = table["epoch"].to_numpy()
        return cls(
            np.array([a == wanted for a in arm.to_pylist()], dtype=bool),
            np.array(pc.coalesce(table["unit_id"], table["request_id"]).to_pylist(), dtype=object),
            np.zeros_like(epochs) if is_swap else epochs,  # of a swap the arms come one after the other
        )


def _period(epoch: int, exposed: _Rows, values: Mapping[str, tuple[_Rows, np.ndarray]]) -> Period:
    counts: dict[str, int] = {}
    moments: dict[str, dict[str, Moments]] = {arm: {} for arm in ARMS}
    for arm in ARMS:
        counts[arm] = len(set(exposed.units[(exposed.epochs == epoch) & (exposed.ours == (arm == CHALLENGER))]))
        for metric, (rows, numbers) in values.items():
            here = (rows.epochs == epoch) & (rows.ours == (arm == CHALLENGER)) & np.isfinite(numbers)
            if here.any():
                _, place = np.unique(rows.units[here].astype(str), return_inverse=True)
                total = np.bincount(place, weights=numbers[here])
                moments[arm][metric] = ratio_moments(total, np.bincount(place)) if metric == LOSS else moments_of(total)
    return Period(counts, moments)


def _paired(mirrored: pa.Table, live: pa.Table) -> Outcomes:
    by_id = dict(zip(live["request_id"].to_pylist(), losses(live), strict=True))
    pairs: Sequence[tuple[float, float]] = [
        (loss, by_id[id_])
        for id_, loss in zip(mirrored["request_id"].to_pylist(), losses(mirrored), strict=True)
        if id_ in by_id and math.isfinite(loss + by_id[id_])
    ]
    values = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    level = float(values[:, 1].mean()) if len(values) else 0.0
    return Outcomes(paired=moments_of(values[:, 0] - values[:, 1]), paired_level=level)


def _since(table: pa.Table, since: datetime) -> pa.Table:
    return table.filter(pc.greater_equal(table["time"], pa.scalar(since, table.schema.field("time").type)))


def _labelled(predictions: pa.Table, feedback: pa.Table) -> pa.Table:
    joined = join_feedback(predictions, feedback)
    return joined.filter(pc.is_valid(joined["label"]))


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    return table[name].cast(pa.float64()).to_numpy().astype(np.float64)
