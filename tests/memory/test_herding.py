"""Picks follow the mean of their class, and of its whole past."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from cltrain.errors import ConfigError
from cltrain.memory import Herding, Seen
from cltrain.memory.herding import STANDS_FOR, herd, herded, shared_out
from cltrain.records import LABEL
from tests.memory.made import rows, see


def unit(points: np.ndarray) -> np.ndarray:
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def by_definition(points: np.ndarray, count: int) -> list[int]:
    """Algorithm 4 of the paper, word for word."""
    picked: list[int] = []
    for k in range(1, count + 1):
        gaps = np.linalg.norm(points.mean(0) - (points + points[picked].sum(0)) / k, axis=1)
        gaps[picked] = np.inf
        picked.append(int(np.argmin(gaps)))
    return picked


def test_it_is_the_algorithm_of_the_paper() -> None:
    points = unit(np.random.default_rng(0).normal(size=(200, 6)))
    assert herd(points, np.ones(200), 50).tolist() == by_definition(points, 50)


@pytest.mark.parametrize("block", [10_000, 64])
def test_its_mean_is_closer_to_that_of_the_class_than_that_of_a_draw(block: int) -> None:
    """For every number of picks, also when each is made among 64 rows."""
    generator = np.random.default_rng(1)
    points = unit(np.maximum(generator.normal(size=(1_000, 16)) + 0.3, 0) + 1e-3)
    order, drawn = herd(points, np.ones(1_000), 200, block), generator.permutation(1_000)
    assert len(set(order.tolist())) == 200
    for count in (5, 20, 50, 200):
        gap, usual = (np.linalg.norm(points[index[:count]].mean(0) - points.mean(0)) for index in (order, drawn))
        assert gap < usual / 2, count


@pytest.mark.parametrize(("rows_", "count", "block"), [(5, 4, 2), (7, 6, 3), (9, 9, 2), (10, 9, 1), (3, 0, 2)])
def test_parts_do_not_run_out(rows_: int, count: int, block: int) -> None:
    points = unit(np.random.default_rng(2).normal(size=(rows_, 3)))
    assert len(set(herd(points, np.ones(rows_), count, block).tolist())) == count


def test_quotas_are_those_of_class_balanced() -> None:
    kept = Herding(capacity_rows=40).admit(None, rows(0, 200), see)
    labels = kept[LABEL].to_pylist()
    assert [labels.count(name) for name in "ab"] == [20, 20]
    assert sorted(labels[:10]) == ["a"] * 5 + ["b"] * 5, "any beginning is balanced"


def test_the_order_of_rows_does_not_matter() -> None:
    points, generator = np.random.default_rng(3).normal(size=(100, 4)), np.random.default_rng(4)
    keys, groups, mixed = generator.random(100), generator.integers(0, 3, 100), generator.permutation(100)
    order = herded(points, np.ones(100), groups, keys, 30)
    again = herded(points[mixed], np.ones(100), groups[mixed], keys[mixed], 30)
    assert mixed[again].tolist() == order.tolist()


def test_remembered_rows_stand_for_their_past() -> None:
    """1,000 rows here, then 1,000 there: the mean is in the middle, though only 20 rows are left of the first 1,000."""

    def turned(table: pa.Table) -> Seen:
        x = np.asarray(table.column("x"))
        noise = np.random.default_rng(0).normal(size=(2_000, 2))[x.astype(int)] * 0.1
        return Seen(losses=x, uncertainty=x, embeddings=np.where(x[:, None] < 1_000, [1.0, 0.0], [0.0, 1.0]) + noise)

    memory = Herding(capacity_rows=20)
    first = memory.admit(None, rows(0, 1_000, "a"), turned)
    assert first[STANDS_FOR].to_pylist() == [50.0] * 20
    second = memory.admit(first, rows(1_000, 2_000, "a"), turned)
    assert second[STANDS_FOR].to_pylist() == [100.0] * 20
    assert 8 <= (np.asarray(second["x"]) < 1_000).sum() <= 12


def test_shares_add_up() -> None:
    generator = np.random.default_rng(5)
    weights, groups, order = generator.random(50), generator.integers(0, 3, 50), generator.permutation(50)[:20]
    assert shared_out(weights, groups, order).sum() == pytest.approx(weights.sum())


def test_a_row_without_embedding_is_no_failure() -> None:
    points = np.zeros((10, 3))
    assert len(set(herded(points, np.ones(10), np.zeros(10, int), np.arange(10) / 10, 4).tolist())) == 4


def test_ranges() -> None:
    with pytest.raises(ConfigError, match=r"memory\.bins must be 1 or more"):
        Herding(bins=0)
