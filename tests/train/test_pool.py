"""What can be rehearsed, and when, by hand: four rows, of which the memory will keep the last two."""

from __future__ import annotations

import pytest
import torch

from cltrain.batch import Batch
from cltrain.train.pool import Pool


def batch(*values: float, **extra: torch.Tensor) -> Batch:
    x = torch.tensor(values)
    return Batch({"numeric": x[:, None]}, torch.zeros(len(x), dtype=torch.int64), torch.ones(len(x)), extra)


def test_a_row_that_stays_is_rehearsed_once_it_was_learned() -> None:
    pool = Pool(None, batch(0, 1, 2, 3), torch.tensor([2, 3]), torch.tensor([3, 0, 2, 1]), num_outputs=2)
    assert [pool.size(0, learned) for learned in range(5)] == [0, 1, 1, 2, 2]
    assert pool.size(1, 0) == 2
    assert pool.batch is not None
    assert pool.batch.inputs["numeric"].flatten().tolist() == [3, 2]
    pool.record(0, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert pool.batch.extra["outputs"].tolist() == [[1, 2], [0, 0]]
    pool.record(2, torch.tensor([[5.0, 6.0], [7.0, 8.0]]))
    assert pool.batch.extra["outputs"].tolist() == [[1, 2], [5, 6]]


@pytest.mark.parametrize("known", [True, False])
def test_they_stand_behind_what_is_remembered(known: bool) -> None:
    old = batch(7, 8, **({"outputs": torch.ones(2, 2)} if known else {}))
    pool = Pool(old, batch(0, 1), torch.tensor([0]), torch.tensor([1, 0]), num_outputs=2)
    assert pool.batch is not None
    assert pool.batch.inputs["numeric"].flatten().tolist() == [7, 8, 0]
    assert [pool.size(0, learned) for learned in range(3)] == [2, 2, 3]
    assert pool.outputs is not None
    assert pool.outputs.shape == (1, 2)
    assert ("outputs_known" in pool.batch.extra) is not known


def test_a_row_that_is_kept_aside_to_stop_early_is_never_rehearsed() -> None:
    pool = Pool(None, batch(0, 1, 2), torch.tensor([0, 1]), torch.tensor([1, 2]), num_outputs=1)
    assert pool.size(1, 0) == 1


def test_without_rows_that_stay_there_is_what_is_remembered() -> None:
    pool = Pool(batch(7), batch(0, 1), None, torch.tensor([0, 1]), num_outputs=1)
    assert (pool.size(0, 2), pool.size(1, 0), pool.outputs) == (1, 1, None)
    pool.record(0, torch.zeros(1, 1))
