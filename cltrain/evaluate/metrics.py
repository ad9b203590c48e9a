"""Metrics as sums, so that ranks, windows and slices add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cltrain.records import Json

AUC_BINS, AUC_RANGE = 8192, 16.0  # bins of the log-odds between -16 and 16: 0.004 wide
ECE_BINS = 15


class Scored(Protocol):
    """Predictions and losses of N labelled rows; see `cltrain.train.predictor.Scores`."""

    task: str
    predictions: np.ndarray
    target: np.ndarray
    losses: np.ndarray


def headline(task: str) -> str:
    """The metric a task is judged by; lower is better."""
    return "rmse" if task == "regression" else "log_loss"


@dataclass(frozen=True)
class MetricSums:
    """Sums over rows; `a + b` is what one pass over the rows of both gives. The AUC counts pairs within a bin of the
    log-odds as ties, an error below 1e-4."""

    task: str
    sums: np.ndarray
    histogram: np.ndarray

    @classmethod
    def empty(cls, task: str) -> MetricSums:
        return cls(task, np.zeros(6), np.zeros((2, AUC_BINS) if task == "binary" else (2, 0)))

    @classmethod
    def of(cls, scored: Scored) -> MetricSums:
        p, y, losses = scored.predictions, scored.target, scored.losses
        sums = np.zeros(6)
        sums[0], sums[1] = len(y), losses.sum()
        histogram = np.zeros((2, 0))
        if scored.task == "binary":
            sums[2] = ((p >= 0.5) == (y >= 0.5)).sum()
            sums[3] = np.square(p - y).sum()
            odds = np.log(np.clip(p, 1e-15, 1)) - np.log(np.clip(1 - p, 1e-15, 1))
            place = np.clip((odds + AUC_RANGE) / (2 * AUC_RANGE) * AUC_BINS, 0, AUC_BINS - 1).astype(np.int64)
            histogram = np.stack([np.bincount(place[y < 0.5], minlength=AUC_BINS), np.bincount(place[y >= 0.5], minlength=AUC_BINS)])
        elif scored.task == "multiclass":
            sums[2] = (p == y).sum()
        else:
            sums[2] = np.abs(p - y).sum()
            sums[3], sums[4] = y.sum(), np.square(y).sum()
        return cls(scored.task, sums, histogram.astype(np.float64))

    def __add__(self, other: MetricSums) -> MetricSums:
        return MetricSums(self.task, self.sums + other.sums, self.histogram + other.histogram)

    def values(self) -> Json:
        """The metrics by name, None where they are not defined (no rows; one class only)."""
        rows, loss, second, third, fourth = (float(v) for v in self.sums[:5])
        if not rows:
            return {"rows": 0}
        if self.task == "regression":
            variance = fourth / rows - (third / rows) ** 2
            mse = loss / rows
            r2 = 1 - mse / variance if variance > 0 else None
            return {"rmse": mse**0.5, "mae": second / rows, "r2": r2, "squared_error": mse, "rows": int(rows)}
        values: Json = {"log_loss": loss / rows, "accuracy": second / rows, "rows": int(rows)}
        if self.task == "binary":
            values |= {"auc": self._auc(), "brier": third / rows, "ece": self._ece()}
        return values

    def _auc(self) -> float | None:
        negatives, positives = self.histogram
        pairs = negatives.sum() * positives.sum()
        if not pairs:
            return None
        below = np.cumsum(negatives) - negatives
        return float((positives * (below + negatives / 2)).sum() / pairs)

    def _ece(self) -> float:
        """Expected calibration error over `ECE_BINS` bins of equal width, with each bin of the histogram at its middle."""
        middle = (np.arange(AUC_BINS) + 0.5) / AUC_BINS * 2 * AUC_RANGE - AUC_RANGE
        probability = 1 / (1 + np.exp(-middle))
        place = np.minimum((probability * ECE_BINS).astype(int), ECE_BINS - 1)
        negatives, positives = self.histogram
        count = np.bincount(place, negatives + positives, ECE_BINS)
        said = np.bincount(place, (negatives + positives) * probability, ECE_BINS)
        was = np.bincount(place, positives, ECE_BINS)
        return float(np.abs(said - was).sum() / count.sum())


def total(task: str, parts: Sequence[MetricSums]) -> MetricSums:
    return sum(parts, MetricSums.empty(task))
