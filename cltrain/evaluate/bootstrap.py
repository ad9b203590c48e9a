"""The paired bootstrap: how sure is a difference measured on the same rows?"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

CHUNK_CELLS = 4_000_000
NORMAL_ROWS = 10_000
_NORMAL = NormalDist()


def paired_interval(
    a: np.ndarray, b: np.ndarray, generator: np.random.Generator, level: float = 0.05, resamples: int = 1_000
) -> tuple[float, float, float]:
    """Mean of `a - b` over rows and its interval, each bound of which is one-sided at `level`. a, b: (N,) losses of the
    same rows, N at least 1.

    The bounds are quantiles of the mean under resampling of rows, accelerated (BCa: Efron 1987; for a mean, bias
    correction and acceleration are both skewness / 6 sqrt(N)). Losses are skewed, and plain quantiles would let a
    challenger with rare but bad mistakes pass up to twice as often as `level`. Above `NORMAL_ROWS` rows the resampled
    mean is normal for all purposes, and the closed form is used.
    """
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    n, mean, std = len(difference), float(difference.mean()), float(difference.std())
    if std == 0.0:
        return mean, mean, mean
    skewness = float((((difference - mean) / std) ** 3).mean())
    scores = [_accelerated(_NORMAL.inv_cdf(q), skewness / (6 * n**0.5)) for q in (level, 1 - level)]
    if n > NORMAL_ROWS:
        low, high = (mean + z * std / n**0.5 for z in scores)
    else:
        means = np.sort(_resampled_means(difference, generator, resamples))
        low, high = np.quantile(means, [_NORMAL.cdf(z) for z in scores])
    return mean, float(low), float(high)


def _accelerated(z: float, a: float) -> float:
    """The normal score at which to read off the bound of score `z`; `a` is held where the formula has no pole."""
    a = min(max(a, -0.2), 0.2)
    return a + (a + z) / (1 - a * (a + z))


def _resampled_means(values: np.ndarray, generator: np.random.Generator, resamples: int) -> np.ndarray:
    """(resamples,) means of N values drawn with replacement, within `CHUNK_CELLS` numbers at once."""
    n = len(values)
    rows = max(1, CHUNK_CELLS // n)
    counts = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    return np.concatenate([values[generator.integers(0, n, (count, n))].mean(axis=1) for count in counts])
