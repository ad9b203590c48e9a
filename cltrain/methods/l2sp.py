"""L2-SP (Li et al. 2018): weight decay towards where one started, not towards 0."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from cltrain.errors import ConfigError
from cltrain.methods.base import Absorbed, Method, MethodState, Named
from cltrain.methods.ewc import check_penalty
from cltrain.methods.penalty import pull_to


@dataclass(frozen=True, kw_only=True)
class L2SP(Method):
    """The loss gains `strength / 2 * sum((theta - start)**2)`. `start` is where the last update ended (parent), or
    where the training from scratch that began the major did (root)."""

    strength: float = 1e-2
    start: Literal["parent", "root"] = "parent"

    needs = frozenset({"elementwise"})

    def __post_init__(self) -> None:
        check_penalty(self.strength, 1.0)
        if self.start not in ("parent", "root"):
            raise ConfigError(f"method.start must be parent or root, not {self.start!r}")

    def penalise(self, state: MethodState, values: Named, gradients: Named, step_size: float | None) -> None:
        if self._slot in state.tensors:
            pull_to(state.tensors[self._slot], None, self.strength, values, gradients, step_size)

    def absorb(self, state: MethodState, absorbed: Absorbed) -> MethodState:
        if self.start == "root" and "root" in state.tensors:
            return state
        return dataclasses.replace(state, tensors={**state.tensors, self._slot: absorbed.weights()})

    @property
    def _slot(self) -> str:
        return "anchor" if self.start == "parent" else "root"
