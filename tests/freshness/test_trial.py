"""Rows of a training, and slices of an evaluation window."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from cltrain.clock import to_us
from cltrain.data.holdout import is_held_out
from cltrain.freshness.trial import slice_of, slices_of, trainable_times, training_rows
from cltrain.records import EVENT_ID, EVENT_TIME, LABEL, LABEL_TIME

START = datetime(2024, 1, 1, tzinfo=UTC)
STAMP = pa.timestamp("us", tz="UTC")


def table(rows: int = 200, late_h: int = 5, name: str = "a") -> pa.Table:
    """An event an hour, whose label comes `late_h` hours later; every tenth never gets one."""
    times = [START + timedelta(hours=i) for i in range(rows)]
    never = [i % 10 == 9 for i in range(rows)]
    known = [None if lost else t + timedelta(hours=late_h) for t, lost in zip(times, never, strict=True)]
    return pa.table(
        {
            EVENT_ID: [f"{name}{i}" for i in range(rows)],
            EVENT_TIME: pa.array(times, STAMP),
            LABEL_TIME: pa.array(known, STAMP),
            LABEL: pa.array([None if lost else 1.0 for lost in never], pa.float64()),
            "shop": [None if i % 50 == 0 else "abcd"[i % 4] for i in range(rows)],
            "size": pa.array([float(i) for i in range(rows)], pa.float64()),
        }
    )


def test_no_row_is_trained_on_before_its_label_was_known() -> None:
    now = START + timedelta(hours=100)
    found = training_rows([table()], since=None, until=to_us(now), count=10_000, holdout_share=0.2, salt=0)
    assert max(found.column(LABEL_TIME).to_pylist()) < now
    assert found.column(LABEL).null_count == 0
    assert not is_held_out(found.column(EVENT_ID), 0.2).any()
    assert found.num_rows == np.searchsorted(trainable_times(table(), 0.2), to_us(now)), "as many as were counted"


def test_an_update_has_what_became_known_since() -> None:
    since, now = START + timedelta(hours=50), START + timedelta(hours=100)
    found = training_rows([table()], since=to_us(since), until=to_us(now), count=10_000, holdout_share=0.1, salt=0)
    assert since <= min(found.column(LABEL_TIME).to_pylist()) <= max(found.column(LABEL_TIME).to_pylist()) < now


def test_rows_are_drawn_down_to_the_count_from_all_times() -> None:
    tables, late = [table(name="a"), table(name="b")], to_us(START + timedelta(days=30))
    found = training_rows(tables, since=None, until=late, count=100, holdout_share=0.1, salt=3)
    again = training_rows(tables, since=None, until=late, count=100, holdout_share=0.1, salt=3)
    other = training_rows(tables, since=None, until=late, count=100, holdout_share=0.1, salt=4)
    assert found.num_rows == 100
    assert found.equals(again)
    assert not found.equals(other)
    assert 70 < np.mean(found.column("size").to_pylist()) < 130
    assert {i[0] for i in found.column(EVENT_ID).to_pylist()} == {"a", "b"}


def test_slices_are_the_commonest_values_or_quarters() -> None:
    rows = table()
    shops = slices_of([rows], "shop", 3)
    assert shops["names"] == ["shop = b", "shop = d", "shop = a"]
    place = slice_of(rows, shops)
    for i, value in enumerate("bda"):
        assert set(np.array(rows.column("shop").to_pylist(), object)[place == i]) == {value}
    assert place[0] == 3, "null is in no slice"
    sizes = slices_of([rows], "size", 3)
    assert len(sizes["names"]) == 4
    assert sizes["names"][0] == "size < 49.75"
    assert sizes["names"][1] == "49.75 ≤ size < 99.5"
    assert np.bincount(slice_of(rows, sizes)).tolist() == [50, 50, 50, 50]


@pytest.mark.parametrize("value", [7.0])
def test_a_column_of_one_value_is_one_slice_or_two(value: float) -> None:
    rows = table().set_column(5, "size", pa.array([value] * 200))
    slices = slices_of([rows], "size", 3)
    assert set(slice_of(rows, slices)) <= set(range(len(slices["names"])))
