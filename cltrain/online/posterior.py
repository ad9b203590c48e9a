"""What is known of each arm of a bandit, and how likely each is the best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import special

_LEVELS = special.ndtr(np.linspace(-6, 6, 129))  # where each arm's distribution is looked at, rare values included


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Weighted sums over an arm's labelled decisions, stacked over A arms. A context is (D,) with a leading 1, so that
    an arm without features has D = 1 and is its own intercept.

    gram: (A, D, D) of contexts. moment: (A, D) of contexts times reward. square: (A,) of squared rewards."""

    gram: np.ndarray
    moment: np.ndarray
    square: np.ndarray
    _ridges: dict[float, tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @classmethod
    def empty(cls, arms: int, features: int = 0) -> Sums:
        d = features + 1
        return cls(gram=np.zeros((arms, d, d)), moment=np.zeros((arms, d)), square=np.zeros(arms))

    @property
    def weight(self) -> np.ndarray:
        """(A,) decisions that are labelled, discounted."""
        return self.gram[:, 0, 0]

    @property
    def mean(self) -> np.ndarray:
        """(A,) mean reward; 0 where there is none."""
        return self.moment[:, 0] / np.maximum(self.weight, 1e-12)

    @property
    def zero_or_one(self) -> bool:
        """Whether no reward but 0 and 1 can have been seen: only of those are the squares the rewards."""
        return bool(np.allclose(self.square, self.moment[:, 0], rtol=1e-9, atol=1e-9))

    def noise(self) -> float:
        """Standard deviation of rewards within arms, pooled; 1 while fewer than two rewards are known of some arm."""
        freedom = np.maximum(self.weight - 1, 0).sum()
        squares = np.maximum(self.square - self.weight * self.mean**2, 0).sum()
        return float(np.sqrt(squares / freedom)) if freedom > 0 and squares > 0 else 1.0

    def ridge(self, strength: float) -> tuple[np.ndarray, np.ndarray]:
        """(A, D) ridge regressions of reward on context, and (A, D, D) their covariances as a multiple of the noise's
        variance. Computed once, since routers ask for every request."""
        if strength not in self._ridges:
            inverse = np.linalg.inv(self.gram + strength * np.eye(self.gram.shape[-1]))
            self._ridges[strength] = np.einsum("aij,aj->ai", inverse, self.moment), inverse
        return self._ridges[strength]


def best_of_betas(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(A,) chance that each of independent beta variables is the largest. Those of more than 100 rewards and failures
    each are normal for all purposes, and much quicker to compute."""
    if min(a.min(), b.min()) > 100:
        return best_of_normals(a / (a + b), np.sqrt(a * b / (a + b + 1)) / (a + b))
    points = special.betaincinv(a[:, None], b[:, None], _LEVELS)
    return _best(points, lambda x: special.betainc(a[:, None], b[:, None], x))


def best_of_normals(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """(A,) chance that each of independent normal variables is the largest.

    >>> best_of_normals(np.array([0.0, 1.0]), np.array([1.0, 1.0])).round(2)
    array([0.24, 0.76])
    """
    if len(mean) == 2:
        first = special.ndtr((mean[0] - mean[1]) / np.hypot(*deviation))
        return np.array([first, 1 - first])
    points = mean[:, None] + deviation[:, None] * special.ndtri(_LEVELS)
    return _best(points, lambda x: special.ndtr((x - mean[:, None]) / deviation[:, None]))


def _best(points: np.ndarray, cdf: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Between two neighbours among all arms' quantiles (A, Q), an arm is the best if it is there and the others are not
    above."""
    x = np.unique(points)
    below = cdf(x)
    step = np.diff(below, axis=1)
    middle = np.maximum((below[:, 1:] + below[:, :-1]) / 2, 1e-300)
    log = np.log(middle)
    chance = (step * np.exp(log.sum(0) - log)).sum(1)
    return chance / chance.sum()
