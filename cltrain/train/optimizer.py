"""The optimizer, and its state as tensors by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cltrain.models.growth import grown
from cltrain.train.settings import Training

Parameters = Mapping[str, Tensor]


def adamw(model: nn.Module, training: Training) -> torch.optim.AdamW:
    """AdamW on the trainable parameters of a model that is on its device. Weight decay is for matrices: it would pull
    the embedding of a category that no row mentions towards 0, which is forgetting without evidence."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() >= 2 and id(p) not in tables]
    rest = [p for p in trained if p.dim() < 2 or id(p) in tables]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in trained)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=training.learning_rate, fused=fused)


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, Tensor]:
    """Copies of the optimizer's state, on the CPU, by slot and parameter name, such as `exp_avg/head.weight`."""
    return {
        f"{slot}/{name}": torch.as_tensor(value).detach().cpu().clone()
        for name, parameter in parameters.items()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, parameters: Parameters, tensors: Mapping[str, Tensor]) -> None:
    """Put back copies of what `optimizer_tensors` gave. Rows of a parameter that are new, and parameters without state,
    start fresh."""
    whole = optimizer.state_dict()
    places = dict(zip((id(p) for g in optimizer.param_groups for p in g["params"]), _indices(whole), strict=True))
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        slot, name = key.split("/", 1)
        if name in parameters:
            like = parameters[name].detach().cpu()
            whole_value = grown(key, value, torch.zeros_like(like, dtype=value.dtype)) if value.dim() else value
            # A clone, since the optimizer would take the tensor itself and change it in place.
            state.setdefault(places[id(parameters[name])], {})[slot] = whole_value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def _indices(whole: Mapping[str, list[dict[str, list[int]]]]) -> list[int]:
    return [index for group in whole["param_groups"] for index in group["params"]]
