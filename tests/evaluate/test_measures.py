"""Metrics by name: what they are, that they add up, what is refused, how often their bounds miss."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn import metrics as sk

from cltrain.errors import ConfigError
from cltrain.evaluate.bootstrap import paired_shares_interval
from cltrain.evaluate.measures import TASKS, differences, flips, measured, parse, sums_of
from cltrain.evaluate.metrics import total
from cltrain.evaluate.sample import Sample
from tests.evaluate.samples import sample


class Missed:
    name, higher_is_better = "missed", False

    def per_row(self, predictions: np.ndarray, target: np.ndarray) -> np.ndarray:
        return np.maximum(target - predictions, 0)


class Heavy:
    name, higher_is_better = "heavy", True

    def per_row(self, predictions: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return (weights > 1).astype(float)


@pytest.mark.parametrize("weighted", [False, True])
def test_they_agree_with_scikit_learn(weighted: bool) -> None:
    rows = sample("binary", weighted=weighted)
    w, found = rows.weights, measured(rows, [])
    y, p = rows.target, rows.predictions
    assert found["auc"] == pytest.approx(sk.roc_auc_score(y, p, sample_weight=w), abs=1e-9)
    assert found["pr_auc"] == pytest.approx(sk.average_precision_score(y, p, sample_weight=w), abs=1e-9)
    assert found["f1"] == pytest.approx(sk.f1_score(y, p >= 0.5, sample_weight=w))
    assert found["brier"] == pytest.approx(sk.brier_score_loss(y, p, sample_weight=w))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, p >= 0.5, sample_weight=w))
    classes = sample("multiclass", weighted=weighted)
    y, p = classes.target, classes.predictions
    assert measured(classes, [])["f1"] == pytest.approx(
        sk.f1_score(y, p, average="macro", sample_weight=classes.weights)
    )
    values = sample("regression", weighted=weighted)
    y, p, w = values.target, values.predictions, values.weights
    named = measured(values, [parse("pinball@0.9")("regression")])
    assert named["r2"] == pytest.approx(sk.r2_score(y, p, sample_weight=w))
    assert named["mae"] == pytest.approx(sk.mean_absolute_error(y, p, sample_weight=w))
    assert named["pinball@0.9"] == pytest.approx(sk.mean_pinball_loss(y, p, alpha=0.9, sample_weight=w))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("weighted", [False, True])
def test_all_of_them_add_up(task: str, weighted: bool) -> None:
    rows = dataclasses.replace(sample(task, weighted=weighted), groups=np.arange(400) // 10)
    more = ["mrr", "ndcg@3", "recall@2", Missed(), Heavy(), *(["pinball@0.2"] if task == "regression" else [])]
    measures = [*TASKS[task].values(), *(parse(metric)(task) for metric in more)]
    parts = [sums_of(rows.take(np.arange(a, b)), measures) for a, b in ((0, 0), (0, 70), (70, 400))]
    whole = sums_of(rows, measures).values()
    assert {name: total(task, parts).values()[name] for name in whole} == pytest.approx(whole)


def test_a_row_of_weight_two_is_two_rows() -> None:
    for task in TASKS:
        rows = sample(task)
        twice = np.repeat(np.arange(400), 1 + np.arange(400) % 2)
        heavy = dataclasses.replace(rows, weights=1.0 + np.arange(400) % 2)
        expected = measured(rows.take(twice), []) | {"rows": 400}
        assert measured(heavy, []) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("acuracy", "did you mean accuracy"),
        ("pinball@2", "between 0 and 1"),
        ("pinball", "needs a number"),
        ("ndcg@0", "1 or more"),
        ("mrr@3", "takes no number"),
        (object(), "must have name"),
    ],
)
def test_what_is_not_a_metric_is_refused(metric: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(metric)


def test_a_metric_of_another_task_is_refused() -> None:
    for metric in ("auc", "pinball@0.5"):
        with pytest.raises(ConfigError, match="not a metric of a multiclass task"):
            parse(metric)("multiclass")


def test_a_metric_of_ones_own_must_say_something_of_each_row() -> None:
    class Scalar(Missed):
        def per_row(self, predictions: np.ndarray, target: np.ndarray) -> np.ndarray:
            return np.array(1.0)

    with pytest.raises(ConfigError, match="finite number for each of 400 rows"):
        measured(sample("regression"), [parse(Scalar())("regression")])


def test_flips_by_hand() -> None:
    y = np.array([1, 1, 0, 0.0])
    ours = Sample("binary", np.array([0.9, 0.1, 0.1, 0.9]), y, y)
    theirs = Sample("binary", np.array([0.9, 0.9, 0.9, 0.1]), y, y)
    assert flips(ours, theirs, 0.1) == {"negative": 0.5, "positive": 0.25}
    heavy = dataclasses.replace(ours, weights=np.array([1, 1, 2, 1.0]))
    assert flips(heavy, theirs, 0.1) == {"negative": 0.4, "positive": 0.4}
    a, b = (
        Sample("regression", y + np.array([0, 1, 0.01, 0]), y, y),
        Sample("regression", y + np.array([1, 0, 0, 0]), y, y),
    )
    assert flips(a, b, 0.1) == {"negative": 0.25, "positive": 0.25}


@pytest.mark.parametrize("name", ["auc", "pr_auc", "accuracy", "f1", "brier"])
def test_bounds_miss_no_more_often_than_their_level(name: str) -> None:
    """Both versions are drawn from one law, so the true difference is 0."""
    generator = np.random.default_rng(0)
    above = below = 0
    series, rows = 400, 600
    for _ in range(series):
        score = generator.normal(size=rows)
        y = (generator.random(rows) < 1 / (1 + np.exp(1 - 2 * score))).astype(float)
        pair = [
            Sample("binary", 1 / (1 + np.exp(1 - 2 * score - 0.7 * generator.normal(size=rows))), y, y)
            for _ in range(2)
        ]
        found = differences(*pair, [TASKS["binary"][name]], generator, 0.05, 200)[name]
        above, below = above + (found["high"] < 0), below + (found["low"] > 0)
    for missed in (above, below):
        assert missed / series <= 0.05 + 2.6 * (0.05 * 0.95 / series) ** 0.5


def test_the_score_interval_of_shares_is_the_one_that_was_published() -> None:
    """Newcombe (1998), table II: 36 both, 12 and 2 discordant, 0 neither: 0.2 [0.0569, 0.3404] at 95 %; and none."""
    a = np.array([1] * 36 + [1] * 12 + [0] * 2, bool)
    b = np.array([1] * 36 + [0] * 12 + [1] * 2, bool)
    assert paired_shares_interval(a, b, 0.025) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-4)
    same = np.ones(50, bool)
    mean, low, high = paired_shares_interval(same, same, 0.025)
    assert mean == 0
    assert low == pytest.approx(-high)
    assert high > 0.05, "fifty rows without a difference do not prove that there is none"
