"""The choice, and whether it holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cltrain.backtest.settings import Backtest
from cltrain.backtest.verdict import Judgement
from cltrain.errors import UpdateError
from cltrain.records import Json

RANKED, PERIODS = 12, 18


def line(trial: int, name: str, loss: float, rows: int, whole: bool = False, **more: Any) -> Json:
    """A strategy of that mean loss, before and after the split alike unless `later` says otherwise."""
    generator = np.random.default_rng(trial)
    count = PERIODS if whole else RANKED
    later = more.pop("later", loss)
    means = np.where(np.arange(count) < RANKED, loss, later) + generator.normal(scale=1e-4, size=count)
    figures = {
        "loss": loss, "rows": rows, "rows_replayed": 0, "updates": 10, "rejected": 2, "labels": 100, "work": rows,
        "train_seconds": rows / 1_000, "retention": {"log_loss": loss},
    }  # fmt: skip
    return {
        "trial": trial, "name": name, "changes": {}, "kind": None, "ranked": figures,
        "all": {**figures, "rows": 2 * rows} if whole else None, "stopped": None, "error": None,
        "periods": {"rows": [1_000] * count, "losses": (1_000 * means).tolist()},
    } | more  # fmt: skip


def judgement(**settings: Any) -> Judgement:
    return Judgement(Backtest(**settings), "binary", RANKED, seed=0)


def always() -> list[Json]:
    return [line(0, "all_history", 0.47, 20_000, whole=True), line(1, "current", 0.48, 4_000, whole=True)]


def test_the_choice_is_the_cheapest_that_is_no_worse() -> None:
    lines = [*always(), line(2, "cheap", 0.481, 1_000), line(3, "cheaper", 0.50, 500), line(4, "best", 0.46, 9_000)]
    assert judgement().choose(lines) == 2
    assert judgement(margin=0.0).choose(lines) == 1, "what is a little worse is worse"
    assert judgement(no_worse_than="baseline").choose(lines) == 4
    assert judgement(margin=0.1).choose(lines) == 3


def test_the_choice_within_a_budget_is_the_best() -> None:
    lines = [*always(), line(2, "cheap", 0.481, 1_000), line(3, "cheaper", 0.50, 500), line(4, "best", 0.46, 9_000)]
    assert judgement(budget=0.25).choose(lines) == 2, "a quarter of the present settings"
    assert judgement(budget=0.05, no_worse_than="baseline").choose(lines) == 2
    assert judgement(budget=0.5, no_worse_than="baseline").choose(lines) == 4
    assert judgement(budget=0.001, no_worse_than="baseline").choose(lines) == 0, "nothing keeps to it"
    assert judgement(budget=0.25).judge(lines)["budget"] == 0.25


def test_what_was_given_up_or_failed_or_cannot_be_compared_is_in_no_ranking() -> None:
    odd = line(5, "odd", 0.1, 10)
    odd["periods"]["rows"] = [7] * RANKED
    given_up = line(3, "given_up", 0.1, 10) | {"ranked": None, "periods": None, "stopped": "at 2013-04-01 …"}
    failed = line(4, "failed", 0.1, 10) | {"ranked": None, "periods": None, "error": "cannot be"}
    lines = [*always(), given_up, failed, odd]
    assert judgement().choose(lines) == 1
    found = judgement().judge(lines)
    status = {row["name"]: row["status"] for row in found["table"]}
    assert status == {
        "all_history": "ranked", "current": "ranked", "given_up": "given up", "failed": "failed",
        "odd": "not comparable",
    }  # fmt: skip
    assert found["tried"] == 2
    assert found["front"] == ["all_history", "current"]


def test_the_choice_is_confirmed_on_what_it_was_not_made_on() -> None:
    good = [*always(), line(2, "cheap", 0.475, 1_000, whole=True)]
    found = judgement().judge(good)
    assert (found["chosen"], found["confirmation"]["holds"]) == ("cheap", True)
    assert found["confirmation"]["verdict"].startswith("confirmed, and better")
    against = found["confirmation"]["against"]
    assert against["all_history"]["rows_ratio"] == 20.0
    assert against["all_history"]["low"] > 0, "and is worse than the baseline, which is said too"
    assert against["current"]["periods"] == PERIODS - RANKED

    lucky = [*always(), line(2, "lucky", 0.46, 1_000, whole=True, later=0.52)]
    found = judgement().judge(lucky)
    assert (found["chosen"], found["confirmation"]["holds"]) == ("lucky", False)
    assert "keep current" in found["confirmation"]["verdict"]

    lost = [*always(), line(2, "cheap", 0.475, 1_000)]
    assert judgement().judge(lost)["confirmation"]["holds"] is None
    assert judgement().judge(always())["confirmation"]["verdict"].startswith("the choice is current itself")


def test_a_period_in_which_one_saw_other_rows_counts_for_none() -> None:
    late = line(2, "late", 0.475, 1_000)
    late["periods"]["rows"][-1] = 900
    late["periods"]["losses"][-1] = 1e6
    found = judgement().judge([*always(), late])
    assert found["ranked_periods"] == RANKED - 1
    assert found["table"][1]["name"] == "late"


def test_the_figures_of_a_row() -> None:
    lines = always()
    lines[1]["periods"]["losses"][0] = 600.0
    rows = {row["name"]: row for row in judgement(threshold=0.5).judge(lines)["table"]}
    assert rows["current"]["worst"] == 0.6
    assert rows["current"]["bad_time"] == pytest.approx(1 / RANKED)
    assert rows["current"]["false_updates"] == 0.2
    assert rows["current"]["watt_hours"] == pytest.approx(4.0 * 65 / 3600)
    assert rows["current"]["grams_co2"] == pytest.approx(4.0 * 65 / 3600 / 1000 * 400)
    assert rows["all_history"]["low"] < rows["all_history"]["difference"] < rows["all_history"]["high"]
    dirty = judgement(threshold=0.5, watts=130.0, grams_per_kwh=800.0).judge(lines)["table"]
    assert dirty[0]["grams_co2"] == pytest.approx(4 * rows[dirty[0]["name"]]["grams_co2"])
    again = judgement(threshold=0.5).judge(lines)
    assert {row["name"]: row for row in again["table"]} == rows, "the same again"


def test_without_the_present_settings_there_is_nothing_to_say() -> None:
    with pytest.raises(UpdateError, match="the present settings have no result: broke"):
        judgement().judge([line(0, "current", 0.4, 1) | {"ranked": None, "periods": None, "error": "broke"}])
    with pytest.raises(UpdateError, match="all_history has no result"):
        judgement(no_worse_than="baseline").judge(always()[1:])
