"""Strategies composed as the job composes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir

from cltrain.backtest.strategy import Strategies
from cltrain.config import CONF, build, register_defaults
from jobs.compose import Composer
from tests.conftest import overrides_of_table, write_table

SHORT = ["train.stateless.min_steps=30", "train.stateless.epochs=1", "window.bootstrap=2", "evaluate.past_windows=2"]


@pytest.fixture(scope="session")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backtest") / "events"
    write_table(folder)
    return folder


@pytest.fixture
def given(events: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Overrides of a backtest on a small table of ten weeks."""

    def overrides(*more: str) -> list[str]:
        return [
            *overrides_of_table(events),
            "cluster.num_cpus=2", "cluster.dashboard=false", f"store.root={tmp_path / 'store'}", *SHORT, *more,
        ]  # fmt: skip

    return overrides


@pytest.fixture
def made() -> Iterator[Callable[[list[str]], tuple[dict[str, Any], Strategies]]]:
    """Settings of the job and its strategies, from the overrides of a command line."""
    register_defaults()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):

        def make(overrides: list[str]) -> tuple[dict[str, Any], Strategies]:
            backtest = composed_with_backtest(overrides)
            return backtest, Strategies.of(Composer("backtest", overrides), build(backtest["backtest"], "backtest"))

        yield make


def composed_with_backtest(overrides: list[str]) -> dict[str, Any]:
    from hydra import compose

    from jobs.entry import plain

    return plain(compose("backtest", overrides=overrides))
