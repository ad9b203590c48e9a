"""Is a strategy better, or was it lucky? Bootstraps over periods, which are dependent, and of the choice of a best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def block_length(periods: int, block: int | None = None) -> int:
    """Length of a block by the cube root rule (Bühlmann and Künsch 1999), at least 2, at most half of the periods.

    >>> block_length(30), block_length(3), block_length(30, 5)
    (4, 1, 5)
    """
    wanted = block if block is not None else max(2, round((1.5 * periods) ** (1 / 3)))
    return max(1, min(wanted, periods // 2))


def circular_blocks(periods: int, block: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """(resamples, periods) indices of periods in blocks of neighbours, the first of which follows the last (Politis
    and Romano 1992), so that every period is drawn equally often."""
    count = -(-periods // block)
    starts = generator.integers(0, periods, (resamples, count, 1))
    return ((starts + np.arange(block)) % periods).reshape(resamples, -1)[:, :periods]


def paired_by_period(
    ours: np.ndarray,
    theirs: np.ndarray,
    rows: np.ndarray,
    generator: np.random.Generator,
    level: float = 0.05,
    resamples: int = 2_000,
    block: int | None = None,
) -> tuple[float, float, float]:
    """Mean loss of `ours` minus that of `theirs` over rows, and its interval, each bound of which is one-sided at
    `level`. ours, theirs: (P,) sums of losses over the same `rows` (P,) of each period.

    The standard error is that of a bootstrap of blocks of periods; the bounds take Student's t with as many degrees of
    freedom as there are blocks, less one, since few periods say less than their bootstrap believes. With fewer than
    three periods the bounds are infinite.
    """
    difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    periods, total = len(difference), float(np.sum(rows))
    mean = float(difference.sum()) / total
    if periods < 3:
        return mean, -np.inf, np.inf
    size = block_length(periods, block)
    drawn = circular_blocks(periods, size, resamples, generator)
    means = difference[drawn].sum(axis=1) / np.asarray(rows, np.float64)[drawn].sum(axis=1)
    spread = float(means.std()) * float(stats.t.ppf(1 - level, max(2, periods // size - 1)))
    return mean, mean - spread, mean + spread


def reality_check(
    losses: Sequence[np.ndarray],
    reference: np.ndarray,
    rows: np.ndarray,
    generator: np.random.Generator,
    resamples: int = 2_000,
    block: int | None = None,
) -> float:
    """The chance that the best of so many strategies would look as much better than the reference as it does, if none
    of them were better (White 2000, with blocks). losses: of each strategy, (P,) sums over the `rows` (P,)."""
    if not losses or len(rows) < 3:
        return 1.0
    gains = np.stack([np.asarray(reference) - np.asarray(ours) for ours in losses]).astype(np.float64)
    weights = np.asarray(rows, np.float64)
    found = gains.sum(axis=1) / weights.sum()
    drawn = circular_blocks(len(weights), block_length(len(weights), block), resamples, generator)
    totals = weights[drawn].sum(axis=1)
    best = np.full(resamples, -np.inf)
    for gain, mean in zip(gains, found, strict=True):
        best = np.maximum(best, gain[drawn].sum(axis=1) / totals - mean)
    return float((1 + (best >= found.max()).sum()) / (1 + resamples))


def pareto_front(points: np.ndarray) -> np.ndarray:
    """(N,) bool: points (N, K) that no other one beats; lower is better. Of equal points all stay.

    >>> pareto_front(np.array([[1, 4], [2, 2], [3, 3], [2, 2]])).tolist()
    [True, True, False, True]
    """
    points = np.asarray(points, np.float64)
    no_worse = (points[:, None, :] <= points[None, :, :]).all(axis=2)
    better = (points[:, None, :] < points[None, :, :]).any(axis=2)
    return np.logical_not((no_worse & better).any(axis=0))
