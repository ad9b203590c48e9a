"""Experience replay (Rolnick et al. 2019; Chaudhry et al. 2019): rows of the past join each batch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cltrain.errors import ConfigError
from cltrain.memory import Reservoir
from cltrain.methods.base import Absorbed, Method, MethodState


@dataclass(frozen=True, kw_only=True)
class Replay(Method):
    """Draw `ratio` exemplars, uniformly and with replacement, for each new row of a batch. They weigh what they weighed
    when they were new, so with `ratio` 1 half of the loss is about the past."""

    ratio: float = 0.5
    memory: Reservoir = field(default_factory=Reservoir)

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < math.inf:
            raise ConfigError(f"method.ratio must be 0 or more replayed rows a new row, not {self.ratio}")

    def rehearse(self, rows: int, remembered: int, generator: torch.Generator) -> Tensor | None:
        count = round(rows * self.ratio)
        if not count or not remembered:
            return None
        return torch.randint(remembered, (count,), generator=generator)

    def absorb(self, state: MethodState, absorbed: Absorbed) -> MethodState:
        return dataclasses.replace(state, memory=self.memory.admit(state.memory, absorbed.rows))
