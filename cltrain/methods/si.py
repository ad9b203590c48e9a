"""Synaptic intelligence (Zenke et al. 2017): importance is what a parameter's moves did for the loss."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from cltrain.errors import ConfigError
from cltrain.methods.base import Absorbed, Method, MethodState, Named
from cltrain.methods.ewc import check_penalty
from cltrain.methods.penalty import pull_to, remembered


@dataclass(frozen=True, kw_only=True)
class SI(Method):
    """The loss gains `strength * sum(S * (theta - anchor)**2)` (eq. 4). S adds up over the updates: the path integral
    of minus the gradient of the batch's loss along the moves of an update, where it is positive, by the squared length
    of the whole move plus `damping` (eq. 5). The gradient is that of all rows of the batch, before penalties and
    clipping. Older importance counts `decay` as much at each further update; 1 is the paper's.
    """

    strength: float = 1.0
    decay: float = 1.0
    damping: float = 1e-3

    needs = frozenset({"elementwise"})
    reads_gradient = True

    def __post_init__(self) -> None:
        check_penalty(self.strength, self.decay)
        if self.damping <= 0:
            raise ConfigError(f"method.damping must be above 0, not {self.damping}")

    def penalise(self, state: MethodState, values: Named, gradients: Named, step_size: float | None) -> None:
        tensors = state.tensors
        if "path" not in tensors:
            tensors["path"] = {n: torch.zeros_like(v) for n, v in values.items()}  # type: ignore[index]
            tensors["begin"] = {n: v.clone() for n, v in values.items()}  # type: ignore[index]
        else:
            _walk(tensors["path"], tensors["from"], tensors["slope"], values)
        tensors["from"] = {n: v.clone() for n, v in values.items()}  # type: ignore[index]
        tensors["slope"] = {n: g.clone() for n, g in gradients.items()}  # type: ignore[index]
        if "si" in tensors:
            pull_to(tensors["anchor"], tensors["si"], 2 * self.strength, values, gradients, step_size)

    def absorb(self, state: MethodState, absorbed: Absorbed) -> MethodState:
        ended = absorbed.weights()
        tensors = {slot: dict(named) for slot, named in state.tensors.items()}
        walked = {n: v.to(ended[n]) for n, v in tensors.pop("path", {}).items()}
        begin, last, slope = (tensors.pop(slot, {}) for slot in ("begin", "from", "slope"))
        _walk(walked, last, slope, ended)
        importance = {
            n: path.clamp(min=0) / ((ended[n] - begin[n].to(ended[n])).square() + self.damping)
            for n, path in walked.items()
        }
        tensors |= {"si": remembered(tensors.get("si"), importance, self.decay), "anchor": ended}
        return dataclasses.replace(state, tensors=tensors)


def _walk(path: Named, before: Named, slope: Named, values: Named) -> None:
    """Add to `path`, in place, minus the slope times the move from `before` to `values`."""
    names = [n for n in slope if n in path]
    if not names:
        return
    moves = torch._foreach_sub([before[n].to(values[n]) for n in names], [values[n] for n in names])
    torch._foreach_addcmul_([path[n] for n in names], moves, [slope[n].to(values[n]) for n in names])
