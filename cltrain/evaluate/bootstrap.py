"""How sure is a difference measured on the same rows? The paired bootstrap, and the score interval of shares."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

CHUNK_CELLS = 4_000_000
NORMAL_ROWS = 10_000
_NORMAL = NormalDist()


def paired_interval(
    a: np.ndarray,
    b: np.ndarray,
    generator: np.random.Generator,
    level: float = 0.05,
    resamples: int = 1_000,
    normal_rows: int = NORMAL_ROWS,
) -> tuple[float, float, float]:
    """Mean of `a - b` over rows and its interval, each bound of which is one-sided at `level`. a, b: (N,) losses of the
    same rows, N at least 1.

    The bounds are quantiles of the mean under resampling of rows, accelerated (BCa: Efron 1987; for a mean, bias
    correction and acceleration are both skewness / 6 sqrt(N)). Losses are skewed, and plain quantiles would let a
    challenger with rare but bad mistakes pass up to twice as often as `level`. Above `normal_rows` rows the resampled
    mean is normal for all purposes, and the closed form is used.
    """
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    n, mean, std = len(difference), float(difference.mean()), float(difference.std())
    if std == 0.0 or not np.isfinite(std):
        return mean, mean, mean
    skewness = float((((difference - mean) / std) ** 3).mean())
    scores = [_accelerated(_NORMAL.inv_cdf(q), skewness / (6 * n**0.5)) for q in (level, 1 - level)]
    if n > normal_rows:
        low, high = (mean + z * std / n**0.5 for z in scores)
    else:
        means = np.sort(_resampled_means(difference, generator, resamples))
        low, high = np.quantile(means, [_NORMAL.cdf(z) for z in scores])
    return mean, float(low), float(high)


def paired_shares_interval(a: np.ndarray, b: np.ndarray, level: float = 0.05) -> tuple[float, float, float]:
    """Share of `a` minus share of `b`, (N,) booleans of the same rows, and its interval, each bound of which is
    one-sided at `level`: the hybrid score interval for paired proportions (Newcombe 1998, method 10), which holds where
    few rows differ, and where none does."""
    n = len(a)
    both, first, second = int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum())
    neither = n - both - first - second
    p, q = (both + first) / n, (both + second) / n
    (p_low, p_high), (q_low, q_high) = _wilson(p, n, level), _wilson(q, n, level)
    spread = (both + first) * (second + neither) * (both + second) * (first + neither)
    product = float(both * neither - first * second)
    product = max(product - n / 2, 0.0) if product > 0 else product
    phi = product / spread**0.5 if spread else 0.0
    below = (p - p_low) ** 2 - 2 * phi * (p - p_low) * (q_high - q) + (q_high - q) ** 2
    above = (p_high - p) ** 2 - 2 * phi * (p_high - p) * (q - q_low) + (q - q_low) ** 2
    mean = (first - second) / n
    return mean, mean - max(below, 0.0) ** 0.5, mean + max(above, 0.0) ** 0.5


def _wilson(p: float, n: int, level: float) -> tuple[float, float]:
    z2 = _NORMAL.inv_cdf(level) ** 2
    middle, half = p + z2 / (2 * n), (z2 * (p * (1 - p) / n + z2 / (4 * n * n))) ** 0.5
    return (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)


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
