"""What the ranks of a process group do together."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def total(value: Tensor) -> Tensor:
    """`value` added up over the ranks; every rank must call it."""
    added = value.detach().clone()
    dist.all_reduce(added)
    return added


def clip_shards(gradients: Iterable[Tensor], max_norm: float) -> None:
    """Scale the gradients in place, of which each rank has its shards, so that the norm of all of them together is
    `max_norm` at most: `nn.utils.clip_grad_norm_`, over the ranks."""
    shards = list(gradients)
    norm = total(torch.stack(torch._foreach_norm(shards)).square().sum()).sqrt()
    torch._foreach_mul_(shards, (max_norm / (norm + 1e-6)).clamp(max=1.0))


def mean_buffers(net: nn.Module) -> dict[str, Tensor]:
    """The mean over the ranks of each buffer of floats, such as the running statistics of a batch norm, of which each
    rank saw its share; on the CPU."""
    buffers = {name: buffer for name, buffer in net.named_buffers() if buffer.is_floating_point()}
    return {name: (total(buffer) / dist.get_world_size()).cpu() for name, buffer in buffers.items()}
