"""How an update trains is a setting: each does what it says, and changes nothing else."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from cltrain.errors import ConfigError
from cltrain.methods import EWC, Combined, DERpp, Finetune, Method, Replay
from cltrain.train import loader
from cltrain.train.engines.plain import Running
from cltrain.train.optimizer import make_optimizer
from cltrain.train.settings import Training
from cltrain.train.state import State
from tests.train.made import assert_same, events, update

STEADY: dict[str, Any] = {"batch_size": 64, "epochs": 3, "learning_rate": 1e-2}
METHODS: dict[str, Method] = {
    "finetune": Finetune(),
    "replay_ewc": Combined(parts={"replay": Replay(ratio=1.0), "ewc": EWC(strength=10.0)}),
    "derpp": DERpp(),
}


def child(method: str = "replay_ewc", rows: int = 600, **settings: Any) -> State:
    """Of a parent that was trained as usual."""
    parent = update(events(400), None, METHODS[method], Training(**STEADY)).state
    return update(events(rows, seed=1), parent, METHODS[method], Training(**{**STEADY, **settings})).state


def furthest(a: State, b: State) -> float:
    return max((a.weights[n] - b.weights[n]).abs().max().item() for n in a.weights)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_in_parts_gives_the_same_step(method: str) -> None:
    """SGD, since Adam's step does not grow with a gradient, nor with what rounding makes of one that is 0."""
    whole, parts = (child(method, optimizer="sgd", learning_rate=0.1, accumulate=n) for n in (1, 4))
    assert furthest(whole, parts) < 1e-5
    assert whole.steps == parts.steps


@pytest.mark.parametrize("method", METHODS)
def test_rows_on_the_host_give_the_same_bits(method: str) -> None:
    assert_same(child(method, rows_on="device"), child(method, rows_on="host"))


@pytest.mark.parametrize("method", METHODS)
def test_rows_in_a_file_give_the_same_bits(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = child(method)
    monkeypatch.setattr(loader, "CHUNK_ROWS", 100)
    spilled: list[int] = []
    from_file = torch.from_file

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        spilled.append(kwargs["size"])
        return from_file(*args, **kwargs)

    monkeypatch.setattr(torch, "from_file", counted)
    assert_same(in_memory, child(method, memory_gib=1e-9))
    assert spilled


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_model_learns_the_same(mode: str) -> None:
    plain, compiled = (child("derpp", rows=128, optimizer="sgd", compile=how) for how in ("off", mode))
    assert furthest(plain, compiled) < 1e-4
    assert plain.weights.keys() == compiled.weights.keys()


@pytest.mark.parametrize("method", METHODS)
def test_mixed_precision_learns_about_the_same(method: str) -> None:
    full, mixed = (child(method, precision=p) for p in ("float32", "bfloat16"))
    assert 0 < furthest(full, mixed) < 0.1
    assert all(w.dtype == torch.float32 for w in mixed.weights.values() if w.is_floating_point())
    assert all(v.dtype == torch.float32 for v in mixed.optimizer.values())


def rates(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[float]:
    """Learning rate of each step of an update."""
    found: list[float] = []
    step = Running.step

    def watched(self: Running, *args: Any) -> None:
        found.append(self.optimizer.param_groups[0]["lr"])
        step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Running, "step", watched)
        update(events(640), training=Training(**{**STEADY, "epochs": 1, "learning_rate": 1.0, **settings}))
    return found


def test_the_learning_rate_goes_as_the_schedule_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rates(monkeypatch) == [1.0] * 10
    assert rates(monkeypatch, schedule="linear") == pytest.approx([1 - i / 10 for i in range(10)])
    cosine = rates(monkeypatch, schedule="cosine")
    assert cosine[0] == 1.0
    assert cosine[5] == pytest.approx(0.05 + 0.95 / 2)
    assert sorted(cosine, reverse=True) == cosine
    warmed = rates(monkeypatch, schedule="linear", warmup=0.5)
    assert warmed == pytest.approx([0.01, 0.208, 0.406, 0.604, 0.802, 1.0, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize(
    ("optimizer", "settings", "slots"),
    [
        ("adamw", {}, {"exp_avg", "exp_avg_sq", "step"}),
        ("adam", {"betas": [0.8, 0.9]}, {"exp_avg", "exp_avg_sq", "step"}),
        ("sgd", {"momentum": 0.9}, {"momentum_buffer"}),
        ("torch.optim.RMSprop", {"alpha": 0.9}, {"square_avg", "step"}),
    ],
)
def test_each_optimizer_trains_and_is_gone_on_with(optimizer: str, settings: dict[str, Any], slots: set[str]) -> None:
    training = Training(**STEADY, optimizer=optimizer, optimizer_settings=settings)
    first = update(events(300), training=training)
    second = update(events(300, seed=1), first.state, training=training)
    assert {key.split("/")[0] for key in second.state.optimizer} == slots
    assert all(torch.isfinite(v).all() for v in second.state.weights.values())
    assert furthest(first.state, second.state) > 0


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        ("adamv", {}),
        ("torch.optim.Nothing", {}),
        ("nowhere.Adam", {}),
        ("sgd", {"momentun": 0.9}),
        ("adam", {"eps": -1}),
    ],
)
def test_an_optimizer_that_is_none_is_refused(optimizer: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"train\.optimizer={optimizer}"):
        make_optimizer(torch.nn.Linear(1, 1), Training(optimizer=optimizer, optimizer_settings=settings))
