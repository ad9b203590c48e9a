"""Off-policy estimates, and thresholds that adapt."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import special

from benchmarks.online.common import Row, row
from cltrain.online import off_policy
from cltrain.online.policy import Earned, Threshold, ThresholdLearner
from cltrain.seeding import numpy_generator


def off_policy_coverage(runs: int) -> Iterator[Row]:
    """How often 95 % intervals cover the truth: 2,000 logged decisions of a bandit-like policy, three arms, a model of
    the reward that is linear where the truth is not."""
    runs = max(500, runs // 4)
    slopes = np.array([[0.8, 0.0, -0.5], [-0.3, 0.6, 0.0], [0.0, -0.6, 0.6]])
    many = numpy_generator(0, "truth").normal(size=(2_000_000, 3)) @ slopes.T
    truth = float((_target(many) * special.expit(many - 1)).sum(1).mean())
    covered: dict[str, list[bool]] = {}
    width: dict[str, list[float]] = {}
    for seed in range(runs):
        generator = numpy_generator(seed, "off-policy")
        context = generator.normal(size=(2_000, 3))
        scores = context @ slopes.T
        chances, target = special.expit(scores - 1), _target(scores)
        logging = 0.1 / 3 + 0.9 * special.softmax(scores[:, ::-1] * 0.7, axis=1)
        chosen = (generator.random((2_000, 1)) > logging.cumsum(1)).sum(1)
        rows = np.arange(2_000)
        reward = (generator.random(2_000) < chances[rows, chosen]).astype(float)
        log = off_policy.Log(chosen=chosen, reward=reward, propensity=logging[rows, chosen], target=target)
        predicted = off_policy.cross_fitted(context, chosen, reward, 3)
        for name, estimate in {
            "IPS": off_policy.ips(log),
            "SNIPS": off_policy.snips(log),
            "direct": off_policy.direct(log, predicted),
            "doubly robust": off_policy.doubly_robust(log, predicted),
        }.items():
            covered.setdefault(name, []).append(estimate.low <= truth <= estimate.high)
            width.setdefault(name, []).append(estimate.high - estimate.low)
    for name, hits in covered.items():
        bar = "0.93 to 0.97" if name == "doubly robust" else ""
        ratio = np.mean(width[name]) / np.mean(width["IPS"])
        yield row(f"coverage of {name}; ratio of widths to IPS", np.mean(hits), ratio, bar, runs)


def thresholds(runs: int) -> Iterator[Row]:
    """Value, 2,000 decisions after the cost of a mistake went from 1 to 4, against that of the best threshold, by which
    nothing is lost. Scores are chances of a gain of 1."""
    ratios, places = [], []
    for seed in range(max(10, runs // 50)):
        generator, learner = numpy_generator(seed, "threshold"), ThresholdLearner(Threshold())
        document = learner.layer.current
        for i in range(3_000):
            score, cost = generator.random(), 1.0 if i < 1_000 else 4.0
            above, chance = learner.settings.decide(f"{seed}/{i}", score, document)
            reward = (1.0 if generator.random() < score else -cost) if above else 0.0
            document = learner.learn(
                Earned(decision_id=str(i), score=score, above=above, propensity=chance, reward=reward)
            )
        places.append(document.values["threshold"])
        ratios.append(_value(places[-1]) / _value(0.8))
    left = _value(0.5) / _value(0.8)
    name = f"threshold 2,000 decisions after a change of cost (best 0.8; left alone, the ratio is {left:.2f})"
    yield row(name, np.mean(places), np.mean(ratios), "≥ 0.9", len(places), np.quantile(places, [0.05, 0.95]))


def _target(scores: np.ndarray) -> np.ndarray:
    return 0.02 / 3 + 0.98 * special.softmax(3 * scores, axis=1)


def _value(threshold: float) -> float:
    return (1 - threshold**2) / 2 - 4 * (1 - threshold) ** 2 / 2
