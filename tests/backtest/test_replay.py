"""A trial is the loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cltrain.assemble import run_loop
from cltrain.backtest.replay import run_strategy
from cltrain.backtest.run import cut
from cltrain.backtest.strategy import Strategies
from cltrain.clock import to_us
from cltrain.config import build
from cltrain.data.event_log import EventLog
from cltrain.errors import ConfigError

Made = Callable[[list[str]], tuple[dict[str, Any], Strategies]]
Given = Callable[..., list[str]]


def work_of(settings: dict[str, Any], strategies: Strategies, scratch: Path, **more: Any) -> dict[str, Any]:
    parts = {key: build(settings[key], key) for key in ("data", "clock", "window")}
    history = cut(settings, strategies.backtest, parts, EventLog(parts["data"]))
    return {
        "history": asdict(history), "task": "binary", "engine": settings["engine"], "threads": 1, "device": "cpu",
        "stop_margin": None, "scratch": str(scratch), "cache_gib": 1.0,
    } | more  # fmt: skip


def trial(settings: dict[str, Any], whole: bool, bars: list[Any] | None = None) -> dict[str, Any]:
    return {"trial": 0, "plan": json.dumps({"settings": settings, "whole": whole, "bars": bars or []})}


def test_a_trial_over_all_of_history_is_the_loop_and_leaves_nothing(made: Made, given: Given, tmp_path: Path) -> None:
    settings, strategies = made(given("tracking=files", "cluster.workers=0"))
    work = work_of(settings, strategies, tmp_path / "scratch")
    current = strategies.current.composed.settings
    whole = run_strategy(work, trial(current, whole=True))
    part = run_strategy(work, trial(current, whole=False))
    assert whole["error"] is part["error"] is None
    measured = {"train_seconds"}
    assert {k: v for k, v in whole["ranked"].items() if k not in measured} == {
        k: v for k, v in part["ranked"].items() if k not in measured
    }, "what comes later changes nothing of what was"
    ranked = work["history"]["ranked"]
    assert part["all"] is None
    assert part["periods"]["losses"] == whole["periods"]["losses"][:ranked]
    assert part["points"] == whole["points"]
    assert len(whole["points"]) == ranked + 1

    summary = run_loop(settings | {"run_dir": str(tmp_path / "run")})
    assert whole["all"]["rows"] == summary["cost"]["rows_trained"]
    assert whole["all"]["retention"] == summary["retention"]
    assert whole["all"]["updates"] == len(summary["versions"]) - 1
    assert whole["all"]["rejected"] == summary["rejected"]
    rows = sum(whole["periods"]["rows"])
    late = summary["prequential"]["rows"] - rows  # of the ranked part, whose labels came after its end
    assert 0 <= late <= 60 * 2
    assert sum(whole["periods"]["losses"]) / rows == pytest.approx(summary["prequential"]["log_loss"], abs=0.01)

    (left,) = (tmp_path / "scratch").iterdir()
    assert left.name.startswith("rows-"), "nothing but what the next trial may use"


def test_what_cannot_be_trained_is_an_answer(made: Made, given: Given, tmp_path: Path) -> None:
    settings, strategies = made(given())
    work = work_of(settings, strategies, tmp_path)
    broken = strategies.named("hot", ["train.stateless.learning_rate=1e30"])
    found = run_strategy(work, trial(broken.composed.settings, whole=False))
    assert found["ranked"] is None or found["ranked"]["failed"]
    short = strategies.named("long", ["window.every=60d", "window.bootstrap=9"])
    assert "do not fill two windows" in run_strategy(work, trial(short.composed.settings, whole=False))["error"]


def test_the_hopeless_is_given_up_and_nothing_else(made: Made, given: Given, tmp_path: Path) -> None:
    settings, strategies = made(given("backtest.period=7d"))
    work = work_of(settings, strategies, tmp_path, stop_margin=0.05)
    current = strategies.current.composed.settings
    free = run_strategy(work, trial(current, whole=False))
    better = [[end, rows, loss * 0.9, trained, updates] for end, rows, loss, trained, updates in free["points"]]
    found = run_strategy(work, trial(current, False, [{"name": "better", "points": better}]))
    assert found["ranked"] is None
    assert "of better, which costs no more" in found["stopped"]
    assert len(found["points"]) < len(free["points"])
    bars = [
        {
            "name": name,
            "points": [
                [point[0] + e, point[1] + r, point[2] * of, point[3] + t, point[4] + u] for point in free["points"]
            ],
        }
        for name, e, r, of, t, u in (
            ("hardly better", 0, 0, 0.97, 0, 0),
            ("dearer", 0, 0, 0.5, 1, 0),
            ("more often", 0, 0, 0.5, 0, 1),
            ("on other rows", 0, 1, 0.5, 0, 0),
            ("at other times", 1, 0, 0.5, 0, 0),
        )
    ]
    kept = run_strategy(work, trial(current, False, bars))
    assert kept["stopped"] is None
    assert kept["periods"] == free["periods"], "what stays is as if there were no bars"


def test_history_must_be_long_enough(made: Made, given: Given) -> None:
    settings, strategies = made(given("window.bootstrap=6"))
    parts = {key: build(settings[key], key) for key in ("data", "clock", "window")}
    log = EventLog(parts["data"])
    with pytest.raises(ConfigError, match="4 periods of 7d, too few"):
        cut(settings, strategies.backtest, parts, log)
    settings, strategies = made(given("window.bootstrap=6", "backtest.period=1d"))
    history = cut(settings, strategies.backtest, parts, log)
    assert (history.periods, history.ranked) == (28, 18)
    assert history.split_us == history.begin_us + 18 * 86_400_000_000
    assert to_us(log.end()) >= history.split_us
