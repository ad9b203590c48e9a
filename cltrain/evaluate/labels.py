"""Do the labels of the new window look like noise?

Wrong labels are wrong in the held-out rows of their window too, where a challenger that has learned from them looks
good. What gives them away is that the champion's answers, which were right about the windows before, explain this one
best when a large share of its labels is drawn at random, while the challenger has found nothing that explains it
better. A concept that moves is different: there the challenger finds something.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cltrain.errors import ConfigError
from cltrain.evaluate.sample import Scored
from cltrain.evaluate.weighed import Weighed
from cltrain.records import Finding

LIKELIHOOD_RATIO = 6.6  # chi-squared with one degree of freedom, 1 %
NORMAL = 1.645
ITERATIONS, SETTLED = 200, 1e-4
TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Labels:
    """max_rise: by how much the share of labels that look as if drawn at random may lie above that of the windows
    before. A share of 0.4 is what 20 % of flipped labels of a binary task look like. min_rows: with fewer held-out rows
    in the new window, or before it, nothing is said."""

    max_rise: float = 0.2
    min_rows: int = 40

    def __post_init__(self) -> None:
        if not 0 <= self.max_rise <= 1:
            raise ConfigError(f"checks.labels.max_rise must be a share between 0 and 1, not {self.max_rise}")
        if self.min_rows < 2:
            raise ConfigError(f"checks.labels.min_rows must be 2 or more, not {self.min_rows}")

    def find(self, weighed: Weighed, generator: np.random.Generator) -> tuple[Finding, ...]:
        """One finding, whose `failed` are the labels that look as if drawn at random; none without a champion, or with
        too few rows."""
        if weighed.champion is None or min(weighed.window.num_rows, weighed.before.num_rows) < self.min_rows:
            return ()
        assert weighed.theirs is not None
        earlier = weighed.champion.score(weighed.before)
        noise = float(np.mean(earlier.losses))
        before, weights = random_share(explanations(earlier, noise))
        parts = explanations(weighed.theirs, noise)
        share, fitted = random_share(parts)
        theirs = np.log(parts @ fitted + TINY)
        evidence = 2 * float((theirs - np.log(parts @ weights + TINY)).sum())
        ours = _explained(explanations(weighed.ours, noise))
        gain = ours - theirs
        gained = float(gain.mean()) > NORMAL * float(gain.std()) / len(gain) ** 0.5
        suspect = share > before + self.max_rise and evidence > LIKELIHOOD_RATIO and not gained
        rows = len(gain)
        return (
            Finding(
                name="labels of the window",
                kind="labels",
                rows=rows,
                failed=round(share * rows) if suspect else 0,
                bound=min(1.0, before + self.max_rise),
                passed=not suspect,
                examples=(
                    {
                        "random_share": round(share, 4),
                        "random_share_before": round(before, 4),
                        "likelihood_ratio": round(evidence, 2),
                        "gain": round(float(gain.mean()), 6),
                        "gain_is_certain": gained,
                    },
                ),
            ),
        )


def explanations(scored: Scored, noise: float) -> np.ndarray:
    """(N, 2 or 3) likelihood of each label: if the version is right; if labels are drawn as often as they come in these
    rows; and, of classes, if all are drawn alike. noise: variance of a regression's residuals."""
    y = scored.target
    if scored.task == "regression":
        noise, spread = max(noise, TINY), max(float(np.var(y)), TINY)
        right = np.exp(-scored.losses / (2 * noise)) / (2 * np.pi * noise) ** 0.5
        drawn = np.exp(-np.square(y - y.mean()) / (2 * spread)) / (2 * np.pi * spread) ** 0.5
        return np.stack([right, drawn], axis=1)
    _, place, counts = np.unique(y, return_inverse=True, return_counts=True)
    uniform = np.full(len(y), 1 / max(2, len(counts)))
    return np.stack([np.exp(-scored.losses), counts[place] / len(y), uniform], axis=1)


def random_share(parts: np.ndarray) -> tuple[float, np.ndarray]:
    """The mixture of explanations that fits best, by expectation maximisation: the weight of all but the first, and the
    weights. parts: (N, K) likelihoods.

    >>> random_share(np.array([[0.9, 0.5], [0.9, 0.5]]))[0] < 0.01
    True
    """
    weights = np.full(parts.shape[1], 1 / parts.shape[1])
    for _ in range(ITERATIONS):
        joint = parts * weights + TINY
        before, weights = weights, (joint / joint.sum(axis=1, keepdims=True)).mean(axis=0)
        if np.abs(weights - before).max() < SETTLED:
            break
    return float(1 - weights[0]), weights


def _explained(parts: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(parts @ random_share(parts)[1] + TINY))
