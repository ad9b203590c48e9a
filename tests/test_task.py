"""Losses and predictions, against numbers that one can check by hand."""

from __future__ import annotations

import math

import pytest
import torch

from cltrain.errors import ConfigError
from cltrain.task import LOG_LOSS_FLOOR, check_task, predictions, row_losses


def test_binary() -> None:
    outputs = torch.tensor([[0.0], [2.0], [-200.0]], dtype=torch.float64)
    losses = row_losses("binary", outputs, torch.tensor([1.0, 0.0, 1.0]))
    assert losses.tolist() == pytest.approx([math.log(2), math.log1p(math.exp(2)), 200.0])
    assert predictions("binary", outputs).tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-2)), math.exp(-200)])


def test_multiclass_with_a_class_that_the_model_lacks() -> None:
    outputs = torch.tensor([[1.0, 0.0], [0.0, 0.0], [3.0, 1.0]], requires_grad=True)
    losses = row_losses("multiclass", outputs, torch.tensor([0, 1, 2]))
    expected = [math.log1p(math.exp(-1)), math.log(2), -math.log(LOG_LOSS_FLOOR)]
    assert losses.tolist() == pytest.approx(expected)
    losses.sum().backward()
    assert outputs.grad is not None
    assert outputs.grad[2].tolist() == [0.0, 0.0]
    assert predictions("multiclass", outputs).sum(1).tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_regression() -> None:
    assert row_losses("regression", torch.tensor([[3.0]]), torch.tensor([1.0])).tolist() == [4.0]
    assert predictions("regression", torch.tensor([[3.0]])).tolist() == [3.0]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_no_rows(task: str) -> None:
    target = torch.zeros(0, dtype=torch.int64 if task == "multiclass" else torch.float32)
    assert len(row_losses(task, torch.zeros(0, 3), target)) == len(predictions(task, torch.zeros(0, 3))) == 0


def test_an_unknown_task() -> None:
    with pytest.raises(ConfigError, match="binary, multiclass, regression, not 'ranking'"):
        check_task("ranking")
