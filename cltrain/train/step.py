"""One training step. Read it downwards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cltrain.batch import UNKNOWN, Batch
from cltrain.methods import Method, MethodState
from cltrain.task import row_losses
from cltrain.train.engines.plain import Plain


@dataclass(kw_only=True)
class Stepper:
    """Takes steps on a model with one method; holds what stays the same from step to step.

    The rows of a pass are one batch: `fresh` new rows, and then the exemplars of the memory. All ranks draw the same
    indices from `generator` and each then takes its share, so that two ranks do what one does.
    """

    module: nn.Module
    parameters: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    task: str
    method: Method
    state: MethodState
    engine: Plain
    generator: torch.Generator
    max_grad_norm: float | None = None

    def step(self, rows: Batch, fresh: int, index: Tensor) -> tuple[Tensor, int]:
        """Train on `rows[index]`, the global batch of new rows, and on what the method rehearses of `rows[fresh:]`.

        Returns this rank's share of the mean loss (a tensor, not yet waited for) and the number of rehearsed rows
        in the global batch.
        """
        rehearsed = self.method.rehearse(len(index), len(rows) - fresh, self.generator)
        if rehearsed is not None:
            index = torch.cat([index, rehearsed.to(index.device) + fresh])

        batch = rows.take(self.engine.shard(index))
        weight, total_weight = batch.weight, batch.weight.sum()
        if self.engine.world > 1:
            total_weight = rows.weight.index_select(0, index).sum()
            if not len(batch):
                # Every rank must reach the all-reduce of the gradients: one row, which counts nothing.
                batch = rows.take(index[:1])
                weight = torch.zeros_like(batch.weight)

        outputs = self.module(**batch.inputs)
        losses = row_losses(self.task, outputs, batch.target)
        loss = (losses * weight).sum() / total_weight

        self.optimizer.zero_grad(set_to_none=True)
        (loss * self.engine.world if self.engine.world > 1 else loss).backward()
        self.method.add_penalty_gradients(self.state, self.parameters)
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.max_grad_norm)
        self.optimizer.step()
        return loss.detach(), 0 if rehearsed is None else len(rehearsed)


def hide_categories(rows: Batch, rate: float, generator: torch.Generator) -> Batch:
    """The same rows with a random `rate` of their categories replaced by the unknown one, which thereby comes to mean
    "some category"."""
    categorical = rows.inputs.get("categorical")
    if categorical is None or not categorical.numel() or not rate:
        return rows
    mask = torch.rand(categorical.shape, generator=generator) < rate
    hidden = categorical.masked_fill(mask.to(categorical.device), UNKNOWN)
    return Batch({**rows.inputs, "categorical": hidden}, rows.target, rows.weight)
