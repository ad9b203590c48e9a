from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cltrain.errors import ConfigError, DataError
from cltrain.online.bandits import UCB, EpsilonGreedy, LinearThompson, LinUCB, Policy, Thompson
from cltrain.online.learning import Bandit, Outcome, Snapshot
from cltrain.online.posterior import Sums, best_of_betas, best_of_normals
from cltrain.online.simulator import Feedback, try_bandit

POLICIES = [Thompson(), Thompson(reward="numeric"), UCB(), EpsilonGreedy(), LinearThompson(), LinUCB()]
DAY = 86_400_000_000


def outcomes(n: int, arms: str = "abc", seed: int = 0) -> list[Outcome]:
    generator = np.random.default_rng(seed)
    return [
        Outcome(
            decision_id=f"{seed}/{i}",
            decided_at=DAY + i * 1_000_000,
            arm=arms[generator.integers(len(arms))],
            reward=float(generator.integers(2)),
            context=tuple(generator.normal(size=2)),
        )
        for i in range(n)
    ]


def bandit(policy: Policy, arms: str = "abc", **settings: object) -> Bandit:
    return Bandit(policy, list(arms), features=2, **settings)


def test_chances_to_be_the_best_are_those_of_sampling() -> None:
    generator = np.random.default_rng(0)
    a, b = np.array([3.0, 30, 2]), np.array([5.0, 40, 9])
    mean, deviation = np.array([0, 0.1, 0.05]), np.array([1, 0.01, 0.1])
    for found, drawn in (
        (best_of_betas(a, b), generator.beta(a, b, (200_000, 3))),
        (best_of_normals(mean, deviation), generator.normal(mean, deviation, (200_000, 3))),
        (best_of_normals(mean[:2], deviation[:2]), generator.normal(mean[:2], deviation[:2], (200_000, 2))),
    ):
        np.testing.assert_allclose(found, np.bincount(drawn.argmax(1)) / 200_000, atol=0.005)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_propensities_are_chances_with_a_floor(policy: Policy) -> None:
    @settings(max_examples=8, deadline=None)
    @given(st.integers(0, 300), st.integers(0, 9))
    def ask(n: int, seed: int) -> None:
        learner = bandit(policy)
        learner.learn(outcomes(n, seed=seed))
        chances = learner.snapshot().propensities((0.3, -1.0))
        assert chances.sum() == pytest.approx(1)
        assert chances.min() >= policy.explore / 3 - 1e-12

    ask()


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_decisions_come_as_often_as_their_propensity_says(policy: Policy) -> None:
    learner = bandit(policy)
    learner.learn(outcomes(60))
    snapshot = learner.snapshot()
    choices = [snapshot.choose(f"request-{i}", (0.5, 0.5)) for i in range(1_500)]
    chances = snapshot.propensities((0.5, 0.5))
    counts = [sum(choice.arm == arm for choice in choices) for arm in snapshot.arms]
    assert stats.chisquare(counts, 1_500 * chances).pvalue > 0.001
    assert all(choice.propensity == chances[snapshot.arms.index(choice.arm)] for choice in choices)
    assert snapshot.choose("request-1", (0.5, 0.5)) == choices[1]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_restarted_is_as_if_never_stopped(policy: Policy) -> None:
    whole, first = bandit(policy), bandit(policy)
    rows = outcomes(80)
    whole.learn(rows[:50])
    first.learn(rows[:50])
    second = bandit(policy)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for learner in (whole, second):
        learner.learn(rows[40:])
    assert second.state_dict() == whole.state_dict()
    assert second.snapshot().version == whole.snapshot().version
    assert whole.counts == {"learned": 80, "repeated": 10, "too_late": 0, "other_arms": 0}


def test_snapshots_do_not_change_and_have_names_of_their_own() -> None:
    learner = bandit(Thompson())
    before = learner.snapshot()
    version, chances = before.version, before.propensities()
    learner.learn(outcomes(50))
    assert before.version == version != learner.snapshot().version
    assert (before.propensities() == chances).all()
    assert Bandit(Thompson(explore=0.1), list("abc")).snapshot().version != version


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_snapshot_is_read_back_as_it_was_and_an_altered_one_is_not(policy: Policy) -> None:
    learner = bandit(policy)
    learner.learn(outcomes(50))
    snapshot = learner.snapshot()
    written = json.loads(json.dumps(snapshot.to_json()))
    again = Snapshot.from_json(policy, written)
    assert again.version == snapshot.version
    assert again.choose("request", (0.5, 0.5)) == snapshot.choose("request", (0.5, 0.5))
    with pytest.raises(DataError, match="altered"):
        Snapshot.from_json(policy, {**written, "arms": ["a", "b", "z"]})
    with pytest.raises(ConfigError, match="is of"):
        Snapshot.from_json(Thompson(explore=0.5), written)


def test_rewards_of_0_and_1_are_told_from_others() -> None:
    rows, auto = outcomes(60), bandit(Thompson())
    auto.learn(rows)
    binary, numeric = bandit(Thompson(reward="binary")), bandit(Thompson(reward="numeric"))
    binary.learn(rows)
    assert auto.snapshot().propensities().tolist() == binary.snapshot().propensities().tolist()
    more = [dataclasses.replace(row, decision_id=f"n{i}", reward=-0.3) for i, row in enumerate(rows)]
    auto.learn(more)
    numeric.learn(rows + more)
    assert auto.snapshot().propensities() == pytest.approx(numeric.snapshot().propensities())


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_whether_an_arm_is_the_best_is_known_whatever_the_policy(policy: Policy) -> None:
    learner = bandit(policy)
    assert learner.snapshot().best() == pytest.approx(np.full(3, 1 / 3), abs=1e-6)
    rows = [dataclasses.replace(row, reward=float(row.reward * (row.arm != "b"))) for row in outcomes(300)]
    learner.learn([dataclasses.replace(row, reward=1.0) if row.arm == "c" else row for row in rows])
    best = learner.snapshot().best()
    assert best.sum() == pytest.approx(1)
    assert best[2] > 0.999
    assert best[1] < 1e-6


