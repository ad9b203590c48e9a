"""Snapshots: each row in one round, the same rows for ever, named by their content."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cltrain.clock import from_us
from cltrain.data.event_log import EventLog
from cltrain.data.parquet import ParquetSource
from cltrain.data.snapshot import Rule, Snapshots, SnapshotSettings, cache_name, read_rows
from cltrain.errors import ConfigError, DigestError, StoreError
from cltrain.records import EVENT_ID, EVENT_TIME, LABEL_TIME
from cltrain.storage import Storage

HOUR = 3_600_000_000
Write = Callable[..., Path]
Events = Callable[..., pa.Table]


def make_log(folder: Path) -> EventLog:
    return EventLog(
        ParquetSource(
            path=str(folder),
            event_time="at",
            label="y",
            label_time="known",
            event_id="id",
            time_features=False,
        )
    )


def labelled_events(ids: list[str], at: list[int], known: list[int | None]) -> pa.Table:
    stamp = pa.timestamp("us")
    hours = [None if k is None else k * HOUR for k in known]
    return pa.table(
        {
            "id": ids,
            "at": pa.array([a * HOUR for a in at], stamp),
            "known": pa.array(hours, stamp),
            "y": pa.array([None if k is None else i % 2 for i, k in enumerate(known)], pa.int64()),
            "x": np.arange(len(ids)) * 1.0,
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """2000 events, one an hour, with labels up to 99 hours late, or before the event, and some that never come."""
    generator = np.random.default_rng(0)
    delays = generator.integers(-10, 100, 2000)
    known = [None if i % 20 == 0 else int(i + delay) for i, delay in enumerate(delays)]
    for day in range(20):
        part = range(day * 100, day * 100 + 100)
        path = tmp_path / "events" / f"{day:02d}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(labelled_events([f"e{i}" for i in part], list(part), [known[i] for i in part]), path)
    return tmp_path / "events"


def snapshots_of(folder: Path, store: Path, **options: object) -> Snapshots:
    return Snapshots(make_log(folder), Storage(store), SnapshotSettings(**options))  # type: ignore[arg-type]


def ids(table: pa.Table) -> list[str]:
    return table.column(EVENT_ID).to_pylist()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.one_of(st.none(), st.integers(-5, 60)), st.integers(0, 3)),
        min_size=1,
        max_size=60,
    ),
    st.lists(st.integers(1, 45), min_size=1, max_size=6, unique=True),
)
def test_each_labelled_row_comes_to_exactly_one_round(rows: list[tuple[int, int | None, int]], cuts: list[int]) -> None:
    """Rows are (event hour, label delay or never, round before which their file appears)."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "events")
        folder.mkdir()
        log: EventLog | None = None
        cursor, come = None, Counter[str]()
        for number, end in enumerate(sorted(cuts)):
            new = [(i, at, delay) for i, (at, delay, appears) in enumerate(rows) if appears == number]
            if new:
                known = [None if d is None else at + d for _, at, d in new]
                table = labelled_events([f"e{i}" for i, *_ in new], [at for _, at, _ in new], known)
                pq.write_table(table, folder / f"{9 - number}.parquet")
            if log is None and not new:
                continue
            if log is None:
                log = make_log(folder)
                snapshots = Snapshots(log, Storage(Path(place, "store")), SnapshotSettings(holdout_share=0.3))
            log.refresh()
            until = from_us(end * HOUR)
            found = {
                split: ids(snapshots.table(snapshots.fresh("fresh", split, until, cursor)))  # type: ignore[arg-type]
                for split in ("all", "train", "holdout")
            }
            assert Counter(found["all"]) == Counter(found["train"] + found["holdout"])
            come.update(found["all"])
            cursor = snapshots.cursor(until)
            expected = {
                f"e{i}"
                for i, (at, delay, appears) in enumerate(rows)
                if appears <= number and delay is not None and max(at, at + delay) < end
            }
            assert come == Counter(dict.fromkeys(expected, 1)), "nothing lost, nothing twice, nothing before its time"


def test_late_labels_are_counted_and_come_with_a_later_round(folder: Path, tmp_path: Path) -> None:
    snapshots = snapshots_of(folder, tmp_path / "store")
    first = snapshots.fresh("arrived", "all", from_us(1000 * HOUR), None)
    second = snapshots.fresh("arrived", "all", from_us(1500 * HOUR), snapshots.cursor(from_us(1000 * HOUR)))
    rows = snapshots.table(second)
    early = np.asarray(rows.column(EVENT_TIME).cast(pa.int64())) < 1000 * HOUR
    assert first.late_rows == 0
    assert second.late_rows == early.sum() > 0
    assert np.all(np.asarray(rows.column(LABEL_TIME).cast(pa.int64())) < 1500 * HOUR)
    assert not set(ids(rows)) & set(ids(snapshots.table(first)))


