"""The per-example empirical Fisher information, diagonal."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from cltrain.batch import Batch
from cltrain.task import row_losses

BUDGET_BYTES = 256 << 20


def squared_gradient_sum(
    model: nn.Module, task: str, batch: Batch, budget_bytes: int = BUDGET_BYTES
) -> dict[str, Tensor]:
    """Sum over rows of the squared gradient of each row's own loss, by parameter name.

    Divided by the number of rows this is the diagonal of the empirical Fisher (Kunstner et al. 2019, eq. 3, with the
    labels of the data). The square of a batch's mean gradient, which libraries often use in its place, shrinks
    with the size of the batch. Gradients of a chunk of rows are held at once, within `budget_bytes`.
    """
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    fixed = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    buffers = dict(model.named_buffers())

    def loss_of_row(params: dict[str, Tensor], inputs: dict[str, Tensor], target: Tensor) -> Tensor:
        one = {name: value.unsqueeze(0) for name, value in inputs.items()}
        outputs = functional_call(model, {**params, **fixed, **buffers}, kwargs=one)
        return row_losses(task, outputs, target.unsqueeze(0))[0]

    gradients = vmap(grad(loss_of_row), in_dims=(None, 0, 0))
    size = sum(p.numel() * p.element_size() for p in parameters.values())
    chunk = max(1, min(len(batch), budget_bytes // max(size, 1)))
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(batch), chunk):
            part = batch.take(torch.arange(start, min(start + chunk, len(batch)), device=batch.target.device))
            for name, value in gradients(parameters, dict(part.inputs), part.target).items():
                total[name] += value.square_().sum(0)
    finally:
        model.train(was_training)
    return total
