"""Memory-aware synapses (Aljundi et al. 2018): importance is how much the output reacts to a parameter."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from cltrain.errors import ConfigError
from cltrain.methods.base import Absorbed, Method, MethodState, Named
from cltrain.methods.ewc import check_penalty
from cltrain.methods.fisher import held_in, output_sensitivity_sum
from cltrain.methods.penalty import pull_to, remembered


@dataclass(frozen=True, kw_only=True)
class MAS(Method):
    """The loss gains `strength / 2 * sum(M * (theta - anchor)**2)`, with M the mean over `importance_rows` rows of the
    absolute gradient of the squared length of the outputs (eq. 2 and 3), which needs no labels. Older ones count
    `decay` as much at each further update; with 1 they add up, as in the paper, which takes twice this penalty."""

    strength: float = 1.0
    decay: float = 1.0
    importance_rows: int = 1_000

    needs = frozenset({"elementwise", "whole"})

    def __post_init__(self) -> None:
        check_penalty(self.strength, self.decay)
        if self.importance_rows < 1:
            raise ConfigError(f"method.importance_rows must be 1 or more, not {self.importance_rows}")

    def penalise(self, state: MethodState, values: Named, gradients: Named, step_size: float | None) -> None:
        if "mas" in state.tensors:
            pull_to(state.tensors["anchor"], state.tensors["mas"], self.strength, values, gradients, step_size)

    def absorb(self, state: MethodState, absorbed: Absorbed) -> MethodState:
        if not self.strength or not len(absorbed.batch):
            return state
        rows, count = held_in(absorbed, self.importance_rows, "mas")
        total = output_sensitivity_sum(absorbed.model, rows)
        importance = {name: absorbed.reduce(value) / count for name, value in total.items()}
        importance = remembered(state.tensors.get("mas"), importance, self.decay)
        tensors = {**state.tensors, "mas": importance, "anchor": absorbed.weights()}
        return dataclasses.replace(state, tensors=tensors)
