"""The reservoir: uniform, mergeable, and of one salt for a whole lineage."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cltrain.data.holdout import is_held_out
from cltrain.errors import ConfigError, UpdateError
from cltrain.memory import Reservoir
from cltrain.memory.reservoir import KEY
from cltrain.records import EVENT_ID
from cltrain.seeding import hash_ids


def rows(start: int, stop: int, name: str = "row") -> pa.Table:
    return pa.table({EVENT_ID: [f"{name}-{i}" for i in range(start, stop)], "x": np.arange(start, stop, dtype=float)})


def admitted(memory: Reservoir, parts: list[pa.Table]) -> pa.Table:
    kept = None
    for part in parts:
        kept = memory.admit(kept, part)
    assert kept is not None
    return kept


def test_every_position_is_kept_equally_often() -> None:
    """Chi-square over 10 equal stretches of a stream that came in uneven parts, for 60 lineages."""
    counts = np.zeros(10)
    for salt in range(60):
        parts = [rows(0, 50), rows(50, 700), rows(700, 701), rows(701, 1_000)]
        kept = admitted(Reservoir(capacity_rows=100, salt=salt), parts)
        assert kept.num_rows == 100
        counts += np.bincount((np.asarray(kept.column("x")) // 100).astype(int), minlength=10)
    expected = 60 * 10
    assert ((counts - expected) ** 2 / expected).sum() < 27.9, "9 degrees of freedom, p = 0.001"


def test_every_position_is_kept_equally_often_in_any_order_and_split() -> None:
    """Chi-square over 20 places of a stream that is shuffled and cut by chance in each of 60 lineages."""
    counts = np.zeros(20)
    for salt in range(60):
        generator = np.random.default_rng(salt)
        events = rows(0, 1_000).take(generator.permutation(1_000))
        edges = [0, *sorted(generator.integers(0, 1_000, 6).tolist()), 1_000]
        kept = admitted(Reservoir(capacity_rows=100, salt=salt), [events.slice(a, b - a) for a, b in pairwise(edges)])
        place = np.empty(1_000, int)
        place[np.asarray(events.column("x")).astype(int)] = np.arange(1_000)
        counts += np.bincount(place[np.asarray(kept.column("x")).astype(int)] // 50, minlength=20)
    expected = 60 * 100 / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8, "19 degrees of freedom, p = 0.001"


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=5), capacity=st.integers(0, 350), again=st.integers(0, 250))
def test_parts_give_what_the_whole_gives(cuts: list[int], capacity: int, again: int) -> None:
    """Whatever the parts and their order, and though some rows are offered twice."""
    memory = Reservoir(capacity_rows=capacity)
    edges = [0, *sorted(cuts), 300]
    parts = [rows(a, b) for a, b in pairwise(edges)]
    whole = memory.admit(None, rows(0, 300))
    assert whole.num_rows == min(capacity, 300)
    assert admitted(memory, [*parts, rows(again, again + 50)]).equals(whole)
    assert admitted(memory, parts[::-1]).equals(whole)


def test_a_row_offered_again_is_kept_once_and_as_it_is_now() -> None:
    memory = Reservoir(capacity_rows=5)
    first = memory.admit(None, pa.concat_tables([rows(0, 5), rows(0, 5)]))
    assert sorted(first.column(EVENT_ID).to_pylist()) == [f"row-{i}" for i in range(5)]
    corrected = rows(0, 5).set_column(1, "x", pa.array([9.0] * 5))
    again = memory.admit(first, corrected)
    assert again.column("x").to_pylist() == [9.0] * 5
    assert again.column(EVENT_ID).equals(first.column(EVENT_ID))


def test_the_key_of_a_row_does_not_change_along_a_lineage() -> None:
    memory = Reservoir(capacity_rows=50)
    early, late = (memory.admit(memory.admit(None, rows(0, n)), rows(0, 1_000)) for n in (10, 900))
    assert early.equals(late)


def test_keys_are_independent_of_the_hold_out_and_of_other_salts() -> None:
    """Of rows that are never held out, and of the smallest by a snapshot's salt, the same share is kept as of all."""
    ids = pa.array([f"part-{i // 1000}.parquet#{i % 1000}" for i in range(40_000)])
    keys = np.empty(len(ids))
    kept = Reservoir(capacity_rows=len(ids)).admit(None, pa.table({EVENT_ID: ids, "place": np.arange(len(ids))}))
    keys[np.asarray(kept.column("place"))] = np.asarray(kept.column(KEY))
    for subset in (~is_held_out(ids, 0.1), *(hash_ids(ids, salt) < 0.3 for salt in (0, 1, 2))):
        share = (keys[subset] < 0.1).mean()
        assert abs(share - 0.1) < 4.5 * (0.1 * 0.9 / subset.sum()) ** 0.5


def test_columns_of_both_tables_are_kept() -> None:
    memory = Reservoir(capacity_rows=10)
    first = memory.admit(None, rows(0, 2).append_column("old", pa.array(["a", "b"])))
    both = memory.admit(first, rows(2, 4).append_column("new", pa.array([1.0, 2.0])))
    assert set(both.column_names) == {EVENT_ID, "x", "old", "new", KEY}
    by_x = {r["x"]: r for r in both.to_pylist()}
    assert (by_x[0.0]["old"], by_x[0.0]["new"], by_x[3.0]["old"], by_x[3.0]["new"]) == ("a", None, None, 2.0)


def test_a_column_that_changed_its_type_is_refused() -> None:
    memory = Reservoir(capacity_rows=10)
    first = memory.admit(None, rows(0, 2))
    with pytest.raises(UpdateError, match="do not fit the memory"):
        memory.admit(first, rows(2, 4).set_column(1, "x", pa.array(["a", "b"])))


def test_the_inputs_are_left_alone_and_capacity_can_shrink() -> None:
    first = Reservoir(capacity_rows=20).admit(None, rows(0, 100))
    copy = first.slice(0)
    smaller = Reservoir(capacity_rows=5).admit(first, rows(100, 110))
    assert first.equals(copy)
    assert smaller.num_rows == 5
    assert smaller.equals(Reservoir(capacity_rows=5).admit(None, rows(0, 110)))


def test_ranges() -> None:
    with pytest.raises(ConfigError, match=r"memory\.capacity_rows must be 0 or more"):
        Reservoir(capacity_rows=-1)
