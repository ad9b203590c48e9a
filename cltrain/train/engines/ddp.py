"""Data parallel: each rank takes its share of every batch; gradients are averaged (`DistributedDataParallel`)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cltrain.train.engines.collective import mean_buffers, total
from cltrain.train.engines.plain import Named, Plain, Running


@dataclass(frozen=True, kw_only=True)
class Ranks(Plain):
    """Base of the engines of several processes. Needs a process group (gloo or NCCL) that is already initialised."""

    @classmethod
    def of_process_group(cls, device: torch.device, **settings: Any) -> Self:
        return cls(device=device, rank=dist.get_rank(), world=dist.get_world_size(), **settings)

    def shard(self, index: Tensor) -> Tensor:
        return index[self.rank :: self.world]

    def sum(self, value: Tensor) -> Tensor:
        return total(value)


@dataclass(frozen=True, kw_only=True)
class DDP(Ranks):
    def begin(self, net: nn.Module, optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> Running:
        ids = [self.device.index] if self.device.type == "cuda" else None
        net.to(self.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the new name of broadcast_buffers is not in every torch
            module = DistributedDataParallel(net, device_ids=ids, broadcast_buffers=False)
        return DDPRunning(net, module, optimizer(net))


class DDPRunning(Running):
    module: DistributedDataParallel

    def backward(self, loss: Tensor, first: bool = True) -> None:
        super().backward(loss * dist.get_world_size(), first)  # DDP takes the mean over the ranks

    def without_sync(self) -> AbstractContextManager[None]:
        return self.module.no_sync()

    def weights(self) -> Named:
        """With the mean over the ranks of buffers of floats."""
        found = super().weights()
        return found | {name: value for name, value in mean_buffers(self.net).items() if name in found}
