"""One training step. Read it downwards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cltrain.batch import UNKNOWN, Batch, join
from cltrain.methods import Method, MethodState
from cltrain.task import row_losses
from cltrain.train.engines.plain import Plain


@dataclass(kw_only=True)
class Stepper:
    """Takes steps on a model with one method; holds what stays the same from step to step.

    `exemplars` are the rows of the memory as tensors; `unknown_rate` is the share of categories that are hidden
    in training, so that the unknown category means "some category". All ranks draw the same indices and masks from `generator`,
    each then takes its share, so that two ranks do what one does.
    """

    module: nn.Module
    parameters: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    task: str
    method: Method
    state: MethodState
    exemplars: Batch | None
    engine: Plain
    generator: torch.Generator
    max_grad_norm: float | None = None
    unknown_rate: float = 0.0

    def step(self, rows: Batch, index: Tensor) -> tuple[Tensor, int]:
        """Train on `rows[index]`, the global batch, and on what the method rehearses.

        Returns this rank's share of the mean loss (a tensor, not yet waited for) and the number of rehearsed rows
        in the global batch.
        """
        remembered = 0 if self.exemplars is None else len(self.exemplars)
        rehearsed = self.method.rehearse(len(index), remembered, self.generator)

        parts = [rows.take(self.engine.shard(index))]
        total_weight = rows.weight[index].sum()
        if rehearsed is not None and self.exemplars is not None:
            rehearsed = rehearsed.to(self.engine.device)
            parts.append(self.exemplars.take(self.engine.shard(rehearsed)))
            total_weight = total_weight + self.exemplars.weight[rehearsed].sum()
        batch = join(parts)

        outputs = self.module(**batch.inputs)
        losses = row_losses(self.task, outputs, batch.target)
        loss = (losses * batch.weight).sum() * self.engine.world / total_weight

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.method.add_penalty_gradients(self.state, self.parameters)
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.max_grad_norm)
        self.optimizer.step()
        return loss.detach() / self.engine.world, 0 if rehearsed is None else len(rehearsed)

    def hide_categories(self, rows: Batch) -> Batch:
        """The same rows with a random `unknown_rate` of their categories replaced by the unknown one."""
        categorical = rows.inputs.get("categorical")
        if categorical is None or not categorical.numel() or not self.unknown_rate:
            return rows
        mask = torch.rand(categorical.shape, generator=self.generator) < self.unknown_rate
        hidden = categorical.masked_fill(mask.to(categorical.device), UNKNOWN)
        return Batch({**rows.inputs, "categorical": hidden}, rows.target, rows.weight)
