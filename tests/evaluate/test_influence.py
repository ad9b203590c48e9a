"""Influences: their mean is the metric, each is the derivative by the row's weight, their spread is the bootstrap's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cltrain.evaluate.measures import TASKS, measured
from tests.evaluate.samples import sample

EVERY = [(task, name) for task, measures in TASKS.items() for name in measures]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("task", "name"), EVERY)
def test_the_mean_is_the_metric_and_each_is_a_derivative(task: str, name: str, weighted: bool) -> None:
    rows, measure = sample(task, weighted=weighted), TASKS[task][name]
    terms = measure.terms(rows)
    assert terms is not None
    value = measured(rows, [measure])[name]
    assert terms.mean() == pytest.approx(value, abs=1e-9)
    weights = np.ones(len(rows)) if rows.weights is None else rows.weights
    step = 1e-5 * weights.sum()
    for row in (0, 11, 203):
        more = weights.copy()
        more[row] += step / len(rows)
        changed = measured(dataclasses.replace(rows, weights=more), [measure])[name]
        # A weight of 1 more is 1 / mean(weights) shares more, and its influence as much.
        found = (changed - value) / (step / len(rows)) * weights.sum()
        assert found == pytest.approx(
            (terms[row] - value) / (weights[row] / weights.mean()), abs=2e-3 * max(1, abs(value))
        )


@pytest.mark.parametrize(("task", "name"), EVERY)
def test_the_spread_of_a_difference_is_that_of_the_bootstrap(task: str, name: str) -> None:
    ours, theirs, measure = sample(task, noise=1.0), sample(task, noise=1.6, seed=0), TASKS[task][name]
    a, b = measure.terms(ours), measure.terms(theirs)
    assert a is not None
    assert b is not None
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(300):
        rows = generator.integers(0, len(ours), len(ours))
        drawn.append(measured(ours.take(rows), [])[name] - measured(theirs.take(rows), [])[name])
    spread = float((a - b).std() / len(a) ** 0.5)
    assert spread == pytest.approx(np.std(drawn), rel=0.35 if name == "ece" else 0.15)


def test_the_auc_is_the_one_of_delong() -> None:
    """Against the definition of DeLong et al. (1988), with structural components counted pair by pair."""
    ours, theirs = sample("binary", 150), sample("binary", 150, noise=2.0)
    positive = ours.target > 0.5
    components = []
    for rows in (ours, theirs):
        pairs = np.sign(rows.predictions[positive][:, None] - rows.predictions[~positive][None, :]) / 2 + 0.5
        components.append((pairs.mean(axis=1), pairs.mean(axis=0)))
    up, down = (np.var(a - b) / len(a) for a, b in zip(*components, strict=True))
    a, b = (TASKS["binary"]["auc"].terms(rows) for rows in (ours, theirs))
    assert a is not None
    assert b is not None
    assert np.var(a - b) / len(a) == pytest.approx(up + down, rel=1e-6)


@pytest.mark.parametrize("name", ["auc", "pr_auc", "f1"])
def test_what_is_not_defined_has_no_terms(name: str) -> None:
    rows = sample("binary")
    none = dataclasses.replace(rows, target=np.zeros(len(rows)), predictions=np.full(len(rows), 0.1))
    assert TASKS["binary"][name].terms(none) is None
    assert measured(none, [])[name] is None