def test_a_window_without_rows_is_an_empty_table(folder: Path, tmp_path: Path) -> None:
    snapshots = snapshots_of(folder, tmp_path / "store")
    empty = snapshots.between("holdout", "holdout", from_us(10**16), from_us(9 * 10**15), from_us(10**16))
    assert (empty.rows, snapshots.table(empty).num_rows) == (0, 0)
    assert snapshots.table(empty).schema == make_log(folder).schema.arrow
    before = snapshots.fresh("train", "train", from_us(0), None)
    assert before.rows == 0


def test_held_out_rows_are_never_trained_on_and_are_the_share_that_was_asked(folder: Path, tmp_path: Path) -> None:
    snapshots = snapshots_of(folder, tmp_path / "store", holdout_share=0.25)
    end = from_us(3000 * HOUR)
    train, held = (set(ids(snapshots.table(snapshots.fresh("a", s, end, None)))) for s in ("train", "holdout"))  # type: ignore[arg-type]
    assert not train & held
    assert len(train) + len(held) == 1900
    assert 0.2 < len(held) / 1900 < 0.3
    other = Snapshots(make_log(folder), Storage(tmp_path / "b"), SnapshotSettings(holdout_share=0.25), seed=7)
    assert held == set(ids(other.table(other.fresh("a", "holdout", end, None)))), "whatever the seed"


def test_excluded_windows_are_not_trained_on_but_still_seen(folder: Path, tmp_path: Path) -> None:
    snapshots = snapshots_of(folder, tmp_path / "store")
    snapshots.excluded = ((100 * HOUR, 200 * HOUR),)
    end = from_us(3000 * HOUR)
    times = np.asarray(snapshots.table(snapshots.fresh("a", "train", end, None)).column(EVENT_TIME).cast(pa.int64()))
    assert not ((times >= 100 * HOUR) & (times < 200 * HOUR)).any()
    assert (times < 100 * HOUR).any()
    assert (times >= 200 * HOUR).any()
    assert snapshots.fresh("a", "all", end, None).rows == 1900


def test_the_digest_is_of_the_content_and_not_of_the_place(folder: Path, tmp_path: Path) -> None:
    end = from_us(1500 * HOUR)
    digest = snapshots_of(folder, tmp_path / "store").fresh("a", "train", end, None).digest
    moved = tmp_path / "elsewhere" / "deep"
    shutil.copytree(folder, moved)
    assert snapshots_of(moved, tmp_path / "other").fresh("a", "train", end, None).digest == digest
    assert snapshots_of(folder, tmp_path / "c").fresh("a", "train", from_us(1501 * HOUR), None).digest != digest
    assert snapshots_of(folder, tmp_path / "d", holdout_share=0.2).fresh("a", "train", end, None).digest != digest
    pq.write_table(pq.read_table(moved / "03.parquet").slice(1), moved / "03.parquet")
    assert snapshots_of(moved, tmp_path / "e").fresh("a", "train", end, None).digest != digest


def test_rows_decoded_again_are_the_same(folder: Path, tmp_path: Path) -> None:
    snapshots = snapshots_of(folder, tmp_path / "store", max_rows=300)
    cursor = snapshots.cursor(from_us(500 * HOUR))
    made = snapshots.fresh("a", "train", from_us(1500 * HOUR), cursor)
    rows = snapshots.table(made)
    bytes_ = (tmp_path / "store" / cache_name(made.digest)).read_bytes()
    shutil.rmtree(tmp_path / "store" / "cache")
    later = snapshots_of(folder, tmp_path / "store")
    assert later.table(made).equals(rows)
    assert (tmp_path / "store" / cache_name(made.digest)).read_bytes() == bytes_
    assert read_rows(Storage(tmp_path / "store"), made.digest).equals(rows), "what workers read"


def test_rows_decoded_again_have_the_columns_of_their_time(folder: Path, tmp_path: Path) -> None:
    made = snapshots_of(folder, tmp_path / "store").fresh("a", "train", from_us(1500 * HOUR), None)
    shutil.rmtree(tmp_path / "store" / "cache")
    table = labelled_events(["n"], [2000], [2001]).append_column("new", pa.array([1.5]))
    pq.write_table(table, folder / "new.parquet")
    later = snapshots_of(folder, tmp_path / "store")
    assert "new" in later.table(later.fresh("b", "all", from_us(9000 * HOUR), None)).column_names
    assert "new" not in later.table(made).column_names


def test_a_damaged_cache_is_decoded_again(folder: Path, tmp_path: Path) -> None:
    snapshots = snapshots_of(folder, tmp_path / "store")
    made = snapshots.fresh("a", "train", from_us(1500 * HOUR), None)
    rows = snapshots.table(made).to_pydict()
    (tmp_path / "store" / cache_name(made.digest)).write_bytes(b"ARROW1 and nothing more")
    assert snapshots.table(made).to_pydict() == rows


