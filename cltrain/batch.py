"""What a training step sees: named input tensors, targets and weights, all with rows first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

PASS_BYTES = 8 << 20  # of inputs
UNKNOWN = 0  # index of a category that training never saw


@dataclass(frozen=True, kw_only=True)
class TensorInput:
    """An input of the column's name: (B, *shape) float32."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TextInput:
    """An input of the column's name: (B, max_tokens) int64 below `vocabulary`, padded at the end with 0."""

    name: str
    vocabulary: int
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a model is built for: its inputs and outputs.

    num_columns numbers, of which `edges` holds the quantiles (standardised) of each, then num_indicators columns that
    are 1.0 where a number was null; one cardinality for each categorical column; num_outputs logits or values; and one
    input of its own for each column of tensors or of text.
    """

    num_columns: int
    num_indicators: int
    edges: tuple[tuple[float, ...], ...]
    cardinalities: tuple[int, ...]
    num_outputs: int
    tensors: tuple[TensorInput, ...] = ()
    texts: tuple[TextInput, ...] = ()

    @property
    def num_numeric(self) -> int:
        return self.num_columns + self.num_indicators


@dataclass(frozen=True)
class Batch:
    """`inputs` are passed to the model by name: `model(**batch.inputs)`.

    inputs: name -> (B, ...); target: (B,) class indices (int64) or standardised values (float32);
    weight: (B,) float32, what each row counts in the loss; extra: name -> (B, ...), what else a method reads of its
    rows.
    """

    inputs: Mapping[str, Tensor]
    target: Tensor
    weight: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.target.shape[0]

    def take(self, index: Tensor) -> Batch:
        """The rows at `index` (int64), in that order."""
        return self.each(lambda value: value.index_select(0, index))

    def rows(self, start: int, end: int) -> Batch:
        """The rows from `start` to `end`, as views."""
        return self.each(lambda value: value[start:end])

    def chunks(self) -> Iterator[Batch]:
        """All rows, `rows_at_once`; one empty batch where there are none."""
        for start in range(0, max(len(self), 1), self.rows_at_once):
            yield self.rows(start, min(start + self.rows_at_once, len(self)))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self.each(lambda value: value.to(device, non_blocking=non_blocking))

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with `change` made to each of its tensors."""
        return Batch(
            {name: change(value) for name, value in self.inputs.items()},
            change(self.target),
            change(self.weight),
            {name: change(value) for name, value in self.extra.items()},
        )

    @property
    def rows_at_once(self) -> int:
        """How many rows to pass to a model at once when no gradient is taken: fewer of large ones. An integer counts as
        the vector that is looked up for it."""
        sizes = [v[:1].numel() * (4 if v.is_floating_point() else 256) for v in self.inputs.values() if len(v)]
        return max(32, min(8_192, PASS_BYTES // max(1, sum(sizes))))

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.inputs.values(), self.target, self.weight))


def join(batches: Sequence[Batch]) -> Batch:
    """Rows of all batches one after another; weights are kept as they are, and what is extra is left behind."""
    if len(batches) == 1:
        return batches[0]
    return Batch(
        {name: torch.cat([b.inputs[name] for b in batches]) for name in batches[0].inputs},
        torch.cat([b.target for b in batches]),
        torch.cat([b.weight for b in batches]),
    )
