"""One process, one device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Plain:
    """The interface of all engines: `rank` of `world` processes, on `device`."""

    device: torch.device = torch.device("cpu")  # noqa: RUF009
    rank: int = 0
    world: int = 1
    offers: frozenset[str] = frozenset({"whole_parameters"})

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call in a training step."""
        return model.to(self.device)

    def shard(self, index: Tensor) -> Tensor:
        """This rank's part of the indices of a global batch."""
        return index

    def sum(self, value: Tensor) -> Tensor:
        """`value` added up over all ranks; every rank must call it."""
        return value
