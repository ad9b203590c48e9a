"""The questions that a method answers. There are no hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import torch
from torch import Tensor, nn

from cltrain.batch import Batch
from cltrain.memory import Seen
from cltrain.models.embeddings import outputs_and_embeddings
from cltrain.task import doubts, known_losses, row_losses

Named = dict[str, Tensor]
ENCODED_ROWS = 8_192
OUTPUTS = "_outputs"  # column of a memory: what the model said of the row when it was admitted


@dataclass(frozen=True, kw_only=True)
class MethodState:
    """What a method remembers: exemplars as an Arrow table, and tensors by slot and parameter, such as
    `tensors["fisher"]["head.weight"]`. It is part of the version: a rejected challenger takes its own with it.

    While an update runs its tensors are a copy on the device, cut into the engine's pieces; `penalise` may add slots
    and change them in place."""

    memory: pa.Table | None = None
    tensors: Mapping[str, Named] = field(default_factory=dict)

    @property
    def memory_rows(self) -> int:
        return 0 if self.memory is None else self.memory.num_rows


@dataclass(frozen=True, kw_only=True)
class Joined:
    """One step's rows of this rank after the forward pass: `fresh` new ones and then the rehearsed ones, with what a
    method reads of them in `new` and `old`.

    `outputs` (B, C) are the model's. The means are over the global batch: a rank adds what its rows contribute, and the
    ranks' gradients add up. `even` says that the rows here are all there are, and that each weighs 1.
    """

    task: str
    outputs: Tensor
    target: Tensor
    weight: Tensor
    fresh: int
    new_weight: Tensor | float
    old_weight: Tensor | float
    even: bool
    new: Mapping[str, Tensor]
    old: Mapping[str, Tensor]

    @property
    def has_old(self) -> bool:
        return self.outputs.shape[0] > self.fresh

    def labels(self, rehearsed_weight: float | None) -> Tensor:
        """The mean loss of the labels: see `Method.rehearsed_weight`."""
        if self.even:
            if rehearsed_weight is None or not self.has_old:
                return known_losses(self.task, self.outputs, self.target, "mean")
            labels = known_losses(self.task, self.outputs[: self.fresh], self.target[: self.fresh], "mean")
            if not rehearsed_weight:
                return labels
            old = known_losses(self.task, self.outputs[self.fresh :], self.target[self.fresh :], "mean")
            return labels + rehearsed_weight * old
        losses = known_losses(self.task, self.outputs, self.target)
        if rehearsed_weight is None:
            return (losses * self.weight).sum() / (self.new_weight + self.old_weight)
        labels = self.mean_new(losses[: self.fresh])
        return labels + rehearsed_weight * self.mean_old(losses[self.fresh :]) if self.has_old else labels

    def mean_new(self, values: Tensor) -> Tensor:
        """Weighted mean over the new rows of `values`, (fresh,)."""
        if self.even:
            return values.mean()
        return (values * self.weight[: self.fresh]).sum() / self.new_weight

    def mean_old(self, values: Tensor) -> Tensor:
        """Weighted mean over the rehearsed rows of `values`, (B - fresh,)."""
        if self.even:
            return values.mean()
        return (values * self.weight[self.fresh :]).sum() / self.old_weight


@dataclass(frozen=True, kw_only=True)
class Absorbed:
    """What an update ends with: the model in eval mode with all its parameters, its rows as events (`rows`) and as
    tensors (`batch`), in the same order, with those that were kept aside to stop early; `encode`, which makes a batch
    of other events; `said` (N, C), for a method that `records`, NaN for rows that were not trained on; and `reduce`,
    which adds up a tensor over the ranks that each hold a `shard`. All ranks have all
    rows."""

    model: nn.Module
    task: str
    rows: pa.Table
    batch: Batch
    seed: int
    encode: Callable[[pa.Table], Batch]
    said: Tensor | None = None
    shard: Callable[[Tensor], Tensor] = lambda index: index
    reduce: Callable[[Tensor], Tensor] = lambda value: value

    def weights(self) -> Named:
        """Copies of the parameters that were trained."""
        return {n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad}

    def outputs(self, rows: pa.Table) -> Tensor:
        """What the model says of other events, (N, C) as in `row_losses`."""
        with torch.no_grad():
            return torch.cat([self.model(**part.inputs).float() for part in self._chunks(rows)])

    def see(self, rows: pa.Table) -> Seen:
        """What a memory may want to know of other events to choose among them."""
        found: dict[str, list[Tensor]] = {"losses": [], "uncertainty": [], "embeddings": []}
        for part in self._chunks(rows):
            with torch.no_grad():
                outputs, embeddings = outputs_and_embeddings(self.model, part.inputs)
                found["losses"].append(row_losses(self.task, outputs.float(), part.target))
                found["uncertainty"].append(doubts(self.task, outputs.float()))
                found["embeddings"].append(embeddings.float())
        return Seen(**{name: torch.cat(parts).cpu().numpy() for name, parts in found.items()})

    def _chunks(self, rows: pa.Table) -> Iterator[Batch]:
        device = next(self.model.parameters()).device
        for start in range(0, max(rows.num_rows, 1), ENCODED_ROWS):
            for part in self.encode(rows.slice(start, ENCODED_ROWS)).chunks():
                yield part.to(device)


class Method:
    """Answers nothing: plain fine-tuning. Other methods override what they answer.

    needs: what the method asks of an engine (see `Plain.offers`); one that lacks it is refused before training starts.
    reads: what it wants to find in `Joined.new` and `Joined.old`. "parent": the outputs (fresh, K) of the parent for
    the new rows, where there is a parent. "outputs": those (B - fresh, C) that the memory holds of the rehearsed rows;
    and, where some are of fewer classes, "outputs_known", 1 where there is one.
    stateful: False where every update starts from scratch, on the history that recalibration uses.
    restarts: True where every update starts from fresh weights, but on what the memory holds.
    rehearsed_weight: what the mean loss of the rehearsed rows' labels counts beside that of the new rows. None: there
    is one mean over all rows, and each counts what it counted when it was new.
    records: True where it wants to know, in the end, what the model said of each new row when it last learned from it.
    reads_gradient: True where `penalise` looks at the gradient, which is then that of the loss, before other penalties.
    projects: True where rehearsed rows do not join the batch, but have a gradient of their own, given to `project`.
    """

    needs: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    stateful: bool = True
    restarts: bool = False
    rehearsed_weight: float | None = None
    records: bool = False
    reads_gradient: bool = False
    projects: bool = False

    @property
    def rehearses(self) -> bool:
        return type(self).rehearse is not Method.rehearse

    @property
    def has_terms(self) -> bool:
        return type(self).terms is not Method.terms

    @property
    def penalises(self) -> bool:
        return type(self).penalise is not Method.penalise

    @property
    def augments(self) -> bool:
        return type(self).augment is not Method.augment

    def rehearse(self, rows: int, remembered: int, generator: torch.Generator) -> Tensor | None:
        """Which of the `remembered` exemplars join a batch of `rows` new rows: (R,) int64 indices, or None."""
        return None

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The rehearsed rows as they are to be seen this time."""
        return batch

    def terms(self, joined: Joined) -> dict[str, Tensor]:
        """Terms of the loss by name, each a scalar in nats, beside that of the labels."""
        return {}

    def penalise(self, state: MethodState, values: Named, gradients: Named, step_size: float | None) -> None:
        """Add to the `gradients` of all rows, in place, what pulls the `values` of the parameters towards the past.
        `step_size` is the learning rate of an optimizer whose step is that times the gradient (SGD), None of others."""

    def project(self, gradients: Named, reference: Named, total: Callable[[Tensor], Tensor]) -> None:
        """Alter the `gradients` of the new rows, in place, given those of the rehearsed rows. `total` adds up over the
        ranks what each computed of its pieces."""

    def admit(self, state: MethodState, rows: pa.Table) -> MethodState:
        """State after the memory has taken in `rows`, asked before training of a method that `restarts`."""
        return state

    def staying(self, state: MethodState, rows: pa.Table) -> Tensor | None:
        """Which of the `rows` of an update it rehearses too, once they were learned: (K,) int64 indices, or None."""
        return None

    def absorb(self, state: MethodState, absorbed: Absorbed) -> MethodState:
        """State to remember when the update has ended, the same on every rank; `state` itself is not altered. Its
        tensors are whole here, by parameter name."""
        return state
