"""What a window brings."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cltrain.clock import from_us
from cltrain.data.contract import Contract
from cltrain.data.event_log import EventLog
from cltrain.data.parquet import ParquetSource
from cltrain.data.snapshot import Snapshots, SnapshotSettings
from cltrain.observe import Watch, read_prequential
from cltrain.records import Cursor, Observation, Window
from cltrain.storage import Storage
from cltrain.train.predictor import Scores

DAY = timedelta(days=1)
START = from_us(0)
DELAY_H = 36


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    """Ten days of an event an hour, a file a day; labels come a day and a half late. On day 5 all of `x` is null."""
    (tmp_path / "events").mkdir()
    for day in range(10):
        hours = np.arange(24) + 24 * day
        at = hours * 3_600_000_000
        x = pa.array(hours * 1.0, mask=np.full(24, day == 5))
        table = pa.table(
            {
                "id": [f"e{h}" for h in hours],
                "at": pa.array(at, pa.timestamp("us")),
                "known": pa.array(at + DELAY_H * 3_600_000_000, pa.timestamp("us")),
                "x": x,
                "y": hours % 2,
            }
        )
        pq.write_table(table, tmp_path / "events" / f"{day}.parquet")
    log = EventLog(
        ParquetSource(path=str(tmp_path / "events"), event_time="at", label="y", label_time="known", event_id="id")
    )
    storage = Storage(tmp_path / "store")
    registry: Any = SimpleNamespace(
        model="m", store=SimpleNamespace(storage=storage), version=lambda v: SimpleNamespace(state=v)
    )
    snapshots = Snapshots(log, storage, SnapshotSettings(holdout_share=0.3))
    return Watch(log, snapshots, Contract(), registry, [])


def day(index: int) -> Window:
    return Window(index=index, start=START + index * DAY, end=START + (index + 1) * DAY)


def finish(watch: Watch, window: Window, seen: Observation, champion: str | None = None) -> None:
    status = "quarantined" if seen.problems else "promoted"
    done: Any = SimpleNamespace(
        sound=status != "quarantined",
        index=window.index,
        window=window,
        observation=seen,
        cursor=seen.cursor,
        status=status,
        champion=champion,
    )
    watch.finished.append(done)


def champion(version: str, until: datetime, watch: Watch) -> Any:
    cursor = Cursor(until=until, files=tuple(sorted(watch.log.files)))
    return SimpleNamespace(version=version, challenger=SimpleNamespace(cursor=cursor))


def test_every_label_arrives_in_one_round_and_late_ones_are_counted(watch: Watch) -> None:
    found, held = [], []
    for index in range(10):
        seen = watch.observe(day(index), None)
        assert seen.events == 24
        assert seen.labelled == (0 if index == 0 else 12 if index == 1 else 24)
        assert seen.late_labels == seen.labelled, "all of them belong to days before"
        found += watch.rows(seen).column("_event_id").to_pylist()
        held += watch.held_out(index, seen)[-1][1].column("_event_id").to_pylist()
        assert seen.fresh.rows == len(found) - len(set(held)) or any(r.status == "quarantined" for r in watch.finished)
        finish(watch, day(index), seen)
    assert found == [f"e{h}" for h in range(240 - DELAY_H)]
    assert len(held) == len(set(held)) > 30, "held-out rows of late labels are not lost, and come once"


def test_a_broken_window_is_found_before_its_labels_are_there(watch: Watch) -> None:
    for index in range(8):
        seen = watch.observe(day(index), None)
        assert seen.problems == (("x: 100% null, was 0%",) if index == 5 else ())
        finish(watch, day(index), seen)
    trained = watch.snapshots.table(watch.observe(day(8), None).fresh)
    assert trained.column("x").null_count == 0, "and nothing is trained on it when they come"


def test_a_window_without_rows_is_an_answer(watch: Watch) -> None:
    seen = watch.observe(Window(index=0, start=START - 9 * DAY, end=START - 8 * DAY), None)
    assert (seen.events, seen.labelled, seen.problems, seen.fresh.rows, seen.holdout.rows) == (0, 0, (), 0, 0)
    assert watch.rows(seen).num_rows == 0


def test_the_reference_is_the_last_sound_windows(watch: Watch) -> None:
    finish(watch, day(5), dataclasses.replace(watch.observe(day(5), None), problems=("x",)))
    assert watch._reference() is None
    finish(watch, day(6), watch.observe(day(6), None))
    reference = watch._reference()
    assert reference is not None
    assert (reference.rows, reference.null_share("x")) == (24, 0.0)


def test_each_row_is_predicted_by_the_champion_of_its_moment(watch: Watch) -> None:
    """A version predicts its own number: 1.0 is right about no row, 0.0 about all."""

    def scores(version: str) -> Any:
        def score(rows: pa.Table) -> Scores:
            target = np.zeros(rows.num_rows)
            return Scores("regression", np.full(rows.num_rows, float(version)), target, (target - float(version)) ** 2)

        return SimpleNamespace(score=score)

    watch.predictor = scores  # type: ignore[assignment]
    seen = watch.observe(day(0), None)
    assert seen.prequential == {}
    finish(watch, day(0), seen, champion="1.0")
    for index, version in ((1, "1.0"), (2, "0.0"), (3, "0.0")):
        seen = watch.observe(day(index), champion(watch.finished[-1].champion or "", day(index).start, watch))
        finish(watch, day(index), seen, champion=version)
    stored = [(r.index, r.observation.prequential.get("rows")) for r in watch.finished]
    assert stored == [(0, None), (1, None), (2, 12), (3, 24)], "rows of day 0 came before there was a champion"
    found = pa.ipc.open_file(pa.memory_map(watch._storage.path("prequential/m/000003.arrow"))).read_all()
    happened = np.asarray(found.column("_event_time").cast(pa.int64())) // 86_400_000_000
    assert found.column("version").to_pylist() == ["1.0" if d < 3 else "0.0" for d in happened]
    ours, static = read_prequential(watch._storage, "m", "regression", [2, 3, 9])
    assert ours.values()["rows"] == static.values()["rows"] == 36
