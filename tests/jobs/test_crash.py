"""kill -9, of a training worker and of the driver, in the middle of an update, with real Ray."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cltrain.assemble import open_store, run_loop
from cltrain.registry import Registry
from tests.cluster.under_way import train_workers
from tests.conftest import overrides_of_table

History = list[tuple[str, str, int]]
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
SLOW_UPDATES = ["max_rounds=4", "train.stateful.epochs=60", "method=replay", "window.bootstrap=2"]


def history(settings: dict[str, Any]) -> History:
    registry = Registry(open_store(settings), "default")
    return [(v.version, v.weights_digest, v.challenger.rows_trained) for v in registry.versions()]


@pytest.fixture
def undisturbed(small: Callable[..., dict[str, Any]], tmp_path: Path) -> History:
    settings = small(f"store.root={tmp_path / 'undisturbed'}", *SLOW_UPDATES)
    run_loop(settings)
    return history(settings)


class Job:
    """`python -m jobs.loop` in a process of its own, with one Ray Train worker."""

    def __init__(self, tmp_path: Path) -> None:
        self.database = tmp_path / "store" / "registry.db"
        overrides = [
            *overrides_of_table(tmp_path / "events"),
            "serve=none",
            "tracking=files",
            "cluster.workers=1",
            "cluster.num_cpus=2",
            "cluster.dashboard=false",
            f"store.root={tmp_path / 'store'}",
            "train.stateless.min_steps=60",
            f"hydra.run.dir={tmp_path / 'run'}",
            *SLOW_UPDATES,
        ]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobs.loop", *overrides],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_update(self, round_index: int) -> None:
        """Until the update of this round has begun and has not ended."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(self.process.communicate()[1])
            stages = self.stages(round_index)
            if "decide" in stages:
                assert "update stateful" not in stages
                time.sleep(0.5)
                return
            time.sleep(0.05)
        raise AssertionError("the update did not begin")

    def stages(self, round_index: int) -> set[str]:
        if not self.database.exists():
            return set()
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as connection:
            try:
                rows = connection.execute("select stage from stages where round_index = ?", (round_index,)).fetchall()
            except sqlite3.OperationalError:
                return set()
        return {row[0] for row in rows}

    def finish(self) -> str:
        out, errors = self.process.communicate(timeout=240)
        assert self.process.returncode == 0, errors
        return out


def assert_each_window_once(settings: dict[str, Any], event_ids: Callable[..., list[str]]) -> None:
    store = open_store(settings)
    ids: list[str] = []
    for v in Registry(store, "default").lineage("champion"):
        ids += event_ids(settings, v.challenger.snapshot)
    assert len(ids) == len(set(ids))


def test_a_killed_worker_is_replaced_and_its_update_done_again(
    small: Callable[..., dict[str, Any]], tmp_path: Path, undisturbed: History, event_ids: Callable[..., list[str]]
) -> None:
    settings = small(*SLOW_UPDATES)
    job = Job(tmp_path)
    job.wait_for_update(2)
    killed = list(train_workers(job.process.pid))
    assert len(killed) == 1
    os.kill(killed[0], signal.SIGKILL)
    assert job.finish().splitlines()[-1].endswith("summary.json")
    assert history(settings) == undisturbed, "the same bits, as if nothing had happened, and as without Ray"
    assert_each_window_once(settings, event_ids)


def test_a_killed_driver_goes_on_where_it_stopped(
    small: Callable[..., dict[str, Any]], tmp_path: Path, undisturbed: History, event_ids: Callable[..., list[str]]
) -> None:
    settings = small(*SLOW_UPDATES)
    job = Job(tmp_path)
    job.wait_for_update(2)
    job.process.kill()
    job.process.communicate()
    assert len(history(settings)) == 2
    Job(tmp_path).finish()
    assert history(settings) == undisturbed
    assert_each_window_once(settings, event_ids)
