"""Named strategies and points of a space become settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cltrain.backtest.experiment import experiment
from cltrain.backtest.settings import Backtest
from cltrain.backtest.strategy import Strategies
from cltrain.errors import ConfigError
from jobs.compose import Composer

Made = Callable[[list[str]], tuple[dict[str, Any], Strategies]]
Given = Callable[..., list[str]]


def test_a_name_is_a_strategy_or_an_experiment_or_overrides(made: Made, given: Given) -> None:
    _, strategies = made(given())
    periodic = strategies.named("periodic")
    assert periodic.settings["method"]["_target_"] == "cltrain.methods.FromScratch"
    assert periodic.settings["recalibrate"]["history"] == "28d"
    assert periodic.settings["data"] == strategies.current.settings["data"], "the command line stays"
    daily = strategies.named("daily", ["window.every=1d"])
    assert daily.settings["window"]["bootstrap"] == 14, "all begin with the same first window"
    assert daily.changes == {"window.every": "1d", "window.bootstrap": 14}
    with pytest.raises(ConfigError, match="nonsense is neither a file of conf/strategy nor of conf/experiment"):
        strategies.named("nonsense")
    with pytest.raises(ConfigError, match="changes seed, which must be the same"):
        strategies.named("lucky", ["seed=7"])


def test_a_point_leaves_out_what_its_parts_do_not_have(made: Made, given: Given) -> None:
    space = (
        "backtest.space={method: [replay_ewc, replay], method.ratio: [0.1, 2.0], method.parts.ewc.strength: [1.0],"
        "memory.capacity_rows: [100, 200]}"
    )
    _, strategies = made(given(space))
    point = {"method": "replay", "method.ratio": 2.0, "method.parts.ewc.strength": 1.0, "memory.capacity_rows": 100}
    replay = strategies.at("x", point)
    assert (replay.settings["method"]["_target_"], replay.settings["method"]["ratio"]) == (
        "cltrain.methods.Replay",
        2.0,
    )
    assert replay.settings["method"]["memory"]["capacity_rows"] == 100, "what refers to a setting follows it"
    both = strategies.at("y", point | {"method": "replay_ewc"})
    assert both.settings["method"]["parts"]["ewc"]["strength"] == 1.0
    assert both.point == point | {"method": "replay_ewc"}


def test_the_usual_space_fits_and_the_ledger_tries_cadences_and_models(made: Made, given: Given) -> None:
    _, strategies = made(given())
    assert {"window.every", "model.hidden", "method", "recalibrate.every"} <= strategies.space.keys()
    tried = list(strategies.one_by_one())
    kinds = {strategy.name: strategy.kind for strategy in tried}
    assert kinds["window.every=302400s"] == "data"
    assert kinds["model.hidden=[128,64]"] == "model"
    assert all(strategy.settings != strategies.current.settings for strategy in tried)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{method.ratoi: [1.0]}", "did you mean method"),
        ("{data.path: [x]}", "is no setting that strategies can differ in"),
        ("{train.stateful.epochs: [0, 1]}", r"backtest.space: train.stateful.epochs=0 cannot be"),
        ("{train.stateful.epochs: []}", "backtest.space: train.stateful.epochs has no choices"),
    ],
)
def test_a_space_that_cannot_be_is_refused(space: str, message: str, made: Made, given: Given) -> None:
    with pytest.raises(ConfigError, match=message):
        made(given(f"backtest.space={space}"))


def test_an_experiment_gives_the_loop_the_same_settings(made: Made, given: Given, tmp_path: Any) -> None:
    _, strategies = made(given())
    plain = Composer("loop", [])
    point = {"method": "replay", "window.every": "1d", "memory.capacity_rows": 5_000, "recalibrate.every": None}
    for chosen in (strategies.at("mine", point), strategies.named("all_history"), strategies.current):
        text = experiment(chosen.composed, plain, ["chosen by a test"])
        assert "strategy" not in text
        (tmp_path / "experiment").mkdir(exist_ok=True)
        (tmp_path / "experiment" / "mine.yaml").write_text(text)
        search = [f"hydra.searchpath=[file://{tmp_path}]", "+experiment=mine"]
        found = Composer("loop", search)(())
        assert {key: found.settings[key] for key in chosen.settings} == chosen.settings


def test_settings_say_what_is_wrong() -> None:
    for wrong, message in (
        ({"trials": 1}, "backtest.trials must be 2 or more"),
        ({"objectives": ("speed",)}, "backtest.objectives must be some of quality"),
        ({"searcher": "grid"}, "backtest.searcher must be one of tpe, nsga2, sobol"),
        ({"confirm_share": 1.0}, "backtest.confirm_share must be between"),
        ({"period": "weekly"}, "backtest.period: 'weekly' is not a duration"),
        ({"stop_margin": 0.0}, "backtest.stop_margin must be a share above 0"),
        ({"watts": -1.0}, "backtest.watts must be 0 or more"),
        ({"budget": 0.0}, "backtest.budget must be a share of row visits above 0"),
        ({"block": 0}, "backtest.block must be 1"),
        ({"cache_gib": 0.0}, "backtest.cache_gib must be above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            Backtest(**wrong)  # type: ignore[arg-type]


def test_the_examples_of_the_flights_compose(made: Made) -> None:
    settings, strategies = made(["+experiment=backtest_flights"])
    assert settings["backtest"]["no_worse_than"] == "baseline"
    assert strategies.space.keys() == settings["backtest"]["space"].keys(), "every key is one that is there"
    frugal = strategies.named("flights_frugal")
    assert frugal.settings["recalibrate"]["every"] is None
    assert frugal.changes == {"window.every": "84h", "window.bootstrap": 8, "recalibrate.every": None}
