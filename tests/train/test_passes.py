"""Passes over the rows: batches, schedule, early stopping, and what is drawn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cltrain.batch import Batch
from cltrain.errors import ConfigError
from cltrain.methods import Finetune, Method, MethodState
from cltrain.train.engines import Plain
from cltrain.train.loader import Draw, Loader, hide_categories
from cltrain.train.optimizer import make_optimizer
from cltrain.train.passes import Best, train_passes
from cltrain.train.settings import MAX_EPOCHS, Recalibrate, Training
from cltrain.train.step import Stepper
from tests.train.made import events, relabelled, update


class Watched(nn.Module):
    """Counts what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.seen: list[list[float]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.append(x[:, 0].tolist())
        return self.linear(x)


def stepper_of(model: nn.Module, training: Training, method: Method | None = None) -> Stepper:
    return Stepper(
        running=Plain().begin(model, lambda net: make_optimizer(net, training)),
        task="regression",
        method=method or Finetune(),
        state=MethodState(),
        engine=Plain(),
        training=training,
    )


def fit(rows: int, training: Training) -> tuple[Watched, Stepper]:
    model = Watched()
    stepper = stepper_of(model, training)
    x = torch.arange(float(rows))[:, None]
    train_passes(stepper, Batch({"x": x}, x[:, 0] / rows, torch.ones(rows)), None, training, seed=0)
    return model, stepper


@pytest.mark.parametrize("rows", [1, 7, 33, 257])
def test_a_pass_visits_each_row_once_in_batches_of_equal_size(rows: int) -> None:
    model, _ = fit(rows, Training(batch_size=32, epochs=2))
    sizes = [len(batch) for batch in model.seen]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= 32
    half = len(model.seen) // 2
    first, second = ([x for batch in part for x in batch] for part in (model.seen[:half], model.seen[half:]))
    assert sorted(first) == sorted(second) == [float(i) for i in range(rows)]
    assert rows < 7 or first != second


def test_rows_kept_aside_are_never_trained_on() -> None:
    model, _ = fit(200, Training(batch_size=32, epochs=3, validation_share=0.2))
    assert len({x for batch in model.seen for x in batch}) == 160


def test_the_rate_falls_along_a_cosine() -> None:
    training = Training(learning_rate=1.0, schedule="cosine")
    assert training.learning_rate_at(0.0) == 1.0
    assert training.learning_rate_at(0.5) == pytest.approx(0.525)
    assert training.learning_rate_at(1.0) == pytest.approx(0.05)
    _, stepper = fit(64, Training(batch_size=16, learning_rate=0.1, schedule="cosine"))
    last = 0.1 * (0.05 + 0.95 * (1 + math.cos(math.pi * 3 / 4)) / 2)
    assert [g["lr"] for g in stepper.running.optimizer.param_groups] == pytest.approx([last, last])


@pytest.mark.parametrize(
    ("rows", "settings", "expected"),
    [
        (10_000, {"batch_size": 256}, (256, 1)),
        (1_000, {"batch_size": 256}, (64, 1)),
        (1, {"batch_size": 256}, (16, 1)),
        (1, {"batch_size": 24}, (16, 1)),
        (1, {"batch_size": 4}, (4, 1)),
        (160, {"batch_size": 16, "min_steps": 95}, (16, 10)),
        (1, {"min_steps": 10_000}, (16, MAX_EPOCHS)),
        (1, {"min_steps": 10_000, "epochs": 300}, (16, 300)),
    ],
)
def test_the_plan(rows: int, settings: dict[str, int], expected: tuple[int, int]) -> None:
    assert Training(**settings).plan(rows) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, r"train\.batch_size must be 1 or more"),
        ({"batch_size": 1}, r"train\.batch_size=1 updates on single rows.*train\.per_sample=true"),
        ({"accumulate": 0}, r"train\.accumulate must be 1 or more"),
        ({"precision": "float8"}, r"train\.precision must be one of float32, bfloat16, not 'float8'"),
        ({"compile": "on"}, r"train\.compile must be one of off"),
        ({"rows_on": "disk"}, r"train\.rows_on must be one of auto"),
        ({"warmup": 1.0}, r"train\.warmup must be between 0 and 1"),
        ({"memory_gib": 0.0}, r"train\.memory_gib must be above 0"),
        ({"checkpoint_steps": 0}, r"train\.checkpoint_steps must be 1 or more"),
        ({"epochs": 0}, r"train\.epochs must be 1 or more"),
        ({"learning_rate": 0.0}, r"train\.learning_rate must be above 0"),
        ({"max_grad_norm": 0.0}, r"train\.max_grad_norm must be above 0"),
        ({"weight_decay": -1.0}, r"train\.weight_decay must be 0 or more"),
        ({"schedule": "step"}, "constant, linear, cosine"),
        ({"unknown_rate": 1.0}, r"train\.unknown_rate must be between 0 and 1"),
        ({"patience": 0}, r"train\.patience must be 1"),
    ],
)
def test_ranges(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Training(**settings)  # type: ignore[arg-type]


def test_recalibrate() -> None:
    assert [w for w in range(1, 25) if Recalibrate(every=12).is_due(w)] == [12, 24]
    assert not Recalibrate(every=None).is_due(12)
    with pytest.raises(ConfigError, match=r"recalibrate\.every"):
        Recalibrate(every=0)
    with pytest.raises(ConfigError, match=r"recalibrate\.history.*soon"):
        Recalibrate(history="soon")


def test_the_best_pass_is_restored() -> None:
    """A made-up series of losses: 3, 1, 2, 2 → the second look is kept, with its optimizer."""
    net = nn.Linear(1, 1, bias=False)
    share = Batch({"input": torch.ones(1, 1)}, torch.zeros(1), torch.ones(1))
    best = Best(stepper_of(net, Training()), share)
    looks = []
    for weight in (3.0, 1.0, -2.0, 2.0):
        nn.init.constant_(net.weight, weight)
        looks.append(best.passes_since())
    assert looks == [0, 0, 1, 2]
    best.restore()
    assert net.weight.item() == 1.0


def test_training_stops_early_on_noise() -> None:
    noise = events(300)
    labels = torch.randint(0, 2, (300,), generator=torch.Generator().manual_seed(0)).double().tolist()
    long = Training(batch_size=16, epochs=60, learning_rate=1e-2, validation_share=0.3)
    trained = update(relabelled(noise, labels), training=long)
    assert trained.steps < 60 * 14 / 2


def test_only_matrices_decay() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(3, 2), "linear": nn.Linear(2, 2)})
    decaying, rest = make_optimizer(model, Training(weight_decay=0.5)).param_groups
    assert [decaying["weight_decay"], rest["weight_decay"]] == [0.5, 0.0]
    assert [p is model["linear"].weight for p in decaying["params"]] == [True]
    assert len(rest["params"]) == 2


def test_a_share_of_the_categories_is_hidden() -> None:
    rows = Batch({"categorical": torch.full((1000, 4), 7)}, torch.zeros(1000), torch.ones(1000))
    hidden = hide_categories(rows, 0.25, torch.Generator().manual_seed(0)).inputs["categorical"]
    assert (rows.inputs["categorical"] == 7).all()
    assert (hidden == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_weights_count() -> None:
    """A row of weight 2 is two rows; one of weight 0 is none."""
    x, y = torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([1.0, 0.0, 9.0])
    gradients = []
    for index, weight in (([0, 1, 2], [2.0, 1.0, 0.0]), ([0, 0, 1], [1.0, 1.0, 1.0])):
        torch.manual_seed(0)
        model = Watched()
        stepper = stepper_of(model, Training(optimizer="sgd", learning_rate=1e-9))
        batch = Batch({"x": x[index]}, y[index], torch.tensor(weight))
        loss = stepper.step(
            Loader(batch, None, engine=Plain(), method=Finetune()).gather(Draw(torch.arange(3), None, (0, 0)))
        )
        gradients.append((loss.item(), model.linear.weight.grad.item()))
    assert gradients[0] == pytest.approx(gradients[1])
