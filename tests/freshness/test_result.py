"""The analysis against a decay that is known in closed form, and its summary."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from benchmarks import freshness as known
from cltrain.freshness.grid import Plan
from cltrain.freshness.result import cells_of, enough, panel, recency_or_amount, summary_of
from cltrain.freshness.settings import Freshness


def test_intervals_hold_a_known_decay() -> None:
    """`benchmarks/run.py freshness` does so for 40 runs and more."""
    found = known.covered("few", known.Stream(), runs=12, seed=0)
    assert found["curve"] >= 0.9
    assert found["half_life"] >= 0.9


def test_a_known_decay_is_found_within_15_percent() -> None:
    stream = known.Stream(windows=120, features=64, rows=250)
    curve = known.measured(known.SETTINGS, known.panel_of(stream, 5), 4, 5)
    assert curve.decay.half_life == pytest.approx(stream.half_life, rel=0.15)
    truth = stream.lost(np.array(curve.ages), 4)
    assert curve.lost[1:] == pytest.approx(truth[1:], rel=0.15)


def test_nothing_is_gained_where_nothing_drifts() -> None:
    still = dataclasses.replace(known.Stream(), drift=0.0)
    assert [known.recommended(still, seed) for seed in range(6)] == ["28d"] * 6


PLAN = Plan(
    ages=(0, 1, 2), windows=tuple(range(4, 16)), rows={2: 100, 1: 50}, update_rows=50, skipped=(), trials=(), naive=72
)
ASKED = Freshness(ages=(0, 1, 2), lengths=(2, 1), seeds=2, draws=300, cadences=("14d", "7d"))


def trained(noise: float = 0.01) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
    """Losses of 1 + 0.1 a period of age, + 0.2 of half the rows, + 0.05 of a period more in a training."""
    chance = np.random.default_rng(0)
    trials: list[dict[str, Any]] = []
    results: dict[int, dict[str, Any]] = {}

    def add(role: str, seed: int, end: int, length: int, rows: int, evals: list[int]) -> None:
        trial = {"trial": len(trials), "mode": "stateless", "role": role, "seed": seed, "boundary": end}
        trials.append(trial | {"length": length, "rows": rows, "parent": None})
        base = 1 + 0.2 * (rows == 50) + 0.05 * (length - 1)
        cells = {str(e): {"loss": base + 0.1 * (e - end) + noise * chance.normal()} for e in evals}
        results[trial["trial"]] = {"cells": cells, "rows": 3 * rows, "seconds": 36.0, "error": None}

    for seed in range(2):
        for end in range(2, 16):
            add("curve", seed, end, 2, 100, [e for e in (end, end + 1, end + 2) if e in PLAN.windows])
    for end in PLAN.windows:
        add("side", 0, end, 2, 50, [end])
        add("side", 0, end, 1, 50, [end])
    return trials, results


def test_the_matrix_becomes_a_curve_with_intervals() -> None:
    trials, results = trained()
    found = summary_of(ASKED, PLAN, trials, results, "log_loss", 0)
    assert [p["age"] for p in found["curve"]] == [0, 1, 2]
    for point in found["curve"]:
        assert point["low"] <= 0.1 * point["age"] <= point["high"]
        assert point["n"] == 12
    assert found["curve"][0]["loss_delta"] == 0
    assert found["recommended_every"] == "7d"
    of = found["modes"]["stateless"]
    assert len(of["matrix"]) == 12 + 12 + 12
    assert {c["seeds"] for c in of["matrix"]} == {2}
    assert of["training"]["rows"] == 300
    assert of["training"]["kwh"] == pytest.approx(36 * 100 / 3.6e6)
    cost = found["cost"]
    assert (cost["stateless_trainings"], cost["stateless_trainings_naive"]) == (28, 72)
    assert cost["kwh"] == pytest.approx(cost["train_seconds"] * 100 / 3.6e6)
    priced = dataclasses.replace(ASKED, prices=dataclasses.replace(ASKED.prices, watts=200.0, grams_per_kwh=300.0))
    dirty = summary_of(priced, PLAN, trials, results, "log_loss", 0)["cost"]
    assert dirty["grams_co2"] == pytest.approx(2 * cost["kwh"] * 300)
    assert cost["train_seconds"] == 36.0 * len(trials)


def test_recency_and_amount_add_up() -> None:
    trials, results = trained()
    (line,) = recency_or_amount(ASKED, PLAN, trials, results, 0)
    assert line["amount"]["gain"] == pytest.approx(0.2, abs=0.02)
    assert line["recency"]["gain"] == pytest.approx(0.05, abs=0.02)
    assert line["longer"]["gain"] == pytest.approx(line["amount"]["gain"] - line["recency"]["gain"])
    assert line["amount"]["low"] < 0.2 < line["amount"]["high"]


def test_windows_that_lack_an_age_are_left_out() -> None:
    trials, results = trained()
    lost = [t["trial"] for t in trials if t["boundary"] == 8 and t["role"] == "curve"]
    for number in lost:
        del results[number]
    cells = cells_of(trials, results, lambda t: t["role"] == "curve")
    assert panel(cells, PLAN).windows == (4, 5, 6, 7, 11, 12, 13, 14, 15)
    one_seed = {n: r for n, r in results.items() if trials[n]["seed"] == 0}
    assert panel(cells_of(trials, one_seed, lambda t: t["role"] == "curve"), PLAN).losses.shape == (9, 3)


def test_it_is_enough_once_intervals_are_narrow() -> None:
    trials, results = trained()
    for precision, expected in ((0.05, True), (0.001, False), (None, False)):
        asked = dataclasses.replace(ASKED, precision=precision)
        assert enough(asked, PLAN, trials, 0)(results) is expected
    few = {n: r for n, r in results.items() if trials[n]["boundary"] < 7}
    assert not enough(dataclasses.replace(ASKED, precision=10.0), PLAN, trials, 0)(few)
