"""Metrics: they add up, and agree with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from sklearn import metrics as sk

from cltrain.evaluate.metrics import MetricSums, total


@dataclass(frozen=True)
class Made:
    task: str
    predictions: np.ndarray
    target: np.ndarray
    losses: np.ndarray

    def part(self, rows: slice) -> Made:
        return Made(self.task, self.predictions[rows], self.target[rows], self.losses[rows])


def made(task: str, rows: int = 2_000, seed: int = 0, spread: float = 2.0, at: float = 0.0, scale: float = 1.0) -> Made:
    generator = np.random.default_rng(seed)
    score = generator.normal(size=rows)
    if task == "binary":
        y = (generator.random(rows) < 1 / (1 + np.exp(-1.5 * score))).astype(float)
        p = 1 / (1 + np.exp(-(score * spread + at)))
        q = 1 / (1 + np.exp(score * spread + at))
        return Made(task, p, y, -np.log(np.maximum(np.where(y > 0, p, q), 1e-300)))
    if task == "multiclass":
        y = generator.integers(0, 4, rows).astype(float)
        p = np.where(generator.random(rows) < 0.7, y, 0.0)
        return Made(task, p, y, generator.random(rows))
    y = (score + at) * scale
    p = y + 0.3 * scale * generator.normal(size=rows)
    return Made(task, p, y, (p - y) ** 2)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_parts_add_up_to_the_whole(task: str) -> None:
    scored = made(task)
    parts = [MetricSums.of(scored.part(slice(a, b))) for a, b in ((0, 7), (7, 7), (7, 900), (900, 2_000))]
    whole = MetricSums.of(scored).values()
    assert total(task, parts).values() == pytest.approx(whole)
    assert (parts[0] + parts[1] + parts[2] + parts[3]).values() == pytest.approx(whole)
    assert (MetricSums.empty(task) + MetricSums.of(scored)).values() == pytest.approx(whole)
    assert MetricSums.empty(task).values() == {"rows": 0}
    assert total(task, []).values() == {"rows": 0}


@pytest.mark.parametrize(
    ("spread", "at"), [(2.0, 0.0), (0.01, 0.0), (1.0, -20.0), (5.0, 30.0), (40.0, 0.0), (1.0, -300.0)]
)
def test_auc_and_the_rest_agree_with_scikit_learn(spread: float, at: float) -> None:
    scored = made("binary", spread=spread, at=at)
    found = MetricSums.of(scored).values()
    assert found["auc"] == pytest.approx(sk.roc_auc_score(scored.target, scored.predictions), abs=1e-4)
    assert found["brier"] == pytest.approx(sk.brier_score_loss(scored.target, scored.predictions))
    assert found["accuracy"] == sk.accuracy_score(scored.target, scored.predictions >= 0.5)
    assert found["log_loss"] == pytest.approx(scored.losses.mean())


def test_auc_with_ties_and_at_the_ends() -> None:
    generator = np.random.default_rng(0)
    p = generator.choice([0.0, 1e-12, 0.2, 0.5, 1.0], 500)
    y = generator.integers(0, 2, 500).astype(float)
    assert MetricSums.of(Made("binary", p, y, p)).values()["auc"] == pytest.approx(sk.roc_auc_score(y, p), abs=1e-4)
    constant = Made("binary", np.full(10, 0.3), np.arange(10) % 2.0, np.zeros(10))
    assert MetricSums.of(constant).values()["auc"] == 0.5


def test_one_class_has_no_auc() -> None:
    assert MetricSums.of(Made("binary", np.full(3, 0.9), np.ones(3), np.zeros(3))).values()["auc"] is None


def test_calibration_error_against_its_definition() -> None:
    scored = made("binary", spread=3.0)
    place = np.minimum((scored.predictions * 15).astype(int), 14)
    expected = sum(
        abs((scored.predictions - scored.target)[place == b].sum()) for b in range(15) if (place == b).any()
    ) / len(place)
    assert MetricSums.of(scored).values()["ece"] == pytest.approx(expected, abs=1e-3)
    honest = Made("binary", np.full(1_000, 0.25), (np.arange(1_000) % 4 == 0).astype(float), np.zeros(1_000))
    assert MetricSums.of(honest).values()["ece"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(("at", "scale"), [(0.0, 1.0), (1e9, 1.0), (0.0, 1e9), (0.0, 1e-9), (-1e6, 1e-3)])
def test_regression_agrees_with_scikit_learn_at_any_scale(at: float, scale: float) -> None:
    scored = made("regression", at=at, scale=scale)
    found = total("regression", [MetricSums.of(scored.part(slice(i, None, 3))) for i in range(3)]).values()
    assert found["r2"] == pytest.approx(sk.r2_score(scored.target, scored.predictions), abs=1e-6)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(scored.target, scored.predictions))
    assert found["rmse"] == pytest.approx(sk.mean_squared_error(scored.target, scored.predictions) ** 0.5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9])
def test_a_constant_target_has_no_r2(value: float) -> None:
    y = np.full(30, value)
    assert MetricSums.of(Made("regression", y + 1, y, np.ones(30))).values()["r2"] is None
