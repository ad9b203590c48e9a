"""What a test needs to know of many units: sums that add up over looks, replicas and phases."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from cltrain.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Count, means and centred sums of squares of a metric `y` and of its covariate `x`, over units. They add up
    (Chan, Golub & LeVeque 1983) without the loss of digits that sums of squares have. Without a covariate `x` is 0."""

    n: int = 0
    y: float = 0.0
    yy: float = 0.0
    x: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def __add__(self, other: Moments) -> Moments:
        if not self.n or not other.n:
            return other if not self.n else self
        n = self.n + other.n
        dy, dx, weight = other.y - self.y, other.x - self.x, self.n * other.n / n
        return Moments(
            n=n,
            y=self.y + dy * other.n / n,
            yy=self.yy + other.yy + dy * dy * weight,
            x=self.x + dx * other.n / n,
            xx=self.xx + other.xx + dx * dx * weight,
            xy=self.xy + other.xy + dx * dy * weight,
        )

    @property
    def variance(self) -> float:
        """Unbiased variance of `y`; infinite below two units, where nothing is known of it."""
        return self.yy / (self.n - 1) if self.n > 1 else np.inf


def moments_of(values: np.ndarray, covariate: np.ndarray | None = None) -> Moments:
    """Moments of one value a unit. values, covariate: (N,). Raises `DataError` for values that are not finite.

    >>> moments_of(np.array([1.0, 3.0])) + moments_of(np.array([5.0]))
    Moments(n=3, y=3.0, yy=8.0, x=0.0, xx=0.0, xy=0.0)
    """
    y = np.asarray(values, np.float64)
    x = np.zeros_like(y) if covariate is None else np.asarray(covariate, np.float64)
    if y.shape != x.shape:
        raise DataError(f"a covariate needs one value a unit: {x.shape} for {y.shape}")
    if not (np.isfinite(y).all() and np.isfinite(x).all()):
        raise DataError("a metric or its covariate is not finite: leave such units out and count them")
    if not len(y):
        return Moments()
    dy, dx = y - y.mean(), x - x.mean()
    return Moments(
        n=len(y), y=float(y.mean()), yy=float(dy @ dy), x=float(x.mean()), xx=float(dx @ dx), xy=float(dx @ dy)
    )


def ratio_moments(
    numerator: np.ndarray, denominator: np.ndarray, covariate: tuple[np.ndarray, np.ndarray] | None = None
) -> Moments:
    """Moments of a ratio of sums over units, such as clicks a request: its mean is the ratio, and its variance that of
    the delta method (Deng, Knoblich & Lu 2018). numerator, denominator: (N,), summed over each unit's events, which may
    be weighted by one over their chance of being there.

    covariate: numerator and denominator, (N,) each, of a ratio from before the experiment, such as the same one then;
    a unit from which nothing is known has 0 in both, and counts as if it had the mean.

    >>> ratio_moments(np.array([1.0, 3.0]), np.array([1.0, 1.0])) == moments_of(np.array([1.0, 3.0]))
    True
    """
    a, b = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    if not len(b) or not b.sum() > 0:
        return Moments()
    y, dy = _linear(a, b)
    if covariate is None or not covariate[1].sum() > 0:
        return Moments(n=len(a), y=y, yy=float(dy @ dy))
    x, dx = _linear(np.asarray(covariate[0], np.float64), np.asarray(covariate[1], np.float64))
    return Moments(n=len(a), y=y, yy=float(dy @ dy), x=x, xx=float(dx @ dx), xy=float(dx @ dy))


def _linear(a: np.ndarray, b: np.ndarray) -> tuple[float, np.ndarray]:
    """The ratio of sums, and how much each unit moves it, times their number."""
    ratio = float(a.sum() / b.sum())
    return ratio, (a - ratio * b) / b.mean()


def by_unit(units: Sequence[Hashable] | np.ndarray, values: np.ndarray) -> np.ndarray:
    """The sum of `values` over each unit's events, in the order of the sorted units. Events of one unit go together, so
    a test over events would find differences that are not there: tests are over units."""
    _, place = np.unique(np.asarray(units), return_inverse=True)
    return np.bincount(place, weights=np.asarray(values, np.float64))
