"""Importance of parameters from per-example gradients: the diagonal empirical Fisher information, and MAS's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from cltrain.batch import Batch
from cltrain.methods.base import Absorbed
from cltrain.seeding import torch_generator
from cltrain.task import row_losses

BUDGET_BYTES = 32 << 20  # half the time of 256 MiB on a CPU, whose caches it is nearer to
Named = dict[str, Tensor]
Scalar = Callable[[Tensor, Tensor], Tensor]  # of outputs (1, C) and target (1,) of one row


def squared_gradient_sum(model: nn.Module, task: str, batch: Batch, budget_bytes: int = BUDGET_BYTES) -> Named:
    """Sum over rows of the squared gradient of each row's own loss, by parameter name.

    Divided by the number of rows this is the diagonal of the empirical Fisher (Kunstner et al. 2019, eq. 3, with the
    labels of the data). The square of a batch's mean gradient, which libraries often use in its place, shrinks
    with the size of the batch. Where all parameters are of linear layers it costs about two backward passes. Else the
    gradients of a chunk of rows are held at once, within `budget_bytes`; a model that `torch.func.vmap` cannot trace
    takes its rows one by one. The weights of the rows do not count.
    """
    if (found := _of_linear_layers(model, task, batch)) is not None:
        return found
    return _sum_over_rows(model, batch, lambda o, t: row_losses(task, o, t)[0], Tensor.square_, budget_bytes)


def output_sensitivity_sum(model: nn.Module, batch: Batch, budget_bytes: int = BUDGET_BYTES) -> Named:
    """Sum over rows of the absolute gradient of the squared length of a row's outputs (Aljundi et al. 2018, eq. 3)."""
    return _sum_over_rows(model, batch, lambda o, _: o.square().sum(), Tensor.abs_, budget_bytes)


def held_in(absorbed: Absorbed, budget_rows: int, name: str) -> tuple[Batch, int]:
    """This rank's share of a sample of the rows that were trained on, on the model's device, and the number of rows in
    the whole sample."""
    generator = torch_generator(absorbed.seed, name)
    chosen = torch.randperm(len(absorbed.batch), generator=generator)[:budget_rows]
    share = absorbed.shard(chosen).to(absorbed.batch.target.device)
    return absorbed.batch.take(share).to(next(absorbed.model.parameters()).device), len(chosen)


def _of_linear_layers(model: nn.Module, task: str, batch: Batch) -> Named | None:
    """`squared_gradient_sum` where all parameters are of linear layers, each of them called once, on (B, I).

    A row's gradient of a weight is then the outer product of its gradient of the layer's outputs and of the layer's
    inputs, so the sum of the squares is a product of squares (Goodfellow 2015 does so for norms). None where the sums
    of the gradients themselves, put together in this way, are not those of autograd: the model is another one.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    held = {f"{name}.{of}".lstrip("."): layer for name, layer in layers.items() for of, _ in layer.named_parameters()}
    if held.keys() != trained.keys() or not trained or not len(batch):
        return None
    calls: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers.values()}

    def keep(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if given:
            calls[layer].append((given[0].detach(), output))

    hooks = [layer.register_forward_hook(keep) for layer in calls]
    was_training = model.training
    model.eval()
    try:
        loss = row_losses(task, model(**batch.inputs), batch.target).sum()
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    if any(len(call) != 1 or call[0][0].shape[:-1] != (len(batch),) for call in calls.values()):
        return None
    outputs = [call[0][1] for call in calls.values()]
    found = torch.autograd.grad(loss, [*outputs, *trained.values()])
    of_output, total = dict(zip(calls, found, strict=False)), {}
    for (name, layer), summed in zip(held.items(), found[len(outputs) :], strict=True):
        left = of_output[layer].T
        right = calls[layer][0][0] if trained[name].dim() == 2 else left.new_ones(len(batch))
        if not (left @ right - summed).abs().max() <= 1e-3 * summed.abs().max():
            return None
        total[name] = left.square() @ right.square()
    return total


def _sum_over_rows(
    model: nn.Module, batch: Batch, scalar: Scalar, size: Callable[[Tensor], Tensor], budget_bytes: int
) -> Named:
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    fixed = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad} | dict(model.named_buffers())

    def of_row(params: Named, inputs: Named, target: Tensor) -> Tensor:
        one = {name: value.unsqueeze(0) for name, value in inputs.items()}
        return scalar(functional_call(model, {**params, **fixed}, kwargs=one), target.unsqueeze(0))

    num_bytes = sum(p.numel() * p.element_size() for p in parameters.values())
    chunk = max(1, min(len(batch), budget_bytes // max(num_bytes, 1)))
    was_training = model.training
    model.eval()
    try:
        try:
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule, and one row follows another
                return _summed(vmap(grad(of_row), in_dims=(None, 0, 0)), parameters, batch, chunk, size)
        except RuntimeError:
            return _summed(_one_by_one(grad(of_row)), parameters, batch, 1, size)
    finally:
        model.train(was_training)


def _summed(
    gradients: Callable[..., Named], parameters: Named, batch: Batch, chunk: int, size: Callable[[Tensor], Tensor]
) -> Named:
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for part in _chunks(batch, chunk):
        for name, value in gradients(parameters, dict(part.inputs), part.target).items():
            total[name] += size(value).sum(0)
    return total


def _chunks(batch: Batch, rows: int) -> Iterator[Batch]:
    for start in range(0, len(batch), rows):
        yield batch.rows(start, min(start + rows, len(batch)))


def _one_by_one(gradient: Callable[..., Named]) -> Callable[..., Named]:
    def of_chunk(params: Named, inputs: Named, target: Tensor) -> Named:
        found = gradient(params, {name: value[0] for name, value in inputs.items()}, target[0])
        return {name: value.unsqueeze(0) for name, value in found.items()}

    return of_chunk
