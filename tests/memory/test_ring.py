"""The latest rows stay."""

from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from cltrain.memory import Ring
from cltrain.records import LABEL
from tests.memory.made import admitted, numbers, rows


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, 100), max_size=5), capacity=st.integers(1, 120), day=st.sampled_from([0, 1, 10**9]))
def test_without_classes_it_is_a_queue(cuts: list[int], capacity: int, day: int) -> None:
    """Also when all events have the same time."""
    parts = [rows(a, b, step_us=day) for a, b in pairwise([0, *sorted(cuts), 100])]
    kept = admitted(Ring(capacity_rows=capacity, per_class=False), parts)
    assert numbers(kept) == list(range(max(0, 100 - capacity), 100))


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, 100), max_size=5), day=st.sampled_from([0, 1]))
def test_each_class_has_its_ring(cuts: list[int], day: int) -> None:
    """A row of a in four: 10 places each, which for a goes 40 rows back."""
    parts = [rows(a, b, step_us=day) for a, b in pairwise([0, *sorted(cuts), 100])]
    kept = admitted(Ring(capacity_rows=20), parts)
    of = {name: [n for n, label in zip(numbers(kept), kept[LABEL].to_pylist(), strict=True) if label == name]
          for name in "ab"}  # fmt: skip
    assert of["a"] == list(range(60, 100, 4))
    assert of["b"] == [n for n in range(100) if n % 4][-10:]


def test_time_counts_and_not_the_order_of_arrival() -> None:
    kept = admitted(Ring(capacity_rows=10, per_class=False), [rows(50, 100), rows(0, 50)])
    assert sorted(numbers(kept)) == list(range(90, 100))


def test_numbers_have_one_ring() -> None:
    events = rows(0, 50)
    kept = Ring(capacity_rows=10).admit(None, events.set_column(2, LABEL, pa.array([i * 0.1 for i in range(50)])))
    assert numbers(kept) == list(range(40, 50))
    two = Ring(capacity_rows=10).admit(None, events.set_column(2, LABEL, pa.array([1.0] * 25 + [0.0] * 25)))
    assert numbers(two) == [*range(20, 25), *range(45, 50)]
