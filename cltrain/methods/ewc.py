"""Elastic weight consolidation, online (Kirkpatrick et al. 2017; Schwarz et al. 2018)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cltrain.errors import ConfigError
from cltrain.methods.base import Absorbed, Method, MethodState
from cltrain.methods.fisher import squared_gradient_sum
from cltrain.seeding import torch_generator

MAX_STRENGTH = 1e9  # the weights do not move at all; much beyond, squares of gradients overflow float32


@dataclass(frozen=True, kw_only=True)
class EWC(Method):
    """The loss gains `strength / 2 * sum(F * (theta - anchor)**2)`, whose gradient is added element by element.

    F is the per-example empirical Fisher of `fisher_rows` rows of each update; older ones count `decay` as much at
    each further update. The anchor is where the last update ended. Rows of a parameter that are new (a category, a
    class) have F = 0 until they are trained.

    A strong penalty makes an explicit SGD step diverge once `learning_rate * strength * F > 2`. Here it does not: the
    step is AdamW's, which moves no weight by more than about the learning rate, so a strong penalty pins the weights
    to the anchor. Measured with strengths from 1 to 1e9: the distance to the anchor falls all the way.
    """

    strength: float = 10.0
    decay: float = 0.9
    fisher_rows: int = 1_000

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= MAX_STRENGTH:
            raise ConfigError(f"method.strength must be between 0 and {MAX_STRENGTH:.0e}, not {self.strength}")
        if not 0 <= self.decay <= 1:
            raise ConfigError(f"method.decay must be between 0 and 1, not {self.decay}")
        if self.fisher_rows < 1:
            raise ConfigError(f"method.fisher_rows must be 1 or more, not {self.fisher_rows}")

    def add_penalty_gradients(self, state: MethodState, parameters: Mapping[str, Tensor]) -> None:
        if "fisher" not in state.tensors or not self.strength:
            return
        fisher, anchor = state.tensors["fisher"], state.tensors["anchor"]
        pulled = {n: (p, p.grad) for n, p in parameters.items() if n in fisher and p.grad is not None}
        distance = torch._foreach_sub([p.detach() for p, _ in pulled.values()], [anchor[n] for n in pulled])
        gradients = [gradient for _, gradient in pulled.values()]
        torch._foreach_addcmul_(gradients, distance, [fisher[n] for n in pulled], value=self.strength)

    def absorb(self, state: MethodState, absorbed: Absorbed) -> MethodState:
        if not self.strength or not len(absorbed.batch):
            return state
        generator = torch_generator(absorbed.seed, "fisher")
        chosen = torch.randperm(len(absorbed.batch), generator=generator)[: self.fisher_rows]
        share = absorbed.shard(chosen).to(absorbed.batch.target.device)
        total = squared_gradient_sum(absorbed.model, absorbed.task, absorbed.batch.take(share))
        fisher = {name: absorbed.reduce(value) / len(chosen) for name, value in total.items()}
        for name, old in state.tensors.get("fisher", {}).items():
            if name in fisher:
                fisher[name] += self.decay * old.to(fisher[name])
        anchor = {n: p.detach().clone() for n, p in absorbed.model.named_parameters() if n in fisher}
        return dataclasses.replace(state, tensors={**state.tensors, "fisher": fisher, "anchor": anchor})
