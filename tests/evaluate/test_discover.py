"""The search for slices finds what was planted, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from cltrain.evaluate.discover import axes, discover
from cltrain.evaluate.rules import Rule

ROWS = 12_000


def made(seed: int, rows: int = ROWS) -> tuple[pa.Table, np.ndarray, np.random.Generator]:
    """Ten columns, with gaps, of which the loss is independent."""
    generator = np.random.default_rng(seed)
    columns: dict[str, pa.Array] = {}
    for i in range(5):
        values = np.array(list("abcdefgh"))[generator.choice(8, rows, p=[0.3, 0.2, 0.15, 0.15, 0.1, 0.04, 0.03, 0.03])]
        columns[f"c{i}"] = pa.array(values, mask=generator.random(rows) < 0.05)
        columns[f"x{i}"] = pa.array(generator.normal(size=rows), mask=generator.random(rows) < 0.05)
    columns["few"] = pa.array(generator.integers(0, 5, rows))
    columns["yes"] = pa.array(generator.random(rows) < 0.3)
    columns["_label"] = pa.array(np.zeros(rows))
    return pa.table(columns), generator.exponential(size=rows), generator


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("where", ["c1 == 'c' and c3 == 'b'", "c2 == 'd' and x0 > 1.1", "few == 2 and c4 is None"])
def test_a_planted_slice_is_among_the_first(where: str) -> None:
    hits = 0
    for seed in range(10):
        table, loss, generator = made(seed)
        planted = Rule(where).mask(table)
        assert 0.005 < planted.mean() < 0.04
        found = discover(axes(table, frozenset(), 50), loss + 1.5 * planted, generator, 3, 50, 0.05)
        hits += any(overlap(f.mask, planted) > 0.6 for f in found)
        for f in found:
            assert (Rule(f.where).mask(table) == f.mask).all()
    assert hits >= 9


def test_one_condition_is_not_made_two() -> None:
    table, loss, generator = made(0)
    planted = Rule("c1 == 'c'").mask(table)
    found = discover(axes(table, frozenset(), 50), loss + planted, generator, 3, 50, 0.05)
    assert [f.where for f in found] == ["c1 == 'c'"]
    assert discover(axes(table, frozenset({"c1"}), 50), loss + planted, generator, 3, 50, 0.05) == []


def test_where_there_is_nothing_it_errs_no_more_often_than_its_level() -> None:
    series, false = 40, 0
    for seed in range(series):
        table, loss, generator = made(seed, 2_000)
        false += bool(discover(axes(table, frozenset(), 50), loss, generator, 3, 50, 0.05))
    assert false / series <= 0.05 + 2.6 * (0.05 * 0.95 / series) ** 0.5


def test_too_few_rows_and_no_columns_find_nothing() -> None:
    table, loss, generator = made(0, 150)
    assert discover(axes(table, frozenset(), 50), loss, generator, 3, 50, 0.05) == []
    assert discover([], np.arange(1_000.0), generator, 3, 50, 0.05) == []
    assert discover(axes(made(0)[0], frozenset(), 50), np.ones(ROWS), generator, 3, 50, 0.05) == []
