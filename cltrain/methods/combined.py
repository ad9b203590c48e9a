"""Several methods at once: each answers for itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cltrain.errors import ConfigError
from cltrain.methods.base import Absorbed, Method, MethodState


@dataclass(frozen=True, kw_only=True)
class Combined(Method):
    """`parts` by name, such as `{"replay": Replay(), "ewc": EWC()}`, so that `method.parts.ewc.strength=1` can be set.
    They share one memory, so one part at most may rehearse."""

    parts: Mapping[str, Method]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("method.parts is empty: name one method or more, or use method=finetune")
        rehearsing = [name for name, part in self.parts.items() if type(part).rehearse is not Method.rehearse]
        if len(rehearsing) > 1:
            raise ConfigError(
                f"method.parts {', '.join(rehearsing)} all rehearse, but there is one memory: keep one of them"
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset().union(*(part.needs for part in self.parts.values()))

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        return all(part.stateful for part in self.parts.values())

    def rehearse(self, rows: int, remembered: int, generator: torch.Generator) -> Tensor | None:
        for part in self.parts.values():
            if (index := part.rehearse(rows, remembered, generator)) is not None:
                return index
        return None

    def add_penalty_gradients(self, state: MethodState, parameters: Mapping[str, Tensor]) -> None:
        for part in self.parts.values():
            part.add_penalty_gradients(state, parameters)

    def absorb(self, state: MethodState, absorbed: Absorbed) -> MethodState:
        for part in self.parts.values():
            state = part.absorb(state, absorbed)
        return state
