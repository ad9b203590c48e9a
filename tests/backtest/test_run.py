"""A whole backtest on a small table, with Ray Tune."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cltrain.backtest.experiment import experiment
from cltrain.backtest.run import run_backtest
from cltrain.backtest.strategy import Strategies
from cltrain.errors import ConfigError
from cltrain.storage import Storage
from jobs.compose import Composer

Made = Callable[[list[str]], tuple[dict[str, Any], Strategies]]
Given = Callable[..., list[str]]
MEASURED = {"device_seconds", "watt_hours", "grams_co2"}


@pytest.mark.ray
def test_a_backtest_chooses_and_confirms_and_repeats_nothing(
    ray_session: str, made: Made, given: Given, tmp_path: Path
) -> None:
    settings, strategies = made(given("backtest.space={model.hidden: [[64, 32], [16]]}", "backtest.trials=4"))

    def run(name: str) -> dict[str, Any]:
        plain = Composer("loop", [])
        folder = {"run_dir": str(tmp_path / name)}
        return run_backtest(settings | folder, strategies, lambda s, about: experiment(s.composed, plain, about))

    found = run("first")
    assert {row["name"] for row in found["table"]} == {"current", "all_history", "model.hidden=[16]"}
    assert all(row["status"] in ("ranked", "given up") for row in found["table"])
    costs = {row["name"]: row["rows"] for row in found["table"]}
    assert costs["all_history"] == max(cost for cost in costs.values() if cost)
    assert found["confirmation"]["holds"] in (True, False, None)
    assert found["iteration"]["iterations"][0]["kind"] == "model"

    page = (tmp_path / "first" / "report.html").read_text()
    figures = json.loads(page.partition('id="charts">')[2].partition("</script>")[0])
    assert {figure["id"] for figure in figures} == {"pareto", "time", "iteration"}
    assert all(len(row) == len(figure["columns"]) for figure in figures for row in figure["rows"])
    assert len(next(figure for figure in figures if figure["id"] == "pareto")["rows"]) == 3
    assert found["confirmation"]["verdict"][1:] in page
    text = Path(found["experiment"]).read_text()
    assert text.startswith("# @package _global_\n# ")
    assert f"--config-dir {tmp_path / 'first'} +experiment={Path(found['experiment']).stem}" in found["command"]

    storage = Storage(settings["store"]["root"])
    kept = storage.names("backtests/trials")
    again = run("again")
    assert again["table"] == found["table"]
    assert storage.names("backtests/trials") == kept
    for name in kept[1:]:
        storage.delete(name)
    fresh = run("fresh")
    table = [{key: value for key, value in row.items() if key not in MEASURED} for row in fresh["table"]]
    assert table == [{key: value for key, value in row.items() if key not in MEASURED} for row in found["table"]]


def test_mistakes_are_said_before_anything_starts(made: Made, given: Given) -> None:
    settings, strategies = made(given("backtest.baseline=stateful"))
    with pytest.raises(ConfigError, match="baseline=stateful is what the present settings are"):
        run_backtest(settings, strategies)
    settings, strategies = made(given("backtest.cpus_per_trial=3"))
    with pytest.raises(ConfigError, match=r"backtest.cpus_per_trial must be 2 or less"):
        run_backtest(settings, strategies)
    settings, strategies = made(given("backtest.gpus_per_trial=99"))
    with pytest.raises(ConfigError, match=r"backtest.gpus_per_trial must be \d or less"):
        run_backtest(settings, strategies)
    settings, strategies = made(given("clock=wall"))
    with pytest.raises(ConfigError, match="set clock=data"):
        run_backtest(settings, strategies)
