"""Metrics that are no mean of rows, as means of rows: the value plus what each row adds to it.

The influence of row i on a metric T of weighted rows is n ∂T/∂w_i (the infinitesimal jackknife, Jaeckel 1972; for the
AUC it is that of DeLong et al. 1988). The functions return T plus it, (N,): its mean is the metric, its variance over N
that of the metric, and the difference of two versions on the same rows is the mean of a paired difference. None where
the metric is not defined. `tests/evaluate/test_influence.py` holds them against derivatives and the bootstrap.
"""

from __future__ import annotations

import numpy as np

from cltrain.evaluate.metrics import calibration_bin, from_top, places, probabilities
from cltrain.evaluate.sample import Sample


def mean(values: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Of a weighted mean of `values` (N,); shares: (N,) weights with mean 1."""
    middle = (shares * values).mean()
    return middle + shares * (values - middle)


def auc(rows: Sample) -> np.ndarray | None:
    positive, w, at, negatives, positives = _by_score(rows)
    if not negatives.any() or not positives.any():
        return None
    # Of each score, the share of negatives below it and of positives above it; of ties, half.
    below = (np.cumsum(negatives) - negatives / 2) / negatives.sum()
    above = (from_top(positives) - positives / 2) / positives.sum()
    value = float((positives * below).sum() / positives.sum())
    share = np.where(positive, w / positives.sum(), w / negatives.sum())
    return value + len(rows) * share * (np.where(positive, below[at], above[at]) - value)


def pr_auc(rows: Sample) -> np.ndarray | None:
    positive, w, at, negatives, positives = _by_score(rows)
    if not positives.any():
        return None
    over = from_top(positives + negatives)
    precision = from_top(positives) / over
    value = float((positives * precision).sum() / positives.sum())
    # A row changes the precision at every threshold at or below its score.
    gained, spent = np.cumsum(positives / over), np.cumsum(positives * precision / over)
    change = positive * (precision[at] - value + gained[at]) - spent[at]
    return value + len(rows) * w * change / positives.sum()


def f1(rows: Sample) -> np.ndarray | None:
    w, p, y = rows.shares, rows.predictions, rows.target
    if rows.task == "binary":
        said, was = p >= 0.5, y >= 0.5
        both = (w * said).sum() + (w * was).sum()
        if not both:
            return None
        value = float(2 * (w * (said & was)).sum() / both)
        return value + len(rows) * w * (2 * (said & was) - value * (said.astype(float) + was)) / both
    classes, code = np.unique(np.concatenate([y, p]), return_inverse=True)
    label, answer = code[: len(y)], code[len(y) :]
    hit = label == answer
    both = np.bincount(label, w, len(classes)) + np.bincount(answer, w, len(classes))
    of_class = 2 * np.bincount(label, w * hit, len(classes)) / both
    change = (2 * hit - of_class[label]) / both[label] - of_class[answer] / both[answer]
    return of_class.mean() + len(rows) * w * change / len(classes)


def ece(rows: Sample) -> np.ndarray:
    """Of an absolute value the slope is used, so the bounds lean outward where a bin is calibrated to within chance."""
    w, said = rows.shares, probabilities(places(rows.predictions))
    gap, place = said - (rows.target >= 0.5), calibration_bin(said)
    return mean(np.sign(np.bincount(place, w * gap))[place] * gap, w)


def rmse(rows: Sample) -> np.ndarray:
    squares = mean(rows.losses, rows.shares)
    value = squares.mean() ** 0.5
    return value + (squares - squares.mean()) / (2 * value) if value else np.zeros(len(rows))


def r2(rows: Sample) -> np.ndarray | None:
    w, y = rows.shares, rows.target
    middle = (w * y).mean()
    squares = np.square(y - middle)
    spread = (w * squares).mean()
    if spread <= (1e-12 * middle) ** 2:
        return None
    left = (w * rows.losses).mean() / spread
    return 1 - left - w * (rows.losses - left * squares) / spread


def _by_score(rows: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Whether each row is positive, and its weight; the place (N,) of its score among the K scores there are, lowest
    first; and of each score the weight of negatives and of positives (K,)."""
    positive, w = rows.target >= 0.5, rows.shares
    scores, at = np.unique(places(rows.predictions), return_inverse=True)
    negatives, positives = (np.bincount(at, w * part, len(scores)) for part in (~positive, positive))
    return positive, w, at, negatives, positives
