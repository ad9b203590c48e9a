"""The three questions that a method answers. There are no hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import torch
from torch import Tensor, nn

from cltrain.batch import Batch

Named = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class MethodState:
    """What a method remembers: exemplars as an Arrow table, and tensors by slot and parameter, such as
    `tensors["fisher"]["head.weight"]`. It is part of the version: a rejected challenger takes its own with it."""

    memory: pa.Table | None = None
    tensors: Mapping[str, Named] = field(default_factory=dict)

    @property
    def memory_rows(self) -> int:
        return 0 if self.memory is None else self.memory.num_rows


@dataclass(frozen=True, kw_only=True)
class Absorbed:
    """What an update ends with: the model in eval mode, its rows as events (`rows`) and as tensors (`batch`), in the
    same order, with those that were kept aside to stop early, and `reduce`, which adds up a tensor over the ranks
    that each hold a `shard`. All ranks have all rows."""

    model: nn.Module
    task: str
    rows: pa.Table
    batch: Batch
    seed: int
    shard: Callable[[Tensor], Tensor] = lambda index: index
    reduce: Callable[[Tensor], Tensor] = lambda value: value


class Method:
    """Answers nothing: plain fine-tuning. Other methods override what they answer.

    `needs` names what a method asks of an engine; an engine that lacks it is refused before training starts.
    `stateful` is False where every update starts from scratch.
    """

    needs: frozenset[str] = frozenset()
    stateful: bool = True

    def rehearse(self, rows: int, remembered: int, generator: torch.Generator) -> Tensor | None:
        """Which of the `remembered` exemplars join a batch of `rows` new rows: (R,) int64 indices, or None."""
        return None

    def add_penalty_gradients(self, state: MethodState, parameters: Mapping[str, Tensor]) -> None:
        """Add to each parameter's gradient, which is that of the whole batch on every rank, what pulls it towards the
        past."""

    def absorb(self, state: MethodState, absorbed: Absorbed) -> MethodState:
        """State to remember when the update has ended, the same on every rank; `state` itself is not altered."""
        return state
