"""Equal quotas for the values of a column and for windows of time."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from cltrain.errors import ConfigError
from cltrain.memory import Stratified
from cltrain.memory.stratified import windows
from tests.memory.made import admitted, rows


def test_windows_have_equal_shares_though_the_stream_grows() -> None:
    """400 rows in the first ten days, 100 in each of the next two tens."""
    early, late = rows(0, 400, step_us=2_160_000_000), rows(400, 600, step_us=8_640_000_000)
    late = late.set_column(1, "_event_time", pa.array(np.arange(100, 300) * 8_640_000_000, late.schema.field(1).type))
    kept = admitted(Stratified(capacity_rows=60, every="10d"), [early, late])
    days = np.asarray(kept.column("_event_time").cast(pa.int64())) / 86_400e6
    assert np.bincount((days // 10).astype(int)).tolist() == [20, 20, 20]


def test_a_column_of_texts_or_numbers_with_nulls() -> None:
    shops = ["a"] * 80 + ["b"] * 15 + [None] * 5
    events = rows(0, 100).append_column("shop", pa.array(shops)).append_column("floor", pa.array([1.0, 2.0] * 50))
    by_shop = Stratified(by="shop", capacity_rows=30).admit(None, events).column("shop").to_pylist()
    assert Counter(by_shop)[None] == 5
    assert sorted(Counter(by_shop)[shop] for shop in "ab") == [12, 13]
    assert Counter(Stratified(by="floor", capacity_rows=10).admit(None, events)["floor"].to_pylist()) == {
        1.0: 5,
        2.0: 5,
    }


def test_a_column_that_only_new_rows_have() -> None:
    memory = Stratified(by="shop", capacity_rows=20)
    first = Stratified(capacity_rows=20).admit(None, rows(0, 50))
    kept = memory.admit(first, rows(50, 100).append_column("shop", pa.array(["a"] * 50)))
    assert Counter(kept["shop"].to_pylist()) == {None: 10, "a": 10}


def test_more_values_than_places_are_drawn_evenly() -> None:
    kept = Stratified(by="_event_id", capacity_rows=10).admit(None, rows(0, 100))
    assert kept.num_rows == 10


def test_windows_before_1970_are_as_long() -> None:
    assert windows(np.array([-8, -7, -1, 0, 6, 7]), timedelta(microseconds=7)).tolist() == [-2, -1, -1, 0, 0, 1]


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"memory\.by=shop: no such column; there are: _event_id"):
        Stratified(by="shop").admit(None, rows(0, 10))
    with pytest.raises(ConfigError, match="'weekly' is not a duration"):
        Stratified(every="weekly")
    with pytest.raises(ConfigError, match=r"memory\.by is not set"):
        Stratified(by="")
