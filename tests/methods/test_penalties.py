"""Penalties on parameters, by cases that one can check by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cltrain.batch import Batch
from cltrain.errors import ConfigError
from cltrain.methods import EWC, L2SP, MAS, SI, Absorbed, Combined, MethodState
from cltrain.methods.penalty import pull_to
from cltrain.train.predictor import Predictor
from cltrain.train.settings import Training
from tests.train.made import events, update


class Line(nn.Module):
    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weights))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).sum(1, keepdim=True)


def absorbed(model: nn.Module, x: list[list[float]], y: list[float]) -> Absorbed:
    batch = Batch({"x": torch.tensor(x)}, torch.tensor(y), torch.ones(len(y)))
    return Absorbed(model=model, task="regression", rows=events(len(y)), batch=batch, seed=0, encode=lambda rows: batch)


def test_an_implicit_step_is_the_proximal_one() -> None:
    """argmin of g w + (w - w0)² / 2h + λ F (w - a)² / 2 is (w0 - h g + h λ F a) / (1 + h λ F)."""
    start, anchor, gradient, importance, strength, step = 3.0, 1.0, 0.7, 40.0, 5.0, 0.2
    gradients = {"w": torch.tensor([gradient])}
    pull_to(
        {"w": torch.tensor([anchor])}, {"w": torch.tensor([importance])}, strength, {"w": torch.tensor([start])},
        gradients, step,
    )  # fmt: skip
    product = step * strength * importance
    assert start - step * gradients["w"].item() == pytest.approx(
        (start - step * gradient + product * anchor) / (1 + product), rel=1e-5
    )


def test_sgd_with_a_strong_penalty_does_not_diverge() -> None:
    """An explicit step would: learning_rate * strength * F is far above 2."""
    training = Training(batch_size=16, learning_rate=0.1, epochs=5, optimizer="sgd", max_grad_norm=None)
    method = EWC(strength=1e6, fisher_rows=300)
    parent = update(events(300), None, method, training).state
    child = update(events(300, seed=1, turn=1.0), parent, method, training).state
    fisher, anchor = parent.method.tensors["fisher"], parent.method.tensors["anchor"]
    moved = max((child.weights[n] - a)[fisher[n] > 1e-4].abs().max().item() for n, a in anchor.items())
    assert moved < 0.05
    assert all(v.isfinite().all() for v in child.weights.values())


def test_si_is_the_path_integral() -> None:
    """Steps of 0.1 down a slope of 2 and then of 1: the loss fell by 0.2 + 0.1 along the path of 0.2."""
    method, model = SI(strength=1.0, damping=0.01), Line(1.0)
    state = MethodState(tensors={})
    for value, slope in ((1.0, 2.0), (0.9, 1.0)):
        gradients = {"weight": torch.tensor([slope])}
        method.penalise(state, {"weight": torch.tensor([value])}, gradients, None)
        assert gradients["weight"].item() == slope, "nothing is important yet"
    model.weight.data.fill_(0.8)
    after = method.absorb(state, absorbed(model, [[1.0]], [0.0]))
    assert after.tensors["si"]["weight"].item() == pytest.approx(0.3 / (0.2**2 + 0.01))
    assert after.tensors["anchor"]["weight"].item() == pytest.approx(0.8)
    assert after.tensors.keys() == {"si", "anchor"}, "what was needed on the way is gone"
    gradients = {"weight": torch.zeros(1)}
    method.penalise(after, {"weight": torch.tensor([1.0])}, gradients, None)
    assert gradients["weight"].item() == pytest.approx(2 * after.tensors["si"]["weight"].item() * 0.2)


def test_mas_is_the_sensitivity_of_the_outputs() -> None:
    """Of f = w . x, the gradient of f² is 2 f x."""
    model = Line(1.0, -2.0)
    after = MAS().absorb(MethodState(), absorbed(model, [[1.0, 0.0], [3.0, 1.0]], [9.0, 9.0]))
    assert after.tensors["mas"]["weight"].tolist() == pytest.approx([(2 * 1 + 2 * 1 * 3) / 2, 2 * 1 * 1 / 2])
    twice = MAS(decay=0.5).absorb(after, absorbed(model, [[1.0, 0.0]], [0.0]))
    assert twice.tensors["mas"]["weight"].tolist() == pytest.approx([2 + 0.5 * 4, 0.5])


@pytest.mark.parametrize("start", ["parent", "root"])
def test_l2sp_pulls_to_where_it_started(start: str) -> None:
    method = L2SP(strength=0.5, start=start)  # type: ignore[arg-type]
    state = method.absorb(MethodState(), absorbed(Line(1.0), [[1.0]], [0.0]))
    state = method.absorb(state, absorbed(Line(5.0), [[1.0]], [0.0]))
    gradients = {"weight": torch.zeros(1)}
    method.penalise(state, {"weight": torch.tensor([7.0])}, gradients, None)
    assert gradients["weight"].item() == pytest.approx(0.5 * (7 - (5 if start == "parent" else 1)))


@pytest.mark.parametrize("method", [EWC(strength=100.0), SI(strength=10.0), MAS(strength=30.0), L2SP(strength=3.0)])
def test_a_penalty_keeps_what_was_learned(method: EWC) -> None:
    training = Training(batch_size=16, learning_rate=1e-2, epochs=10)
    losses = []
    for one in (method, type(method)(strength=0.0)):
        parent = update(events(300), None, one, training).state
        child = update(events(300, seed=1, turn=1.0), parent, one, training).state
        losses.append(Predictor.of(child).score(events(300, seed=2)).losses.mean())
    assert losses[0] < 0.85 * losses[1]


def test_the_input_is_left_alone() -> None:
    for method in (EWC(), SI(), MAS(), L2SP()):
        state = method.absorb(MethodState(), absorbed(Line(1.0), [[1.0]], [0.0]))
        before = copy.deepcopy(state.tensors)
        method.absorb(state, absorbed(Line(2.0), [[1.0]], [0.0]))
        assert state.tensors == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SI(damping=0.0), r"method\.damping must be above 0"),
        (lambda: SI(strength=-1.0), r"method\.strength must be between"),
        (lambda: MAS(importance_rows=0), r"method\.importance_rows must be 1 or more"),
        (lambda: MAS(decay=2.0), r"method\.decay must be between"),
        (lambda: L2SP(start="here"), r"method\.start must be parent or root"),  # type: ignore[arg-type]
    ],
)
def test_ranges(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


def test_si_looks_at_the_gradient_of_the_loss_alone() -> None:
    training = Training(batch_size=16, learning_rate=1e-2, epochs=2)
    states = []
    for names in (("ewc", "si"), ("si", "ewc")):
        parts = {name: EWC(strength=1e3) if name == "ewc" else SI(strength=0.0) for name in names}
        method = Combined(parts=parts)
        parent = update(events(100), None, method, training).state
        states.append(update(events(80, seed=1, turn=1.0), parent, method, training).state)
    for name, value in states[0].method.tensors["si"].items():
        assert torch.equal(value, states[1].method.tensors["si"][name])
    with pytest.raises(ConfigError, match="EWC twice"):
        Combined(parts={"a": EWC(), "b": EWC()})
