"""What another policy would have earned, from the log of the one that ran, before it gets any traffic.

The log must hold the chance with which each decision was made, and give every decision that the other policy may make
some chance (bandits explore for this). `doubly_robust` is the one to read: it is right if the propensities are, which
they are where we logged them, and precise if the reward model is good. An `effective` number of decisions far below the
number logged says that the policies are too different for this log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from cltrain.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Log:
    """N logged decisions among A arms, and another policy.

    chosen: (N,) index of the arm. reward: (N,). propensity: (N,) chance with which that arm was chosen. target: (N, A)
    chances that the other policy gives the arms in the same contexts. Raises `DataError` for what is none of that.
    """

    chosen: np.ndarray
    reward: np.ndarray
    propensity: np.ndarray
    target: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.chosen)
        if n < 2 or not (self.reward.shape == self.propensity.shape == (n,) and self.target.shape[:1] == (n,)):
            raise DataError(
                "a log needs two decisions or more, with a reward, a propensity and target chances for each"
            )
        if not (np.isfinite(self.reward).all() and (self.propensity > 0).all() and (self.propensity <= 1).all()):
            raise DataError("rewards must be finite, and propensities above 0 and at most 1")
        if (self.target < 0).any() or not np.allclose(self.target.sum(1), 1):
            raise DataError("the target's chances must be 0 or more and add up to 1 for each decision")

    @property
    def weights(self) -> np.ndarray:
        """(N,) how much likelier each logged decision is under the other policy."""
        return self.target[np.arange(len(self.chosen)), self.chosen] / self.propensity

    @property
    def effective(self) -> float:
        """How many decisions of the other policy the log is worth (Kish 1965)."""
        weights = self.weights
        return float(weights.sum() ** 2 / max(np.square(weights).sum(), 1e-300))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Mean reward a decision, and a two-sided interval at the level asked for."""

    value: float
    low: float
    high: float
    effective: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How intervals are made: normal ones from the estimate's influence values, or, with `resamples`, by resampling
    decisions (percentiles), which is better where few decisions carry the weight."""

    level: float = 0.05
    resamples: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.level < 1 or self.resamples < 0:
            raise ConfigError(f"level must be between 0 and 1, and resamples 0 or more: {self}")


def ips(log: Log, bounds: Bounds | None = None) -> Estimate:
    """Inverse propensity scores (Horvitz & Thompson 1952): unbiased, and noisy where weights are large."""
    return _estimate(log, log.weights * log.reward, None, bounds)


def clipped_ips(log: Log, most: float = 10.0, bounds: Bounds | None = None) -> Estimate:
    """Weights above `most` are cut down to it (Bottou et al. 2013): less noise, and a bias towards 0, which the
    interval does not cover."""
    return _estimate(log, np.minimum(log.weights, most) * log.reward, None, bounds)


def snips(log: Log, bounds: Bounds | None = None) -> Estimate:
    """Self-normalised: divided by the sum of the weights (Swaminathan & Joachims 2015), so that a constant added to all
    rewards is added to the estimate."""
    return _estimate(log, log.weights * log.reward, log.weights, bounds)


def direct(log: Log, predicted: np.ndarray, bounds: Bounds | None = None) -> Estimate:
    """What a model of the reward says. predicted: (N, A) rewards, of a model that has not seen the row
    (`cross_fitted`). As biased as the model is, which the interval does not cover."""
    return _estimate(log, (log.target * predicted).sum(1), None, bounds)


def doubly_robust(log: Log, predicted: np.ndarray, bounds: Bounds | None = None) -> Estimate:
    """The model's word, corrected by the weighted errors that it makes on the log (Dudík, Langford & Li 2011)."""
    error = log.reward - predicted[np.arange(len(log.chosen)), log.chosen]
    return _estimate(log, (log.target * predicted).sum(1) + log.weights * error, None, bounds)


def cross_fitted(
    context: np.ndarray, chosen: np.ndarray, reward: np.ndarray, arms: int, folds: int = 5, ridge: float = 1.0
) -> np.ndarray:
    """(N, A) rewards that ridge regressions on `context` (N, F) predict for each arm; each row by regressions that were
    fitted on the other folds."""
    x = np.column_stack([np.ones(len(context)), context])
    fold = np.arange(len(x)) % folds
    predicted = np.empty((len(x), arms))
    for part in range(folds):
        kept = fold != part
        for arm in range(arms):
            rows = kept & (chosen == arm)
            gram = x[rows].T @ x[rows] + ridge * np.eye(x.shape[1])
            predicted[~kept, arm] = x[~kept] @ np.linalg.solve(gram, x[rows].T @ reward[rows])
    return predicted


def _estimate(log: Log, gained: np.ndarray, weights: np.ndarray | None, bounds: Bounds | None) -> Estimate:
    """The sum of `gained` (N,) over the sum of `weights` (N,), or over N."""
    bounds = bounds or Bounds()
    weights = np.ones(len(gained)) if weights is None else weights
    if not weights.sum() > 0:
        raise DataError("the log has no decision that the other policy could have made")
    value = gained.sum() / weights.sum()
    low, high = _resampled(gained, weights, bounds) if bounds.resamples else _normal(gained, weights, value, bounds)
    return Estimate(value=float(value), low=float(low), high=float(high), effective=log.effective, n=len(gained))


def _normal(gained: np.ndarray, weights: np.ndarray, value: float, bounds: Bounds) -> tuple[float, float]:
    influence = (gained - value * weights) / weights.mean()
    half = special.ndtri(1 - bounds.level / 2) * influence.std(ddof=1) / len(gained) ** 0.5
    return value - half, value + half


def _resampled(gained: np.ndarray, weights: np.ndarray, bounds: Bounds) -> Any:
    generator, n = np.random.default_rng(bounds.seed), len(gained)
    values = np.empty(bounds.resamples)
    for i in range(bounds.resamples):
        rows = generator.integers(0, n, n)
        values[i] = gained[rows].sum() / max(weights[rows].sum(), 1e-300)
    return np.quantile(values, [bounds.level / 2, 1 - bounds.level / 2])
