"""Which trainings are planned."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from cltrain.clock import to_us
from cltrain.errors import ConfigError
from cltrain.freshness.grid import Period, Plan, periods_of, planned
from cltrain.freshness.settings import Freshness, Prices

START = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = timedelta(days=7)
BOTH = ("stateless", "stateful")


def history(weeks: int, rows: int = 100, thin: dict[int, int] | None = None, late_days: int = 0) -> list[Period]:
    """Periods with rows at even times, whose labels come `late_days` later."""
    found = []
    for i in range(weeks):
        count = (thin or {}).get(i, rows + i)
        start = to_us(START + i * WEEK)
        visible = start + (np.arange(count) * (7 * 86_400_000_000 // max(count, 1))) + late_days * 86_400_000_000
        found.append(Period(i, START + i * WEEK, START + (i + 1) * WEEK, f"rows-{i}", count, visible))
    return found


def plan_of(weeks: int, modes: tuple[str, ...] = ("stateless",), max_rows: int | None = None, **settings: Any) -> Plan:
    thin = settings.pop("thin", None)
    late = settings.pop("late_days", 0)
    asked = {"ages": (0, 1, 2, 4), "lengths": (2,), "seeds": 2} | settings
    return planned(Freshness(**asked), history(weeks, thin=thin, late_days=late), max_rows, modes)


def test_one_training_for_each_window_and_seed_serves_all_later_windows() -> None:
    plan = plan_of(30)
    assert plan.windows == tuple(range(6, 30))
    assert len(plan.trials) == 2 * 28, "ends of training windows, not cells"
    assert plan.naive == 2 * 24 * 4
    assert plan.naive / len(plan.trials) >= 4 / 2 * 0.85
    cells = {(t["boundary"], int(e), t["seed"]) for t in plan.trials for e in t["evals"]}
    assert cells == {(e - age, e, seed) for e in plan.windows for age in (0, 1, 2, 4) for seed in (0, 1)}


def test_every_age_has_as_many_rows_and_none_from_the_future() -> None:
    plan = plan_of(20, late_days=3)
    assert {t["rows"] for t in plan.trials} == {plan.rows[2]}
    for trial in plan.trials:
        end = trial["boundary"]
        assert trial["train"] == [f"rows-{i}" for i in (end - 2, end - 1)]
        assert trial["until"] == to_us(START + end * WEEK)
        assert all(int(e) >= end for e in trial["evals"])
    least = min(p.rows for p in history(20))
    assert plan.rows[2] < 2 * least, "rows whose labels come too late do not count"


def test_early_trials_spread_over_history() -> None:
    plan = plan_of(60, seeds=1)
    first = {t["boundary"] for t in plan.trials[:16]}
    whole = [e for e in plan.windows if {e, e - 1, e - 2, e - 4} <= first]
    assert len(whole) >= 3
    assert max(whole) - min(whole) >= 27


def test_a_chain_is_updated_each_period_with_what_became_known_in_it() -> None:
    plan = plan_of(16, BOTH, seeds=1)
    chain = [t for t in plan.trials if t["mode"] == "stateful"]
    assert [t["boundary"] for t in chain] == list(range(2, 16))
    assert [t["parent"] for t in chain] == [None, *range(2, 15)]
    assert all(t["until"] - t["since"] == WEEK / timedelta(microseconds=1) for t in chain[1:])
    assert {t["rows"] for t in chain[1:]} == {plan.update_rows}
    assert chain[0]["evals"].keys() == {"6"}, "a state of age 4"


def test_lengths_are_told_apart_at_age_0() -> None:
    plan = plan_of(20, lengths=(4, 1))
    sides = [t for t in plan.trials if t["role"] == "side"]
    assert {(t["length"], t["rows"]) for t in sides} == {(1, plan.rows[1]), (4, plan.rows[1])}
    assert all([*t["evals"]] == [str(t["boundary"])] and t["seed"] == 0 for t in sides)
    assert {t["length"] for t in plan.trials if t["role"] == "curve"} == {4}
    assert plan_of(20, lengths=(4, 1), max_rows=50).rows == {4: 50, 1: 50}


def test_a_window_without_rows_takes_no_others_with_it() -> None:
    plan = plan_of(30, thin={12: 3}, lengths=(1,))
    assert plan.rows[1] == 100
    assert 12 in plan.skipped, "it is not evaluated"
    assert all(t["boundary"] != 12 or "12" not in t["evals"] for t in plan.trials)


def test_ages_that_history_is_too_short_for_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        plan = plan_of(8, ages=(0, 1, 2, 16))
    assert plan.ages == (0, 1, 2)
    assert "too short for ages above 2" in caplog.text
    with pytest.raises(ConfigError, match=r"make freshness\.every or freshness\.lengths smaller"):
        plan_of(6, ages=(0, 16))


def test_periods_are_the_latest_that_have_ended() -> None:
    asked = Freshness(windows=4, ages=(0, 1), lengths=(1,))
    first, end = START + timedelta(hours=5), START + 20 * WEEK + timedelta(days=1)
    found = periods_of(asked, first, end, 0.05)
    assert [i for i, _, _ in found] == [14, 15, 16, 17, 18, 19]
    assert found[-1][2] == START + 20 * WEEK
    until = periods_of(Freshness(windows=4, ages=(0, 1), lengths=(1,), until="2024-03-04"), first, end, 0.05)
    assert until[-1][2] == datetime(2024, 3, 4, tzinfo=UTC)
    ages_ago = periods_of(asked, START - 5_000 * WEEK, end, 0.05)
    assert len(ages_ago) == 6, "a lone event decades before changes nothing"
    with pytest.raises(ConfigError, match=r"fill 2 periods of freshness\.every=7d, and 6 are needed"):
        periods_of(asked, first, START + 2 * WEEK, 0.0)


@pytest.mark.parametrize(
    "wrong",
    [{"ages": (1, 2)}, {"ages": (0, 2, 1)}, {"ages": (0,)}, {"lengths": ()}, {"lengths": (1, 1)}, {"seeds": 0},
     {"windows": 3}, {"mode": "other"}, {"precision": 0.0}, {"level": 1.0}, {"until": "soon"}, {"cpus_per_trial": 0.0},
     {"eval_rows": 0}, {"max_slices": 0}, {"draws": 10}],
)  # fmt: skip
def test_settings_have_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"freshness.{next(iter(wrong))}"):
        Freshness(**wrong)


def test_prices_have_ranges_and_go_together() -> None:
    with pytest.raises(ConfigError, match=r"freshness\.prices\.watts"):
        Prices(watts=-1)
    with pytest.raises(ConfigError, match="value_per_unit is not set"):
        Prices(per_row=0.1)
    prices = Prices(per_row=0.01, per_device_hour=3.6, value_per_unit=1.0, watts=500.0)
    assert prices.of_training(rows=100, seconds=1_000) == pytest.approx(1 + 1)
    assert prices.kwh(7_200) == pytest.approx(1.0)
