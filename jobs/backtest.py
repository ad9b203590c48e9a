"""Many strategies over the same history, and which one to run: `python -m jobs.backtest [overrides]`"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig

from cltrain.backtest.experiment import experiment
from cltrain.backtest.run import run_backtest
from cltrain.backtest.strategy import Strategies, Strategy
from cltrain.config import build
from cltrain.records import Json
from jobs.compose import Composer
from jobs.entry import job


@job("backtest")
def main(settings: dict[str, Any]) -> Json:
    given, plain = list(HydraConfig.get().overrides.task), Composer("loop", [])
    strategies = Strategies.of(Composer("backtest", given), build(settings["backtest"], "backtest"))

    def write(strategy: Strategy, about: Sequence[str]) -> str:
        return experiment(strategy.composed, plain, about)

    return run_backtest(settings, strategies, write)


if __name__ == "__main__":
    main()
