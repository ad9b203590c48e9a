"""The Fisher information against cases that one can check by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cltrain.batch import Batch
from cltrain.methods.fisher import _of_linear_layers, squared_gradient_sum
from cltrain.task import row_losses


class Logistic(nn.Module):
    def __init__(self, w: float, b: float) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(w)), nn.Parameter(torch.tensor(b))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.w + self.b


class Net(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 2)
        self.linear = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, outputs)

    def forward(self, numeric: torch.Tensor, categorical: torch.Tensor) -> torch.Tensor:
        hidden = self.linear(torch.cat([numeric, self.table(categorical[:, 0])], 1))
        return self.head(torch.relu(self.norm(hidden)))


class Untraceable(Net):
    def forward(self, numeric: torch.Tensor, categorical: torch.Tensor) -> torch.Tensor:
        return super().forward(numeric * (1.0 if numeric.sum().item() > -1e9 else 2.0), categorical)


def rows(count: int, task: str) -> Batch:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3 if task == "multiclass" else 2, (count,), generator=generator)
    inputs = {
        "numeric": torch.randn(count, 3, generator=generator),
        "categorical": torch.randint(0, 4, (count, 1), generator=generator),
    }
    return Batch(inputs, target if task == "multiclass" else target.float(), torch.ones(count))


def in_a_loop(model: nn.Module, task: str, batch: Batch) -> dict[str, torch.Tensor]:
    model.eval()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(len(batch)):
        one = batch.take(torch.tensor([i]))
        model.zero_grad()
        row_losses(task, model(**one.inputs), one.target).sum().backward()
        for name, p in model.named_parameters():
            total[name] += p.grad**2
    return total


def test_a_logistic_model_of_two_parameters() -> None:
    """The gradient of a row's loss is (p - y) x for w and p - y for b."""
    x, y = torch.tensor([[1.0], [-2.0], [0.5]]), torch.tensor([1.0, 0.0, 0.0])
    found = squared_gradient_sum(Logistic(0.3, -0.1), "binary", Batch({"x": x}, y, torch.ones(3)))
    error = torch.sigmoid(x[:, 0] * 0.3 - 0.1) - y
    assert found["b"].item() == pytest.approx((error**2).sum().item(), rel=1e-6)
    assert found["w"].item() == pytest.approx(((error * x[:, 0]) ** 2).sum().item(), rel=1e-6)
    squared_mean = error.sum().item() ** 2 / 3
    assert found["b"].item() > 1.5 * squared_mean, "the square of the batch's gradient is another, smaller thing"


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("kind", [Net, Untraceable])
def test_it_is_the_sum_over_rows(task: str, kind: type[Net]) -> None:
    torch.manual_seed(0)
    model = kind(3 if task == "multiclass" else 1)
    batch = rows(23, task)
    expected = in_a_loop(model, task, batch)
    model.train()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    found = squared_gradient_sum(model, task, batch)
    assert model.training
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)


def test_it_does_not_depend_on_the_chunk() -> None:
    model, batch = Net(1), rows(23, "binary")
    whole = squared_gradient_sum(model, "binary", batch)
    for budget in (0, 4 * 70 * 5):
        for name, value in squared_gradient_sum(model, "binary", batch, budget_bytes=budget).items():
            torch.testing.assert_close(value, whole[name], rtol=1e-5, atol=1e-9)


def test_parts_add_up_and_no_rows_are_zero() -> None:
    model, batch = Net(1), rows(10, "binary")
    parts = [squared_gradient_sum(model, "binary", batch.take(i)) for i in torch.arange(10).split([4, 6])]
    for name, value in squared_gradient_sum(model, "binary", batch).items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], value, rtol=1e-5, atol=1e-9)
    nothing = squared_gradient_sum(model, "binary", batch.take(torch.arange(0)))
    assert all(not value.any() for value in nothing.values())


def test_frozen_parameters_are_left_out() -> None:
    model = Net(1)
    model.linear.weight.requires_grad_(False)
    assert "linear.weight" not in squared_gradient_sum(model, "binary", rows(4, "binary"))


class Linears(nn.Module):
    """With `shared` the second layer is called twice; with `tied` its weight is used outside of it as well."""

    def __init__(self, shared: bool = False, tied: bool = False) -> None:
        super().__init__()
        self.shared, self.tied = shared, tied
        self.first, self.second, self.head = nn.Linear(3, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 3)

    def forward(self, numeric: torch.Tensor, categorical: torch.Tensor) -> torch.Tensor:
        hidden = self.second(torch.relu(self.first(numeric)))
        if self.shared:
            hidden = self.second(hidden)
        if self.tied:
            hidden = hidden @ self.second.weight
        return self.head(torch.tanh(hidden))


@pytest.mark.parametrize("settings", [{}, {"shared": True}, {"tied": True}])
def test_linear_layers_take_the_short_way_only_where_it_is_right(settings: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model, batch = Linears(**settings), rows(50, "multiclass")
    assert (_of_linear_layers(model, "multiclass", batch) is None) == bool(settings)
    found = squared_gradient_sum(model, "multiclass", batch)
    for name, expected in in_a_loop(model, "multiclass", batch).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)
