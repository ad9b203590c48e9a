"""Several methods at once: each answers for itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import torch
from torch import Tensor

from cltrain.batch import Batch
from cltrain.errors import ConfigError
from cltrain.methods.base import Absorbed, Joined, Method, MethodState, Named


@dataclass(frozen=True, kw_only=True)
class Combined(Method):
    """`parts` by name, such as `{"replay": Replay(), "ewc": EWC()}`, so that `method.parts.ewc.strength=1` can be set.
    They share one memory, so one part at most may rehearse."""

    parts: Mapping[str, Method]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("method.parts is empty: name one method or more, or use method=finetune")
        rehearsing = [name for name, part in self.parts.items() if part.rehearses]
        if len(rehearsing) > 1:
            raise ConfigError(
                f"method.parts {', '.join(rehearsing)} all rehearse, but there is one memory: keep one of them"
            )
        kinds = [type(part) for part in self.parts.values()]
        if twice := [kind.__name__ for kind in kinds if kinds.count(kind) > 1]:
            raise ConfigError(f"method.parts has {twice[0]} twice, but a state remembers for one of a kind: keep one")
        for name, part in self.parts.items():
            if part.restarts:
                raise ConfigError(f"method.parts.{name} starts from fresh weights each time: nothing combines with it")

    @cached_property
    def _rehearser(self) -> Method:
        found = [part for part in self.parts.values() if part.rehearses]
        return found[0] if found else Method()

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset().union(*(part.needs for part in self.parts.values()))

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset().union(*(part.reads for part in self.parts.values()))

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        return all(part.stateful for part in self.parts.values())

    @property
    def rehearses(self) -> bool:
        return self._rehearser.rehearses

    @property
    def rehearsed_weight(self) -> float | None:  # type: ignore[override]
        return self._rehearser.rehearsed_weight

    @property
    def records(self) -> bool:  # type: ignore[override]
        return any(part.records for part in self.parts.values())

    @property
    def projects(self) -> bool:  # type: ignore[override]
        return self._rehearser.projects

    @cached_property
    def has_terms(self) -> bool:  # type: ignore[override]
        return any(part.has_terms for part in self.parts.values())

    @cached_property
    def penalises(self) -> bool:  # type: ignore[override]
        return any(part.penalises for part in self.parts.values())

    @property
    def augments(self) -> bool:
        return self._rehearser.augments

    def rehearse(self, rows: int, remembered: int, generator: torch.Generator) -> Tensor | None:
        return self._rehearser.rehearse(rows, remembered, generator)

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        return self._rehearser.augment(batch, generator)

    def terms(self, joined: Joined) -> dict[str, Tensor]:
        return {name: term for part in self.parts.values() for name, term in part.terms(joined).items()}

    def penalise(self, state: MethodState, values: Named, gradients: Named, step_size: float | None) -> None:
        for part in sorted(self.parts.values(), key=lambda part: not part.reads_gradient):
            part.penalise(state, values, gradients, step_size)

    def project(self, gradients: Named, reference: Named, total: Callable[[Tensor], Tensor]) -> None:
        self._rehearser.project(gradients, reference, total)

    def staying(self, state: MethodState, rows: pa.Table) -> Tensor | None:
        return self._rehearser.staying(state, rows)

    def absorb(self, state: MethodState, absorbed: Absorbed) -> MethodState:
        for part in self.parts.values():
            state = part.absorb(state, absorbed)
        return state
