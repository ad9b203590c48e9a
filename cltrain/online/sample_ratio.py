"""Do the arms have the units that they should have? If not, something leaks, and no comparison can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import special, stats

from cltrain.online.assignment import check_shares

CONCENTRATION = 1_000.0


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A time in which the shares of traffic stayed the same, and how many units were then exposed to each arm."""

    shares: Mapping[str, float]
    exposed: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_shares(self.shares)


def chi_square(phase: Phase) -> float:
    """p-value of a sample-ratio mismatch, for a check that is made once.

    >>> chi_square(Phase(shares={"a": 0.5, "b": 0.5}, exposed={"a": 10_400, "b": 9_600})) < 1e-6
    True
    """
    arms = [arm for arm, share in phase.shares.items() if share > 0]
    counts = np.array([phase.exposed.get(arm, 0) for arm in arms])
    if _impossible(phase):
        return 0.0
    if len(arms) < 2 or not counts.sum():
        return 1.0
    return float(stats.chisquare(counts, counts.sum() * np.array([phase.shares[arm] for arm in arms])).pvalue)


def always_valid(phases: Sequence[Phase]) -> float:
    """Always-valid p-value of a mismatch in any phase, for a check that runs all the time: the multinomial likelihood
    of the planned shares against a Dirichlet mixture around them (Lindon & Malek 2022), multiplied over phases.

    `CONCENTRATION`, in units, says how far from the plan the mixture looks: it is near its best for leaks that show in
    10,000 to 50,000 units, which is where leaks of a few percent do.
    """
    log = 0.0
    for phase in phases:
        if _impossible(phase):
            return 0.0
        arms = [arm for arm, share in phase.shares.items() if share > 0]
        log += float(
            mismatch_evidence(*(np.array([of[a] for a in arms], float) for of in (_counts(phase), phase.shares)))
        )
    return float(min(1.0, np.exp(-log)))


def mismatch_evidence(counts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Log of the e-value against `shares` (A,), for counts (..., A)."""
    prior = CONCENTRATION * shares
    beta = special.gammaln(counts + prior).sum(-1) - special.gammaln((counts + prior).sum(-1))
    return beta - special.gammaln(prior).sum() + special.gammaln(prior.sum()) - counts @ np.log(shares)


def _counts(phase: Phase) -> dict[str, int]:
    return {arm: phase.exposed.get(arm, 0) for arm in phase.shares}


def _impossible(phase: Phase) -> bool:
    return any(count and not phase.shares.get(arm) for arm, count in phase.exposed.items())
