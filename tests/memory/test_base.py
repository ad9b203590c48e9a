"""What all memories have in common."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cltrain import memory as memories
from cltrain.errors import ConfigError, UpdateError
from cltrain.memory import Memory
from cltrain.memory.base import KEY, row_bytes
from cltrain.memory.herding import STANDS_FOR
from cltrain.records import EVENT_ID, EVENT_TIME, LABEL
from tests.memory.made import admitted, merged, numbers, rows, see

KINDS = [
    kind for name in memories.__all__ if issubclass(kind := getattr(memories, name), Memory) and kind is not Memory
]
SEEING = [kind for kind in KINDS if kind.sees]
MERGEABLE = [memories.Reservoir, memories.ClassBalanced, memories.Stratified, memories.Recency, memories.Ring]

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def test_all_kinds_are_here() -> None:
    assert len(KINDS) == 8
    assert [kind.__name__ for kind in SEEING] == ["Diverse", "Herding", "LossWeighted"]


@every_kind
class TestEveryKind:
    def test_no_room_is_an_empty_memory(self, kind: type[Memory]) -> None:
        for memory in (kind(capacity_rows=0), kind(capacity_bytes=0)):
            kept = admitted(memory, [rows(0, 20), rows(20, 40)])
            assert kept.num_rows == 0
            assert set(rows(0, 0).column_names) <= set(kept.column_names)

    def test_no_rows_are_an_empty_memory_and_change_nothing(self, kind: type[Memory]) -> None:
        memory = kind(capacity_rows=10)
        empty = memory.admit(None, rows(0, 0), see)
        assert empty.num_rows == 0
        full = memory.admit(empty, rows(0, 30), see)
        assert full.num_rows == 10
        assert sorted(numbers(memory.admit(full, rows(0, 0), see))) == sorted(numbers(full))

    def test_all_rows_are_kept_while_there_is_room(self, kind: type[Memory]) -> None:
        kept = admitted(kind(capacity_rows=100), [rows(0, 60), rows(60, 100)])
        assert sorted(numbers(kept)) == list(range(100))

    def test_it_repeats_and_leaves_its_inputs_alone(self, kind: type[Memory]) -> None:
        memory = kind(capacity_rows=20)
        first, fresh = memory.admit(None, rows(0, 50), see), rows(50, 90)
        before = [pa.table(table.to_pydict(), schema=table.schema) for table in (first, fresh)]
        assert memory.admit(first, fresh, see).equals(memory.admit(first, fresh, see))
        assert first.equals(before[0])
        assert fresh.equals(before[1])
        assert first.num_rows == 20

    def test_a_row_offered_again_is_kept_once_and_as_it_was_last(self, kind: type[Memory]) -> None:
        memory = kind(capacity_rows=30)
        first = memory.admit(None, pa.concat_tables([rows(0, 10), rows(0, 10)]), see)
        assert sorted(numbers(first)) == list(range(10))
        corrected = rows(0, 10).set_column(3, "x", pa.array(np.arange(10) + 0.5))
        again = memory.admit(first, corrected, see)
        assert sorted(again.column("x").to_pylist()) == (np.arange(10) + 0.5).tolist()

    def test_a_memory_of_another_kind_and_size_is_taken_over(self, kind: type[Memory]) -> None:
        held = kind(capacity_rows=40).admit(None, rows(0, 100), see)
        for other in KINDS:
            kept = other(capacity_rows=25).admit(held, rows(100, 110), see)
            assert kept.num_rows == 25
            assert len(set(numbers(kept))) == 25

    def test_columns_of_both_are_kept_as_they_are(self, kind: type[Memory]) -> None:
        memory = kind(capacity_rows=60)
        outputs = pa.array([[i, 0.5] for i in range(40)], pa.list_(pa.float32()))
        first = memory.admit(None, rows(0, 40).append_column("_outputs", outputs), see)
        both = memory.admit(first, rows(40, 100).append_column("new", pa.array([1.0] * 60)), see)
        expected = set(rows(0, 0).column_names) | {KEY, "_outputs", "new"}
        assert set(both.column_names) - {STANDS_FOR} == expected
        for row in both.to_pylist():
            old = row["x"] < 40
            assert (row["_outputs"], row["new"]) == (([row["x"], 0.5], None) if old else (None, 1.0))

    def test_a_column_that_changed_its_type_is_refused(self, kind: type[Memory]) -> None:
        memory = kind(capacity_rows=10)
        first = memory.admit(None, rows(0, 20), see)
        with pytest.raises(UpdateError, match="do not fit the memory"):
            memory.admit(first, rows(20, 40).set_column(3, "x", pa.array(["a"] * 20)), see)

    def test_it_holds_no_more_bytes_than_its_rows_after_200_updates(self, kind: type[Memory]) -> None:
        """Neither in its own buffers nor through slices that keep those of windows alive."""
        memory, kept = kind(capacity_rows=50), None
        held = pa.total_allocated_bytes()
        for update in range(200):
            fresh = rows(update * 30, update * 30 + 30)
            wide = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(30 * 64, np.float32)), 64)
            kept = memory.admit(kept, fresh.append_column("wide", wide).slice(3, 20), see)
            del fresh, wide
        assert kept is not None
        assert kept.num_rows == 50
        limit = 1.1 * row_bytes(kept).sum()
        assert kept.get_total_buffer_size() <= limit
        assert pa.total_allocated_bytes() - held <= limit + 4_096  # small buffers are padded to 64 bytes

    @pytest.mark.parametrize("limit", [1, 500, 3_000])
    def test_bytes_are_a_limit_too(self, kind: type[Memory], limit: int) -> None:
        """Of rows between 50 and 1,000 bytes there are as many as fit, in their order."""
        fresh = rows(0, 60).append_column("text", pa.array(["x" * (i * 16) for i in range(60)]))
        kept = admitted(kind(capacity_bytes=limit), [fresh.slice(0, 40), fresh.slice(40)])
        assert row_bytes(kept).sum() <= limit
        assert kind(capacity_rows=3, capacity_bytes=10**6).admit(None, fresh, see).num_rows == 3

    def test_ranges(self, kind: type[Memory]) -> None:
        with pytest.raises(ConfigError, match=r"memory\.capacity_rows must be 0 or more"):
            kind(capacity_rows=-1)
        with pytest.raises(ConfigError, match=r"memory\.capacity_bytes must be 0 or more"):
            kind(capacity_bytes=-1)

    def test_numbers_as_labels(self, kind: type[Memory]) -> None:
        labels = np.random.default_rng(0).normal(size=80)
        fresh = rows(0, 80).set_column(2, LABEL, pa.array(labels))
        kept = admitted(kind(capacity_rows=20), [fresh.slice(0, 50), fresh.slice(50)])
        assert kept.num_rows == 20


@pytest.mark.parametrize("kind", SEEING)
def test_a_memory_that_asks_the_model_says_so(kind: type[Memory]) -> None:
    with pytest.raises(UpdateError, match=f"{kind.__name__} keeps rows by what the model makes of them"):
        kind().admit(None, rows(0, 10))


@pytest.mark.parametrize("kind", SEEING)
def test_the_model_is_not_asked_while_there_is_room(kind: type[Memory]) -> None:
    def refuse(table: pa.Table) -> Any:
        raise AssertionError

    memory = kind(capacity_rows=20)
    full = memory.admit(memory.admit(None, rows(0, 10), refuse), rows(10, 20), refuse)
    with pytest.raises(AssertionError):
        memory.admit(full, rows(20, 21), refuse)


@pytest.mark.parametrize("kind", MERGEABLE, ids=lambda kind: kind.__name__)
@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 200), max_size=4),
    capacity=st.integers(0, 230),
    labels=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_parts_give_what_the_whole_gives(
    kind: type[Memory], cuts: list[int], capacity: int, labels: list[str], order: Any
) -> None:
    """Any number of parts, in any order, one after another or joined at the end; and rows in any order."""
    memory = kind(capacity_rows=capacity)
    edges = [0, *sorted(cuts), 200]
    events = rows(0, 200, labels)
    whole = memory.admit(None, events)
    parts = [events.slice(a, b - a) for a, b in pairwise(edges)]
    order.shuffle(parts)
    shuffled = list(range(200))
    order.shuffle(shuffled)
    for kept in (admitted(memory, parts), merged(memory, parts), memory.admit(None, events.take(shuffled))):
        assert sorted(numbers(kept)) == sorted(numbers(whole))
        if kind is not memories.Ring:
            assert kept.equals(whole)


@pytest.mark.parametrize("capacity_bytes", [900, 2_000])
def test_bytes_do_not_depend_on_the_parts(capacity_bytes: int) -> None:
    events = rows(0, 200).append_column("text", pa.array(["x" * (i % 7 * 20) for i in range(200)]))
    memory = memories.Reservoir(capacity_bytes=capacity_bytes)
    whole = memory.admit(None, events)
    assert 0 < whole.num_rows < 30
    assert merged(memory, [events.slice(i * 50, 50) for i in range(4)]).equals(whole)
    assert merged(memory, [events.slice(i * 100, 100) for i in range(2)]).equals(whole)


def test_a_full_memory_is_not_touched_by_rows_that_it_rejects() -> None:
    memory = memories.Reservoir(capacity_rows=10)
    full = memory.admit(None, rows(0, 20_000))
    assert sum(memory.admit(full, rows(20_000 + i, 20_001 + i)) is full for i in range(100)) >= 98


def test_bytes_of_a_row() -> None:
    table = pa.table(
        {
            EVENT_ID: ["ab", "c", None],
            EVENT_TIME: pa.array([0, 0, 0], pa.timestamp("us", tz="UTC")),
            "list": pa.array([[1.0], [1.0, 2.0], None], pa.list_(pa.float32())),
            "wide": pa.array([[1.0] * 8] * 3, pa.list_(pa.float32(), 8)),
        }
    )
    assert row_bytes(table).tolist() == [6 + 8 + 8 + 32, 5 + 8 + 12 + 32, 4 + 8 + 4 + 32]
    numeric = pa.table({"x": np.zeros(100), "b": np.zeros(100, np.float32)})
    assert row_bytes(numeric).sum() == numeric.nbytes


def test_a_part_is_frozen_and_can_be_replaced() -> None:
    memory = memories.ClassBalanced(capacity_rows=3)
    assert dataclasses.replace(memory, capacity_rows=4).capacity_rows == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        memory.capacity_rows = 5  # type: ignore[misc]
