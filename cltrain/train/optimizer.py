"""The optimizer of a model."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cltrain.errors import ConfigError
from cltrain.train.settings import Training

KNOWN: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


def make_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimizer on the trainable parameters of a model that is on its device. Weight decay is for matrices: it
    would pull the embedding of a category that no row mentions towards 0, which is forgetting without evidence."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() >= 2 and id(p) not in tables]
    rest = [p for p in trained if p.dim() < 2 or id(p) in tables]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    settings: dict[str, Any] = {"lr": training.learning_rate, **training.optimizer_settings}
    if training.optimizer in KNOWN:
        fits = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in trained)
        settings.setdefault("fused", fits)
    try:
        return _factory(training.optimizer)(groups, **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train.optimizer={training.optimizer} cannot be made with {settings}: {error}") from error


def slots(training: Training) -> frozenset[str]:
    """Names of the tensors that the optimizer keeps for a parameter, such as exp_avg."""
    with torch.random.fork_rng([]):
        probe = nn.Linear(1, 1)
    optimizer = make_optimizer(probe, training)
    for parameter in probe.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return frozenset(slot for slot, value in optimizer.state[probe.weight].items() if value is not None)


def step_size(optimizer: torch.optim.Optimizer) -> float | None:
    """The learning rate of SGD, whose step is that times the gradient (or, with momentum, follows it), and None of any
    other optimizer."""
    return optimizer.param_groups[0]["lr"] if isinstance(optimizer, torch.optim.SGD) else None


def _factory(name: str) -> Callable[..., torch.optim.Optimizer]:
    if name in KNOWN:
        return KNOWN[name]
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"train.optimizer={name} must be one of {', '.join(KNOWN)} or package.Optimizer: {error}"
        ) from error
    return found
