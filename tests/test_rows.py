"""Which versions a row is in, against the rows that the snapshots really hold."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cltrain.cli import app
from cltrain.data.event_log import EventLog
from cltrain.data.holdout import is_held_out
from cltrain.data.parquet import ParquetSource
from cltrain.data.snapshot import Rule, Snapshots, SnapshotSettings, cache_name
from cltrain.errors import StoreError
from cltrain.records import EVENT_ID, Snapshot
from cltrain.registry import Registry, Store, segments
from cltrain.rows import Answer, versions_with
from tests.versions import registered

HOUR = 3_600_000_000
START = datetime(1970, 1, 1, tzinfo=UTC)
DAYS, DAILY = 8, 60


def at(hour: float) -> datetime:
    return START + timedelta(hours=hour)


def write_day(folder: Path, day: int, *, named: bool = True) -> None:
    """60 events, one an hour; labels come up to 40 hours later, or never; every tenth id is also in the day before."""
    draw = np.random.default_rng(day)
    hours = np.arange(day * DAILY, (day + 1) * DAILY)
    known = [None if h % 13 == 0 else int(h + draw.integers(-5, 40)) * HOUR for h in hours]
    stamp = pa.timestamp("us")
    ids = [f"e{h - DAILY if h % 10 == 0 and day else h}" for h in hours]
    table = {
        "at": pa.array(hours * HOUR, stamp),
        "known": pa.array(known, stamp),
        "y": pa.array([None if k is None else i % 2 for i, k in enumerate(known)]),
        "x": hours * 1.0,
    }
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(({"id": ids} if named else {}) | table), folder / f"{day}.parquet")


def log_of(folder: Path, *, named: bool = True) -> EventLog:
    event_id = "id" if named else None
    source = ParquetSource(
        path=str(folder), event_time="at", label="y", label_time="known", event_id=event_id, time_features=False
    )
    return EventLog(source)


def register(
    registry: Registry, snapshot: Snapshot, index: int, parent: str | None = None, depends_on: tuple[str, ...] = ()
) -> str:
    return registered(registry, index, parent, snapshot=snapshot, depends_on=depends_on).version


def frozen(snapshots: Snapshots, log: EventLog, folder: Path) -> list[Snapshot]:
    """Snapshots of many rules, while files come in."""
    found, cursor = [], None
    for day in range(2, DAYS):
        if day > 2:
            write_day(folder, day)
            log.refresh()
        found.append(snapshots.fresh("train", "train", at(day * DAILY + 30), cursor))
        cursor = snapshots.cursor(at(day * DAILY + 30))
    found.append(snapshots.between("train", "train", at(500), at(100), at(300)))
    snapshots.excluded = ((150 * HOUR, 200 * HOUR), (400 * HOUR, 401 * HOUR))
    found.append(snapshots.between("train", "train", at(350), at(90)))
    few = Snapshots(log, snapshots._storage, SnapshotSettings(holdout_share=0.3, max_rows=50), seed=3)
    found.append(few.between("train", "train", at(450), None))
    found.append(few.fresh("train", "train", at(400), snapshots.cursor(at(200))))
    found.append(snapshots.freeze(Rule(role="train", split="train", until=HOUR * 5)))
    return found


def says(answer: Answer, *, through: bool) -> set[str]:
    return {f"{h.model}:{h.version}" for p in answer.places for h in p.versions if through or h.through is None}


@pytest.mark.parametrize("ways", [2, 1000])
def test_every_row_of_every_file_is_told_as_brute_force_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ways: int
) -> None:
    """With `ways` 2 the indexes are merged again and again, with 1000 never."""
    monkeypatch.setattr(segments, "WAYS", ways)
    for day in range(3):
        write_day(tmp_path / "events", day)
    log, store = log_of(tmp_path / "events"), Store(root=str(tmp_path / "store"))
    snapshots = Snapshots(log, store.storage, SnapshotSettings(holdout_share=0.3), seed=1)
    found = frozen(snapshots, log, tmp_path / "events")
    ranker, shop = Registry(store, "ranker"), Registry(store, "shop")
    direct: dict[str, set[str]] = defaultdict(set)
    parents: dict[str, list[str]] = {}
    for i, snapshot in enumerate(found):
        parent = f"1.{i - 1}" if 0 < i < 5 else None
        name = f"ranker:{register(ranker, snapshot, i, parent)}"
        parents[name] = [f"ranker:{parent}"] if parent else []
        for event in snapshots.table(snapshot).column(EVENT_ID).to_pylist():
            direct[event].add(name)
    parents["shop:1.0"] = ["ranker:1.2", "ranker:3.0"]
    register(shop, found[-1], 0, depends_on=("ranker:1.2", "ranker:3.0"))

    def holds(name: str, event: str) -> bool:
        return name in direct[event] or any(holds(parent, event) for parent in parents[name])

    for event in snapshots.table(found[-1]).column(EVENT_ID).to_pylist():
        direct[event].add("shop:1.0")
    shutil.rmtree(tmp_path / "events")
    shutil.rmtree(Path(store.root, "cache"))
    for hour in range(ways % 7, DAYS * DAILY, 7):
        event = f"e{hour}"
        answer = versions_with(store, event)
        assert says(answer, through=False) == direct[event], event
        assert says(answer, through=True) == {name for name in parents if holds(name, event)}
        for place in answer.places:
            assert place.held_out <= bool(is_held_out(pa.array([event]), 0.3)[0])
            assert (place.why_not is None) == bool(place.versions)
    twice = versions_with(store, "e0").places
    assert [(p.file, p.event_time) for p in twice] == [("0.parquet", at(0)), ("1.parquet", at(60))]
    merged = list(Path(store.root, "rows", "merged").glob("*")) if ways == 2 else []
    assert len(merged) <= 9
    assert says(versions_with(store, "e101", models=["shop"]), through=True) <= {"shop:1.0"}


def test_an_answer_says_why_and_through_whom(tmp_path: Path) -> None:
    write_day(tmp_path / "events", 0)
    log, store = log_of(tmp_path / "events"), Store(root=str(tmp_path / "store"))
    snapshots = Snapshots(log, store.storage, SnapshotSettings(holdout_share=0.3))
    registry = Registry(store, "ranker")
    first = snapshots.fresh("train", "train", at(70), None)
    register(registry, first, 0)
    register(registry, snapshots.fresh("train", "train", at(71), snapshots.cursor(at(70))), 1, "1.0")
    registry.promote("1.1", reason="better")
    held = next(f"e{h}" for h in range(1, 12) if is_held_out(pa.array([f"e{h}"]), 0.3)[0])
    place = versions_with(store, held).places[0]
    assert (place.held_out, place.why_not, place.versions) == (True, "held out", ())
    event = snapshots.table(first).column(EVENT_ID)[0].as_py()
    (place,) = versions_with(store, event).places
    assert [(h.version, h.snapshot == first.digest, h.through) for h in place.versions] == [
        ("1.0", True, None),
        ("1.1", False, "ranker:1.0"),
    ]
    assert place.versions[1].aliases == ("champion",)
    assert place.file == "0.parquet"
    assert place.label_time >= place.event_time
    assert versions_with(store, "e26").places[0].why_not == "it has no label"
    late = next(f"e{h}" for h in range(59, 0, -1) if _visible(tmp_path, h) > 71)
    assert versions_with(store, late).places[0].why_not in ("no version has come to its time", "held out")
    assert versions_with(store, "nobody").to_json() == {
        "event_id": "nobody", "found": False, "places": [], "not_indexed": [], "lost": []
    }  # fmt: skip


def _visible(folder: Path, hour: int) -> int:
    known = pq.read_table(folder / "events" / "0.parquet").column("known").cast(pa.int64())[hour].as_py()
    return -1 if known is None else known // HOUR


def test_rows_without_an_id_are_named_by_file_and_row_also_in_files_of_one_content(tmp_path: Path) -> None:
    write_day(tmp_path / "events", 0, named=False)
    shutil.copy(tmp_path / "events" / "0.parquet", tmp_path / "events" / "copy.parquet")
    log, store = log_of(tmp_path / "events", named=False), Store(root=str(tmp_path / "store"))
    snapshots = Snapshots(log, store.storage, SnapshotSettings(holdout_share=0.1))
    snapshot = snapshots.fresh("train", "train", at(100), None)
    register(Registry(store, "ranker"), snapshot, 0)
    names = snapshots.table(snapshot).column(EVENT_ID).to_pylist()
    assert {name.partition("#")[0] for name in names} == {"0.parquet", "copy.parquet"}
    assert all(says(versions_with(store, name), through=False) == {"ranker:1.0"} for name in names)


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    write_day(tmp_path / "events", 0)
    log, store = log_of(tmp_path / "events"), Store(root=str(tmp_path / "store"))
    snapshots = Snapshots(log, store.storage, SnapshotSettings(holdout_share=0.3))
    snapshot = snapshots.fresh("train", "train", at(100), None)
    name = f"snapshots/{snapshot.digest}.json"
    manifest = store.storage.read_json(name)
    store.storage.write_json(name, {k: v for k, v in manifest.items() if k not in ("indexes", "cut_off")})
    registry = Registry(store, "ranker")
    register(registry, snapshot, 0)
    register(registry, dataclasses.replace(snapshot, digest="gone"), 1)
    answer = versions_with(store, "e1")
    assert (answer.places, answer.not_indexed, answer.lost) == ((), ("0.parquet",), ("gone",))


def test_a_merged_index_can_be_deleted_and_one_of_a_file_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "WAYS", 2)
    for day in range(4):
        write_day(tmp_path / "events", day)
    log, store = log_of(tmp_path / "events"), Store(root=str(tmp_path / "store"))
    snapshots = Snapshots(log, store.storage, SnapshotSettings(holdout_share=0.3))
    snapshot = snapshots.fresh("train", "train", at(400), None)
    register(Registry(store, "ranker"), snapshot, 0)
    event = snapshots.table(snapshot).column(EVENT_ID)[0].as_py()
    answer = versions_with(store, event)
    assert answer.places
    shutil.rmtree(Path(store.root, "rows", "merged"))
    assert versions_with(store, event) == answer
    shutil.rmtree(Path(store.root, "rows"))
    with pytest.raises(StoreError, match=r"rows/.* is not there"):
        versions_with(store, event)


def test_a_snapshot_indexes_each_file_once_and_only_what_is_trained_on(tmp_path: Path) -> None:
    write_day(tmp_path / "events", 0)
    log, store = log_of(tmp_path / "events"), Store(root=str(tmp_path / "store"))
    snapshots = Snapshots(log, store.storage, SnapshotSettings(holdout_share=0.3, max_rows=10), seed=5)
    snapshots.fresh("holdout", "holdout", at(100), None)
    assert store.storage.names("rows") == []
    snapshot = snapshots.fresh("train", "train", at(100), None)
    (name,) = store.storage.names("rows")
    before = Path(store.storage.path(name)).stat().st_mtime_ns
    Snapshots(log, store.storage, SnapshotSettings(holdout_share=0.3)).fresh("train", "train", at(100), None)
    assert Path(store.storage.path(name)).stat().st_mtime_ns == before
    store.storage.delete(cache_name(snapshot.digest))
    assert snapshots.table(snapshot).num_rows == 10


def test_a_store_in_s3_is_asked_alike(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes are written there, merged there and read from there; the events and the cache are gone by then."""
    monkeypatch.setattr(segments, "WAYS", 3)
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    stores = [Store(root=f"{s3}/store", url=url), Store(root=str(tmp_path / "store"))]
    direct: dict[str, set[str]] = defaultdict(set)
    for store in stores:
        shutil.rmtree(tmp_path / "events", ignore_errors=True)
        for day in range(3):
            write_day(tmp_path / "events", day)
        log, registry = log_of(tmp_path / "events"), Registry(store, "ranker")
        snapshots = Snapshots(log, store.storage, SnapshotSettings(holdout_share=0.3), seed=1)
        for i, snapshot in enumerate(frozen(snapshots, log, tmp_path / "events")):
            name = f"ranker:{register(registry, snapshot, i, f'1.{i - 1}' if 0 < i < 3 else None)}"
            if store is stores[0]:
                for event in snapshots.table(snapshot).column(EVENT_ID).to_pylist():
                    direct[event].add(name)
        for blob in store.storage.names("cache"):
            store.storage.delete(blob)
    shutil.rmtree(tmp_path / "events")
    remote = stores[0].storage
    assert any(name.startswith("rows/merged/") for name in remote.names("rows"))
    for event in [f"e{hour}" for hour in range(0, DAYS * DAILY, 41)]:
        here, there = (versions_with(store, event) for store in stores)
        assert there == here
        assert says(there, through=False) == direct[event], event
    asked = next(iter(direct))
    before = versions_with(stores[0], asked)
    command = ["rows", asked, "--store", f"{s3}/store", "--store-url", url, "--json"]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout) == before.to_json()
    for name in remote.names("rows/merged"):
        remote.delete(name)
    assert versions_with(stores[0], asked) == before, "a merged index can be made again"
    for name in remote.names("rows"):
        remote.delete(name)
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 2
    assert "error: " in answer.output
    assert "rows/" in answer.output