def test_an_altered_or_missing_file_is_named(folder: Path, tmp_path: Path) -> None:
    made = snapshots_of(folder, tmp_path / "store").fresh("a", "train", from_us(1500 * HOUR), None)
    shutil.rmtree(tmp_path / "store" / "cache")
    pq.write_table(labelled_events(["x"], [300], [301]), folder / "03.parquet")
    with pytest.raises(
        DigestError, match=rf"03.parquet is not the file that snapshot {made.digest[:12]} was made from"
    ):
        snapshots_of(folder, tmp_path / "store").table(made)
    (folder / "03.parquet").unlink()
    with pytest.raises(StoreError, match=r"03.parquet, from which snapshot .* is gone or cannot be read: restore it"):
        snapshots_of(folder, tmp_path / "store").table(made)


def test_an_unknown_snapshot_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no snapshot 123456"):
        snapshots_of(folder, tmp_path / "store").rebuild("123456")


def test_a_sample_is_uniform_keeps_the_order_and_does_not_depend_on_pieces(folder: Path, tmp_path: Path) -> None:
    end = from_us(3000 * HOUR)
    whole = ids(
        snapshots_of(folder, tmp_path / "a").table(snapshots_of(folder, tmp_path / "a").fresh("t", "train", end, None))
    )
    capped = snapshots_of(folder, tmp_path / "b", max_rows=400)
    sample = ids(capped.table(capped.fresh("t", "train", end, None)))
    assert len(sample) == len(set(sample)) == 400
    places = [whole.index(i) for i in sample]
    assert places == sorted(places)
    assert all(60 <= count <= 140 for count in np.histogram(places, bins=4)[0])
    one = tmp_path / "one"
    one.mkdir()
    names = sorted(folder.iterdir(), reverse=True)
    pq.write_table(pa.concat_tables([pq.read_table(n) for n in names]), one / "all.parquet")
    joined = snapshots_of(one, tmp_path / "c", max_rows=400)
    assert set(ids(joined.table(joined.fresh("t", "train", end, None)))) == set(sample)
    more = snapshots_of(folder, tmp_path / "d", max_rows=10_000)
    assert ids(more.table(more.fresh("t", "train", end, None))) == whole


def test_a_large_sample_is_taken_in_bounded_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cltrain.data.snapshot.CACHE_ROWS", 50)
    (tmp_path / "events").mkdir()
    for part in range(10):
        at = list(range(part * 100, part * 100 + 100))
        pq.write_table(labelled_events([f"e{i}" for i in at], at, list(at)), tmp_path / "events" / f"{part}.parquet")
    snapshots = snapshots_of(tmp_path / "events", tmp_path / "pieces", max_rows=60)
    made = snapshots.fresh("t", "train", from_us(2000 * HOUR), None)
    found = ids(snapshots.table(made))
    monkeypatch.undo()
    whole = snapshots_of(tmp_path / "events", tmp_path / "whole", max_rows=60)
    assert found == ids(whole.table(whole.fresh("t", "train", from_us(2000 * HOUR), None)))


def test_rows_that_repeat_an_id_all_stand_on_one_side(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    table = labelled_events([f"e{i % 10}" for i in range(100)], list(range(100)), list(range(100)))
    pq.write_table(table, tmp_path / "events" / "a.parquet")
    snapshots = snapshots_of(tmp_path / "events", tmp_path / "store", holdout_share=0.5)
    end = from_us(1000 * HOUR)
    train, held = (ids(snapshots.table(snapshots.fresh("t", s, end, None))) for s in ("train", "holdout"))  # type: ignore[arg-type]
    assert len(train) + len(held) == 100
    assert not set(train) & set(held)


def test_bounds_of_event_time_are_half_open(folder: Path, tmp_path: Path) -> None:
    snapshots = snapshots_of(folder, tmp_path / "store")
    made = snapshots.between("a", "all", from_us(10**14), from_us(100 * HOUR), from_us(200 * HOUR))
    times = np.asarray(snapshots.table(made).column(EVENT_TIME).cast(pa.int64())) // HOUR
    assert sorted(times.tolist()) == [h for h in range(100, 200) if h % 20]


def test_a_disk_that_cannot_be_written_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "cache").write_text("a file where a folder should be")
    with pytest.raises(StoreError, match=r"cannot write .*cache.*check permissions and free space"):
        snapshots_of(folder, tmp_path / "store").fresh("a", "train", from_us(10**14), None)
    assert not list((tmp_path / "store").glob("snapshots/*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"holdout_share": 0.0}, "snapshot.holdout_share must be between 0 and 1, not 0.0"),
        ({"max_rows": 0}, "snapshot.max_rows must be 1 or more, not 0"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SnapshotSettings(**options)  # type: ignore[arg-type]


def test_a_part_is_skipped_only_if_it_can_hold_nothing(folder: Path) -> None:
    log = make_log(folder)
    generator = np.random.default_rng(1)
    for _ in range(50):
        low, high, start, end = generator.integers(0, 2100, 4)
        rule = Rule(
            role="a",
            split="all",
            until=int(high) * HOUR,
            after=int(low) * HOUR,
            start=int(start) * HOUR,
            end=int(end) * HOUR,
        )
        for file in log.files.values():
            for seen in (True, False):
                kept = sum(rule.by_time(roles, seen).sum() for roles, _ in log.batches(file, [0], log.schema))
                assert rule.may_hold(file.parts[0], seen) or kept == 0
