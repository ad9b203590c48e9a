"""Experience replay (Rolnick et al. 2019; Chaudhry et al. 2019): rows of the past join each batch."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from cltrain.batch import Batch
from cltrain.errors import ConfigError
from cltrain.memory import Memory, Reservoir
from cltrain.methods.base import Absorbed, Method, MethodState


@dataclass(frozen=True, kw_only=True)
class Replay(Method):
    """Draw `ratio` exemplars, uniformly and with replacement, for each new row of a batch. They weigh what they weighed
    when they were new, so with `ratio` 1 half of the loss is about the past.

    augmentation: name of a function of yours, package.function, from a `Batch` of exemplars and a `torch.Generator` to
    the batch that is to be seen this time; it is left to itself what it changes, and must keep the number of rows.
    """

    ratio: float = 0.5
    memory: Memory = field(default_factory=Reservoir)
    augmentation: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < math.inf:
            raise ConfigError(f"method.ratio must be 0 or more replayed rows a new row, not {self.ratio}")
        if self.augmentation is not None:
            _ = self._function

    @property
    def augments(self) -> bool:
        return self.augmentation is not None

    def rehearse(self, rows: int, remembered: int, generator: torch.Generator) -> Tensor | None:
        if not self.ratio or not remembered:
            return None
        count = max(1, round(rows * self.ratio))
        return torch.randint(remembered, (count,), generator=generator)

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        changed = self._function(batch, generator)
        if not isinstance(changed, Batch) or len(changed) != len(batch):
            raise ConfigError(f"method.augmentation={self.augmentation} must return a Batch of as many rows as it got")
        return changed

    def absorb(self, state: MethodState, absorbed: Absorbed) -> MethodState:
        return dataclasses.replace(state, memory=self.memory.admit(state.memory, absorbed.rows, absorbed.see))

    @cached_property
    def _function(self) -> Callable[[Batch, torch.Generator], Batch]:
        module, _, name = str(self.augmentation).rpartition(".")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"method.augmentation={self.augmentation} cannot be imported: {error}") from error
