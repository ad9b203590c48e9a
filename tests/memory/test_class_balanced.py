"""Equal quotas for classes, and for the quantiles of numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cltrain.errors import ConfigError
from cltrain.memory import ClassBalanced
from cltrain.memory.base import KEY
from cltrain.memory.class_balanced import balanced, quantile_bins
from cltrain.records import LABEL
from tests.memory.made import admitted, numbers, rows


def counts(table: pa.Table) -> dict[str, int]:
    return dict(Counter(table.column(LABEL).to_pylist()))


def test_quotas_by_hand() -> None:
    """100 rows of a, 20 of b, 5 of c and 30 places: c has its 5, and the others share 25."""
    events = pa.concat_tables([rows(0, 100, "a"), rows(100, 120, "b"), rows(120, 125, "c")])
    kept = counts(ClassBalanced(capacity_rows=30).admit(None, events))
    assert kept["c"] == 5
    assert sorted(kept[name] for name in "ab") == [12, 13]
    assert counts(ClassBalanced(capacity_rows=100).admit(None, events)) == {"a": 75, "b": 20, "c": 5}


def test_an_old_class_gives_way_to_a_new_one() -> None:
    memory = ClassBalanced(capacity_rows=60)
    first = memory.admit(None, rows(0, 500, "a"))
    second = memory.admit(first, rows(500, 1_000, "b"))
    assert counts(second) == {"a": 30, "b": 30}
    assert counts(memory.admit(second, rows(1_000, 1_500, "c"))) == {"a": 20, "b": 20, "c": 20}
    stayed = second.filter(pa.array(np.asarray(second.column(LABEL)) == "a"))
    assert numbers(stayed) == numbers(first)[:30], "those with the smallest keys"


def test_within_a_class_every_position_is_kept_equally_often() -> None:
    """Chi-square over 10 stretches of a class that is a tenth of the stream, for 100 lineages."""
    found = np.zeros(10)
    for salt in range(100):
        events = rows(0, 1_000, "abbbbbbbbb")
        kept = admitted(ClassBalanced(capacity_rows=60, salt=salt), [events.slice(i * 250, 250) for i in range(4)])
        rare = np.asarray(kept.filter(pa.array(np.asarray(kept.column(LABEL)) == "a")).column("x"))
        assert len(rare) == 30
        found += np.bincount((rare // 100).astype(int), minlength=10)
    assert ((found - 300) ** 2 / 300).sum() < 27.9, "9 degrees of freedom, p = 0.001; less, as without replacement"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=60), st.integers(0, 70), st.integers(0, 2**31))
def test_no_class_has_less_than_another_unless_it_has_no_more(groups: list[int], room: int, seed: int) -> None:
    codes, priorities = np.asarray(groups, np.int64), np.random.default_rng(seed).random(len(groups))
    order = balanced(codes, priorities, room)
    assert len(set(order.tolist())) == len(order) == min(room, len(groups))
    have, kept = np.bincount(codes, minlength=5), np.bincount(codes[order], minlength=5)
    for group in range(5):
        assert kept[group] == have[group] or kept[group] >= kept.max() - 1
        chosen = np.isin(np.arange(len(codes)), order)
        left = priorities[(codes == group) & ~chosen]
        assert not len(left) or not kept[group] or priorities[(codes == group) & chosen].max() < left.min()


def test_numbers_are_cut_at_their_quantiles() -> None:
    values = np.random.default_rng(0).exponential(size=1_000)
    assert np.bincount(quantile_bins(values, 10)).tolist() == [100] * 10
    assert quantile_bins(np.array([3.0, 1.0, 2.0, 1.0]), 10).tolist() == [2, 0, 1, 0]
    kept = ClassBalanced(capacity_rows=100).admit(None, rows(0, 1_000).set_column(2, LABEL, pa.array(values)))
    edges = np.quantile(values, np.arange(1, 10) / 10)
    assert np.bincount(np.searchsorted(edges, np.asarray(kept.column(LABEL)), side="right")).tolist() == [10] * 10


def test_two_numbers_are_classes() -> None:
    labels = pa.array([1.0] * 10 + [0.0] * 90)
    kept = ClassBalanced(capacity_rows=20).admit(None, rows(0, 100).set_column(2, LABEL, labels))
    assert counts(kept) == {1.0: 10, 0.0: 10}


def test_its_table_has_the_keys() -> None:
    assert KEY in ClassBalanced(capacity_rows=4).admit(None, rows(0, 10)).column_names


def test_ranges() -> None:
    with pytest.raises(ConfigError, match=r"memory\.bins must be 1 or more"):
        ClassBalanced(bins=0)
