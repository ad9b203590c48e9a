from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from cltrain.errors import DataError
from cltrain.online import off_policy
from cltrain.online.bandits import LinUCB
from cltrain.online.learning import Bandit
from cltrain.online.off_policy import Bounds, Log, cross_fitted

SLOPES = np.array([[0.8, -0.3], [-0.5, 0.6], [0.0, 0.2]])


def replay(seed: int, n: int = 600) -> tuple[Log, np.ndarray, float]:
    """A log, predicted rewards, and what the target policy would have earned on these contexts."""
    generator = np.random.default_rng(seed)
    context = generator.normal(size=(n, 2))
    scores = context @ SLOPES.T
    chances = special.expit(scores - 0.5)
    logging = 0.1 + 0.7 * special.softmax(scores[:, ::-1], axis=1)
    target = special.softmax(2 * scores, axis=1)
    chosen = np.minimum((generator.random((n, 1)) > logging.cumsum(1)).sum(1), 2)
    rows = np.arange(n)
    reward = (generator.random(n) < chances[rows, chosen]).astype(float)
    log = Log(chosen=chosen, reward=reward, propensity=logging[rows, chosen], target=target)
    return log, cross_fitted(context, chosen, reward, 3), float((target * chances).sum(1).mean())


def test_estimates_are_the_published_formulas() -> None:
    log = Log(
        chosen=np.array([0, 1]),
        reward=np.array([1.0, 0.5]),
        propensity=np.array([0.5, 0.25]),
        target=np.array([[0.25, 0.75], [0.0, 1.0]]),
    )
    predicted = np.array([[0.8, 0.2], [0.4, 0.6]])
    assert log.weights.tolist() == [0.5, 4.0]
    assert log.effective == pytest.approx(4.5**2 / 16.25)
    assert off_policy.ips(log).value == pytest.approx((0.5 * 1 + 4 * 0.5) / 2)
    assert off_policy.clipped_ips(log, 2.0).value == pytest.approx((0.5 * 1 + 2 * 0.5) / 2)
    assert off_policy.snips(log).value == pytest.approx(2.5 / 4.5)
    assert off_policy.direct(log, predicted).value == pytest.approx((0.25 * 0.8 + 0.75 * 0.2 + 0.6) / 2)
    right = (0.35 + 0.5 * (1 - 0.8) + 0.6 + 4 * (0.5 - 0.6)) / 2
    assert off_policy.doubly_robust(log, predicted).value == pytest.approx(right)


def test_intervals_cover_the_truth_and_the_doubly_robust_one_is_short() -> None:
    truth = np.mean([replay(seed)[2] for seed in range(120)])
    covered: dict[str, list[bool]] = {"ips": [], "dr": []}
    for seed in range(120):
        log, predicted, _ = replay(seed)
        ips, dr = off_policy.ips(log), off_policy.doubly_robust(log, predicted)
        assert dr.high - dr.low < ips.high - ips.low
        for name, found in (("ips", ips), ("dr", dr)):
            covered[name].append(found.low <= truth <= found.high)
    for hits in covered.values():
        assert 0.9 < np.mean(hits) < 0.99


def test_a_useless_model_does_no_harm() -> None:
    log, _, truth = replay(0, 20_000)
    found = off_policy.doubly_robust(log, np.full((20_000, 3), 7.0))
    assert found.low < truth < found.high


def test_resampling_agrees_with_the_closed_form() -> None:
    log, predicted, _ = replay(1)
    for estimate in (off_policy.snips, lambda log, bounds=None: off_policy.doubly_robust(log, predicted, bounds)):
        plain, resampled = estimate(log), estimate(log, bounds=Bounds(resamples=500))
        assert resampled.value == plain.value
        assert resampled.high - resampled.low == pytest.approx(plain.high - plain.low, rel=0.12)


def test_a_constant_added_to_rewards_is_added_to_snips() -> None:
    log, _, _ = replay(2)
    more = Log(chosen=log.chosen, reward=log.reward + 5, propensity=log.propensity, target=log.target)
    assert off_policy.snips(more).value == pytest.approx(off_policy.snips(log).value + 5)


def test_the_policy_that_ran_is_worth_what_it_earned() -> None:
    snapshot = Bandit(LinUCB(), ["a", "b"], features=1).snapshot()
    choices = [snapshot.choose(str(i), (0.1,)) for i in range(500)]
    reward = np.random.default_rng(0).random(500)
    log = Log(
        chosen=np.array([snapshot.arms.index(c.arm) for c in choices]),
        reward=reward,
        propensity=np.array([c.propensity for c in choices]),
        target=np.tile(snapshot.propensities((0.1,)), (500, 1)),
    )
    assert off_policy.ips(log).value == pytest.approx(reward.mean())
    assert log.effective == pytest.approx(500)


@pytest.mark.parametrize(
    "change",
    [
        {"propensity": np.array([0.0, 0.5])},
        {"reward": np.array([np.nan, 0.5])},
        {"target": np.array([[0.5, 0.6], [0.5, 0.5]])},
        {"reward": np.array([1.0])},
    ],
)
def test_a_log_that_cannot_be_used_is_refused(change: dict[str, np.ndarray]) -> None:
    whole = {
        "chosen": np.array([0, 1]),
        "reward": np.ones(2),
        "propensity": np.ones(2) / 2,
        "target": np.ones((2, 2)) / 2,
    }
    with pytest.raises(DataError):
        Log(**{**whole, **change})


def test_a_policy_without_overlap_is_refused() -> None:
    log = Log(chosen=np.array([0, 0]), reward=np.ones(2), propensity=np.ones(2), target=np.array([[0.0, 1.0]] * 2))
    with pytest.raises(DataError, match="no decision"):
        off_policy.snips(log)
