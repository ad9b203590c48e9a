"""The paired bootstrap: how sure is a difference measured on the same rows?"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

CHUNK_CELLS = 4_000_000


def paired_interval(
    a: np.ndarray, b: np.ndarray, generator: np.random.Generator, level: float = 0.05, resamples: int = 1_000
) -> tuple[float, float, float]:
    """Mean of `a - b` over rows and its interval: the `level` and `1 - level` quantiles of the mean under resampling of
    rows, so that each bound is one-sided at `level`. a, b: (N,) losses of the same rows.

    Above 10,000 rows the resampled mean is normal for all purposes, and the closed form is used.
    """
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    n = len(difference)
    mean = float(difference.mean())
    if n > 10_000:
        half = NormalDist().inv_cdf(1 - level) * float(difference.std()) / n**0.5
        return mean, mean - half, mean + half
    means = []
    per_chunk = max(1, CHUNK_CELLS // max(n, 1))
    for start in range(0, resamples, per_chunk):
        count = min(per_chunk, resamples - start)
        means.append(difference[generator.integers(0, n, (count, n))].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [level, 1 - level])
    return mean, float(low), float(high)
