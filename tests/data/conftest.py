"""Small tables on disk, and logs over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cltrain.data.event_log import EventLog
from cltrain.data.parquet import ParquetSource

HOUR_US = 3_600_000_000


def events(rows: int, first: int = 0, seed: int = 0, **columns: Any) -> pa.Table:
    """An event an hour from hour `first` of 1970 on: `at`, `x`, `kind` and a label `y` of 0 or 1."""
    generator = np.random.default_rng(seed)
    table = {
        "at": pa.array(np.arange(first, first + rows) * HOUR_US, pa.timestamp("us")),
        "x": generator.normal(size=rows),
        "kind": generator.choice(["a", "b"], rows),
        "y": np.arange(rows) % 2,
    }
    return pa.table(table | columns)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(table, name)` into one folder; gives that folder."""

    def do(table: pa.Table, name: str = "a.parquet", **options: Any) -> Path:
        path = tmp_path / "events" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, **options)
        return tmp_path / "events"

    return do


@pytest.fixture
def log_of(tmp_path: Path) -> Callable[..., EventLog]:
    def make(path: Path | None = None, **columns: Any) -> EventLog:
        folder = str(path or tmp_path / "events")
        return EventLog(ParquetSource(**({"path": folder, "event_time": "at", "label": "y"} | columns)))

    return make


@pytest.fixture(name="events")
def events_fixture() -> Callable[..., pa.Table]:
    return events
