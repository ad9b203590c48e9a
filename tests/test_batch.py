"""Batches: rows stay together."""

from __future__ import annotations

import torch

from cltrain.batch import Batch, join


def made(rows: int, start: int = 0) -> Batch:
    values = torch.arange(start, start + rows)
    return Batch({"x": values[:, None].float(), "c": values[:, None]}, values, values.float())


def together(batch: Batch) -> bool:
    parts = (batch.inputs["x"][:, 0], batch.inputs["c"][:, 0], batch.weight)
    return all(torch.equal(part.long(), batch.target) for part in parts)


def test_take() -> None:
    taken = made(5).take(torch.tensor([3, 0, 3]))
    assert taken.target.tolist() == [3, 0, 3]
    assert together(taken)
    assert len(made(5).take(torch.tensor([], dtype=torch.int64))) == 0


def test_join() -> None:
    batch = made(2)
    assert join([batch]) is batch
    both = join([batch, made(3, start=7)])
    assert both.target.tolist() == [0, 1, 7, 8, 9]
    assert together(both)


def test_to() -> None:
    assert together(made(3).to("cpu"))
