"""What engines have in common whose ranks each keep a part of every parameter."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cltrain.train.engines.collective import clip_shards, mean_buffers, total
from cltrain.train.engines.plain import Named, Pull, Running


class ShardedRunning(Running):
    """`hollow` is the model as it was given, without the data of its parameters (see `hollowed`)."""

    def __init__(
        self,
        net: nn.Module,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        hollow: nn.Module,
        device: torch.device,
    ) -> None:
        super().__init__(net, module, optimizer)
        self.hollow, self.device = hollow, device

    def total(self, value: Tensor) -> Tensor:
        return total(value)

    def pieces(self) -> Named:
        """The values of this rank's pieces; no copies."""
        raise NotImplementedError

    def step(self, pull: Pull | None = None, max_norm: float | None = None) -> None:
        gradients = self.gradients()
        if pull is not None:
            values = self.pieces()
            pull({name: values[name] for name in gradients}, gradients)
        if max_norm is not None and gradients:
            clip_shards(gradients.values(), max_norm)
        self.optimizer.step()

    def weights(self) -> Named:
        """With the mean over the ranks of buffers of floats."""
        found = self.gather(self.net.state_dict())
        return found | {name: value for name, value in mean_buffers(self.net).items() if name in found}

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """A copy of the model in eval mode, whole on every rank: one device must have the room for all its parameters,
        beside the shards and what is then computed. To be read; what is changed in it is lost."""
        buffers = dict(self.net.named_buffers()) | mean_buffers(self.net)
        yield filled(self.hollow, {**buffers, **self.weights()}, self.device)


def hollowed(net: nn.Module) -> nn.Module:
    """A copy of `net` whose parameters have their shapes and no data, before an engine takes `net` apart."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in net.parameters()}
    return copy.deepcopy(net, empty)


def filled(hollow: nn.Module, values: Mapping[str, Tensor], device: torch.device) -> nn.Module:
    """A copy of `hollow` in eval mode, with copies of `values` as its parameters and buffers, on `device`."""
    made: dict[int, Tensor] = {
        id(p): nn.Parameter(values[name].to(device, copy=True), p.requires_grad)
        for name, p in hollow.named_parameters()
    }
    made |= {id(b): values[name].detach().to(device, copy=True) for name, b in hollow.named_buffers()}
    return copy.deepcopy(hollow, made).eval()
