"""What methods answer, by cases that one can check by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from cltrain.batch import Batch
from cltrain.errors import ConfigError
from cltrain.methods import EWC, Absorbed, Combined, Finetune, FromScratch, Method, MethodState, Replay
from cltrain.train.engines import Plain
from cltrain.train.predictor import Predictor
from cltrain.train.settings import Training
from tests.train.made import events, update


def test_the_penalty_of_two_parameters() -> None:
    """d/dθ of λ/2 Σ F (θ - anchor)² is λ F (θ - anchor)."""
    values, gradients = {"theta": torch.tensor([1.0, -2.0])}, {"theta": torch.tensor([0.5, 0.5])}
    state = MethodState(
        tensors={"fisher": {"theta": torch.tensor([2.0, 0.1])}, "anchor": {"theta": torch.tensor([0.0, -1.0])}}
    )
    EWC(strength=10.0).penalise(state, values, gradients, None)
    assert gradients["theta"].tolist() == pytest.approx([0.5 + 10 * 2 * 1, 0.5 + 10 * 0.1 * -1])


def test_older_importance_decays() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    batch = Batch({"input": torch.tensor([[2.0]])}, torch.tensor([1.0]), torch.ones(1))
    torch.nn.init.constant_(model.weight, 0.5 + 0.25)
    gradient = 2 * (0.75 * 2 - 1.0) * 2
    absorbed = Absorbed(model=model, task="regression", rows=events(1), batch=batch, seed=0, encode=lambda rows: batch)
    method = EWC(decay=0.5)
    once = method.absorb(MethodState(), absorbed)
    assert once.tensors["fisher"]["weight"].item() == pytest.approx(gradient**2)
    twice = method.absorb(once, absorbed)
    assert twice.tensors["fisher"]["weight"].item() == pytest.approx(1.5 * gradient**2)
    assert once.tensors["fisher"]["weight"].item() == pytest.approx(gradient**2), "the input is left alone"
    assert twice.tensors["anchor"]["weight"].item() == 0.75


def test_no_strength_diverges_and_more_of_it_keeps_closer() -> None:
    parent = update(events(300), method=EWC(fisher_rows=300)).state
    training = Training(batch_size=16, learning_rate=1e-2, epochs=5)
    moved = []
    for strength in (0.0, 1e2, 1e4, 1e6, 1e9):
        child = update(events(300, seed=1, turn=1.0), parent, EWC(strength=strength), training).state
        fisher, anchor = parent.method.tensors["fisher"], parent.method.tensors["anchor"]
        moved.append(sum((f * (child.weights[n] - anchor[n]) ** 2).sum().item() for n, f in fisher.items()))
        assert all(v.isfinite().all() for v in child.weights.values())
    assert moved[0] > 2 * moved[1] > 4 * moved[2]
    assert moved[3] < moved[2]
    assert moved[4] < 0.01 * moved[0]


def test_rehearsal_draws_uniformly_and_in_proportion() -> None:
    generator = torch.Generator().manual_seed(0)
    assert Replay(ratio=0.5).rehearse(10, 0, generator) is None
    assert Replay(ratio=0.0).rehearse(10, 5, generator) is None
    drawn = Replay(ratio=2.0).rehearse(5_000, 10, generator)
    assert drawn is not None
    counts = torch.bincount(drawn, minlength=10)
    assert counts.sum() == 10_000
    assert ((counts - 1_000).square() / 1_000).sum() < 27.9, "chi-square, 9 degrees of freedom, p = 0.001"


def test_replay_remembers_and_finetune_forgets() -> None:
    training = Training(batch_size=16, learning_rate=1e-2, epochs=10)
    losses = {}
    for name, method in (("finetune", Finetune()), ("replay", Replay(ratio=1.0)), ("ewc", EWC(strength=100.0))):
        parent = update(events(300), None, method, training).state
        child = update(events(300, seed=1, turn=1.0), parent, method, training).state
        losses[name] = Predictor.of(child).score(events(300, seed=2)).losses.mean()
    assert losses["replay"] < 0.7 * losses["finetune"]
    assert losses["ewc"] < 0.8 * losses["finetune"]


def test_combined() -> None:
    parts: dict[str, Method] = {"replay": Replay(), "ewc": EWC()}
    assert Combined(parts=parts).stateful
    assert not Combined(parts={"a": FromScratch()}).stateful
    with pytest.raises(ConfigError, match="a, b all rehearse"):
        Combined(parts={"a": Replay(), "b": Replay()})
    with pytest.raises(ConfigError, match="is empty"):
        Combined(parts={})


def test_a_need_that_the_engine_lacks_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Needy(Method):
        needs = frozenset({"elementwise", "magic"})

    with pytest.raises(ConfigError, match="Needy needs magic, which Plain lacks"):
        update(events(10), method=Needy(), engine=Plain())


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (EWC, {"strength": -1.0}, r"method\.strength must be between 0 and 1e\+09"),
        (EWC, {"strength": float("nan")}, r"method\.strength"),
        (EWC, {"decay": 1.5}, r"method\.decay"),
        (EWC, {"fisher_rows": 0}, r"method\.fisher_rows"),
        (Replay, {"ratio": -0.5}, r"method\.ratio must be 0 or more"),
    ],
)
def test_ranges(kind: type, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**settings)
