"""What an update can rehearse: what is remembered, and what of its own rows will be."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from cltrain.batch import Batch, join


class Pool:
    """The exemplars in a `batch`, and behind them those of the `rows` that are `staying`, in the order in which they
    are learned first. One of these can be rehearsed from the second step after that one on (the next one may be
    gathered already), with what the model said of it then, and in a further pass with what it said in the one before.

    order: the rows in the order of the first pass, without those that were kept aside.
    """

    def __init__(
        self, exemplars: Batch | None, rows: Batch, staying: Tensor | None, order: Tensor, num_outputs: int
    ) -> None:
        self.batch, self.remembered = exemplars, 0 if exemplars is None else len(exemplars)
        self._turns = torch.empty(0, dtype=torch.int64)  # in the first pass, of the rows that stay
        self.staying = self._turns if staying is None else staying
        if staying is None or not len(staying):
            return
        turns = torch.full((len(rows),), -1)
        turns[order.cpu()] = torch.arange(len(order))
        staying = staying[turns[staying] >= 0]
        self._turns, by_turn = turns[staying].sort()
        staying = self.staying = staying[by_turn].to(order.device)
        parts = [_with_outputs(rows.take(staying), num_outputs, known=1.0)]
        if exemplars is not None:
            parts.insert(0, _with_outputs(exemplars, num_outputs, known=0.0))
        extra = {name: torch.cat([part.extra[name] for part in parts]) for name in ("outputs", "outputs_known")}
        if extra["outputs_known"].all():
            del extra["outputs_known"]
        self.batch = dataclasses.replace(join(parts), extra=extra)

    def size(self, epoch: int, learned: int) -> int:
        """How many of the batch can be rehearsed in pass `epoch` when `learned` rows of it were learned: the first."""
        return self.remembered + (len(self._turns) if epoch else int(torch.searchsorted(self._turns, learned)))

    def record(self, learned: int, said: Tensor) -> None:
        """In the first pass, after `learned` rows, the model said `said` (N, C) of the next ones."""
        begin, end = torch.searchsorted(self._turns, torch.tensor([learned, learned + len(said)])).tolist()
        if begin < end:
            outputs = self.outputs
            assert outputs is not None
            outputs[begin:end] = said[(self._turns[begin:end] - learned).to(said.device)].to(outputs)

    @property
    def outputs(self) -> Tensor | None:
        """(K, C): what was said of the rows that stay."""
        if self.batch is None or not len(self._turns):
            return None
        return self.batch.extra["outputs"][self.remembered :]


def _with_outputs(batch: Batch, width: int, known: float) -> Batch:
    """With what was said, and whether it is: `known`, where the batch does not say."""
    outputs = batch.extra.get("outputs")
    if outputs is not None:
        known = 1.0
    like = batch.target.new_zeros((len(batch), width), dtype=torch.float32)
    extra = {"outputs": like if outputs is None else outputs}
    extra["outputs_known"] = batch.extra.get("outputs_known", torch.full_like(like, known))
    return dataclasses.replace(batch, extra=extra)
