"""Carry parameters over to a model with more rows: new categories, new classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cltrain.errors import UpdateError


def grow_into(model: nn.Module, old: Mapping[str, Tensor]) -> None:
    """Load `old` into `model`, whose tensors may have more rows than those of `old`.

    New rows are what `model.new_rows(name, old, count)` says, or the model's own initialisation. Raises `UpdateError`
    if names or other dimensions differ: that is another architecture.
    """
    state = model.state_dict()
    if state.keys() != old.keys():
        differing = sorted(state.keys() ^ old.keys())[:4]
        raise UpdateError(f"the model's parameters are not those of its parent ({', '.join(differing)}): {ADVICE}")
    for name, tensor in state.items():
        before = old[name]
        if tensor.shape == before.shape:
            state[name] = before
            continue
        state[name] = grown(name, before, tensor)
        new_rows = getattr(model, "new_rows", lambda *_: None)(name, before, tensor.shape[0] - before.shape[0])
        if new_rows is not None:
            state[name][before.shape[0] :] = new_rows
    model.load_state_dict(state)


def grown(name: str, old: Tensor, like: Tensor) -> Tensor:
    """`like` with its first rows replaced by those of `old`."""
    if old.dim() != like.dim() or old.shape[1:] != like.shape[1:] or old.shape[0] > like.shape[0]:
        raise UpdateError(f"parameter {name} was {tuple(old.shape)} and is now {tuple(like.shape)}: {ADVICE}")
    result = like.clone()
    result[: old.shape[0]] = old
    return result


def padded(old: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State that goes with parameters (moments, Fisher), with zeros for rows that are new."""
    return {name: grown(name, value, torch.zeros_like(like[name], dtype=value.dtype)) for name, value in old.items()}


ADVICE = "a stateful update needs the same architecture; recalibrate (train from scratch), which starts a new major"
