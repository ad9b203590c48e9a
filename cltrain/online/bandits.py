"""Bandits over versions: traffic goes where the reward is, and enough of it elsewhere to notice when that changes.

A policy says with which chance each arm is chosen; the choice is drawn from those chances by a hash of the decision's
id, so what is logged as the propensity is the propensity, and a retried request gets the arm that it had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from cltrain.clock import parse_duration
from cltrain.errors import ConfigError
from cltrain.online.posterior import Sums, best_of_betas, best_of_normals


class Policy(Protocol):
    """explore: share of decisions spread evenly over the arms, so that each arm keeps a chance of `explore / arms` at
    least. half_life: after which a reward counts half, or null for a world that does not change. contextual: whether
    chances depend on the context."""

    contextual: ClassVar[bool]

    @property
    def explore(self) -> float: ...

    @property
    def half_life(self) -> str | None: ...

    def chances(self, sums: Sums, context: np.ndarray) -> np.ndarray:
        """(A,) chances of the arms for a context (D,), before exploration."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Explores:
    explore: float = 0.02
    half_life: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.explore <= 1:
            raise ConfigError(
                f"policy.explore must be above 0 and at most 1, not {self.explore}: without it a bad start is never"
                " noticed, and other policies cannot be judged from the log"
            )
        if self.half_life is not None:
            parse_duration(self.half_life)


@dataclass(frozen=True, kw_only=True)
class Thompson(_Explores):
    """Each arm with the chance that it is the best (Thompson 1933), by integration and not by sampling.

    reward: `binary` for rewards between 0 and 1, with beta(1, 1) priors; `numeric` for any others, with normal ones
    that are worth one reward at the mean of all; `auto` is binary while all rewards are 0 or 1, and else numeric."""

    reward: Literal["auto", "binary", "numeric"] = "auto"
    contextual: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward not in ("auto", "binary", "numeric"):
            raise ConfigError(f"policy.reward must be auto, binary or numeric, not {self.reward!r}")

    def chances(self, sums: Sums, context: np.ndarray) -> np.ndarray:
        won, n = sums.moment[:, 0], sums.weight
        if self.reward == "binary" or (self.reward == "auto" and sums.zero_or_one):
            return best_of_betas(1 + won, 1 + np.maximum(n - won, 0))
        centre = won.sum() / max(n.sum(), 1e-12)
        return best_of_normals((won + centre) / (n + 1), sums.noise() / np.sqrt(n + 1))


@dataclass(frozen=True, kw_only=True)
class UCB(_Explores):
    """The arm whose reward may be the highest: mean + width · noise · sqrt(2 log N / n) (UCB1: Auer, Cesa-Bianchi &
    Fischer 2002, with the noise measured instead of bounded). Arms without a label come first. The bounds of a width of
    1 are wider than means of some thousand labels call for; `explore` corrects a bad start."""

    width: float = 0.3
    contextual: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.width > 0:
            raise ConfigError(f"policy.width must be above 0, not {self.width}")

    def chances(self, sums: Sums, context: np.ndarray) -> np.ndarray:
        n = sums.weight
        if (n <= 0).any():
            return even(n <= 0)
        return highest(sums.mean + self.width * sums.noise() * np.sqrt(2 * np.log(max(n.sum(), 1.0)) / n))


@dataclass(frozen=True, kw_only=True)
class EpsilonGreedy(_Explores):
    """The arm with the highest mean reward, and any arm in a share `explore` of decisions."""

    explore: float = 0.05
    contextual: ClassVar[bool] = False

    def chances(self, sums: Sums, context: np.ndarray) -> np.ndarray:
        return even(sums.weight <= 0) if (sums.weight <= 0).any() else highest(sums.mean)


@dataclass(frozen=True, kw_only=True)
class _Linear(_Explores):
    ridge: float = 1.0
    contextual: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ridge > 0:
            raise ConfigError(f"policy.ridge must be above 0, not {self.ridge}")

    def predicted(self, sums: Sums, context: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(A,) expected rewards and their standard deviations in this context."""
        theta, covariance = sums.ridge(self.ridge)
        return theta @ context, sums.noise() * np.sqrt((covariance @ context) @ context)


@dataclass(frozen=True, kw_only=True)
class LinearThompson(_Linear):
    """Each arm with the chance that it is the best in this context, by ridge regressions of the reward on it (Agrawal &
    Goyal 2013). scale: of the posterior's deviation; below 1 it explores less, since that takes every feature for one
    of which nothing is known (Chapelle & Li 2011)."""

    scale: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise ConfigError(f"policy.scale must be above 0, not {self.scale}")

    def chances(self, sums: Sums, context: np.ndarray) -> np.ndarray:
        mean, deviation = self.predicted(sums, context)
        return best_of_normals(mean, self.scale * deviation)


@dataclass(frozen=True, kw_only=True)
class LinUCB(_Linear):
    """The arm whose reward may be the highest in this context: prediction + width · deviation (Li, Chu, Langford &
    Schapire 2010)."""

    width: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.width > 0:
            raise ConfigError(f"policy.width must be above 0, not {self.width}")

    def chances(self, sums: Sums, context: np.ndarray) -> np.ndarray:
        mean, deviation = self.predicted(sums, context)
        return highest(mean + self.width * deviation)


POLICIES: Mapping[str, type[Any]] = {
    "thompson": Thompson,
    "ucb": UCB,
    "epsilon_greedy": EpsilonGreedy,
    "linear_thompson": LinearThompson,
    "lin_ucb": LinUCB,
}


def best_chances(sums: Sums) -> np.ndarray:
    """(A,) posterior chance that each arm has the highest mean reward, whatever the policy that chose them: beta or
    normal posteriors of the arms' means, or of ridge regressions on the context, at the mean context of all."""
    if sums.moment.shape[1] == 1:
        return Thompson().chances(sums, np.ones(1))
    n = sums.weight.sum()
    if n <= 0:
        return even(np.ones(len(sums.weight), bool))
    theta, covariance = sums.ridge(1.0)
    context = sums.gram[:, 0, :].sum(0) / n
    return best_of_normals(theta @ context, sums.noise() * np.sqrt((covariance @ context) @ context))


def even(chosen: np.ndarray) -> np.ndarray:
    """Equal chances of the arms that are marked, (A,) bool."""
    return chosen / chosen.sum()


def highest(scores: np.ndarray) -> np.ndarray:
    """All chances to the highest score, shared if there are several."""
    return even(scores >= scores.max() - 1e-12)
