"""Metrics as sums, so that ranks, windows and slices add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cltrain.records import Json

BINS_PER_UNIT = 8192  # of the log-odds: scores closer than 1/8192 count as equal in the AUC
ECE_BINS = 15


class Scored(Protocol):
    """Predictions and losses of N labelled rows; see `cltrain.train.predictor.Predictor.score`."""

    @property
    def task(self) -> str: ...

    @property
    def predictions(self) -> np.ndarray: ...

    @property
    def target(self) -> np.ndarray: ...

    @property
    def losses(self) -> np.ndarray: ...


def headline(task: str) -> str:
    """The metric a task is judged by; lower is better."""
    return "rmse" if task == "regression" else "log_loss"


@dataclass(frozen=True)
class MetricSums:
    """Sums over rows; `a + b` is what one pass over the rows of both gives.

    sums: rows, losses, hits (or absolute errors), squared errors of a probability. target: mean of the labels and sum
    of squared deviations from it, which do not cancel at any scale (Chan et al. 1979). For a binary task the scores
    are counted in `bins` (K,) of the log-odds, of which only those that were hit are kept: `counts` (2, K), negatives
    first.
    """

    task: str
    sums: np.ndarray
    target: tuple[float, float]
    bins: np.ndarray
    counts: np.ndarray

    @classmethod
    def empty(cls, task: str) -> MetricSums:
        return cls(task, np.zeros(4), (0.0, 0.0), np.zeros(0, np.int64), np.zeros((2, 0)))

    @classmethod
    def of(cls, scored: Scored) -> MetricSums:
        task, p, y = scored.task, scored.predictions, scored.target
        empty = cls.empty(task)
        if not len(y):
            return empty
        sums = np.array([len(y), scored.losses.sum(), 0.0, 0.0])
        if task == "regression":
            sums[2] = np.abs(p - y).sum()
            return cls(task, sums, (float(y.mean()), float(np.square(y - y.mean()).sum())), empty.bins, empty.counts)
        if task == "multiclass":
            sums[2] = (p == y).sum()
            return cls(task, sums, empty.target, empty.bins, empty.counts)
        positive = y >= 0.5
        sums[2], sums[3] = ((p >= 0.5) == positive).sum(), np.square(p - y).sum()
        odds = np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(1 - p, 1e-17))
        place = np.floor(odds * BINS_PER_UNIT).astype(np.int64)
        bins, counts = _count(place, np.stack([~positive, positive]).astype(np.float64))
        return cls(task, sums, empty.target, bins, counts)

    def __add__(self, other: MetricSums) -> MetricSums:
        return total(self.task, [self, other])

    def values(self) -> Json:
        """The metrics by name, None where they are not defined (one class only, constant target); no rows have none."""
        rows, loss, second, third = (float(v) for v in self.sums)
        if not rows:
            return {"rows": 0}
        if self.task == "regression":
            mse, (mean, squares) = loss / rows, self.target
            r2 = 1 - loss / squares if squares > rows * (1e-12 * mean) ** 2 else None
            return {"rmse": mse**0.5, "mae": second / rows, "r2": r2, "squared_error": mse, "rows": int(rows)}
        values: Json = {"log_loss": loss / rows, "accuracy": second / rows, "rows": int(rows)}
        if self.task == "binary":
            values |= {"auc": self._auc(), "brier": third / rows, "ece": self._ece()}
        return values

    def _auc(self) -> float | None:
        negatives, positives = self.counts
        pairs = negatives.sum() * positives.sum()
        if not pairs:
            return None
        below = np.cumsum(negatives) - negatives
        return float((positives * (below + negatives / 2)).sum() / pairs)

    def _ece(self) -> float:
        """Expected calibration error over `ECE_BINS` bins of equal width (Naeini et al. 2015), of the positive
        class."""
        probability = 0.5 * (1 + np.tanh((self.bins + 0.5) / BINS_PER_UNIT / 2))
        place = np.minimum((probability * ECE_BINS).astype(int), ECE_BINS - 1)
        negatives, positives = self.counts
        count = negatives + positives
        said = np.bincount(place, count * probability, ECE_BINS)
        was = np.bincount(place, positives, ECE_BINS)
        return float(np.abs(said - was).sum() / count.sum())


def total(task: str, parts: Sequence[MetricSums]) -> MetricSums:
    """All parts added up."""
    parts = [part for part in parts if part.sums[0]]
    if not parts:
        return MetricSums.empty(task)
    rows = np.array([part.sums[0] for part in parts])
    means = np.array([part.target[0] for part in parts])
    mean = float(np.average(means, weights=rows))
    squares = sum(part.target[1] for part in parts) + float((rows * np.square(means - mean)).sum())
    bins, counts = _count(np.concatenate([p.bins for p in parts]), np.concatenate([p.counts for p in parts], axis=1))
    return MetricSums(task, np.sum([part.sums for part in parts], axis=0), (mean, squares), bins, counts)


def _count(place: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add up the columns of `counts` (2, N) that have the same `place` (N,): the places, ascending, and their sums."""
    bins, column = np.unique(place, return_inverse=True)
    return bins, np.stack([np.bincount(column, row, len(bins)) for row in counts])
