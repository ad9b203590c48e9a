"""Metrics as sums, so that ranks, windows and slices add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cltrain.evaluate.sample import Scored
from cltrain.records import Json

BINS_PER_UNIT = 8192  # of the log-odds: scores closer than 1/8192 count as equal in the AUC
ECE_BINS = 15


def headline(task: str) -> str:
    """The metric a task is judged by; lower is better."""
    return "rmse" if task == "regression" else "log_loss"


@dataclass(frozen=True)
class MetricSums:
    """Sums over rows; `a + b` is what one pass over the rows of both gives.

    sums: rows, their weight, and weighted losses, hits (or absolute errors), squared errors of a probability. target:
    mean of the labels and sum of squared deviations from it, which do not cancel at any scale (Chan et al. 1979).
    counts (R, K), of each of `bins` (K,) that was hit: of a binary task negatives and positives by the log-odds of the
    score; of a multiclass task hits, predictions and labels by class. further: of other metrics by name, the sum of
    values and of weights.
    """

    task: str
    sums: np.ndarray
    target: tuple[float, float]
    bins: np.ndarray
    counts: np.ndarray
    further: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def empty(cls, task: str) -> MetricSums:
        return cls(
            task, np.zeros(5), (0.0, 0.0), np.zeros(0, np.int64), np.zeros((3 if task == "multiclass" else 2, 0))
        )

    @classmethod
    def of(
        cls,
        scored: Scored,
        weights: np.ndarray | None = None,
        further: Mapping[str, tuple[float, float]] | None = None,
    ) -> MetricSums:
        """Of the rows of `scored`, (N,), each of which counts as often as its weight says."""
        task, p, y = scored.task, scored.predictions, scored.target
        further = further or {}
        empty = cls.empty(task)
        if not len(y):
            return empty
        w = np.ones(len(y)) if weights is None else weights
        sums = np.array([len(y), w.sum(), (w * scored.losses).sum(), 0.0, 0.0])
        if task == "regression":
            mean = float(np.average(y, weights=w))
            sums[3] = (w * np.abs(p - y)).sum()
            target = (mean, float((w * np.square(y - mean)).sum()))
            return cls(task, sums, target, empty.bins, empty.counts, further)
        if task == "multiclass":
            hit = p == y
            sums[3] = (w * hit).sum()
            one, none = np.ones(len(y)), np.zeros(len(y))
            by_class = np.concatenate([[hit, none, one], [none, one, none]], axis=1) * np.concatenate([w, w])
            bins, counts = _count(np.concatenate([y, p]).astype(np.int64), by_class)
            return cls(task, sums, empty.target, bins, counts, further)
        positive = y >= 0.5
        sums[3], sums[4] = (w * ((p >= 0.5) == positive)).sum(), (w * np.square(p - y)).sum()
        bins, counts = _count(places(p), np.stack([~positive, positive]) * w)
        return cls(task, sums, empty.target, bins, counts, further)

    def __add__(self, other: MetricSums) -> MetricSums:
        return total(self.task, [self, other])

    def values(self) -> Json:
        """The metrics by name, None where they are not defined (one class only, constant target); no rows have none."""
        rows, weight, loss, second, third = (float(v) for v in self.sums)
        if not rows:
            return {"rows": 0}
        further = {name: value / count if count else None for name, (value, count) in self.further.items()}
        if self.task == "regression":
            mse, (mean, squares) = loss / weight, self.target
            r2 = 1 - loss / squares if squares > weight * (1e-12 * mean) ** 2 else None
            named = {"rmse": mse**0.5, "mae": second / weight, "r2": r2, "squared_error": mse, "rows": int(rows)}
            return named | further
        values: Json = {"log_loss": loss / weight, "accuracy": second / weight, "f1": self._f1(), "rows": int(rows)}
        if self.task == "binary":
            values |= {"auc": self._auc(), "pr_auc": self._pr_auc(), "brier": third / weight, "ece": self._ece()}
        return values | further

    def reliability(self) -> list[Json]:
        """Of a binary task, for each of `ECE_BINS` bins of equal width that has rows: the probability that was
        `predicted`, the share of positives that was `observed`, both as means, and the weight of its `rows`."""
        if self.task != "binary":
            return []
        predicted, observed, weight = self._calibration()
        return [
            {"predicted": float(p / w), "observed": float(o / w), "rows": float(w)}
            for p, o, w in zip(predicted, observed, weight, strict=True)
            if w
        ]

    def _auc(self) -> float | None:
        negatives, positives = self.counts
        pairs = negatives.sum() * positives.sum()
        if not pairs:
            return None
        below = np.cumsum(negatives) - negatives
        return float((positives * (below + negatives / 2)).sum() / pairs)

    def _pr_auc(self) -> float | None:
        """Average precision, Σ (R_k − R_{k−1}) P_k over thresholds: the trapezoid between them is too kind (Davis and
        Goadrich 2006)."""
        negatives, positives = self.counts
        if not positives.any():
            return None
        above, all_above = from_top(positives), from_top(positives + negatives)
        return float((positives * above / all_above).sum() / positives.sum())

    def _f1(self) -> float | None:
        """Of the positive class, or the mean over the classes that are a label or a prediction of some row."""
        if self.task == "binary":
            said = self.counts[:, self.bins >= 0].sum(axis=1)
            both = said.sum() + self.counts[1].sum()
            return float(2 * said[1] / both) if both else None
        hits, said, was = self.counts
        return float((2 * hits / (said + was)).mean())

    def _ece(self) -> float:
        """Expected calibration error over `ECE_BINS` bins of equal width (Naeini et al. 2015), of the positive
        class."""
        predicted, observed, weight = self._calibration()
        return float(np.abs(predicted - observed).sum() / weight.sum())

    def _calibration(self) -> list[np.ndarray]:
        """Sums of probabilities, of positives and of rows by bin, (ECE_BINS,) each."""
        probability, (negatives, positives) = probabilities(self.bins), self.counts
        place = calibration_bin(probability)
        count = negatives + positives
        return [np.bincount(place, values, ECE_BINS) for values in (count * probability, positives, count)]


def places(p: np.ndarray) -> np.ndarray:
    """(N,) int64: the bin of the log-odds of each probability; from 1/2 up it is 0 or more."""
    odds = np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(1 - p, 1e-17))
    return np.floor(odds * BINS_PER_UNIT).astype(np.int64)


def probabilities(bins: np.ndarray) -> np.ndarray:
    """(K,) the probability in the middle of each bin of log-odds."""
    return 0.5 * (1 + np.tanh((bins + 0.5) / BINS_PER_UNIT / 2))


def calibration_bin(probability: np.ndarray) -> np.ndarray:
    return np.minimum((probability * ECE_BINS).astype(int), ECE_BINS - 1)


def from_top(values: np.ndarray) -> np.ndarray:
    """(K,) the sum of each value and all that come after it."""
    return np.cumsum(values[::-1])[::-1]


def total(task: str, parts: Sequence[MetricSums]) -> MetricSums:
    """All parts added up."""
    parts = [part for part in parts if part.sums[0]]
    if not parts:
        return MetricSums.empty(task)
    weight = np.array([part.sums[1] for part in parts])
    means = np.array([part.target[0] for part in parts])
    mean = float(np.average(means, weights=weight))
    squares = sum(part.target[1] for part in parts) + float((weight * np.square(means - mean)).sum())
    bins, counts = _count(np.concatenate([p.bins for p in parts]), np.concatenate([p.counts for p in parts], axis=1))
    sums = np.sum([part.sums for part in parts], axis=0)
    further = {
        name: tuple(np.sum([p.further.get(name, (0.0, 0.0)) for p in parts], axis=0).tolist())
        for name in dict.fromkeys(name for p in parts for name in p.further)
    }
    return MetricSums(task, sums, (mean, squares), bins, counts, further)


def _count(place: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add up the columns of `counts` (R, N) that have the same `place` (N,): the places, ascending, and their sums."""
    bins, at = np.unique(place, return_inverse=True)
    return bins, np.stack([np.bincount(at, row, len(bins)) for row in counts])
