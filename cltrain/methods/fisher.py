"""The per-example empirical Fisher information, diagonal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from cltrain.batch import Batch
from cltrain.task import row_losses

BUDGET_BYTES = 256 << 20
Named = dict[str, Tensor]


def squared_gradient_sum(model: nn.Module, task: str, batch: Batch, budget_bytes: int = BUDGET_BYTES) -> Named:
    """Sum over rows of the squared gradient of each row's own loss, by parameter name.

    Divided by the number of rows this is the diagonal of the empirical Fisher (Kunstner et al. 2019, eq. 3, with the
    labels of the data). The square of a batch's mean gradient, which libraries often use in its place, shrinks
    with the size of the batch. Gradients of a chunk of rows are held at once, within `budget_bytes`; a model that
    `torch.func.vmap` cannot trace takes its rows one by one. The weights of the rows do not count.
    """
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    fixed = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad} | dict(model.named_buffers())

    def loss_of_row(params: Named, inputs: Named, target: Tensor) -> Tensor:
        one = {name: value.unsqueeze(0) for name, value in inputs.items()}
        outputs = functional_call(model, {**params, **fixed}, kwargs=one)
        return row_losses(task, outputs, target.unsqueeze(0))[0]

    size = sum(p.numel() * p.element_size() for p in parameters.values())
    chunk = max(1, min(len(batch), budget_bytes // max(size, 1)))
    was_training = model.training
    model.eval()
    try:
        try:
            return _sum_of_squares(vmap(grad(loss_of_row), in_dims=(None, 0, 0)), parameters, batch, chunk)
        except RuntimeError:
            return _sum_of_squares(_one_by_one(grad(loss_of_row)), parameters, batch, 1)
    finally:
        model.train(was_training)


def _sum_of_squares(gradients: Callable[..., Named], parameters: Named, batch: Batch, chunk: int) -> Named:
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for part in _chunks(batch, chunk):
        for name, value in gradients(parameters, dict(part.inputs), part.target).items():
            total[name] += value.square_().sum(0)
    return total


def _chunks(batch: Batch, rows: int) -> Iterator[Batch]:
    for index in torch.arange(len(batch), device=batch.target.device).split(rows):
        if len(index):
            yield batch.take(index)


def _one_by_one(gradient: Callable[..., Named]) -> Callable[..., Named]:
    def of_chunk(params: Named, inputs: Named, target: Tensor) -> Named:
        found = gradient(params, {name: value[0] for name, value in inputs.items()}, target[0])
        return {name: value.unsqueeze(0) for name, value in found.items()}

    return of_chunk
