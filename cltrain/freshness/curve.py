"""The curve of quality lost against age: its intervals, its monotone form and its half-life. Functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_BLOCKS = 4
GRID = 160


def block_length(windows: int, reach: int) -> float:
    """How many neighbouring windows are drawn together: twice as many as share rows or models (`reach`: the oldest age
    and the length of a training), but so few that there are `MIN_BLOCKS` blocks."""
    return max(1.0, min(windows / MIN_BLOCKS, 2.0 * reach))


def resampled(values: np.ndarray, block: float, draws: int, generator: np.random.Generator) -> np.ndarray:
    """`draws` means (D, K) of the rows of `values` (N, K), which are in the order of time.

    Circular block bootstrap (Politis and Romano 1992): a window is drawn with its neighbours, and with all its columns,
    so that dependence in time and between ages is kept. A cell's training window is fixed by its evaluation window and
    its age; that two evaluation windows share a training window thus is dependence in time, too. Few blocks understate
    the variance: deviations are larger by sqrt(m / (m - 1)) for m blocks and have the tails of Student's t with m - 1
    degrees of freedom, as the mean of m independent blocks would.
    """
    n = len(values)
    size = max(1, min(n, round(block)))
    blocks = max(n / size, 1.5)
    starts = generator.integers(0, n, (draws, -(-n // size)))
    index = ((starts[:, :, None] + np.arange(size)) % n).reshape(draws, -1)[:, :n]
    counts = np.zeros((draws, n))
    np.add.at(counts, (np.arange(draws)[:, None], index), 1.0)
    deviations = (counts @ values) / n - values.mean(axis=0)
    tails = np.sqrt((blocks - 1) / generator.chisquare(blocks - 1, (draws, 1)))
    return values.mean(axis=0) + deviations * np.sqrt(blocks / (blocks - 1)) * tails


def bounds(draws: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Two-sided interval of each column of (D, ...)."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def simultaneous(center: np.ndarray, draws: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Bounds (K,) that hold for all columns of `draws` (D, K) at once: as many standard deviations to either side of
    `center` as the largest deviation has, of all columns."""
    spread = draws.std(axis=0)
    known = np.where(spread > 0, spread, 1.0)
    wide = np.quantile((np.abs(draws - center) / known).max(axis=1), level)
    return center - wide * spread, center + wide * spread


def isotonic(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The closest curve (K,) that never falls and is nowhere below 0: pool adjacent violators (Barlow et al. 1972).

    >>> isotonic(np.array([-1.0, 2.0, 1.0, 5.0]), np.ones(4)).tolist()
    [0.0, 1.5, 1.5, 5.0]
    """
    pools: list[list[float]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pools.append([value, weight, 1])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            value, weight, count = pools.pop()
            last = pools[-1]
            last[0] = (last[0] * last[1] + value * weight) / (last[1] + weight)
            last[1] += weight
            last[2] += count
    return np.maximum(np.repeat([p[0] for p in pools], [int(p[2]) for p in pools]), 0.0)


@dataclass(frozen=True)
class Decay:
    """Fits of `plateau * (1 - 2 ** (-age / half_life))`: of the curve itself, and of each draw of it, (D,)."""

    plateau: float
    half_life: float
    plateaus: np.ndarray
    half_lives: np.ndarray


def fitted(curve: np.ndarray, draws: np.ndarray, ages: Sequence[float]) -> Decay:
    """Least squares for the curve (K,) and its draws (D, K), of which those at age 0 are 0; an age counts by the
    inverse of its variance. Half-lives are of a grid from an eighth of the youngest age to four times the oldest."""
    positive = np.asarray(ages, float) > 0
    x = np.asarray(ages, float)[positive]
    spread = draws[:, positive].std(axis=0)
    weights = 1 / np.maximum(spread, 1e-3 * spread.max() + 1e-12) ** 2
    grid = np.geomspace(x.min() / 8, 4 * x.max(), GRID)
    shapes = 1 - 2.0 ** (-x / grid[:, None])  # (G, K)
    norms = shapes**2 @ weights

    def fit(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        plateaus = (values * weights) @ shapes.T / norms  # (D, G)
        best = (plateaus**2 * norms).argmax(axis=1)  # what a fit leaves of the sum of squares is the rest
        return plateaus[np.arange(len(best)), best], grid[best]

    (plateau,), (half_life,) = fit(curve[None, positive])
    return Decay(float(plateau), float(half_life), *fit(draws[:, positive]))


@dataclass(frozen=True, kw_only=True)
class HalfLife:
    """The age at which half of what is lost in the end is lost, in periods. `periods` is None where the data cannot
    tell, for the `reason`; a bound is None where it lies beyond what was looked at."""

    periods: float | None
    low: float | None
    high: float | None
    plateau: float
    reason: str


def half_life(curve: np.ndarray, decay: Decay, draws: np.ndarray, ages: Sequence[float], level: float) -> HalfLife:
    """The half-life of a curve that rises to a plateau exponentially, with its interval."""
    youngest, oldest = min(a for a in ages if a > 0), max(ages)
    old = np.asarray(ages) > 0
    low, _ = simultaneous(curve[old], draws[:, old], level)
    if not (low > 0).any():
        return HalfLife(periods=None, low=None, high=None, plateau=0.0, reason="no loss with age beyond chance")
    first, last = (float(v) for v in bounds(decay.half_lives, level))
    shortest, longest = youngest / 8 * 1.01, 4 * oldest * 0.99
    ends = {"low": None if first <= shortest else first, "high": None if last >= longest else last}
    if last >= longest:
        reason = f"the loss may still grow at age {oldest:g}: its half-life is {first:.2g} periods or more"
        return HalfLife(periods=None, plateau=decay.plateau, reason=reason, **ends)
    if decay.half_life <= shortest:
        reason = f"all that is lost is lost by age {youngest:g}: its half-life is {last:.2g} periods or less"
        return HalfLife(periods=None, plateau=decay.plateau, reason=reason, **ends)
    return HalfLife(periods=decay.half_life, plateau=decay.plateau, reason="", **ends)
