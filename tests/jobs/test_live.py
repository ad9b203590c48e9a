"""The same loop on the wall's clock: files come while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cltrain.assemble import open_store, run_loop
from cltrain.registry import RoundLog


def write_events(folder: Path, start: datetime, seconds: int, name: str) -> None:
    """Forty events a second."""
    generator = np.random.default_rng(len(name))
    folder.mkdir(exist_ok=True)
    rows = seconds * 40
    times = [start + timedelta(seconds=seconds * i / rows) for i in range(rows)]
    x = generator.normal(size=rows)
    table = pa.table({"when": times, "x": x, "clicked": (generator.random(rows) < 1 / (1 + np.exp(-x))).astype(int)})
    with (folder / f".{name}").open("wb") as part:
        pq.write_table(table, part)
    (folder / f".{name}").rename(folder / name)


def test_files_that_come_while_the_loop_runs_are_learned_from(
    settings_of: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    write_events(tmp_path / "events", now - timedelta(seconds=20), 20, "a.parquet")
    settings = settings_of(
        "data=parquet",
        f"data.path={tmp_path / 'events'}",
        "data.event_time=when",
        "data.label=clicked",
        "data.time_features=false",
        "clock=wall",
        "clock.poll_s=0.2",
        "window.every=5s",
        "window.bootstrap=2",
        "serve=none",
        "tracking=files",
        "cluster.workers=0",
        "train.stateless.min_steps=30",
        f"store.root={tmp_path / 'store'}",
        "max_rounds=5",
    ) | {"run_dir": str(tmp_path / "run")}
    later = threading.Timer(2.0, write_events, (tmp_path / "events", now, 15, "b.parquet"))
    later.start()
    summary = run_loop(settings)
    later.join()
    rounds = RoundLog(open_store(settings), "default").finished()
    assert summary["rounds"] == 4
    assert [r.window.end - r.window.start for r in rounds[1:]] == [timedelta(seconds=5)] * 4
    assert all(a.window.end == b.window.start for a, b in pairwise(rounds))
    assert rounds[-1].observation.labelled > 100, "rows of the file that came later"
    assert rounds[-1].window.end <= datetime.now(UTC), "no window before its time"