def test_the_order_of_arrival_does_not_matter() -> None:
    rows = outcomes(60)
    one, other = (bandit(Thompson(half_life="10s")) for _ in range(2))
    one.learn(rows)
    for row in rows[::-1]:
        other.learn([row])
    np.testing.assert_allclose(one.sums.moment, other.sums.moment)
    np.testing.assert_allclose(one.sums.gram, other.sums.gram)


def test_a_reward_counts_half_after_a_half_life() -> None:
    learner = bandit(Thompson(half_life="1d"), "ab")
    learner.learn([Outcome(decision_id="1", decided_at=DAY, arm="a", reward=1.0)])
    learner.learn([Outcome(decision_id="2", decided_at=2 * DAY, arm="b", reward=1.0)])
    assert learner.sums.weight.tolist() == [0.5, 1.0]


def test_labels_that_come_twice_or_too_late_or_for_other_arms_change_nothing() -> None:
    learner = bandit(Thompson(), "ab", label_horizon="1d")
    row = Outcome(decision_id="1", decided_at=DAY, arm="a", reward=1.0)
    new = Outcome(decision_id="2", decided_at=3 * DAY, arm="b", reward=0.0)
    assert learner.learn([row, row, new]) == 1  # the first is then two days before the latest decision
    assert learner.learn([new, Outcome(decision_id="3", decided_at=3 * DAY, arm="z", reward=0.0)]) == 0
    assert learner.counts == {"learned": 1, "repeated": 1, "too_late": 2, "other_arms": 1}
    assert set(learner.seen) == {"2"}


def test_arms_come_and_go() -> None:
    learner = bandit(Thompson())
    learner.learn(outcomes(60))
    known = learner.sums.weight[1]
    learner.replace_arms(["b", "d"])
    assert learner.sums.weight.tolist() == [known, 0.0]
    assert learner.snapshot().arms == ("b", "d")


def test_an_arm_without_labels_is_tried() -> None:
    sums = Sums.empty(2)
    sums.gram[0], sums.moment[0], sums.square[0] = 100, 90, 90
    for policy in (UCB(), EpsilonGreedy()):
        assert policy.chances(sums, np.ones(1)).tolist() == [0, 1]


@pytest.mark.parametrize("policy", [Thompson(), Thompson(reward="numeric"), UCB(), EpsilonGreedy()], ids=repr)
def test_regret_is_half_of_equal_shares_with_late_and_lost_labels(policy: Policy) -> None:
    late = Feedback(delay_s=300, lost=0.1)
    trial = try_bandit(policy, np.tile([0.1, 0.2, 0.4], (2_500, 1)), feedback=late)
    assert trial.ratio < 0.5
    assert trial.labels < 0.95 * 2_500


@pytest.mark.parametrize("policy", [LinearThompson(), LinUCB()], ids=repr)
def test_a_contextual_bandit_learns_for_whom_each_arm_is_best(policy: Policy) -> None:
    context = np.random.default_rng(0).normal(size=(1_500, 1))
    chances = np.where(context > 0, [[0.2, 0.6]], [[0.6, 0.2]])
    soon = Feedback(delay_s=60)
    assert try_bandit(policy, chances, context, feedback=soon).ratio < 0.5
    assert try_bandit(Thompson(), chances, feedback=soon).ratio > 0.8


def test_it_follows_a_world_that_turns() -> None:
    chances = np.repeat([[0.6, 0.3], [0.1, 0.3]], 1_200, axis=0)
    soon = Feedback(delay_s=1, lost=0)
    steady = try_bandit(Thompson(), chances, feedback=soon)
    assert try_bandit(Thompson(half_life="200s"), chances, feedback=soon).regret < steady.regret / 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Thompson(explore=0), r"policy\.explore"),
        (lambda: Thompson(reward="money"), r"policy\.reward"),
        (lambda: UCB(width=0), r"policy\.width"),
        (lambda: LinUCB(ridge=0), r"policy\.ridge"),
        (lambda: LinearThompson(scale=-1), r"policy\.scale"),
        (lambda: EpsilonGreedy(half_life="soon"), "duration"),
        (lambda: Bandit(Thompson(), ["a"]), "two arms"),
        (lambda: Bandit(LinUCB(), ["a", "b"]), "features"),
        (lambda: bandit(UCB()).load_state_dict(bandit(Thompson()).state_dict()), "is of"),
    ],
)
def test_settings_out_of_range_name_the_fix(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("bad", [Outcome(decision_id="1", decided_at=1, arm="a", reward=2.0), outcomes(1)[0]])
def test_what_cannot_be_learned_from_is_refused_whole(bad: Outcome) -> None:
    learner = (
        Bandit(Thompson(reward="binary"), ["a", "b"]) if bad.reward > 1 else Bandit(LinUCB(), ["a", "b"], features=3)
    )
    with pytest.raises(DataError):
        learner.learn([bad])
    assert learner.counts["learned"] == 0
    assert learner.latest == 0
