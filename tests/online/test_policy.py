from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cltrain.errors import ConfigError
from cltrain.online.interleave import credit, team_draft
from cltrain.online.policy import (
    Earned,
    Layer,
    Limits,
    Threshold,
    ThresholdLearner,
    Weights,
    WeightsLearner,
    marginal_gain,
)


def played(learner: ThresholdLearner, rounds: int, cost: float, score_of, seed: int) -> ThresholdLearner:
    """Above earns 1 or costs `cost`; scores are the chances of the 1, so the best threshold is cost / (1 + cost)."""
    generator, document = np.random.default_rng(seed), learner.layer.current
    for i in range(rounds):
        score = score_of(generator.random())
        above, chance = learner.settings.decide(f"{seed}/{i}", score, document)
        reward = (1.0 if generator.random() < score else -cost) if above else 0.0
        row = Earned(decision_id=f"{seed}/{i}", score=score, above=above, propensity=chance, reward=reward)
        document = learner.learn(row)
    return learner


def test_the_threshold_is_found_again_after_a_change_of_cost_and_the_model_is_untouched() -> None:
    model = torch.nn.Linear(1, 1, dtype=torch.float64)
    torch.nn.init.eye_(model.weight)
    torch.nn.init.zeros_(model.bias)

    def digest() -> str:
        return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()

    def score_of(x: float) -> float:
        return float(model(torch.tensor([x], dtype=torch.float64)).detach())

    before, places = digest(), []
    for seed in range(3):
        learner = ThresholdLearner(Threshold())
        played(learner, 800, 1.0, score_of, seed)
        assert learner.layer.current.values["threshold"] == pytest.approx(0.5, abs=0.12)
        places.append(played(learner, 1_999, 4.0, score_of, 100 + seed).layer.current.values["threshold"])
    assert np.mean(places) == pytest.approx(0.8, abs=0.06)
    assert digest() == before


def test_every_move_is_a_small_one_within_the_limits() -> None:
    learner = ThresholdLearner(Threshold(start=0.5, low=0.4, high=0.6, step=0.03, every=20))
    documents = played(learner, 1_500, 9.0, float, 0).layer.documents
    values = [d.values["threshold"] for d in documents]
    assert max(np.abs(np.diff(values))) <= 0.03 + 1e-12
    assert values[-1] == 0.6
    assert [d.version for d in documents] == list(range(1, len(documents) + 1))


def test_restarted_is_as_if_never_stopped() -> None:
    one = played(ThresholdLearner(Threshold()), 300, 4.0, float, 0)
    other = ThresholdLearner(Threshold())
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for learner in (one, other):
        played(learner, 200, 4.0, float, 1)
    assert one.state_dict() == other.state_dict()


def test_a_reward_counts_once() -> None:
    learner = ThresholdLearner(Threshold())
    for _ in range(3):
        learner.learn(Earned(decision_id="1", score=0.5, above=True, propensity=0.5, reward=1.0))
    assert len(learner.rows) == learner.fresh == 1


def test_the_marginal_gain_is_that_of_the_decision() -> None:
    generator = np.random.default_rng(0)
    rows = []
    for i in range(4_000):
        chance = generator.uniform(0.05, 0.95)
        above = bool(generator.random() < chance)
        reward = 0.3 * above + chance + generator.normal()
        logged = chance if above else 1 - chance
        rows.append(Earned(decision_id=str(i), score=0.5, above=above, propensity=logged, reward=reward))
    gain, error = marginal_gain(rows)
    assert gain == pytest.approx(0.3, abs=3 * error)
    assert error == pytest.approx(1 / np.sqrt(4_000 * 0.18), rel=0.15)
    assert marginal_gain(rows[:3]) == (0.0, np.inf)


def test_an_answer_that_is_asked_for_again_is_the_same() -> None:
    settings_, layer = Threshold(), Threshold().layer()
    assert settings_.decide("r", 0.52, layer.current) == settings_.decide("r", 0.52, layer.current)
    above = [settings_.decide(str(i), 0.55, layer.current) for i in range(2_000)]
    assert np.mean([a for a, _ in above]) == pytest.approx(0.75, abs=0.03)
    assert all(chance == pytest.approx(0.75 if a else 0.25) for a, chance in above)
    assert settings_.decide("r", 0.9, layer.current) == (True, 1.0)
    assert settings_.decide("r", 0.1, layer.current) == (False, 1.0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-5, 5), max_size=10))
def test_a_layer_never_leaves_its_limits_and_goes_back(wanted: list[float]) -> None:
    layer = Layer({"x": 0.5}, {"x": Limits(low=0.2, high=0.7, step=0.1)})
    for value in wanted:
        before = layer.current
        after = layer.move({"x": value}, "test")
        assert 0.2 <= after.values["x"] <= 0.7
        assert abs(after.values["x"] - before.values["x"]) <= 0.1 + 1e-12
        if after is not before:
            assert layer.rollback() is before
            assert layer.move({"x": value}, "again").version == after.version + 1
    assert layer.rollback(1).values == {"x": 0.5}


def test_weights_move_to_what_users_prefer() -> None:
    # Users want what the model says and the second feature, and not the first.
    learner = WeightsLearner(Weights(start={"age": 0.0, "match": 0.0}, step=0.2, reach=0.5, sessions=40))
    generator = np.random.default_rng(0)
    for _ in range(1_500):
        features, score = generator.normal(size=(20, 2)), generator.normal(size=20)
        liked = 1 / (1 + np.exp(1 - 2 * features[:, 1] - score))
        lists = [
            np.argsort(-score - features @ np.array([*weights.values()])).tolist()
            for weights in (learner.layer.current.values, learner.candidate)
        ]
        shown = team_draft(*lists, 8, generator)
        learner.learn(credit(shown, {item for item in shown.items if generator.random() < liked[item]}))
    assert learner.layer.current.values["match"] > 0.5
    assert learner.layer.current.values["match"] > 2 * abs(learner.layer.current.values["age"])
    again = WeightsLearner(learner.settings)
    again.load_state_dict(json.loads(json.dumps(learner.state_dict())))
    assert again.candidate == learner.candidate


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Limits(low=1, high=0), r"limits\.low"),
        (lambda: Limits(step=0), r"limits\.step"),
        (lambda: Threshold(start=2.0), "outside its limits"),
        (lambda: Threshold(band=0), r"policy\.band"),
        (lambda: Threshold(every=0), r"policy\.every"),
        (lambda: Weights(start={}), r"policy\.start"),
        (lambda: Weights(start={"a": 0.0}, reach=0), r"policy\.reach"),
        (lambda: Layer({"x": 0.5}, {}), "limits must name"),
        (lambda: Threshold().layer().rollback(), "no policy version"),
    ],
)
def test_settings_out_of_range_name_the_fix(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
