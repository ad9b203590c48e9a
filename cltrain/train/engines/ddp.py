"""Data parallel: each rank takes its share of every batch; gradients are averaged (`DistributedDataParallel`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cltrain.train.engines.plain import Plain


@dataclass(frozen=True, kw_only=True)
class DDP(Plain):
    """Needs a process group (gloo or NCCL) that is already initialised."""

    @classmethod
    def of_process_group(cls, device: torch.device) -> DDP:
        return cls(device=device, rank=dist.get_rank(), world=dist.get_world_size())

    def wrap(self, model: nn.Module) -> nn.Module:
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model.to(self.device), device_ids=ids, broadcast_buffers=False)

    def shard(self, index: Tensor) -> Tensor:
        return index[self.rank :: self.world]

    def sum(self, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total
