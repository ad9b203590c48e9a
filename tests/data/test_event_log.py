"""The log over tables that nobody prepared."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cltrain.clock import from_us
from cltrain.data.event_log import EventLog
from cltrain.errors import DataError, DigestError, LabelError, SchemaError
from cltrain.records import EVENT_ID

Events = Callable[..., pa.Table]
Write = Callable[..., Path]
LogOf = Callable[..., EventLog]
ALL = (from_us(-(10**16)), from_us(10**16))


def hours(count: float) -> datetime:
    return from_us(0) + timedelta(hours=count)


def rows(log: EventLog) -> pa.Table:
    return pa.concat_tables(log.between(*ALL))


def test_a_log_knows_its_first_event_its_end_and_counts(events: Events, write: Write, log_of: LogOf) -> None:
    for day in range(3):
        write(events(24, first=24 * day), f"{day}.parquet")
    log = log_of()
    assert (log.first(), log.end()) == (hours(0), hours(71) + timedelta(microseconds=1))
    assert log.count(hours(0), hours(72)) == 72
    assert log.count(hours(10), hours(30)) == 20
    assert log.count(hours(100), hours(200)) == 0


def test_a_window_by_count_ends_right_after_its_last_event(events: Events, write: Write, log_of: LogOf) -> None:
    write(events(10, first=10), "late.parquet")
    write(events(10), "early.parquet")
    log = log_of()
    assert log.nth_after(hours(0), 1) == hours(0) + timedelta(microseconds=1)
    assert log.nth_after(hours(3), 12) == hours(14) + timedelta(microseconds=1)
    assert log.nth_after(hours(0), 20) == log.end()
    assert log.nth_after(hours(0), 21) is None
    assert log.nth_after(hours(0), 20, now=hours(19)) is None


def test_times_unsorted_within_and_across_files_are_read_all_the_same(
    events: Events, write: Write, log_of: LogOf
) -> None:
    table = events(200_000)
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(200_000)))
    write(shuffled.slice(0, 150_000), "a.parquet", row_group_size=70_000)
    write(shuffled.slice(150_000), "b.parquet")
    log = log_of()
    assert (log.first(), log.end()) == (hours(0), hours(199_999) + timedelta(microseconds=1))
    assert log.nth_after(hours(5), 1000) == hours(1004) + timedelta(microseconds=1)
    assert log.count(hours(1000), hours(2000)) == 1000


@pytest.mark.parametrize("kind", ["not parquet", "cut", "empty", "page"])
def test_a_corrupt_file_is_set_aside_and_named_and_the_others_go_on(
    kind: str, events: Events, write: Write, log_of: LogOf, caplog: pytest.LogCaptureFixture
) -> None:
    write(events(24), "good.parquet")
    broken = write(events(24, first=24), "broken.parquet") / "broken.parquet"
    data = broken.read_bytes()
    damaged = bytearray(data)
    damaged[4:200] = os.urandom(196)
    broken.write_bytes({"not parquet": b"hello", "cut": data[:-20], "empty": b"", "page": bytes(damaged)}[kind])
    log = log_of()
    assert list(log.files) == ["good.parquet"]
    assert list(log.set_aside) == ["broken.parquet"]
    assert log.set_aside["broken.parquet"]
    assert "set aside broken.parquet" in caplog.text
    assert log.refresh() == [], "and it is not tried again while it stays the same"
    broken.write_bytes(data)
    assert log.refresh() == ["broken.parquet"], "but when it has changed"
    assert not log.set_aside
    assert log.count(*ALL) == 48


def test_only_corrupt_files_are_one_clear_error(tmp_path: Path, log_of: LogOf) -> None:
    (tmp_path / "a.parquet").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"none of 1 file\(s\) can be read; the first says: "):
        log_of(tmp_path)


def test_a_misspelt_column_is_one_clear_error(events: Events, write: Write, log_of: LogOf) -> None:
    write(events(3))
    with pytest.raises(SchemaError, match=r"data.label=z: no such column; the table has: at, x, kind, y"):
        log_of(label="z")


def test_a_label_that_is_not_binary_names_the_file(events: Events, write: Write, log_of: LogOf) -> None:
    write(events(3, y=[0, 1, 2]))
    with pytest.raises(LabelError, match=r"a.parquet: data.label=y holds 2.0, but a binary label is 0 or 1"):
        log_of()
    with pytest.raises(LabelError, match=r"events/a.parquet: data.label=y holds 2.0"):
        log_of(write(events(3, y=[0, 1, 2])) / "a.parquet")


def test_later_a_file_with_wrong_labels_is_set_aside(events: Events, write: Write, log_of: LogOf) -> None:
    write(events(3))
    log = log_of()
    write(events(3, y=[0, 1, 2]), "b.parquet")
    assert log.refresh() == []
    assert "a binary label is 0 or 1" in log.set_aside["b.parquet"]


def test_a_misspelt_positive_label_is_not_taken_as_all_negative(events: Events, write: Write, log_of: LogOf) -> None:
    write(events(3, y=["yes", "no", None]))
    with pytest.raises(LabelError, match=r"no label equals data.positive=Yes: data.label=y holds 'yes', 'no'"):
        log_of(positive="Yes")
    assert log_of(positive="yes").first() == hours(0)


def test_files_without_rows_are_fine_beside_others_and_an_error_alone(
    events: Events, write: Write, log_of: LogOf
) -> None:
    write(events(0), "0.parquet")
    with pytest.raises(DataError, match=r"none of the 0 row\(s\) in 1 file\(s\) has a time in data.event_time=at"):
        log_of()
    write(events(3), "1.parquet")
    assert log_of().count(*ALL) == 3


def test_rows_that_have_no_time_are_counted(
    events: Events, write: Write, log_of: LogOf, caplog: pytest.LogCaptureFixture
) -> None:
    known = pa.array([hours(1), None, None, hours(0)], pa.timestamp("us", tz="UTC"))
    table = events(4, known=known, y=pa.array([1, 0, None, 1]))
    write(table.set_column(0, "at", pa.array([None, hours(1), hours(2), hours(3)])))
    log = log_of(label_time="known")
    assert log.bad_rows == 2, "one has no event time, one a label that nobody knows the time of"
    assert log.count(*ALL) == 2
    assert "2 row(s) have no event time, or a label but no label time" in caplog.text


def test_times_that_no_calendar_has_are_bad(events: Events, write: Write, log_of: LogOf) -> None:
    write(events(3).set_column(0, "at", pa.array([0, 9 * 10**18, -(9 * 10**18)], pa.timestamp("us"))))
    log = log_of()
    assert (log.bad_rows, log.first()) == (2, hours(0))


def test_labels_that_nobody_has_yet_are_worth_a_warning(
    events: Events, write: Write, log_of: LogOf, caplog: pytest.LogCaptureFixture
) -> None:
    write(events(3, y=pa.nulls(3)))
    assert log_of().count(*ALL) == 3
    assert "no event has a label: data.label=y is null everywhere" in caplog.text


def test_files_may_differ_in_order_and_types_of_columns(events: Events, write: Write, log_of: LogOf) -> None:
    plain = events(2, code=pa.array([1, 2], pa.int64()), flag=[True, False])
    write(plain, "0.parquet")
    other = events(
        2,
        first=2,
        code=pa.array([3.0, None]),
        flag=[True, None],
        kind=pa.array(["a", "b"]).dictionary_encode(),
    )
    other = other.set_column(3, "y", pa.array([1.0, None])).set_column(1, "x", pa.array([1, 2], pa.int32()))
    write(other.select(["y", "flag", "code", "kind", "x", "at"]), "1.parquet")
    found = rows(log_of(categorical=("code",)))
    assert found.column("code").to_pylist() == ["1", "2", "3", None]
    assert found.column("flag").to_pylist() == ["true", "false", "true", None]
    assert found.column("x").to_pylist()[2:] == [1.0, 2.0]
    assert found.column("_label").to_pylist() == [0.0, 1.0, 1.0, None]


def test_a_column_that_a_file_lacks_is_null_there_wherever_the_file_stands(
    events: Events, write: Write, log_of: LogOf, caplog: pytest.LogCaptureFixture
) -> None:
    write(events(2, more=[1.5, 2.5]), "1.parquet")
    write(events(2, first=2).drop_columns(["x"]), "0.parquet")
    write(events(2, first=4, more=pa.nulls(2)), "2.parquet")
    log = log_of()
    assert not log.set_aside
    assert rows(log).sort_by("_event_time").column("more").to_pylist() == [1.5, 2.5, None, None, None, None]
    assert "0.parquet lacks column x" in caplog.text


def test_a_column_that_comes_later_is_not_used(
    events: Events, write: Write, log_of: LogOf, caplog: pytest.LogCaptureFixture
) -> None:
    write(events(2), "0.parquet")
    log = log_of()
    write(events(2, more=[1.5, 2.5]), "1.parquet")
    assert log.refresh() == ["1.parquet"]
    assert "more" not in rows(log).column_names
    assert "1.parquet has new columns, which are not used: more" in caplog.text


def test_a_column_that_turns_from_number_to_text_sets_its_file_aside(
    events: Events, write: Write, log_of: LogOf
) -> None:
    write(events(2), "0.parquet")
    write(events(2, first=2, x=["1.5", "2.5"]), "1.parquet")
    write(events(2, first=4, x=["few", "many"]), "2.parquet")
    log = log_of()
    assert rows(log).column("x").to_pylist()[2:] == [1.5, 2.5], "text that holds numbers is read"
    assert "column x was numeric and is now string" in log.set_aside["2.parquet"]


def test_an_excluded_column_need_not_be_in_every_file(events: Events, write: Write, log_of: LogOf) -> None:
    write(events(2, secret=[1, 2]), "0.parquet")
    write(events(2), "1.parquet")
    log = log_of(exclude=("secret",))
    assert not log.set_aside
    assert "secret" not in rows(log).column_names


def test_a_file_without_the_label_column_is_set_aside(events: Events, write: Write, log_of: LogOf) -> None:
    write(events(2), "1.parquet")
    write(events(2).drop_columns(["y"]), "0.parquet")
    assert log_of().set_aside == {"0.parquet": "0.parquet lacks column y; it has: at, x, kind"}


def test_a_role_may_be_a_folder(events: Events, write: Write, log_of: LogOf) -> None:
    table = events(2).drop_columns(["at"])
    write(table, "at=2024-01-31/0.parquet")
    write(table, "at=2024-02-01/0.parquet")
    assert log_of().first() == datetime(2024, 1, 31, tzinfo=UTC)


def test_ids_made_from_file_and_row_do_not_depend_on_parts(events: Events, write: Write, log_of: LogOf) -> None:
    write(events(150_000), row_group_size=50_000)
    found = next(iter(log_of().between(hours(149_999), hours(150_000))))
    assert found.column(EVENT_ID).to_pylist() == ["a.parquet#149999"]


def test_a_file_that_is_altered_or_gone_is_named(events: Events, write: Write, log_of: LogOf) -> None:
    folder = write(events(100))
    log = log_of()
    write(events(101))
    with pytest.raises(DigestError, match=r"a.parquet was altered after it was read.*add new ones"):
        rows(log)
    (folder / "a.parquet").unlink()
    with pytest.raises(DataError, match=r"a.parquet could be read at first and cannot now"):
        rows(log)


def test_a_file_that_is_only_touched_is_the_same(events: Events, write: Write, log_of: LogOf) -> None:
    folder = write(events(100))
    log = log_of()
    os.utime(folder / "a.parquet", (0, 0))
    assert len(rows(log)) == 100


def test_a_sentinel_of_the_far_future_is_a_label_not_yet_known(events: Events, write: Write, log_of: LogOf) -> None:
    never = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    write(events(3, known=pa.array([hours(1), never, hours(2)], pa.timestamp("us", tz="UTC"))))
    log = log_of(label_time="known")
    assert (log.bad_rows, log.count(*ALL)) == (0, 3)
