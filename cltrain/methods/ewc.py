"""Elastic weight consolidation, online (Kirkpatrick et al. 2017; Schwarz et al. 2018)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from cltrain.errors import ConfigError
from cltrain.methods.base import Absorbed, Method, MethodState, Named
from cltrain.methods.fisher import held_in, squared_gradient_sum
from cltrain.methods.penalty import pull_to, remembered

MAX_STRENGTH = 1e9  # the weights do not move at all; much beyond, squares of gradients overflow float32


@dataclass(frozen=True, kw_only=True)
class EWC(Method):
    """The loss gains `strength / 2 * sum(F * (theta - anchor)**2)`, whose gradient is added element by element.

    F is the per-example empirical Fisher of `fisher_rows` rows of each update; older ones count `decay` as much at
    each further update. The anchor is where the last update ended. Rows of a parameter that are new (a category, a
    class) have F = 0 until they are trained.

    A strong penalty makes an explicit SGD step diverge once `learning_rate * strength * F > 2`: with SGD the step is
    the implicit one (`pull_to`). AdamW moves no weight by more than about the learning rate, so there a strong penalty
    pins the weights to the anchor. Measured with strengths from 1 to 1e9: the distance to the anchor falls all the way.
    """

    strength: float = 10.0
    decay: float = 0.9
    fisher_rows: int = 1_000

    needs = frozenset({"elementwise", "whole"})

    def __post_init__(self) -> None:
        check_penalty(self.strength, self.decay)
        if self.fisher_rows < 1:
            raise ConfigError(f"method.fisher_rows must be 1 or more, not {self.fisher_rows}")

    def penalise(self, state: MethodState, values: Named, gradients: Named, step_size: float | None) -> None:
        if "fisher" in state.tensors:
            fisher, anchor = state.tensors["fisher"], state.tensors["anchor"]
            pull_to(anchor, fisher, self.strength, values, gradients, step_size)

    def absorb(self, state: MethodState, absorbed: Absorbed) -> MethodState:
        if not self.strength or not len(absorbed.batch):
            return state
        rows, count = held_in(absorbed, self.fisher_rows, "fisher")
        total = squared_gradient_sum(absorbed.model, absorbed.task, rows)
        fisher = {name: absorbed.reduce(value) / count for name, value in total.items()}
        fisher = remembered(state.tensors.get("fisher"), fisher, self.decay)
        tensors = {**state.tensors, "fisher": fisher, "anchor": absorbed.weights()}
        return dataclasses.replace(state, tensors=tensors)


def check_penalty(strength: float, decay: float) -> None:
    if not 0 <= strength <= MAX_STRENGTH:
        raise ConfigError(f"method.strength must be between 0 and {MAX_STRENGTH:.0e}, not {strength}")
    if not 0 <= decay <= 1:
        raise ConfigError(f"method.decay must be between 0 and 1, not {decay}")
