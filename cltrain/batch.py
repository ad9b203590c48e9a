"""What a training step sees: named input tensors, targets and weights, all with rows first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

UNKNOWN = 0  # index of a category that training never saw


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a model is built for: its inputs and outputs.

    num_columns numbers, of which `edges` holds the quantiles (standardised) of each, then num_indicators columns that
    are 1.0 where a number was null; one cardinality for each categorical column; num_outputs logits or values.
    """

    num_columns: int
    num_indicators: int
    edges: tuple[tuple[float, ...], ...]
    cardinalities: tuple[int, ...]
    num_outputs: int

    @property
    def num_numeric(self) -> int:
        return self.num_columns + self.num_indicators


@dataclass(frozen=True)
class Batch:
    """`inputs` are passed to the model by name: `model(**batch.inputs)`.

    inputs: name -> (B, ...); target: (B,) class indices (int64) or standardised values (float32);
    weight: (B,) float32, what each row counts in the loss.
    """

    inputs: Mapping[str, Tensor]
    target: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return self.target.shape[0]

    def take(self, index: Tensor) -> Batch:
        """The rows at `index` (int64), in that order."""
        return Batch(
            {name: value.index_select(0, index) for name, value in self.inputs.items()},
            self.target.index_select(0, index),
            self.weight.index_select(0, index),
        )

    def to(self, device: torch.device | str) -> Batch:
        return Batch(
            {name: value.to(device) for name, value in self.inputs.items()},
            self.target.to(device),
            self.weight.to(device),
        )


def join(batches: Sequence[Batch]) -> Batch:
    """Rows of all batches one after another; weights are kept as they are."""
    if len(batches) == 1:
        return batches[0]
    names = batches[0].inputs.keys()
    return Batch(
        {name: torch.cat([b.inputs[name] for b in batches]) for name in names},
        torch.cat([b.target for b in batches]),
        torch.cat([b.weight for b in batches]),
    )
