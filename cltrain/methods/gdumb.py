"""GDumb (Prabhu et al. 2020): keep a balanced sample of the past, and train from scratch on it alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pyarrow as pa
import torch
from torch import Tensor

from cltrain.errors import ConfigError
from cltrain.memory import ClassBalanced, Memory
from cltrain.methods.base import Absorbed, MethodState
from cltrain.methods.replay import Replay


@dataclass(frozen=True, kw_only=True)
class GDumb(Replay):
    """Each update admits its rows to the memory and trains fresh weights on what the memory holds then. The floor that
    a method has to be above for its memory."""

    ratio: float = 0.0
    memory: Memory = field(default_factory=ClassBalanced)

    restarts = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.memory.capacity_rows or self.memory.capacity_bytes == 0:
            raise ConfigError("method=gdumb trains on its memory alone: make memory.capacity_rows 1 or more")
        if self.memory.sees:
            raise ConfigError(f"method=gdumb chooses before it trains: {type(self.memory).__name__} needs a model")

    def admit(self, state: MethodState, rows: pa.Table) -> MethodState:
        return dataclasses.replace(state, memory=self.memory.admit(state.memory, rows))

    def absorb(self, state: MethodState, absorbed: Absorbed) -> MethodState:
        return state

    def rehearse(self, rows: int, remembered: int, generator: torch.Generator) -> Tensor | None:
        return None
